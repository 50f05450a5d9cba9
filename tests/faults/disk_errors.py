"""F9: a disk that fails or is taken away while a run writes, and one that is slow.

Most errors are given to a child by a function that it calls, once, at a random one of its calls; one is real,
a file system that is made read-only. The run must end with 9 and name the file; continued on a whole disk it
must end as the run that nothing happened to. An old checkpoint that cannot be removed, and a slow disk, are
no reason to end.
"""

import errno
import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from adamwprune.errors import DiskError
from adamwprune.training import checkpoint, saver
from tests.faults import disk_runs, mounts
from tests.faults.fork_server import Before, spawn
from tests.faults.harness import Control, Outcome, Tier

ERRORS = (errno.EIO, errno.EDQUOT, errno.EROFS)
# Cases that are drawn of all errors at all places.
TRIALS = {"short": 6, "long": 36}
# Seconds that each fsync of a slow disk takes.
SLOW = 0.1


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Errors at places, drawn so that each comes as often; an old checkpoint; read-only; slow."""
    outcome = Outcome(
        "EIO, EDQUOT, EROFS from write, fsync and rename; file system made read-only; slow disk",
        "exit 9 naming the file (old one not removed, slow: 0), earlier checkpoint valid, rows whole, then "
        "bitwise the same run",
        peer="none of 12 frameworks tests a failing disk (reliability.md, section 1)",
    )
    reference = disk_runs.unbroken(scratch / "unbroken")
    pairs = [(name, number) for number in ERRORS for name in PLACES]
    random.Random(seed).shuffle(pairs)
    drawn = list(itertools.islice(itertools.cycle(pairs), TRIALS[tier]))
    cases = [(f"{errno.errorcode[number]}, {name}", partial(PLACES[name], number)) for name, number in drawn]
    for place, (name, fail) in enumerate(cases):
        chosen = random.Random(f"{seed} {name} {place}")
        problems = try_one(scratch / str(place), partial(fail, chosen), reference)
        outcome.failures += [f"{name}, case {place}, seed {seed}: {problem}" for problem in problems]
    problems = try_one(scratch / "old", old_one_stays, reference, code=0)
    outcome.failures += [f"an old checkpoint cannot be removed: {problem}" for problem in problems]
    problems = try_one(scratch / "slow", slow_fsync, reference, code=0)
    outcome.failures += [f"slow disk: {problem}" for problem in problems]
    outcome.trials = len(cases) + 2
    if reason := mounts.ext4_obstacle(scratch / "obstacle"):
        outcome.figures["left out"] = f"read-only, {reason}"
    else:
        outcome.trials += 1
        problems = made_read_only(scratch / "read_only", random.Random(seed), reference)
        outcome.failures += [f"made read-only, seed {seed}: {problem}" for problem in problems]
    swallowed = try_one(scratch / "control", swallow, reference)
    outcome.controls.append(Control("a failed save that is not told", 1, int(bool(swallowed))))
    return outcome


def try_one(folder: Path, before: Before, reference: Path, code: int = DiskError.exit_code) -> list[str]:
    """One run in which `before` arranges for an error; what was wrong with its end and what came after."""
    folder.mkdir(exist_ok=True)
    directory, told = folder / "run", folder / "saves.txt"

    def prepare() -> None:
        disk_runs.tell_saves(told)
        before()

    child = spawn(directory, *disk_runs.RUN, before=prepare)
    problems = disk_runs.problems_at_end(child, code, told)
    return problems + (disk_runs.problems_after if code else disk_runs.differing)(directory, reference)


# ------------------------------------------------------------------ what a child's functions do


def once(
    function: Callable[..., Any], nth: int, error: Exception, only: Callable[..., bool]
) -> Callable[..., Any]:
    """The function, but at the nth call for which `only` holds it raises the error instead."""
    calls = itertools.count(1)

    def failing(*arguments: Any, **options: Any) -> Any:
        if only(*arguments) and next(calls) == nth:
            raise error
        return function(*arguments, **options)

    return failing


def always(*_: object) -> bool:
    """Each call counts."""
    return True


def refusal(number: int, file: str = "somewhere") -> OSError:
    """The error of that number as the system gives it."""
    return OSError(number, os.strerror(number), file)


def state_not_written(number: int, chosen: random.Random) -> None:
    """The stream to which torch writes the state."""
    stream = checkpoint._Hashing
    stream.write = once(stream.write, chosen.randrange(1, 60), refusal(number), always)


def weights_not_written(number: int, chosen: random.Random) -> None:
    """The words of safetensors for it."""
    error = SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
    checkpoint.save_file = once(checkpoint.save_file, chosen.randrange(1, 5), error, always)


def row_not_written(number: int, chosen: random.Random) -> None:
    """A line of metrics.jsonl or mask_updates.jsonl."""

    def is_ledger(descriptor: int, _: bytes) -> bool:
        return os.readlink(f"/proc/self/fd/{descriptor}").endswith(".jsonl")

    os.write = once(os.write, chosen.randrange(1, 25), refusal(number), is_ledger)


def not_synced(number: int, chosen: random.Random) -> None:
    """Of a file, a folder, or the rows, while a checkpoint is saved."""

    def is_in_a_save(descriptor: int) -> bool:
        return threading.current_thread().name.startswith("checkpoint")

    os.fsync = once(os.fsync, chosen.randrange(1, 24), refusal(number), is_in_a_save)


def not_renamed(number: int, chosen: random.Random) -> None:
    """To its final name."""

    def is_final(_: Path, target: Path) -> bool:
        return target.name.startswith("step_")

    Path.rename = once(Path.rename, chosen.randrange(1, 5), refusal(number), is_final)


PLACES: dict[str, Callable[[int, random.Random], None]] = {
    "write of the state": state_not_written,
    "write of the weights": weights_not_written,
    "write of a row": row_not_written,
    "fsync": not_synced,
    "rename": not_renamed,
}


def old_one_stays() -> None:
    """What remove_old() renames first cannot be renamed."""

    def is_doomed(_: Path, target: Path) -> bool:
        return target.name.startswith(".del-")

    Path.rename = once(Path.rename, 1, refusal(errno.EIO), is_doomed)


def slow_fsync() -> None:
    """Every one."""
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(SLOW)
        fsync(descriptor)

    os.fsync = slow


def swallow() -> None:
    """Saves come to nothing, and nobody is told."""
    saver.save = lambda root, step, *_, **__: root / f"step_{step:08d}"


# ----------------------------------------------------------------------------------- read-only


def made_read_only(folder: Path, chosen: random.Random, reference: Path) -> list[str]:
    """An ext4 finds an error in itself and refuses all writes from then on, until it is mounted again."""
    folder.mkdir()
    mounts.make_ext4(folder / "image", 16 * mounts.MIB)
    with mounts.ext4(folder / "image", folder / "disk", "errors=remount-ro") as disk:
        directory, told = disk_runs.place(folder, disk), folder / "saves.txt"
        child = spawn(directory, *disk_runs.RUN, before=partial(disk_runs.tell_saves, told))
        child.reached(chosen.randrange(1, disk_runs.STEPS - 2 * disk_runs.SAVE_EVERY))
        mounts.trigger_error(disk)
        problems = disk_runs.problems_at_end(child, DiskError.exit_code, told)
    with mounts.ext4(folder / "image", folder / "disk"):
        return problems + disk_runs.problems_after(directory, reference)
