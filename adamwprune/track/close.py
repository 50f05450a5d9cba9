"""`close`: the end of a run that was killed, written by another process.

A SIGKILL leaves rows and checkpoints, but no summary.json, no alert and no exit code in a tracker.
What can be told from the folder is written here as the run itself would have; resume= still goes on
with it, and removes the summary as it does that of any run that had stopped.
"""

import math
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from adamwprune.callbacks.base import Alert, RunInfo
from adamwprune.errors import CheckpointError
from adamwprune.run_directory import METRICS, SUMMARY, locked, read_json, shown_path, write_json
from adamwprune.track.fill import fill, patient_trackers
from adamwprune.track.recorded import (
    FAILED,
    KILLED,
    RUNNING,
    read_record,
    run_info,
    run_state,
    session_starts,
    tracker_options,
)
from adamwprune.trackers.rows import Entry, read_rows, voided
from adamwprune.training.ledger import Ledger
from adamwprune.training.metrics import json_row

# A shell shows a process that a signal ended as 128 + its number: SIGKILL as 137.
SIGNALS = 128
SIGKILLED = 137


def close(directory: Path, exit_code: int = SIGKILLED, allowed: Collection[str] = ()) -> dict[str, Any]:
    """End a killed run in its ledger, its trackers and its summary.json; the summary.

    Args:
        directory: the run's folder.
        exit_code: of the process: 128 + the signal that ended it, or its own.
        allowed: targets outside this package, from the command line.

    Raises:
        CheckpointError: there is no run, it is running, or it has ended.
    """
    run = run_info(directory)
    if (state := run_state(run.directory)) == RUNNING:
        raise CheckpointError(f"{shown_path(run.directory)}: running; stop it, or let it end")
    if summary := read_json(run.directory / SUMMARY):
        raise CheckpointError(
            f"{shown_path(run.directory)}: has ended already: {state}, exit code {summary['exit_code']}"
        )
    trackers = patient_trackers(tracker_options(run.directory), run, allowed)
    with locked(run.directory):
        _alert(run, exit_code)
        summary = summary_of_rows(run, exit_code)
        summary["trackers"] = fill(trackers, run, summary)
        write_json(run.directory / SUMMARY, summary)
    return summary


def _alert(run: RunInfo, exit_code: int) -> None:
    """The alert that ends a run, after whatever the kill left of its last line."""
    text = f"at step {run.first_step}; to continue: python train.py resume={shown_path(run.directory)}"
    ledger = Ledger(run.directory / METRICS, run.first_step)
    ledger.alert(run.first_step, time.time(), Alert("end", "error", _title(exit_code), text))
    ledger.close()


def _title(exit_code: int) -> str:
    how = "killed" if exit_code > SIGNALS else "ended"
    return f"{how}, exit code {exit_code}"


def summary_of_rows(run: RunInfo, exit_code: int) -> dict[str, Any]:
    """summary.json as far as the rows tell: nothing was counted from weights, nothing is final."""
    ledger = run.directory / METRICS
    rows = list(read_rows(ledger, void=voided(ledger)))
    last = json_row({name: value for entry in rows for name, value in entry.row.items()})
    record, pruning = read_record(run.directory), run.config.get("pruning") or {}
    return {
        "status": KILLED if exit_code > SIGNALS else FAILED,
        "exit_code": exit_code,
        "steps": run.first_step,
        "total_steps": run.total_steps,
        "seconds": _seconds(record, rows),
        "metrics": {"final": {}, "best": {}, "last": _scores(last)},
        "sparsity": {
            "target": pruning.get("target_sparsity") if pruning.get("criterion") else None,
            "achieved": last.get("sparsity/global"),
        },
        "parameters": {},
        "trackers": {},
        "exact": record.get("exact", True),
        "paths": {"run": str(run.directory), "metrics": METRICS, "checkpoints": "checkpoints"},
        "error": _title(exit_code),
    }


def _scores(last: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in last.items() if name.startswith(("train/loss", "val/"))}


def _seconds(record: Mapping[str, Any], rows: list[Entry]) -> float:
    """Seconds from the start of each session to its last row, added up."""
    starts = session_starts(record)
    ends = [*starts[1:], math.inf]
    seconds = 0.0
    for start, end in zip(starts, ends, strict=True):
        times = [row.time for row in rows if start <= row.time < end]
        seconds += max(times, default=start) - start
    return seconds
