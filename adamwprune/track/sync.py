"""`sync`: send to a run's trackers what their stores lack, and compare them again."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from adamwprune.callbacks.base import RunInfo
from adamwprune.errors import TrackerError
from adamwprune.run_directory import SUMMARY, locked, read_json, shown_path, write_json
from adamwprune.track.close import close
from adamwprune.track.compare import Check, check
from adamwprune.track.fill import fill, patient_trackers
from adamwprune.track.recorded import (
    RUNNING,
    STARTING,
    find_runs,
    is_unsent,
    run_info,
    run_state,
    tracker_options,
)
from adamwprune.track.status import look
from adamwprune.trackers.backend import environment, recorded_facts
from adamwprune.trackers.mirror import Mirror
from adamwprune.trackers.wandb import WandB
from adamwprune.trackers.wandb_server import choose_mode


def sync_all(folders: Collection[Path], allowed: Collection[str] = ()) -> int:
    """Sync the runs at or below `folders`, or without any all that are incomplete.

    Returns:
        0 if nothing is missing, else 6.
    """
    runs = find_runs(folders)
    if not folders:
        runs = [run for run in runs if look(run, allowed).needs_sync]
        print(f"incomplete: {len(runs)}" if runs else "nothing to send")
    are_whole = [sync(run, allowed) for run in runs]
    return 0 if all(are_whole) else TrackerError.exit_code


def sync(directory: Path, allowed: Collection[str] = ()) -> bool:
    """Make the trackers of one run whole, and print what was done; whether they are.

    A killed run is closed first; one that is running is left alone.
    """
    shown = shown_path(directory)
    if (state := run_state(directory)) in (RUNNING, STARTING):
        print(f"{shown}: {state}; its trackers follow by themselves, sync it when it has ended")
        return False
    if not (directory / SUMMARY).exists():
        summary = close(directory, allowed=allowed)
        state += f", closed with exit code {summary['exit_code']}"
    print(f"{shown}: {state}")
    run = run_info(directory)
    with locked(run.directory):
        trackers = patient_trackers(tracker_options(run.directory), run, allowed)
        obstacles = {name: _prepare_upload(trackers[name]) for name in _unsent(trackers, run)}
        sendable = {name for name, obstacle in obstacles.items() if not obstacle}
        is_whole = make_whole(trackers, run, read_json(run.directory / SUMMARY), sendable)
        unsent = _unsent(trackers, run)
        for name in unsent:
            why = obstacles.get(name) or recorded_facts(run, name).get("reason")
            print(f"  {name}: not uploaded: {why}")
        return is_whole and not unsent


def make_whole(
    trackers: Mapping[str, Mirror], run: RunInfo, summary: dict[str, Any], sendable: Collection[str] = ()
) -> bool:
    """Fill the trackers whose stores are not whole, and print what each holds; whether all are.

    What a tracker says of itself goes into the run's summary.json, in place of what it said at the end.

    Args:
        trackers: by name, not started.
        run: the run, which nobody else is at.
        summary: the run's summary.json.
        sendable: trackers that are run again even if their stores are whole.
    """
    before = {name: check(tracker, run) for name, tracker in trackers.items()}
    # Filling cannot mend these, and may cost the last copy of rows that the ledger has lost.
    extra = {name: found.parity.extra for name, found in before.items() if found.parity}
    fuller = [name for name, count in extra.items() if count and not run.rewinds]
    for name in fuller:
        print(f"  {name}: has {extra[name]:,} values that metrics.jsonl lacks; restore it, nothing is sent")

    def needs_filling(name: str) -> bool:
        is_closed = recorded_facts(run, name).get("state") == "closed"
        return name not in fuller and (name in sendable or not before[name].is_whole or not is_closed)

    incomplete = {name: tracker for name, tracker in trackers.items() if needs_filling(name)}
    states = fill(incomplete, run, summary)
    after = before | {name: check(tracker, run) for name, tracker in incomplete.items()}
    for name, found in after.items():
        print(f"  {name}: {_said_of(before[name])}{found}")
        for kind, error in states.get(name, {}).get("errors", {}).items():
            print(f"  {name}: {kind}: {error['first']}")
    if states:
        summary["trackers"] = {**summary.get("trackers", {}), **states}
        write_json(run.directory / SUMMARY, summary)
    are_closed = all(state["state"] == "closed" for state in states.values())
    return are_closed and all(found.is_whole for found in after.values())


def _said_of(before: Check) -> str:
    if before.is_whole:
        return ""
    if before.parity is None:
        return "nothing to read before; now "
    return f"{before.parity.missing:,} values were missing; now "


def _unsent(trackers: Collection[str], run: RunInfo) -> list[str]:
    return [name for name in trackers if is_unsent(run.directory, name)]


def _prepare_upload(tracker: Mirror) -> str:
    """Let a run that was recorded offline go to its server; what is in the way of that, or nothing."""
    backend = tracker.backend
    assert isinstance(backend, WandB)
    backend.mode = "auto"  # also if it was recorded offline on purpose: now it is to be sent
    # As for a run: W&B's process, which begins here, sends no reports and is nobody else's.
    with environment(WANDB_ERROR_REPORTING="false", WANDB_SERVICE=os.environ.get("WANDB_SERVICE")):
        try:
            import wandb
        except ImportError as error:
            return str(error)
        session = wandb.setup(wandb.Settings(silent=True)).settings
    base_url = backend.base_url or os.environ.get("WANDB_BASE_URL") or session.base_url
    mode, reason = choose_mode(backend.mode, base_url)
    return "" if mode == "online" else reason or f"WANDB_MODE={os.environ['WANDB_MODE']}"
