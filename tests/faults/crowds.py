"""Several processes that want the same thing at the same moment: a folder, a run, a project, a cache.

All are forked here and let go by one barrier; what they do is what `train.py` does. Each look has a control:
the same crowd without the lock or the exclusive mkdir, or a row taken out of the database.
"""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path

from adamwprune import command_line, run_directory
from adamwprune.command_line import exit_codes, prepare
from adamwprune.composition import compose, given_keys, to_config
from adamwprune.data.preparation import prepare as preparation
from adamwprune.run_directory import METRICS, RECORD
from adamwprune.targets import build
from adamwprune.training.ledger import read_rows
from adamwprune.training.run import train
from tests.faults.fork_server import spawn
from tests.faults.harness import Control, Outcome, Tier
from tests.helpers.runs import IMAGES, configure
from tests.helpers.trackio_store import read_run

RUNS, BUILDERS = 8, 4
# Crowds of each kind.
CROWDS = {"short": 1, "long": 10}
STEPS = 3
TINY = (*IMAGES, f"trainer.max_steps={STEPS}", "trainer.log_every=1", "hardware.threads=1")
LONG = (*IMAGES, "hardware.threads=1", "trainer.max_steps=1000000", "trainer.eval_every=500000")
PROJECT = "crowd"
# Seconds in which a crowd has done what it does, and in which a second process must be refused.
PATIENCE, PROMPT = 120.0, 1.0
Body = Callable[[int], object]


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Each kind of crowd, then its control."""
    draw = random.Random(seed)
    failures: list[str] = []
    seconds: list[float] = []
    for number in range(CROWDS[tier]):
        folder = scratch / f"runs-{number}"
        start_at_once(folder)
        found = shared_folders(folder) + lost_rows(folder)
        refused, line = second_resume(scratch / f"running-{number}")
        seconds.append(refused)
        found += line + resumed_at_once(scratch / f"race-{number}")
        found += built_twice(scratch / f"cache-{number}", is_killed=number > 0 and draw.random() < 0.5)
        failures += [f"crowd {number}: {text}" for text in found]
    crowds = CROWDS[tier]
    return Outcome(
        fault="8 runs start at once with one Trackio project; 2 resume one run; 4 build one cache",
        promise="a folder and all rows for each; the second resume is refused; one builds, the others use it",
        trials=crowds * (RUNS + 2 + 2 + BUILDERS),
        failures=failures,
        figures={
            "runs started at once": crowds * RUNS,
            "second resume refused after, s": round(max(seconds), 2),
            "processes at one cache": crowds * BUILDERS,
        },
        goals={"second resume refused after, s": PROMPT},
        controls=controls(scratch),
        peer="Hydra 1.3.8: 4 runs in one second shared 1 directory (reliability.md section 7)",
    )


def controls(scratch: Path) -> list[Control]:
    """The same looks at crowds that nothing keeps apart."""
    folder = scratch / "runs-0"
    database = folder / "trackio" / f"{PROJECT}.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM metrics WHERE id = (SELECT min(id) FROM metrics)")
    start_at_once(scratch / "shared", before=_without_exclusive_folders)
    return [
        Control("folders not claimed exclusively", 1, bool(shared_folders(scratch / "shared"))),
        Control("a row taken out of Trackio's database", 1, bool(lost_rows(folder))),
        Control("no lock on the run", 1, bool(second_resume(scratch / "unlocked", _without_locks)[1])),
        Control("no lock on the cache", 1, bool(built_twice(scratch / "open-cache", _without_cache_lock))),
    ]


# ------------------------------------------------------------------------------------------ crowds


def crowd(count: int, folder: Path, body: Body) -> list[int]:
    """Exit codes of so many processes that do `body` at the same moment in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(count)
    members = [context.Process(target=_member, args=(i, folder, barrier, body)) for i in range(count)]
    for member in members:
        member.start()
    deadline = time.monotonic() + PATIENCE
    for member in members:
        member.join(max(0.0, deadline - time.monotonic()))
        if member.exitcode is None:
            member.kill()
            member.join()
    return [member.exitcode if member.exitcode is not None else -signal.SIGKILL for member in members]


def _member(number: int, folder: Path, barrier: Barrier, body: Body) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ |= {"HOME": str(folder), "TRACKIO_DIR": str(folder / "trackio")}
    console = os.open(folder / f"console-{number}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(console, 1)
    os.dup2(console, 2)
    barrier.wait()
    with exit_codes():
        body(number)


def do(arguments: Sequence[str]) -> None:
    """What `python train.py ARGUMENTS` does."""
    overrides = prepare(list(arguments))
    folder = Path(str(given_keys(overrides)["hydra.run.dir"]))
    train(to_config(compose(overrides)), folder)


def _consoles(folder: Path) -> str:
    return " | ".join(file.read_text().strip()[-200:] for file in sorted(folder.glob("console-*.txt")))


# --------------------------------------------------------------------------------- folders, rows


def start_at_once(folder: Path, before: Callable[[], object] = lambda: None) -> None:
    """Eight runs that ask for one folder and write to one project."""
    arguments = (*TINY, "hydra.run.dir=outputs/same", "tracker=trackio", f"project={PROJECT}")

    def body(_: int) -> None:
        before()
        do(arguments)

    codes = crowd(RUNS, folder, body)
    (folder / "codes.json").write_text(json.dumps(codes))


def shared_folders(folder: Path) -> list[str]:
    """What the runs have not for themselves: folder, identity, name, rows."""
    codes, runs = json.loads((folder / "codes.json").read_text()), list(folder.glob("outputs/same*"))
    found = [f"codes {codes}: {_consoles(folder)}"] if any(codes) else []
    if len(runs) != RUNS:
        found.append(f"{RUNS} runs have {len(runs)} folders")
    records = [json.loads((run / RECORD).read_text()) for run in runs]
    for key in ("run_id", "name"):
        if len({record[key] for record in records}) != RUNS:
            found.append(f"{RUNS} runs have {len({record[key] for record in records})} different {key}")
    for run in runs:
        if (steps := [row["step"] for row in read_rows(run / METRICS)]) != list(range(1, STEPS + 1)):
            found.append(f"{run.name}: rows of steps {steps}")
    return found


def lost_rows(folder: Path) -> list[str]:
    """Runs of which the project does not hold each row once."""
    found, database = [], folder / "trackio" / f"{PROJECT}.db"
    for run in folder.glob("outputs/same*"):
        wanted = [row["step"] for row in read_rows(run / METRICS)]
        stored = read_run(database, json.loads((run / RECORD).read_text())["run_id"])
        if (steps := [step for step, _, _ in stored.series]) != wanted:
            found.append(f"{run.name}: Trackio has steps {steps}, the ledger {wanted}")
    return found


def _without_exclusive_folders() -> None:
    def claim(directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    run_directory.claim = claim


# ---------------------------------------------------------------------------------------- resume


def second_resume(folder: Path, before: Callable[[], object] = lambda: None) -> tuple[float, list[str]]:
    """Seconds after which `resume=` of a run that is running was refused, and what was wrong with that."""
    folder.mkdir()
    first = spawn(folder / "run", *LONG)
    first.reached(1)
    seconds = multiprocessing.get_context("fork").Value("d", 0.0)

    def body(_: int) -> None:
        before()
        started = time.monotonic()
        try:
            prepare([f"resume={folder / 'run'}"])
        finally:
            seconds.value = time.monotonic() - started

    (code,) = crowd(1, folder, body)
    said, found = _consoles(folder), []
    if code != 5:
        found.append(f"a second resume ended with {code}: {said}")
    if f"process {first.pid} on " not in said:
        found.append(f"the second resume does not name process {first.pid} and its host: {said}")
    first.kill()
    first.wait()
    return seconds.value, found


def resumed_at_once(folder: Path) -> list[str]:
    """Two that continue one stopped run at the same moment: one does, the other is refused or too late."""
    run_folder, unbroken = folder / "run", folder / "unbroken"
    folder.mkdir()
    spawn(unbroken, *TINY).wait()
    spawn(run_folder, *TINY, "trainer.stop_step=1").wait()
    codes = crowd(2, folder, lambda _: do([f"resume={run_folder}"]))
    found = []
    if sorted(codes) not in ([0, 0], [0, 5]):
        found.append(f"two resumes ended with {codes}: {_consoles(folder)}")
    if sorted(codes) == [0, 0] and "already complete" not in _consoles(folder):
        found.append("two resumes both trained")
    losses = [[row["train/loss"] for row in read_rows(one / METRICS)] for one in (unbroken, run_folder)]
    if losses[0] != losses[1]:
        found.append(f"the resumed run has losses {losses[1]}, the unbroken one {losses[0]}")
    return found


def _without_locks() -> None:
    @contextlib.contextmanager
    def locked(directory: Path, key: str = "resume"):
        yield

    command_line.run_directory.locked = locked


# ----------------------------------------------------------------------------------------- cache


def built_twice(
    folder: Path, before: Callable[[], object] = lambda: None, *, is_killed: bool = False
) -> list[str]:
    """What is wrong with a cache that four processes want at once, the first builder being killed or not."""
    folder.mkdir()
    corpus, told = folder / "corpus.jsonl", folder / "built"
    corpus.write_text(
        "".join(json.dumps({"text": f"Document {i}. " + "What is written. " * 50}) + "\n" for i in range(400))
    )
    told.mkdir()
    own = (f"data.path={corpus}", f"data.data_dir={folder / 'cache'}", "data.num_processes=1")
    config = configure("model=gpt2-nano", "data=text", *own, "data.val_fraction=0.1", "recipe.block_size=16")

    def body(number: int) -> None:
        before()
        _tell_builds(told, number, is_killed)
        data = build(config.data, "data")()
        (told / f"used-{number}").write_text(data.fingerprint)

    codes = crowd(BUILDERS, folder, body)
    found = []
    killed = [code for code in codes if code == -signal.SIGKILL]
    if any(code not in (0, -signal.SIGKILL) for code in codes) or len(killed) != is_killed:
        found.append(f"codes {codes}: {_consoles(folder)}")
    if (built := len(list(told.glob("built-*")))) != 1:
        found.append(f"the cache was built {built} times")
    fingerprints = [file.read_text() for file in told.glob("used-*")]
    if len(fingerprints) != BUILDERS - is_killed or len(set(fingerprints)) != 1:
        found.append(f"{len(fingerprints)} used it, {len(set(fingerprints))} different ones")
    if left := [file.name for file in (folder / "cache").glob("*.partial")]:
        found.append(f"left half: {left}")
    return found


def _tell_builds(told: Path, number: int, is_killed: bool) -> None:
    """Note who builds; the first to begin is killed half-way, if any is."""
    publish, write = preparation._Preparation.publish, preparation._Preparation._write

    def telling(self, *arguments):
        (told / f"built-{number}").touch()
        publish(self, *arguments)

    def dying(self, encoded):
        taken = write(self, encoded)
        with contextlib.suppress(FileExistsError):
            (told / "killed").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return taken

    preparation._Preparation.publish = telling
    if is_killed:
        preparation._Preparation._write = dying


def _without_cache_lock() -> None:
    @contextlib.contextmanager
    def exclusive(target: Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        yield

    preparation.exclusive = exclusive
