"""metrics.jsonl as a tracker reads it: rows and alerts from any place on, less what a rewind took back.

The file is the queue between the loop and the trackers. Entries carry their line number, which is
unique in a run and kept over resumes, so that a tracker which stores a number once can be sent the
same rows again.
"""

import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from adamwprune.callbacks.base import Alert, Row

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Position(NamedTuple):
    """A place between two lines of the ledger."""

    offset: int = 0  # bytes
    line: int = 0  # complete lines before it


BEGINNING = Position()


class Entry(NamedTuple):
    """One row of metrics.jsonl."""

    end: Position  # end.line is the row's line number, from 1
    step: int
    time: float  # seconds since the epoch
    row: Row


class AlertEntry(NamedTuple):
    """One alert of metrics.jsonl."""

    end: Position
    step: int
    time: float
    alert: Alert


def read_entries(
    ledger: Path, start: Position = BEGINNING, void: Collection[int] = ()
) -> Iterator[Entry | AlertEntry]:
    """Yield rows and alerts of `ledger` from `start` on, without the lines in `void`.

    A last line without its newline is being written, or was torn by a kill: not there yet.
    "NaN", "Infinity" and "-Infinity", as JSON writes them in quotes, come back as floats.
    """
    for end, values in _lines(ledger, start):
        if end.line in void or not isinstance(values.get("step"), int):
            continue
        step, time, event = values.pop("step"), values.pop("time", 0.0), values.pop("event", None)
        if event == "alert" and values.keys() == set(Alert._fields):
            yield AlertEntry(end, step, time, Alert(**values))
        elif event is None:
            yield Entry(end, step, time, {key: from_json(value) for key, value in values.items()})


def read_rows(ledger: Path, start: Position = BEGINNING, void: Collection[int] = ()) -> Iterator[Entry]:
    """The rows alone."""
    return (entry for entry in read_entries(ledger, start, void) if isinstance(entry, Entry))


def voided(ledger: Path) -> frozenset[int]:
    """Numbers of the lines that a `rewind` took back: those before it at later steps."""
    void: set[int] = set()
    seen: list[tuple[int, int]] = []  # line, step
    for end, values in _lines(ledger, BEGINNING):
        step = values.get("step")
        if values.get("event") == "rewind" and isinstance(step, int):
            void |= {line for line, before in seen if before > step}
        elif isinstance(step, int):
            seen.append((end.line, step))
    return frozenset(void)


def rewinds(ledger: Path) -> int:
    """How often rows were taken back."""
    return sum(values.get("event") == "rewind" for _, values in _lines(ledger, BEGINNING))


def end_within(ledger: Path, size: int) -> Position:
    """The place after the last complete line within the first `size` bytes."""
    position = BEGINNING
    for end, _ in _lines(ledger, BEGINNING):
        if end.offset > size:
            break
        position = end
    return position


def _lines(ledger: Path, start: Position) -> Iterator[tuple[Position, dict[str, Any]]]:
    """Complete lines that hold a JSON object, each with the place after it."""
    try:
        file = ledger.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(start.offset)
        offset, line = start
        for text in file:
            if not text.endswith(b"\n"):
                return
            offset, line = offset + len(text), line + 1
            try:
                values = json.loads(text)
            except (ValueError, RecursionError):
                values = None
            yield Position(offset, line), values if isinstance(values, dict) else {}


def from_json(value: Any) -> Any:
    """A value of metrics.jsonl or summary.json, with the floats that JSON has no numbers for."""
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
