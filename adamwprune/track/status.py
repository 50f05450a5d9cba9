"""`status`: runs, where each tracker keeps their rows, and what is not there yet.

Fast for hundreds of runs: what closed whole is taken at its word (`verify` reads it), only the
stores of other trackers are opened.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from adamwprune.callbacks.console import Terminal
from adamwprune.run_directory import METRICS, SUMMARY, read_json, shown_path
from adamwprune.track.compare import sync_command
from adamwprune.track.recorded import (
    RUNNING,
    STARTING,
    build_trackers,
    find_runs,
    is_unsent,
    run_info,
    run_state,
    tracker_options,
)
from adamwprune.trackers.backend import state_file
from adamwprune.training.ledger import read_rows


@dataclass(frozen=True)
class Store:
    """A tracker's part of a run."""

    tracker: str
    # closed, open, degraded or failed as recorded; unsent: whole, but only here; lost: it was closed
    # and its file is gone; not closed: its run was killed
    state: str
    rows: int | None  # steps that it has; None: cannot be read from here
    place: str  # path or address

    @property
    def is_complete(self) -> bool:
        """Whether the tracker has all that it should have."""
        return self.state == "closed"


@dataclass(frozen=True)
class RunStatus:
    """A run and its trackers."""

    directory: Path
    state: str
    rows: int  # in metrics.jsonl
    stores: tuple[Store, ...]
    has_ended: bool  # says so in its summary.json

    @property
    def needs_sync(self) -> bool:
        """Whether `sync` has something to do: the run was killed, or a tracker is not complete."""
        if self.state in (RUNNING, STARTING):
            return False
        return not (self.has_ended and all(store.is_complete for store in self.stores))


def print_status(folders: Collection[Path], allowed: Collection[str] = ()) -> None:
    """Print all runs at or below `folders`: a table on a terminal, lines with tabs into a pipe."""
    found = [look(directory, allowed) for directory in find_runs(folders)]
    terminal = Terminal()
    if not terminal.is_terminal:
        print("\n".join(plain_lines(found)))
        return
    if not found:
        terminal.print("no runs in outputs/ or multirun/ here")
        return
    terminal.print(status_table(found))
    for run in found:
        if run.needs_sync:
            # Not in the table: a line to copy must not be broken.
            terminal.print(sync_command(run.directory), soft_wrap=True, highlight=False)


def status_table(found: Collection[RunStatus]) -> Table:
    """A line for each run, and below it one for each of its trackers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run, and where its trackers keep it", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    for run in found:
        table.add_row(str(shown_path(run.directory)), run.state, f"{run.rows:,}")
        for store in run.stores:
            rows = "?" if store.rows is None else f"{store.rows:,}"
            place = _shown(store.place, run.directory.resolve())
            table.add_row(f"  {store.tracker} {place}", store.state, rows)
    return table


def plain_lines(found: Collection[RunStatus]) -> list[str]:
    """A head, then a line for each run and tracker, fields separated by tabs."""
    lines = ["run\tstate\trows\ttracker\ttracker state\tstored\tplace\tcommand"]
    for run in found:
        head = f"{shown_path(run.directory)}\t{run.state}\t{run.rows}"
        for store in run.stores or (Store("none", "", None, ""),):
            rows = "" if store.rows is None else store.rows
            needs = run.needs_sync and not (run.has_ended and store.is_complete)
            command = sync_command(run.directory) if needs else ""
            lines.append(f"{head}\t{store.tracker}\t{store.state}\t{rows}\t{_shown(store.place)}\t{command}")
    return lines


def look(directory: Path, allowed: Collection[str] = ()) -> RunStatus:
    """What there is of a run, in its folder and in its trackers' stores."""
    state, rows, options = run_state(directory), count_rows(directory / METRICS), tracker_options(directory)
    is_over = state not in (RUNNING, STARTING)
    stores = [_store(directory, {name: options[name]}, is_over, rows, allowed) for name in sorted(options)]
    return RunStatus(directory, state, rows, tuple(stores), has_ended=(directory / SUMMARY).exists())


def _store(
    directory: Path, options: dict[str, dict[str, Any]], is_over: bool, rows: int, allowed: Collection[str]
) -> Store:
    (name,) = options
    known = read_json(state_file(directory, name))
    state, path = str(known.get("state", "never opened")), known.get("path")
    place = str(known.get("url") or path or "")
    stored: int | None = rows
    if state != "closed" or (path is not None and not Path(path).exists()):
        stored = _stored_rows(directory, options, allowed)
    if state == "closed" and stored != rows:
        state = "lost"
    elif state == "closed" and is_unsent(directory, name):
        state = "unsent"
    elif state == "open" and is_over:
        state = "not closed"
    return Store(name, state, stored, place)


def _stored_rows(directory: Path, options: dict[str, dict[str, Any]], allowed: Collection[str]) -> int | None:
    """Steps that a tracker's store has; None where it cannot be read."""
    try:
        (tracker,) = build_trackers(options, allowed).values()
        stored = tracker.backend.read_back(run_info(directory))
    except Exception:
        return None  # `verify` says why
    return None if stored is None else len({step for step, _ in stored})


def count_rows(ledger: Path) -> int:
    """Rows of a metrics.jsonl, without parsing it unless rows were taken back."""
    data = ledger.read_bytes() if ledger.exists() else b""
    if b'"event": "rewind"' in data:
        return len(read_rows(ledger))
    return data.count(b"\n") - data.count(b'"event": "')


def _shown(place: str, within: Path | None = None) -> str:
    """A path as one would type it here, or in `within`; an address as it is."""
    path = Path(place)
    if not place or "://" in place:
        return place
    if within is not None and path.is_relative_to(within):
        return str(path.relative_to(within))
    return str(shown_path(path))
