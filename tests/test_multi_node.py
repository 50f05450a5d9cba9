"""Two launchers on loopback, as on two machines: one run, and an end for both if one is lost."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from adamwprune.composition import CONF_DIR
from adamwprune.errors import CheckpointError, ConfigError, DataError, HardwareError, Preempted, RunError
from adamwprune.rank_errors import speaker
from tests.helpers.runs import IMAGES, final_weights, rows, summary

ROOT = CONF_DIR.parent
TWO = "hardware.num_devices=2"
PRUNED = ("pruning=magnitude", "pruning.update_every=3", "trainer.log_every=1", "hardware.threads=1")


def launcher(port, *, nodes=2, ranks=1):
    """The command line that joins `nodes` machines, typed on each of them."""
    return (
        *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={ranks}"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test", "--max-restarts=0"),
        str(ROOT / "train.py"),
    )


class Nodes:
    """Two machines with a folder each: their processes, and what they say."""

    def __init__(self, directory, *arguments):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folders = [directory / "first", directory / "second"]
        self.processes = []
        for folder in self.folders:
            folder.mkdir()
            with (folder / "console").open("w") as console:
                self.processes.append(
                    subprocess.Popen(
                        [*launcher(port), *arguments],
                        cwd=folder,
                        stdout=console,
                        stderr=console,
                        start_new_session=True,
                        env={**os.environ, "PYTHONPATH": str(ROOT), "ADAMWPRUNE_OUTPUTS": str(directory)},
                    )
                )

    def wait(self, seconds=120):
        """Their exit codes."""
        return [process.wait(seconds) for process in self.processes]

    def said(self):
        """All that both wrote."""
        return "\n".join((folder / "console").read_text() for folder in self.folders)

    def left(self):
        """Processes that still run in their folders."""
        links = Path("/proc").glob("[0-9]*/cwd")
        return [link for link in links if _target(link) in self.folders]


def _target(link):
    try:
        return link.readlink()
    except OSError:  # the process has ended, or is another user's
        return None


def wait_for_rows(directory, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (directory / "metrics.jsonl").exists() and rows(directory):
            return
        time.sleep(0.05)
    raise AssertionError("the run does not begin")


# --------------------------------------------------------------------------- who says what


@pytest.mark.parametrize(
    ("error", "speakers"),
    [
        (ConfigError, [0]),
        (Preempted, [0]),
        (HardwareError, [0, 2]),
        (DataError, [0, 2]),
        (CheckpointError, [0, 2]),
        (RunError, [0, 1, 2, 3]),
    ],
)
def test_one_mistake_is_said_once(monkeypatch, error, speakers):
    """Two machines with two ranks each: rank 0, the first of each, or the one it happened to speak."""
    found = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
        if (where := speaker(error("x"))) is not None:
            found.append(rank)
            assert where == "" if rank == 0 else f"on rank {rank} ({socket.gethostname()})" in where
    assert found == speakers


# ------------------------------------------------------------------------------------ whole runs


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_nodes_equal_one_node_with_two_ranks_to_the_bit(tmp_path, parallel):
    """Rows, weights and masks; rank 0 alone writes, where it is told to."""
    own = (*IMAGES, *PRUNED, TWO, "trainer.max_steps=12", f"hardware.parallel={parallel}")
    nodes = Nodes(tmp_path, *own, f"hydra.run.dir={tmp_path}/run")
    assert nodes.wait() == [0, 0], nodes.said()
    assert nodes.said().count("recorded in") == 1
    assert [sorted(file.name for file in folder.iterdir()) for folder in nodes.folders] == [["console"]] * 2
    command = [sys.executable, str(ROOT / "train.py"), *own, f"hydra.run.dir={tmp_path}/alone"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert summary(tmp_path / "run")["status"] == "finished"
    assert rows(tmp_path / "run") == rows(tmp_path / "alone")
    weights, others = final_weights(tmp_path / "run"), final_weights(tmp_path / "alone")
    assert all(torch.equal(weights[name], others[name]) for name in others)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_wrong_key_is_one_line_for_all_nodes(tmp_path):
    """Nothing is created, and both launchers end."""
    nodes = Nodes(tmp_path, *IMAGES, TWO, "optimizer.lr=-1")
    assert nodes.wait() == [1, 1]
    assert nodes.said().count("error[2]: optimizer.lr=-1: must be > 0") == 1
    assert [sorted(file.name for file in folder.iterdir()) for folder in nodes.folders] == [["console"]] * 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_lost_node_ends_the_other_with_a_line(tmp_path):
    """Launcher and rank of one are gone at once, as after a power cut: exit 1, no process is left."""
    own = ("trainer.max_steps=1000000", "trainer.eval_every=500000", f"hydra.run.dir={tmp_path}/run")
    nodes = Nodes(tmp_path, *IMAGES, TWO, *own)
    wait_for_rows(tmp_path / "run")
    lost = next(n for n, folder in enumerate(nodes.folders) if "recorded in" not in console(folder))
    os.killpg(nodes.processes[lost].pid, signal.SIGKILL)  # torchrun's rank is in a group of its own
    for link in nodes.left():
        if _target(link) == nodes.folders[lost]:
            os.kill(int(link.parent.name), signal.SIGKILL)
    assert nodes.processes[1 - lost].wait(100) == 1
    assert len(re.findall(r"error\[1\]: another rank has ended or does not answer", nodes.said())) == 1
    assert "from the last checkpoint: python train.py resume=" in nodes.said()
    assert nodes.left() == []
    report = summary(tmp_path / "run")
    assert (report["status"], report["exit_code"]) == ("failed", 1)


def console(folder):
    return (folder / "console").read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_launcher_that_dies_stops_its_rank_and_so_the_run(tmp_path):
    """The rank that it leaves behind asks for a stop: both save at one step, and nothing is left."""
    own = ("trainer.max_steps=1000000", "trainer.eval_every=500000", f"hydra.run.dir={tmp_path}/run")
    nodes = Nodes(tmp_path, *IMAGES, TWO, *own)
    wait_for_rows(tmp_path / "run")
    lost = next(n for n, folder in enumerate(nodes.folders) if "recorded in" not in console(folder))
    nodes.processes[lost].kill()
    assert nodes.processes[1 - lost].wait(100) == 1
    report = summary(tmp_path / "run")
    assert (report["status"], report["exit_code"]) == ("preempted", 75)
    assert report["steps"] > 0
    deadline = time.monotonic() + 20
    while nodes.left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert nodes.left() == []
