"""train.py as a user meets it: folders, signals, exit codes, resume."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from adamwprune import run_directory
from adamwprune.command_line import prepare
from adamwprune.composition import CONF_DIR
from adamwprune.errors import CheckpointError, DiskError
from tests.helpers.runs import IMAGES, final_weights, rows, summary

ROOT = CONF_DIR.parent
LONG = (
    *IMAGES,
    "optimizer=adamwprune",
    "pruning.update_every=7",
    "trainer.max_steps=4000",
    "trainer.eval_every=1000",
)


def spawn(directory, *arguments):
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(directory, count):
    """The folder of the one run below, once it has written some rows."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for file in directory.glob("outputs/*/*/metrics.jsonl"):
            if len(file.read_text().splitlines()) >= count:
                return file.parent
        time.sleep(0.05)
    raise AssertionError("the run did not start")


@pytest.mark.parametrize(
    ("number", "code", "status"), [(signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_saves_and_the_run_continues_to_the_bit(tmp_path, number, code, status):
    """Stopped in the middle by a signal, resumed by the command line: equal to an unbroken run."""
    process = spawn(tmp_path, *LONG)
    directory = wait_for_rows(tmp_path, 20)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors.strip().splitlines()[-1].startswith(f"error[{code}]: ")
    assert summary(directory)["status"] == status
    assert 0 < summary(directory)["steps"] < 4000

    resumed = spawn(tmp_path, f"resume={directory.relative_to(tmp_path)}", "trainer.stop_step=600")
    _, errors = resumed.communicate(timeout=100)
    assert resumed.returncode == 75, errors
    unbroken = spawn(tmp_path, *LONG, "trainer.stop_step=600", "hydra.run.dir=unbroken")
    unbroken.communicate(timeout=100)
    assert rows(directory) == rows(tmp_path / "unbroken")
    first, second = final_weights(directory), final_weights(tmp_path / "unbroken")
    assert all((first[name] == second[name]).all() for name in first)
    assert len(json.loads((directory / "run.json").read_text())["sessions"]) == 2


def test_eight_runs_of_one_moment_get_eight_folders(tmp_path):
    """The claim is exclusive."""
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: run_directory.claim(tmp_path / "outputs" / "run"), range(8)))
    assert len(set(claimed)) == 8
    assert {path.name for path in claimed} == {"run", *(f"run-{number}" for number in range(2, 9))}


def test_a_folder_that_cannot_be_made_is_exit_9(tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"hydra.run.dir=.*File exists"):
        run_directory.claim(tmp_path / "file" / "run")


def test_two_runs_of_one_second_differ_in_name_too(tmp_path, monkeypatch):
    """Folder and run name carry the same suffix."""
    monkeypatch.chdir(tmp_path)
    first, second = prepare(list(IMAGES)), prepare(list(IMAGES))
    names = [next(o for o in line if o.startswith("run_name=")) for line in (first, second)]
    assert names[1] == f"{names[0]}-2"
    assert len(list(tmp_path.glob("outputs/*/*/run.json"))) == 2


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_resuming_what_is_no_run_is_exit_5(tmp_path, monkeypatch, place):
    """A missing folder, and one without a run."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no run there"):
        prepare([f"resume={place}"])


def test_a_resumed_run_may_not_change_its_course(tmp_path, monkeypatch, capsys):
    """A science key is exit 5 and named; a harmless one passes; a finished run is left alone."""
    monkeypatch.chdir(tmp_path)
    prepare([*IMAGES, "hydra.run.dir=run"])
    with pytest.raises(CheckpointError, match=r"optimizer.lr: 0.002 -> 0.5.*resume_allow=\[optimizer.lr\]"):
        prepare(["resume=run", "optimizer.lr=0.5"])
    with pytest.raises(CheckpointError, match=r"seed: 1 -> 2"):
        prepare(["resume=run", "seed=2"])
    continued = prepare(["resume=run", "tracker=both", "trainer.max_time=60"])
    assert f"hydra.run.dir='{tmp_path / 'run'}'" in continued
    prepare(["resume=run", "optimizer.lr=0.5", "resume_allow=[optimizer.lr]"])
    (tmp_path / "run" / "summary.json").write_text('{"status": "finished"}')
    with pytest.raises(SystemExit) as caught:
        prepare(["resume=run"])
    assert caught.value.code == 0
    assert "already complete" in capsys.readouterr().err


def test_output_that_nobody_reads_stops_no_run(tmp_path):
    """`python train.py | head -1` with the pipe closed: the run goes on to its end."""
    overrides = " ".join([*IMAGES, "trainer.max_steps=8", "hydra.run.dir=run"])
    command = f"{sys.executable} {ROOT / 'train.py'} {overrides} 2>&1 | head -1"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, timeout=60, check=True, capture_output=True)
    deadline = time.monotonic() + 20
    while not (tmp_path / "run" / "summary.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert summary(tmp_path / "run")["status"] == "finished"


def test_unsuited_environment_variables_are_not_needed(tmp_path):
    """An empty HOME and no TERM: a run from nothing."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "CUDA_VISIBLE_DEVICES": ""}
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *IMAGES, "trainer.max_steps=4"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Run finished" in done.stdout
