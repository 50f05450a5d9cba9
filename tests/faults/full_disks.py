"""F8: a disk that is full while a run writes to it, in each of the places to which it writes.

File systems of a few megabytes, filled up to the last page at some moment of the run; and RLIMIT_FSIZE, which
refuses what a file system may allow. Once there is room again, the run must go on and end as the one whose
disk was never full.
"""

import logging
import random
import re
import resource
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adamwprune import run_directory
from adamwprune.data.preparation.shard_writer import ShardWriter
from adamwprune.errors import DiskError
from adamwprune.targets import build
from adamwprune.training import checkpoint
from adamwprune.training import run as run_module
from adamwprune.training.records import Records
from tests.faults import disk_runs, mounts
from tests.faults.fork_server import spawn
from tests.faults.harness import Control, Outcome, Tier
from tests.faults.processes import Command
from tests.helpers.runs import configure, summary

TRIALS = {"short": 1, "long": 3}  # of each case
BALLAST = "ballast"
# Of a run's disk, which it uses half; and of one that holds a single file or the cache.
RUN_SIZE, SMALL = 4 * mounts.MIB, mounts.MIB // 4
# Bytes that rows may take until the next checkpoint, which takes more.
ROWS = 32 * 1024
NUMBERS = re.compile(r"[\d,.]+ [MG]i?B.* [\d,.]+ [MG]i?B (are )?free")


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Each case some times."""
    outcome = Outcome(
        "disk full, or file too large, in each place to which a run writes",
        "exit 9 with path, needed and free MB (log, tracker: the run goes on), earlier checkpoint valid, "
        "rows whole, bitwise the same run once there is room",
        peer="none of 12 frameworks tests a full disk (reliability.md, section 1)",
    )
    if reason := mounts.obstacle():
        outcome.skipped = reason
        return outcome
    reference = disk_runs.unbroken(scratch / "unbroken")
    for name, case in CASES.items():
        for trial in range(TRIALS[tier]):
            chosen = random.Random(f"{seed} {name} {trial}")
            folder = scratch / f"{trial}-{re.sub('[^a-z]', '-', name)}"
            folder.mkdir()
            problems = case(folder, chosen, reference)
            outcome.trials += 1
            outcome.failures += [f"{name}, trial {trial}, seed {seed}: {problem}" for problem in problems]
    noticed = len(without_the_message(scratch / "control", reference))
    outcome.controls.append(Control("ENOSPC let through as a traceback", 1, min(1, noticed)))
    outcome.figures = {"places": len(CASES)}
    return outcome


Case = Callable[[Path, random.Random, Path], list[str]]


# --------------------------------------------------------------------------------------- a run


@dataclass(frozen=True)
class FullRun:
    """A run whose disk is full at some moment.

    Attributes:
        before: in the child, given the disk and a step: arranges that it is full from then on.
        link: the one file of the run's folder that lies on the small disk; None where all of it does.
        code: how it must end.
        has_numbers: whether it must say how much it needs and how much is free.
        overrides, variable: of the run; the environment variable that names the disk, if one does.
    """

    before: Callable[[Path, int], None]
    link: str | None = None
    code: int = DiskError.exit_code
    has_numbers: bool = False
    overrides: tuple[str, ...] = ()
    variable: str | None = None

    def __call__(self, folder: Path, chosen: random.Random, reference: Path) -> list[str]:
        """Fill, look, make room, continue: what was wrong."""
        step = chosen.randrange(disk_runs.SAVE_EVERY + 1, disk_runs.STEPS - disk_runs.SAVE_EVERY)
        is_apart = self.link is not None or self.variable is not None
        with mounts.small_file_system(folder / "disk", SMALL if is_apart else RUN_SIZE) as disk:
            directory = disk_runs.place(folder, folder if is_apart else disk)
            child = spawn(
                directory,
                *disk_runs.RUN,
                *self.overrides,
                before=partial(self._prepare, folder, disk, directory, step),
                **({self.variable: str(disk / "store")} if self.variable else {}),
            )
            problems = disk_runs.problems_at_end(child, self.code, folder / "saves.txt")
            line = disk_runs.last_line(child)
            # A row may have found the disk full a moment before the checkpoint did.
            if self.has_numbers and "/checkpoints" in line and not NUMBERS.search(line):
                problems.append(f"needed and free are not both in {line!r}")
            (disk / BALLAST).unlink(missing_ok=True)
            if self.code:
                return problems + disk_runs.problems_after(directory, reference)
            return problems + self._problems_of_the_finished(directory, reference)

    def _prepare(self, folder: Path, disk: Path, directory: Path, step: int) -> None:
        """In the child."""
        disk_runs.tell_saves(folder / "saves.txt")
        if self.link is not None:
            (disk / self.link).touch()
            (directory / self.link).symlink_to(disk / self.link)
        log_to(directory / "train.log")
        self.before(disk, step)

    def _problems_of_the_finished(self, directory: Path, reference: Path) -> list[str]:
        problems = disk_runs.differing(directory, reference)
        if self.variable and summary(directory)["trackers"]["trackio"]["state"] == "closed":
            problems.append("the tracker says that it has all rows")
        return problems


def message_problems(line: str, folder: Path, has_numbers: bool) -> list[str]:
    """What a refusal before the run does not say."""
    problems = [] if line.startswith("error[9]") else [f"the last line is {line!r}"]
    if str(folder) not in line:
        problems.append(f"no path in {line!r}")
    if has_numbers and not NUMBERS.search(line):
        problems.append(f"needed and free are not both in {line!r}")
    return problems


# ---------------------------------------------------- what a child does before it trains


def fill(disk: Path, leave: int = 0) -> None:
    """Write until nothing more fits, or so many bytes."""
    with (disk / BALLAST).open("ab", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            ballast.truncate(ballast.tell() - leave)


def at_step(disk: Path, step: int, leave: int = 0) -> None:
    """Full when the step is done."""
    after_step(step, lambda: fill(disk, leave))


def after_step(step: int, do: Callable[[], object]) -> None:
    """Have something done in a step's end."""
    step_end = Records.step_end

    def doing(self: Records, done: int) -> None:
        if done == step:
            do()
        step_end(self, done)

    Records.step_end = doing  # type: ignore[method-assign]


def while_saving(disk: Path, step: int, point: str) -> None:
    """Full when the first save after the step has come to the point, and had found enough room before."""
    reached, passed = checkpoint.reached, iter(range(100))

    def filling(name: str) -> None:
        if name == point and next(passed) == step // disk_runs.SAVE_EVERY:
            fill(disk)
        reached(name)

    checkpoint.reached = filling


def at_file(disk: Path, step: int, name: str) -> None:
    """Full when that file of the run's folder is to be written."""
    write_json = run_module.write_json

    def filling(file: Path, content: object) -> None:
        if file.name == name:
            fill(disk)
        write_json(file, content)

    run_module.write_json = filling


def limit_file_size(disk: Path, step: int) -> None:
    """From the step on no file may be as large as the state of a checkpoint is."""
    after_step(step, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)))


def log_to(file: Path) -> None:
    """A train.log, which Hydra would set up."""
    logging.getLogger().addHandler(logging.FileHandler(file, delay=True))


# --------------------------------------------------------------------- what comes before a run


def at_the_start(folder: Path, chosen: random.Random, reference: Path) -> list[str]:
    """A disk that is too small for the checkpoints is refused, and nothing is created."""
    with mounts.small_file_system(folder / "disk", chosen.randrange(1, 4) * mounts.MIB) as disk:
        command = Command(
            folder / "cwd", "train.py", f"hydra.run.dir={disk / 'run'}", ADAMWPRUNE_OUTPUTS=str(disk)
        )
        code = command.wait()
        problems = [] if code == DiskError.exit_code else [f"ends with {code}"]
        problems += message_problems(command.console().strip().splitlines()[-1], folder, True)
        return problems + [f"created {path.name}" for path in disk.iterdir()]


TEXT = ("model=gpt2-nano", "data=text", "data.num_processes=1", "data.val_fraction=0.1", "data.document=line")


def too_small_for_the_cache(folder: Path, chosen: random.Random, reference: Path) -> list[str]:
    """Data whose tokens do not fit are refused before any is written."""
    with mounts.small_file_system(folder / "disk", SMALL) as disk:
        problems = refusal_problems(folder, disk, lines=20_000, has_numbers=True)
        return problems + [f"left {path.name}" for path in disk.rglob("*.bin*")]


def while_the_cache_is_written(folder: Path, chosen: random.Random, reference: Path) -> list[str]:
    """What is half done has not its name, and is done when there is room."""
    append, passed, moment = ShardWriter.append, iter(range(100)), chosen.randrange(2)

    def filling(self: ShardWriter, *arguments: object) -> None:
        if next(passed) == moment:
            fill(disk)
        append(self, *arguments)

    with mounts.small_file_system(folder / "disk", SMALL) as disk:
        ShardWriter.append = filling  # type: ignore[method-assign]
        try:
            problems = refusal_problems(folder, disk, lines=3000, has_numbers=False)
        finally:
            ShardWriter.append = append  # type: ignore[method-assign]
        problems += [f"{path} seems complete" for path in disk.rglob("manifest.json")]
        (disk / BALLAST).unlink(missing_ok=True)
        prepare_text(folder, disk)
        prepare_text(folder, folder / "other")
        return problems + differing_shards(disk, folder / "other")


def refusal_problems(folder: Path, disk: Path, *, lines: int, has_numbers: bool) -> list[str]:
    """What is wrong with how the preparation ends."""
    words = random.Random(0)
    text = "".join(f"{' '.join(words.choices(['one', 'two', 'three'], k=8))}\n" for _ in range(lines))
    (folder / "corpus.txt").write_text(text)
    try:
        prepare_text(folder, disk)
    except DiskError as error:
        return message_problems(f"error[9]: {error}", folder, has_numbers)
    return ["the preparation comes to its end"]


def prepare_text(folder: Path, cache: Path) -> None:
    """What the first run with these data would do."""
    config = configure(*TEXT, f"data.path={folder / 'corpus.txt'}", f"data.data_dir={cache}")
    build(config.data, "data")()


def differing_shards(one: Path, two: Path) -> list[str]:
    """Shards that are not the same in two caches."""
    ours, theirs = ({p.name: p.read_bytes() for p in cache.rglob("*.bin")} for cache in (one, two))
    return [f"{name} differs" for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]


CASES: dict[str, Case] = {
    "checkpoint": FullRun(partial(at_step, leave=ROWS), has_numbers=True),
    "checkpoint, half written": FullRun(partial(while_saving, point="write_50"), has_numbers=True),
    "checkpoint, before its fsync": FullRun(partial(while_saving, point="before_fsync"), has_numbers=True),
    "checkpoint, RLIMIT_FSIZE": FullRun(limit_file_size, has_numbers=True),
    "metrics.jsonl": FullRun(at_step, link=run_directory.METRICS),
    "mask_updates.jsonl": FullRun(at_step, link=run_directory.MASK_UPDATES),
    "train.log": FullRun(lambda disk, step: fill(disk), link="train.log", code=0),
    "tracker's database": FullRun(at_step, code=0, overrides=("tracker=trackio",), variable="TRACKIO_DIR"),
    "run.json": FullRun(partial(at_file, name=run_directory.RECORD)),
    "summary.json": FullRun(partial(at_file, name=run_directory.SUMMARY)),
    "data cache, too small": too_small_for_the_cache,
    "data cache, half written": while_the_cache_is_written,
    "at the start": at_the_start,
}


# --------------------------------------------------------------------------------------- control


def without_the_message(folder: Path, reference: Path) -> list[str]:
    """A run that lets the file system's error through, looked at in the same way."""

    def untranslated(disk: Path, step: int) -> None:
        def save(*_: object, **__: object) -> Path:
            raise OSError(28, "No space left on device")

        from adamwprune.training import saver

        saver.save = save

    folder.mkdir()
    return FullRun(untranslated, has_numbers=True)(folder, random.Random(0), reference)
