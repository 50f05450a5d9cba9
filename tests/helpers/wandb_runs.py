"""Runs that W&B's tracker follows from their start to their end, and what their files should hold."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from adamwprune.callbacks.base import Callback, RunInfo
from adamwprune.trackers.backend import environment
from adamwprune.trackers.wandb_files import WandbRun, fragments, read_run

ROOT = Path(__file__).parents[2]
SUMMARY = {"status": "finished", "metrics": {"final": {"val/loss": 0.5}, "best": {}}}

# A process that logs steps, waits until its tracker has given them to W&B, and is killed.
KILLED = """
import os, sys, time
from pathlib import Path
from adamwprune.callbacks.base import RunInfo
from adamwprune.trackers.wandb import wandb
from adamwprune.training.ledger import Ledger
directory, name, project, steps, seconds, url = sys.argv[1:]
directory = Path(directory)
callback = wandb(base_url=url, mode="online") if url else wandb(flush_interval=30.0)
callback.backend.settings["x_file_stream_transmit_interval"] = 1.0
run = RunInfo(directory.name, name, project, group=None, directory=directory, config={})
callback.on_train_start(run)
while callback.status()["wandb"]["state"] != "open":
    time.sleep(0.01)
ledger = Ledger(directory / "metrics.jsonl")
for step in range(int(steps)):
    ledger.write(step, 1764000000 + step / 3, {"train/loss": 1 / (step + 3)})
while callback.status()["wandb"]["sent"] < int(steps):
    time.sleep(0.01)
time.sleep(float(seconds))
os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def wandb_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """W&B's process, which all runs of a module share, away from the user's home; ended at the end."""
    import wandb

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        with environment(WANDB_SERVICE=None):  # which other processes of a test would join
            wandb.setup(wandb.Settings(silent=True)).ensure_service()
        yield wandb
        with suppress(ConnectionError):  # a test has killed it
            wandb.teardown()


def follow(callback: Callback, run: RunInfo, log: Callable[[], None], exit_code: int = 0) -> dict[str, Any]:
    """A run from its start to its end; the tracker's part of summary.json."""
    callback.on_train_start(run)
    log()
    return end(callback, exit_code)


def end(callback: Callback, exit_code: int = 0) -> dict[str, Any]:
    """The end of a run; the tracker's part of summary.json."""
    if exit_code == 0:
        callback.on_train_end(SUMMARY)
    callback.close(exit_code)
    return callback.status()["wandb"]


def wait(callback: Callback, state: str = "open", sent: int = 0) -> None:
    """Wait for a tracker that gets there."""
    while callback.status()["wandb"]["state"] != state or callback.status()["wandb"]["sent"] < sent:
        time.sleep(0.01)


def local(run: RunInfo) -> WandbRun:
    """The run's only file."""
    (file,) = fragments(run.directory)
    return read_run(file.parent)


def kill_after(run: RunInfo, steps: int, seconds: float, url: str = "") -> None:
    """Log `steps` rows in a process of its own, which a SIGKILL ends `seconds` after W&B was given them."""
    arguments = [str(run.directory), run.name, run.project, str(steps), str(seconds), url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL


def sync_by_hand(command: str, **environment: str) -> str:
    """Type a line that uploads; what W&B says."""
    bin_directory = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PATH": f"{bin_directory}:{os.environ['PATH']}", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def expected(steps: range, **extra: Any) -> list[tuple[int, float, dict[str, Any]]]:
    """What the fixture `log_rows` logs, as `WandbRun.series`."""
    return [
        (
            step,
            1764000000 + step / 3,
            {
                "train/loss": 1 / (step + 3),
                "train/lr": 0.1 + step,
                "sparsity/layer/conv1.weight": step / 7,
                **extra,
            },
        )
        for step in steps
    ]
