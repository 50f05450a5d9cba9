"""Trainings that cost a fork instead of a start: this process has imported torch and composed what they do.

    child = spawn(directory, *overrides)     a new run, as train.py would do it
    child.reached(20)                        wait until its step 20 is done
    child.step, child.saved                  the last step done, and the last one called saved
    child.kill()                             SIGKILL, or whichever signal
    code = child.wait()                      its exit code; -9 where SIGKILL ended it
    trained(directory, *overrides)           a whole run, to compare with
    continue_(directory).wait()              what `python train.py resume=DIR` does
    fork(config, directory)                  the same from a configuration, run.json as it is

Keyword arguments are environment variables of the child, such as `ADAMWPRUNE_FAULT="after_rename:2"`.
`before` is called in the child before it trains; what it patches there stays there. A child is a
session of its own; its HOME and its console are beside the run's folder and shared by all that continue
the run. torch is never asked to compute in this process: with torch's threads it could not be forked.
"""

import functools
import importlib
import logging
import mmap
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from adamwprune import run_directory
from adamwprune.command_line import exit_codes
from adamwprune.config import Config
from adamwprune.training.records import Records
from adamwprune.training.run import train
from tests.helpers.runs import configure, start

# Seconds after which a child that was waited for is killed: no tiny run needs them.
PATIENCE = 120.0
# Imported by a first training when it needs them, in a second that each child would pay for; and so that all
# children of a long trial run the code that was there at its start.
LATE_IMPORTS = (
    "torch._dynamo",
    "torch.onnx",
    "torch.utils.serialization",
    "numpy.fft",
    "psutil",
    "adamwprune.lr_schedules",
    "adamwprune.data.synthetic",
    *(f"adamwprune.models.{name}" for name in ("gpt2", "lenet", "resnet")),
    *(f"adamwprune.optim.{name}" for name in ("adam", "adamw", "adamw_spam", "fused", "sgd")),
    *(f"adamwprune.pruning.criteria.{name}" for name in ("magnitude", "movement", "state")),
    *(f"adamwprune.pruning.{name}" for name in ("modes.ste", "rounding", "scopes.global_")),
)
Before = Callable[[], object]


class Child:
    """A training in a process of its own.

    Args:
        config: of the run.
        directory: a claimed run folder with its run.json.
        before: called first in the child.
        environment: variables of the child, over those of this process.
    """

    def __init__(
        self, config: Config, directory: Path, before: Before | None, environment: dict[str, str]
    ) -> None:
        self.directory = directory
        self._told = mmap.mmap(-1, 16)  # shared with the child: two numbers
        own = {"HOME": str(home_of(directory)), "TRACKIO_DIR": str(home_of(directory) / "trackio")}
        self._process = multiprocessing.get_context("fork").Process(
            target=_body, args=(config, directory, before, {**own, **environment}, self._told)
        )
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def step(self) -> int:
        """The last step that the child did; 0 before its first one."""
        return int.from_bytes(self._told[:8], "little")

    @property
    def saved(self) -> int:
        """Step of the last checkpoint that the child called saved; 0 before its first one."""
        return int.from_bytes(self._told[8:], "little")

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.exitcode is None

    def reached(self, step: int, timeout: float = PATIENCE) -> bool:
        """Wait until the child has done `step`; False where it ended before."""
        deadline = time.monotonic() + timeout
        while self.step < step:
            if not self.is_alive or time.monotonic() > deadline:
                return self.step >= step
            time.sleep(0.001)
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; nothing where the child has ended."""
        if self.is_alive:
            os.kill(self.pid, number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit code, negative where a signal ended it.

        Raises:
            TimeoutError: it was still there after `timeout` seconds and has been killed.
        """
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"{self.directory}: no end after {timeout:g} s")
        return code

    @property
    def console(self) -> str:
        """What all sessions of the run have printed and logged."""
        return console_of(self.directory).read_text(encoding="utf-8", errors="replace")


def spawn(directory: Path, *overrides: str, before: Before | None = None, **environment: str) -> Child:
    """Start a new run in `directory`."""
    config, directory = start(directory, *overrides)
    return fork(config, directory, before=before, **environment)


def trained(directory: Path, *overrides: str, before: Before | None = None) -> Path:
    """A run that nothing interrupts.

    Raises:
        RuntimeError: it did not finish.
    """
    child = spawn(directory, *overrides, before=before)
    if code := child.wait():
        raise RuntimeError(f"{directory.name} ended with {code}: {child.console[-300:]}")
    return directory


def continue_(directory: Path, *today: str, before: Before | None = None, **environment: str) -> Child:
    """Continue a run as `resume=` does, with one more session in run.json; `today` are further overrides."""
    record = run_directory.read_json(directory / run_directory.RECORD)
    latest = record["sessions"][-1]
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    record["sessions"].append({**latest, "started": started, "overrides": [*record["overrides"], *today]})
    run_directory.write_json(directory / run_directory.RECORD, record)
    return fork(configure(*record["overrides"], *today), directory, before=before, **environment)


def fork(config: Config, directory: Path, before: Before | None = None, **environment: str) -> Child:
    """Train in a child what `directory` and its run.json are ready for."""
    _import_late()
    return Child(config, directory, before, environment)


@functools.cache
def _import_late() -> None:
    for name in LATE_IMPORTS:
        importlib.import_module(name)


def home_of(directory: Path) -> Path:
    """HOME of a run's children."""
    return directory.with_name(f"{directory.name}.home")


def console_of(directory: Path) -> Path:
    """Where a run's children print and log to."""
    return directory.with_name(f"{directory.name}.console.txt")


def _body(
    config: Config, directory: Path, before: Before | None, environment: dict[str, str], told: mmap.mmap
) -> None:
    """What a child does; it ends with the exit code that train.py has."""
    os.setsid()
    home_of(directory).mkdir(exist_ok=True)
    _redirect(console_of(directory))
    os.environ.update(environment)
    _tell(told)
    if before is not None:
        before()
    with exit_codes():
        train(config, directory)


def _redirect(console: Path) -> None:
    """Give the process no input, and a file for whatever it and its libraries print."""
    null = os.open(os.devnull, os.O_RDONLY)
    file = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s", force=True)


def _tell(told: mmap.mmap) -> None:
    """Let the parent see how far the loop is, and what it believes to be saved."""
    step_end, checkpoint_saved = Records.step_end, Records.checkpoint_saved

    def telling_step(self: Records, step: int) -> None:
        told[:8] = step.to_bytes(8, "little")
        step_end(self, step)

    def telling_saved(self: Records, step: int, directory: Path) -> None:
        told[8:] = step.to_bytes(8, "little")
        checkpoint_saved(self, step, directory)

    Records.step_end = telling_step  # type: ignore[method-assign]
    Records.checkpoint_saved = telling_saved  # type: ignore[method-assign]
