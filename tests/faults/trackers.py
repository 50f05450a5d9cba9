"""F15 and F13: a tracker's store holds each row of the ledger once, whatever happened to run and store.

Exactly once: runs with Trackio, and with W&B offline, are killed by SIGKILL again and again and continued;
at their end the store is read back by other code than that which wrote it, and compared with
metrics.jsonl. Broken stores: Trackio's database is locked, damaged, in the way or from the future while a
run trains. The run ends as without a tracker, to the bit; when the fault is gone, `track sync` stores all.
"""

import json
import multiprocessing
import os
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adamwprune import run_directory
from adamwprune.track.sync import sync
from adamwprune.trackers.wandb_files import fragments, parse_run
from tests.faults.fork_server import Child, continue_, home_of, spawn, trained
from tests.faults.harness import Control, Outcome, Tier
from tests.faults.kills import kill_until_finished
from tests.faults.tiny_runs import STEPS, overrides_of
from tests.helpers.runs import summary
from tests.helpers.same_run import differences
from tests.helpers.trackio_store import read_run
from tests.trackers import test_trackio_faults as broken

RUN = (*overrides_of("gpt2-nano", "adamw", "state"), "checkpoint.every=10", "project=faults")
TRACKIO = ("tracker=trackio", "tracker.trackio.finish_timeout=5.0")
WANDB = ("tracker=wandb", "tracker.wandb.mode=offline", "tracker.wandb.flush_interval=0.2")
KILLED = {"short": {TRACKIO: 2, WANDB: 1}, "long": {TRACKIO: 10, WANDB: 6}}
KILLS_PER_RUN = 4
# What a tracker adds of its own when a run ends.
OWN = ("final/", "best/", "run/")
# Under a broken store, which may hold a run up by this and what a busy machine needs.
HASTY, MOST = ("tracker=trackio", "tracker.trackio.finish_timeout=2.0"), 5.0

Rows = list[tuple[int, dict[str, Any]]]
# Starts a run while something is wrong with the database; the run, which may still be under way.
Fault = Callable[[Path, Callable[[], Child]], Child]


@dataclass
class Found:
    """What came of the trials."""

    trials: int = 0
    kills: int = 0
    missing: int = 0
    twice: int = 0
    synced: int = 0
    held_up: float = 0.0
    failures: list[str] = field(default_factory=list)


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Kill tracked runs, then break stores under others."""
    found = Found()
    plain = trained(scratch / "plain", *RUN)
    for tracker, times in KILLED[tier].items():
        for trial in range(times):
            case = f"--seed {seed}, {tracker[0]}, run {trial}"
            directory = scratch / f"{tracker[0]}-{trial}"
            _kill(directory, tracker, plain, random.Random(f"{seed} {case}"), case, found)
    faults = FAULTS if tier == "long" else {name: FAULTS[name] for name in SHORT_FAULTS}
    usual = _seconds(spawn(scratch / "usual", *RUN, *HASTY))
    for name, (fault, states) in faults.items():
        _break(scratch / name, fault, states, plain, usual, found)
    return Outcome(
        fault="tracked runs killed and continued; Trackio's database locked, damaged, in the way",
        promise="a store holds each row of metrics.jsonl once, or does after track sync; the run is the same",
        trials=found.trials,
        failures=found.failures,
        figures={
            "SIGKILLs of tracked runs": found.kills,
            "rows missing": found.missing,
            "rows twice": found.twice,
            "stores that needed track sync": found.synced,
            "longest delay by a broken store, s": round(found.held_up, 1),
        },
        goals={"rows missing": 0, "rows twice": 0, "longest delay by a broken store, s": MOST},
        controls=list(_controls(scratch)),
        peer="after a SIGKILL alone: Trackio -52/+20 rows, W&B -110 (reliability.md, 7)",
    )


# ------------------------------------------------------------------------------ exactly once


def _kill(
    directory: Path, tracker: tuple[str, ...], plain: Path, rng: random.Random, case: str, found: Found
) -> None:
    """Kill one tracked run until it finishes; compare it with the plain one, and its store with its rows."""
    found.trials += 1
    result = kill_until_finished(directory, (*RUN, *tracker), rng, KILLS_PER_RUN)
    found.kills += result.kills
    lines = result.failures or differences(directory, plain)
    if not lines:
        lines = _compare(directory, found)
    found.failures += [f"{case}: {line}" for line in lines[:3]]


def _compare(directory: Path, found: Found) -> list[str]:
    """What a store lacks or has twice; a tracker that says that it is not whole gets a sync first."""
    ((name, status),) = summary(directory)["trackers"].items()
    if status["state"] != "closed":
        found.synced += 1
        _in_child(sync, directory)
    missing, twice, other = compared(rows_of(directory), stored(directory, name))
    found.missing += missing
    found.twice += twice
    if missing or twice or other:
        return [f"{name} {status['state']}: {missing} missing, {twice} twice, {other} other"]
    return []


def compared(truth: Rows, found: Rows) -> tuple[int, int, int]:
    """Steps that are missing in a store, that it has more than once, and whose values are others."""
    wanted, kept, times = dict(truth), dict(found), Counter(step for step, _ in found)
    missing = len(wanted.keys() - kept.keys())
    others = sum(wanted.get(step) != row for step, row in kept.items())
    return missing, times.total() - len(times), others


def rows_of(directory: Path) -> Rows:
    """All rows of metrics.jsonl, parsed here."""
    lines = (directory / run_directory.METRICS).read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "event" not in row]
    return [(row.pop("step"), _metrics(row)) for row in rows]


def stored(directory: Path, name: str) -> Rows:
    """All rows of the run in its tracker's store."""
    if name == "trackio":
        rows = [(step, row) for step, _, row in read_run(database_of(directory), run_id(directory)).rows]
    else:
        parts = map(parse_run, fragments(directory))
        rows = [(step, row) for part in parts for step, _, row in part.series]
    return [(step, metrics) for step, row in rows if (metrics := _metrics(row))]


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "time" and not key.startswith(OWN)}


def database_of(directory: Path) -> Path:
    """Trackio's database of the run's project."""
    return home_of(directory) / "trackio" / "faults.db"


def run_id(directory: Path) -> str:
    """The run's id, in run.json and in every store."""
    return str(run_directory.read_json(directory / run_directory.RECORD)["run_id"])


def _in_child(function: Callable[[Path], object], directory: Path) -> None:
    """Call a function that starts threads where they do no harm, with the run's HOME."""

    def body() -> None:
        os.environ.update(HOME=str(home_of(directory)), TRACKIO_DIR=str(database_of(directory).parent))
        function(directory)

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    process.join()


# ------------------------------------------------------------------------------ broken stores


def throughout(hold: Callable[[Path], AbstractContextManager[None]]) -> Fault:
    """From before the run's start until after its end."""

    def fault(database: Path, start: Callable[[], Child]) -> Child:
        with hold(database):
            child = start()
            child.wait()
        return child

    return fault


def until_midway(hold: Callable[[Path], AbstractContextManager[None]]) -> Fault:
    """From before the run's start until half of its steps are done."""

    def fault(database: Path, start: Callable[[], Child]) -> Child:
        with hold(database):
            child = start()
            child.reached(STEPS // 2)
        return child

    return fault


def midway(damage: Callable[[Path], None]) -> Fault:
    """At once, while rows are being written."""

    def fault(database: Path, start: Callable[[], Child]) -> Child:
        child = start()
        child.reached(STEPS // 2)
        while child.is_alive and not (database.exists() and database.stat().st_size > 8192):
            time.sleep(0.001)
        if child.is_alive:
            damage(database)
        return child

    return fault


@contextmanager
def _damaged(database: Path) -> Iterator[None]:
    """Something that was a database."""
    yield from broken.damaged(database)


FAULTS: dict[str, tuple[Fault, set[str]]] = {
    "Trackio's lock for ever": (throughout(broken.flock), {"degraded"}),
    "Trackio's lock for half a run": (until_midway(broken.flock), {"closed", "degraded"}),
    "SQLite's lock for ever": (throughout(broken.transaction), {"degraded"}),
    "SQLite's lock for half a run": (until_midway(broken.transaction), {"closed", "degraded"}),
    "a damaged database": (throughout(_damaged), {"closed"}),
    "pages overwritten midway": (midway(broken.wipe_pages), {"closed", "degraded"}),
    "header zeroed midway": (midway(broken.wipe_head), {"closed", "degraded"}),
    "half cut off midway": (midway(broken.cut), {"closed", "degraded"}),
    **{
        f"in its place: {make.__name__}": (
            throughout(lambda database, make=make: broken.obstacle(make, database)),
            {state},
        )
        for make, state, _ in broken.OBSTACLES
    },
}
SHORT_FAULTS = ("Trackio's lock for ever", "SQLite's lock for ever", "pages overwritten midway")


def _seconds(child: Child) -> float:
    """How long a child goes on."""
    began = time.monotonic()
    child.wait()
    return time.monotonic() - began


def _break(directory: Path, fault: Fault, states: set[str], plain: Path, usual: float, found: Found) -> None:
    """One run under a fault: it is the plain run, says how its store is, and a sync makes that whole."""
    found.trials += 1
    database_of(directory).parent.mkdir(parents=True)
    began = time.monotonic()
    child = fault(database_of(directory), lambda: spawn(directory, *RUN, *HASTY))
    code = child.wait()
    found.held_up = max(found.held_up, time.monotonic() - began - usual)
    lines = [f"ended with {code}: {child.console[-200:]!r}"] if code else differences(directory, plain)
    if not lines:
        state = summary(directory)["trackers"]["trackio"]["state"]
        lines = [] if state in states else [f"state {state} instead of {', '.join(sorted(states))}"]
        lines += _compare(directory, found)
    found.failures += [f"{directory.name}: {line}" for line in lines[:3]]


def _controls(scratch: Path) -> Iterator[Control]:
    """Stores in which something is not right, and a run that has lost its id (S20)."""
    whole = scratch / "usual"
    truth, rows = rows_of(whole), stored(whole, "trackio")
    with closing(sqlite3.connect(database_of(whole))) as connection, connection:
        connection.execute("DELETE FROM metrics WHERE step = 30")
    lost = stored(whole, "trackio")
    noticed = [compared(truth, rows) == (0, 0, 0), compared(truth, lost) == (1, 0, 0)]
    noticed += [compared(truth, [*rows, rows[3]]) == (0, 1, 0)]
    yield Control("a whole store, one row deleted, one row twice", 3, sum(noticed))
    directory = scratch / "without id"
    child = spawn(directory, *RUN, *TRACKIO)
    child.reached(STEPS // 2)
    child.kill()
    child.wait()
    record, own = run_directory.read_json(directory / run_directory.RECORD), run_id(directory)
    run_directory.write_json(directory / run_directory.RECORD, {**record, "run_id": "0" * 12})
    continue_(directory).wait()
    kept = [(step, row) for step, _, row in read_run(database_of(directory), own).rows]
    yield Control("continued without the tracker's run id", 1, int(compared(rows_of(directory), kept)[0] > 0))
