"""What a run's folder says of the run, its end and its trackers, long after its process.

Nothing here writes. A record is data: it names the trackers' code, but may not allow code from
outside this package; that is for the command line.
"""

import fcntl
import os
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from adamwprune.callbacks.base import RunInfo
from adamwprune.errors import CheckpointError
from adamwprune.run_directory import METRICS, RECORD, SUMMARY, read_json, record_problem, shown_path
from adamwprune.targets import build
from adamwprune.trackers.backend import STATES, state_file
from adamwprune.trackers.mirror import Mirror
from adamwprune.trackers.rows import read_rows, rewinds, voided
from adamwprune.trackers.wandb_files import fragments, is_synced

# Where runs are kept unless hydra.run.dir says otherwise.
ROOTS = (Path("outputs"), Path("multirun"))
# States that no summary.json has; all others, KILLED too once the run is closed, are its `status`.
RUNNING, STARTING = "running", "starting"
KILLED, FAILED = "killed", "failed"
# Seconds between run.json and the lock, at most: torch is imported, ranks are started.
LONGEST_START = 60.0
# Key of trackers/<name>.json for the options of a tracker that is not in the run's configuration.
OPTIONS = "options"

_NEEDED = ("run_id", "name", "project", "config", "sessions")


def run_info(directory: Path) -> RunInfo:
    """Who the run in `directory` is, as its trackers were told.

    Raises:
        CheckpointError: `directory` holds no run.
    """
    record = read_record(directory)
    directory = directory.resolve()
    config, ledger = record["config"], directory / METRICS
    return RunInfo(
        run_id=record["run_id"],
        name=record["name"],
        project=record["project"],
        group=record.get("group"),
        directory=directory,
        config=config,
        total_steps=record.get("total_steps", 0),
        first_step=last_step(ledger),
        is_continued=True,
        rewinds=rewinds(ledger),
        tags=tuple(config.get("tags", ())),
        notes=config.get("notes"),
    )


def read_record(directory: Path) -> dict[str, Any]:
    """run.json of the run in `directory`.

    Raises:
        CheckpointError: saying what is missing.
    """
    record = read_json(directory / RECORD) if directory.is_dir() else {}
    if missing := [key for key in _NEEDED if key not in record]:
        what = "there is no such folder" if not directory.is_dir() else f"no run there, {RECORD} is missing"
        if record:
            what = f"{RECORD} is not of this program, it has no {missing[0]}"
        raise CheckpointError(
            f"{directory}: {what}; give the folder of a run, such as outputs/DATE/TIME_NAME"
        )
    if problem := record_problem(directory, record):
        raise CheckpointError(f"{directory}: {problem}")
    return record


def session_starts(record: Mapping[str, Any]) -> list[float]:
    """Seconds since the epoch at which each session of the run started."""
    return [
        datetime.strptime(session["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
        for session in record["sessions"]
    ]


def last_step(ledger: Path) -> int:
    """The step of the last row that counts; 0 where there is none."""
    return max((entry.step for entry in read_rows(ledger, void=voided(ledger))), default=0)


# ---------------------------------------------------------------------------------------- finding


def find_runs(folders: Collection[Path]) -> list[Path]:
    """All runs at or below `folders`, in order of their paths; without any, those below ROOTS.

    Raises:
        CheckpointError: a folder that was named holds none.
    """
    if not folders:
        return [run for root in ROOTS for run in _runs_below(root)]
    found = {folder: list(_runs_below(folder)) for folder in folders}
    for folder, runs in found.items():
        if not runs:
            read_record(folder)  # which says what is missing
    return list(dict.fromkeys(run for runs in found.values() for run in runs))


def _runs_below(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder.resolve()):
        folders.sort()
        if RECORD in files:
            folders.clear()  # checkpoints and trackers' files: no run lies within a run
            yield Path(root)


# ------------------------------------------------------------------------------------------ state


def run_state(directory: Path) -> str:
    """`running`, `starting`, `killed` (no summary.json, and nobody is at it), or the summary's status."""
    if is_locked(directory):
        return RUNNING
    if summary := read_json(directory / SUMMARY):
        return str(summary["status"])
    return STARTING if _is_starting(directory) else KILLED


def is_locked(directory: Path) -> bool:
    """Whether a process holds the run. Asks for a shared lock for some microseconds."""
    try:
        with (directory / "run.lock").open(encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _is_starting(directory: Path) -> bool:
    """Whether the last session is so young that it may not have come to its lock or first row."""
    started = session_starts(read_record(directory))[-1]
    ledger = directory / METRICS
    has_row = ledger.exists() and ledger.stat().st_mtime > started
    return not has_row and time.time() - started < LONGEST_START


def refuse_running(directory: Path) -> None:
    """Raise CheckpointError for a run that a process is at, or may soon be."""
    if (state := run_state(directory)) in (RUNNING, STARTING):
        raise CheckpointError(f"{shown_path(directory)}: {state}; wait for its end, or stop it")


# --------------------------------------------------------------------------------------- trackers


def tracker_options(directory: Path) -> dict[str, dict[str, Any]]:
    """The options of each tracker of the run, those that it got later included, as `tracker` nodes."""
    options = dict(read_record(directory)["config"].get("tracker") or {})
    for file in sorted((directory / STATES).glob("*.json")):
        if later := read_json(file).get(OPTIONS):
            options[file.stem] = later
    return options


def build_trackers(options: Mapping[str, Mapping[str, Any]], allowed: Collection[str]) -> dict[str, Mirror]:
    """The trackers of `tracker` nodes, by their own names.

    Raises:
        ConfigError: a target outside this package that is not in `allowed`.
    """
    built = [build(node, f"tracker.{name}", allowed)() for name, node in options.items()]
    return {tracker.backend.name: tracker for tracker in built if isinstance(tracker, Mirror)}


def is_unsent(directory: Path, name: str) -> bool:
    """Whether rows that belong on a server are in the run's folder only: an offline W&B run, not uploaded."""
    state = read_json(state_file(directory, name))
    if state.get("mode") != "offline":
        return False
    run_id = state.get("id") or run_info(directory).tracker_id
    return not all(map(is_synced, fragments(directory, run_id)))


def trackers_of(run: RunInfo, allowed: Collection[str] = ()) -> dict[str, Mirror]:
    """The trackers of a run, not started, by name.

    Args:
        run: the run, from `run_info`.
        allowed: targets outside this package, from the command line.
    """
    return build_trackers(tracker_options(run.directory), allowed)
