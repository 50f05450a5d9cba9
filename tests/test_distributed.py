"""Two ranks on gloo: one run, equal weights and masks, distinct data; and the ways to start them."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from adamwprune.command_line import prepare
from adamwprune.composition import CONF_DIR
from adamwprune.errors import ConfigError, HardwareError
from adamwprune.preflight import check_devices, check_machine
from tests.helpers.ranks import run_ranks, train_and_look
from tests.helpers.runs import IMAGES, TOKENS, configure, final_weights, rows, run, start, summary

ROOT = CONF_DIR.parent
TWO = ("hardware.num_devices=2",)
PRUNED = ("pruning=state", "pruning.update_every=3", "pruning.target_sparsity=0.8")
SHORT = (*TOKENS, *PRUNED, "model.dropout=0.0", "trainer.max_steps=16", "trainer.log_every=1")


def cli(directory, *arguments, launcher=()):
    """Run train.py as a user does; the finished process."""
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=110)


def test_two_ranks_hold_equal_weights_and_masks_see_distinct_data_and_equal_one_rank(tmp_path):
    """Sums in another order only: losses within 1e-4 of one rank's with the same global batch."""
    config, directory = start(tmp_path / "two", *SHORT, *TWO)
    first, second = run_ranks(train_and_look, 2, config, directory)
    assert first["masks"] == second["masks"]
    assert all((first["weights"][name] == second["weights"][name]).all() for name in first["weights"])
    assert not set(first["seen"]) & set(second["seen"])

    alone = run(tmp_path / "one", *SHORT)
    losses = [[row["train/loss"] for row in rows(path)] for path in (directory, alone)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    values = [[row["val/loss"] for row in rows(path) if "val/loss" in row] for path in (directory, alone)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4)
    assert summary(directory)["sparsity"]["achieved"] == summary(alone)["sparsity"]["achieved"]
    weights = final_weights(directory)
    assert all((weights[name].numpy() == first["weights"][name]).all() for name in weights)


def test_hardware_option_starts_its_ranks_itself_in_one_folder(tmp_path):
    """`hardware=a10gx4` on gloo by the command line: one folder, one log, exit 0."""
    done = cli(
        tmp_path,
        *IMAGES,
        *PRUNED,
        "hardware=a10gx4",
        "hardware.device=cpu",
        "hardware.num_devices=2",
        "hardware.compile=false",
        "trainer.max_steps=12",
    )
    assert done.returncode == 0, done.stderr
    (directory,) = tmp_path.glob("outputs/*/*")
    assert summary(directory)["status"] == "finished"
    assert (directory / "train.log").read_text().count("recorded in") == 1
    assert "world_size" in (directory / "run.json").read_text()


def test_torchrun_joins_in_one_folder(tmp_path):
    """Ranks that torchrun started compose alike; rank 0 alone claims and writes."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = cli(tmp_path, *IMAGES, *TWO, "trainer.max_steps=8", launcher=launcher)
    assert done.returncode == 0, done.stderr
    (directory,) = tmp_path.glob("outputs/*/*")
    assert summary(directory)["status"] == "finished"


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGUSR1, 75, "preempted", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 75, "preempted", marks=pytest.mark.slow),
    ],
)
def test_a_stop_asked_of_the_launcher_reaches_every_rank_once(tmp_path, number, code, status):
    """The ranks save at one step; process, summary and trackers agree on the code; no rank is left."""
    overrides = (*IMAGES, *TWO, "trainer.max_steps=100000", "trainer.eval_every=50000", "hydra.run.dir=run")
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    report = summary(tmp_path / "run")
    assert (report["status"], report["exit_code"]) == (status, code)
    assert report["steps"] > 0
    left = [file for file in Path("/proc").glob("[0-9]*/cwd") if _points_to(file, tmp_path)]
    assert left == []


def _points_to(link, folder):
    try:
        return link.readlink() == folder
    except OSError:  # the process has ended, or is another user's
        return False


def test_a_sweep_under_torchrun_is_refused(monkeypatch):
    """Each rank would run the whole sweep."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(HardwareError, match="without torchrun"):
        prepare(["-m", "seed=1,2"])


def test_a_rank_of_torchrun_other_than_0_makes_no_folder(tmp_path, monkeypatch):
    """It goes straight to training, where rank 0 tells the folder; Hydra never runs there."""
    from adamwprune import command_line
    from adamwprune import launch as launch_module

    monkeypatch.chdir(tmp_path)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2", **meeting}.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(launch_module, "launch", lambda config, directory, logging: calls.append(config))
    monkeypatch.setattr(command_line, "_leave", sys.exit)  # not os._exit: that would end the tests
    with pytest.raises(SystemExit) as caught:
        prepare([*IMAGES, *TWO])
    assert caught.value.code == 0
    assert len(calls) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_with_another_number_of_ranks_is_refused(monkeypatch):
    """Exit 4, with the number to type."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(HardwareError, match=r"add hardware\.num_devices=4"):
        check_devices(configure(*IMAGES, *TWO))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("option", ["gpu", "a10g", "a10gx4", "a100", "h100", "h100x8", "w7900", "b200x4"])
def test_every_cuda_option_says_what_to_type_instead(option):
    """Exit 4 without a device; `auto` and `cpu` go on."""
    with pytest.raises(HardwareError, match="hardware=cpu"):
        check_devices(configure("model=gpt2", f"hardware={option}"))
    check_devices(configure("hardware=auto"))
    with pytest.raises(HardwareError, match="a CPU has no fp16"):
        check_devices(configure("hardware=auto", "hardware.precision=fp16"))
    check_devices(configure("hardware=cpu"))


def test_state_pruning_without_the_state_is_refused_before_the_run():
    """SGD keeps no second moment; Adam does (control)."""
    with pytest.raises(ConfigError, match=r"needs exp_avg_sq, which SGD does not keep"):
        check_machine(configure("optimizer=sgd", "pruning=state"))
    check_machine(configure("optimizer=adam", "pruning=state"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("pruning/scope=global", "pruning.scope.max_layer_sparsity=0.9", "pruning/mode=soft"),
            r"pruning\.mode=soft: .*leaves no room above the target",
        ),
        (("pruning/scope=nm",), r"conv2\.weight, .*not a multiple of 4"),
        (("pruning/scope=row", "pruning.target_sparsity=0.999"), r"all 2,400 weights of conv2\.weight"),
        (("optimizer=muon",), r"pruning\.mode=hard: Muon mixes"),
        (
            ("optimizer=adamwspam", "optimizer.reset_every=60", "pruning=state"),
            r"optimizer\.reset_every=60: moments restart",
        ),
        (("pruning=state", "pruning/schedule=constant"), "prunes before the first step"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_the_run(overrides, message):
    """What the pruner would refuse when a folder exists, the checks before it refuse."""
    chosen = () if any(o.startswith("pruning=") for o in overrides) else ("pruning=magnitude",)
    with pytest.raises(ConfigError, match=message):
        check_machine(configure(*IMAGES, "trainer.max_steps=300", *chosen, *overrides))


def test_the_missions_command_ends_with_exit_4_and_one_line(tmp_path):
    """As typed, on a machine without four devices."""
    if torch.cuda.device_count() >= 4:
        pytest.skip("this machine has them")
    done = cli(tmp_path, "model=gpt2", "hardware=a10gx4", "tracker=both")
    assert done.returncode == 4
    assert len(done.stderr.strip().splitlines()) == 1
    assert re.search(r"needs as many CUDA devices, found \d.*hardware=cpu", done.stderr)
    assert list(tmp_path.iterdir()) == []
