"""metrics.jsonl: one JSON object a line, append-only, one write a row; the truth of the run.

    {"step": 10, "time": 1764000000.123, "train/loss": 2.31, "train/lr": 0.001, ...}

A resumed run that replays steps does not write their rows again: it compares them. Lines with
`event` are no rows: `rewind` takes back the rows after its step, `alert` is for people.
"""

import json
import os
from pathlib import Path
from typing import Any

from adamwprune.callbacks.base import Alert, Row
from adamwprune.errors import CheckpointError, DiskError
from adamwprune.run_directory import room_for
from adamwprune.training.metrics import json_row

# Rule of the alert that a run has ended early: each end is one, whatever steps are replayed.
END = "end"
# Measured, so different in every process: not compared when a step is replayed.
VOLATILE = ("time", "perf/", "memory/")


class Ledger:
    """The file, open for appending.

    Args:
        file: metrics.jsonl; created where it does not exist.
        step: the step that the run goes on from; later rows in the file will be replayed.
        exact: whether replayed rows must equal the file's; if not, a `rewind` row marks the cut.
    """

    def __init__(self, file: Path, step: int = 0, *, exact: bool = True) -> None:
        self.file = file
        _cut_torn_line(file)
        self._replayed = {row["step"]: row for row in read_rows(file) if row["step"] > step}
        self._alerts = {
            (line["step"], line["rule"])
            for line in read_lines(file)
            if "rule" in line and line["step"] > step and line["rule"] != END
        }
        try:
            self._descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise DiskError(f"{file}: {error.strerror}") from None
        if self._replayed and not exact:
            self._append(
                {"step": step, "time": next(iter(self._replayed.values()))["time"], "event": "rewind"}
            )
            self._replayed = {}
            self._alerts = set()

    def write(self, step: int, time: float, row: Row) -> None:
        """Append one row, or compare it where the file has that step already.

        Raises:
            CheckpointError: a replayed step differs, so the run does not continue itself.
            DiskError: the file system refuses; earlier rows are whole.
        """
        line = {"step": step, "time": time, **json_row(row)}
        if step in self._replayed:
            self._compare(self._replayed.pop(step), json.loads(json.dumps(line)))
        else:
            self._append(line)

    def alert(self, step: int, time: float, alert: Alert) -> bool:
        """Append an alert, unless a replayed step had raised it before; whether it is new."""
        if (step, alert.rule) in self._alerts:
            return False
        self._alerts.add((step, alert.rule))
        self._append({"step": step, "time": time, "event": "alert", **alert._asdict()})
        return True

    def _append(self, line: dict[str, object]) -> None:
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            raise self._refused(error.strerror, len(data)) from None
        if written < len(data):
            os.ftruncate(self._descriptor, self.length() - written)  # or the next line would begin within
            raise self._refused("disk full", len(data))

    def _refused(self, reason: str | None, needed: int) -> DiskError:
        room = room_for(self.file, needed)
        return DiskError(f"{self.file}: {reason}; {room}; rows up to the last whole line are kept")

    def _compare(self, before: dict[str, object], after: dict[str, object]) -> None:
        for key in before.keys() | after.keys():
            if not key.startswith(VOLATILE) and before.get(key) != after.get(key):
                raise CheckpointError(
                    f"step {after['step']} differs: {key} was {before.get(key)}, is {after.get(key)}; "
                    "the code or machine has changed; to go on all the same add 'resume_allow=[environment]'"
                )

    def length(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._descriptor).st_size

    def sync(self) -> None:
        """Make all rows survive a power cut."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise DiskError(f"{self.file}: {error.strerror}") from None

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        os.close(self._descriptor)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl that count: whole lines, less those that a rewind took back."""
    return [line for line in read_lines(file) if "event" not in line]


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Rows and alerts that count, in order."""
    if not file.exists():
        return []
    lines: list[dict[str, Any]] = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue  # torn by a kill; only the last can be
        if not (isinstance(line, dict) and isinstance(line.get("step"), int)):
            continue  # never written here
        if line.get("event") == "rewind":
            lines = [earlier for earlier in lines if earlier["step"] <= line["step"]]
        else:
            lines.append(line)
    return lines


def _cut_torn_line(file: Path) -> None:
    """Drop what follows the last newline: a row that a kill cut short."""
    if not file.exists():
        return
    try:
        with file.open("rb+") as stream:
            stream.truncate(stream.read().rfind(b"\n") + 1)
    except OSError as error:
        raise DiskError(f"{file}: {error.strerror}") from None
