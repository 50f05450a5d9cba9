"""F24: one long run to which something happens every few seconds, until it has finished.

SIGKILL, signals that ask it to stop, a full disk, a tracker's database that is locked or destroyed, in random
order; after each of them that ends the run it is continued. Whatever came together, its exit codes must be
those of docs/exit-codes.md, its rows whole, its checkpoints valid, and its end that of the undisturbed run.
"""

import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from adamwprune.training import loop_state
from adamwprune.training.records import Records
from tests.faults import disk_runs, mounts
from tests.faults.fork_server import Child, continue_, home_of, spawn
from tests.faults.full_disks import BALLAST, fill
from tests.faults.harness import Control, Outcome, Tier
from tests.helpers.same_run import differences

# Seconds for which things happen; then the run may end in peace.
SECONDS = 600.0
# Steps and the pause after each of them while things happen: about as long as that, with all that is lost.
STEPS, PAUSE = 4000, 0.06
PAUSES = (1.0, 5.0)  # seconds between two events, at least and at most
DISK = 16 * mounts.MIB
RUN = (
    *disk_runs.RUN,
    f"trainer.max_steps={STEPS}",
    "trainer.log_every=5",
    "trainer.eval_every=100",
    "checkpoint.every=5",
    "pruning.update_every=50",
)
TRACKED = ("tracker=trackio", "tracker.trackio.finish_timeout=2.0")


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Ten minutes of it."""
    outcome = Outcome(
        f"{SECONDS / 60:g} minutes with an event each 1 to 5 s: SIGKILL, SIGTERM, SIGUSR1, SIGINT, "
        "full disk, tracker's database locked or destroyed",
        "documented exit codes, whole rows, valid checkpoints, at its end bitwise the undisturbed run",
        peer="none of 12 frameworks does this (reliability.md, section 1)",
    )
    if tier == "short":
        outcome.skipped = "long tier only"
        return outcome
    if reason := mounts.obstacle():
        outcome.skipped = reason
        return outcome
    reference = disk_runs.unbroken(scratch / "unbroken", *RUN)
    with mounts.small_file_system(scratch / "disk", DISK) as disk:
        disturbed = Disturbed(scratch, disk, random.Random(seed), time.monotonic() + SECONDS)
        disturbed.run()
        if not disturbed.violations:
            disturbed.violations += differences(reference, disturbed.directory)
    outcome.trials = sum(disturbed.events.values())
    outcome.failures = [f"seed {seed}: {line}" for line in disturbed.violations]
    outcome.figures = {"violations": len(disturbed.violations), "sessions": disturbed.sessions}
    outcome.figures |= dict(sorted(disturbed.events.items()))
    outcome.goals = {"violations": 0}
    outcome.controls.append(forgetful(scratch / "forgetful"))
    return outcome


@dataclass
class Disturbed:
    """The run, what has happened to it, and what was wrong."""

    scratch: Path
    disk: Path
    chosen: random.Random
    deadline: float
    sessions: int = 0
    events: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        """Of the run."""
        return self.disk / "run"

    @property
    def told(self) -> Path:
        """File of disk_runs.tell_saves()."""
        return self.scratch / "saves.txt"

    def run(self) -> None:
        """Session after session, until the run has finished or something was wrong."""
        disk_runs.place(self.scratch, self.disk)
        child = spawn(self.directory, *RUN, *TRACKED, before=self._prepare)
        while not self.violations:
            codes = self._disturb(child)
            code = child.wait(SECONDS)
            self.sessions += 1
            (self.disk / BALLAST).unlink(missing_ok=True)
            if code not in codes:
                said = disk_runs.last_line(child)
                self.violations.append(f"session {self.sessions} ends with {code}, not {codes}: {said}")
            self.violations += disk_runs.problems_left(child, self.told)
            if code == 0:
                return
            child = continue_(self.directory, before=self._prepare)

    def _disturb(self, child: Child) -> set[int]:
        """Let things happen until one ends the session; the exit codes that it may have."""
        while time.monotonic() < self.deadline:
            pause_until = time.monotonic() + self.chosen.uniform(*PAUSES)
            while child.is_alive and time.monotonic() < pause_until:
                time.sleep(0.01)
            if not child.is_alive:
                return {0}
            name = self.chosen.choice(list(EVENTS))
            self.events[name] += 1
            if codes := EVENTS[name](self, child):
                return {0, *codes}  # it may have finished a moment before
        return {0}

    def _prepare(self) -> None:
        """In the child: slow while things happen, so that more can."""
        disk_runs.tell_saves(self.told)
        step_end = Records.step_end

        def pausing(records: Records, step: int) -> None:
            step_end(records, step)
            if time.monotonic() < self.deadline:
                time.sleep(PAUSE)

        Records.step_end = pausing  # type: ignore[method-assign]


# -------------------------------------------------------------------------------------- events


def _send(number: int, code: int, disturbed: Disturbed, child: Child) -> set[int]:
    """A signal; one that comes before training has begun ends the process as docs/exit-codes.md says."""
    child.kill(number)
    return {code} if child.step else {code, -number, 128 + signal.SIGTERM}


def _fill(disturbed: Disturbed, child: Child) -> set[int]:
    """The disk has no page left, until the run has ended."""
    fill(disturbed.disk)
    return {9}


def _lock_database(disturbed: Disturbed, child: Child) -> set[int]:
    """For a second; the run goes on."""
    for file in _databases(disturbed):
        with sqlite3.connect(file, timeout=0.1, isolation_level=None) as database:
            try:
                database.execute("BEGIN EXCLUSIVE")
                time.sleep(1.0)
                database.execute("ROLLBACK")
            except sqlite3.Error:  # busy, or destroyed by an event before
                continue
    return set()


def _destroy_database(disturbed: Disturbed, child: Child) -> set[int]:
    """Its first page is overwritten; the run goes on."""
    for file in _databases(disturbed):
        with file.open("rb+") as stream:
            stream.write(disturbed.chosen.randbytes(4096))
    return set()


def _databases(disturbed: Disturbed) -> Iterator[Path]:
    return (home_of(disturbed.directory) / "trackio").glob("*.db")


# What happens; the exit codes that it leads to, none where the run is to go on.
EVENTS: dict[str, Callable[[Disturbed, Child], set[int]]] = {
    "SIGKILL": partial(_send, signal.SIGKILL, -signal.SIGKILL),
    "SIGTERM": partial(_send, signal.SIGTERM, 75),
    "SIGUSR1": partial(_send, signal.SIGUSR1, 75),
    "SIGINT": partial(_send, signal.SIGINT, 130),
    "disk full": _fill,
    "database locked": _lock_database,
    "database destroyed": _destroy_database,
}


# ------------------------------------------------------------------------------------- control


def forgetful(directory: Path) -> Control:
    """A run that is continued without its random generators, looked at in the same way."""
    reference = disk_runs.unbroken(directory.with_name("undisturbed"))
    child = spawn(
        directory, *disk_runs.RUN, before=disk_runs.without_picture, ADAMWPRUNE_FAULT="after_rename:2"
    )
    child.wait()
    code = continue_(directory, before=_forget).wait()
    noticed = code != 0 or differences(reference, directory)
    return Control("random generators not restored", 1, int(bool(noticed)))


def _forget() -> None:
    disk_runs.without_picture()
    loop_state.random_state.restore = lambda _: None
