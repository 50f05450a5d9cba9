"""Reads W&B runs back from their `.wandb` files: own framing, the package's record types.

A run lies in `wandb/{offline-run,run}-<time>-<id>/run-<id>.wandb`, one such fragment for each session
(a resumed run is a second file with the same id), and `run-<id>.wandb.synced` beside it once all of
it is on a server.

The file is a 7-byte header (`:W&B`, 0xBEE1 little endian, a version byte), then the log format of
LevelDB (doc/log_format.md there): blocks of 32 KiB from the file's start, records with a header of
7 bytes (CRC-32 of type and data, length, type), split at block borders; a block's tail of less
than 7 bytes is padding. W&B's checksum is the plain CRC-32, not LevelDB's masked CRC-32C.
Behaviour measured with W&B 0.31.0.
"""

import json
import os
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

STEP = "trainer/step"

MAGIC = b":W&B" + struct.pack("<H", 0xBEE1)
FILE_HEADER = len(MAGIC) + 1
BLOCK = 32 * 1024
HEADER = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


class StoredAlert(NamedTuple):
    """One alert of a run."""

    level: str  # INFO, WARN or ERROR
    title: str
    text: str


@dataclass
class WandbRun:
    """What one file holds."""

    rows: list[dict[str, Any]] = field(default_factory=list)  # in order, with W&B's own `_` keys
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)  # metric -> the metric it is plotted over
    alerts: list[StoredAlert] = field(default_factory=list)
    run: Any = None  # the RunRecord: run_id, display_name, project, run_group, job_type, tags, notes
    exit_code: int | None = None  # None: the run was never ended
    is_preempting: bool = False

    @property
    def series(self) -> list[tuple[int, float, dict[str, Any]]]:
        """Rows as (trainer/step, time, row without the keys that W&B or we added); others are left out."""
        return [
            (
                row[STEP],
                row["_timestamp"],
                {key: value for key, value in row.items() if key != STEP and key[0] != "_"},
            )
            for row in self.rows
            if STEP in row
        ]


# ---- where files are


def fragments(directory: Path, run_id: str | None = None) -> list[Path]:
    """The .wandb files of the run in `directory`, in order of their starts.

    Args:
        directory: the run's folder.
        run_id: W&B's id; None for all, such as those of before a rewind.
    """
    files = (directory / "wandb").glob("*run-*/run-*.wandb")
    own = (file for file in files if run_id is None or file.name == f"run-{run_id}.wandb")
    # W&B has links to its newest run; of others nobody knows where they lead.
    return sorted((f for f in own if not (f.is_symlink() or f.parent.is_symlink())), key=_order)


def started(file: Path) -> str:
    """The second of local time in which the file was begun, such as 20261124_120000."""
    return _named(file)[0]


def _order(file: Path) -> tuple[str, bool, int]:
    """By second, and in one second as they come: an online start that failed, then the offline one."""
    second, name = _named(file)
    number = name.removeprefix(file.stem.removeprefix("run-")).removeprefix("-")
    return second, is_offline(file), int(number) if number.isdigit() else 0


def _named(file: Path) -> tuple[str, str]:
    """Second and id of `offline-run-<second>-<id>`; a number may follow the id."""
    second, _, name = file.parent.name.partition("run-")[2].partition("-")
    return second, name


def is_offline(file: Path) -> bool:
    """Whether the run was recorded without a server."""
    return file.parent.name.startswith("offline-")


def is_synced(file: Path) -> bool:
    """Whether all of the file is on a server: `wandb sync` or the online run itself has said so."""
    return _mark(file).exists()


def mark_synced(file: Path) -> None:
    """Say so: `wandb sync` leaves the file out from now on."""
    _mark(file).touch()


def _mark(file: Path) -> Path:
    return file.with_suffix(".wandb.synced")


def mend(file: Path) -> None:
    """Make a file that a kill cut short one that `wandb sync` takes.

    It would send a file with a torn record again each time, and none of the run's files after it; and
    it fails on a file without a run. The torn record is cut off, the file without a run is marked.
    """
    size, whole = file.stat().st_size, FILE_HEADER
    for end, _ in _read_records(file):
        whole = end
    if whole < size:
        os.truncate(file, whole)
    if parse_run(file).run is None:
        mark_synced(file)


# ---- what is in them


def read_payloads(file: Path) -> Iterator[bytes]:
    """Yield whole records; stop at the first that is torn or whose checksum is wrong.

    Raises:
        ValueError: the file is of another kind.
    """
    return (payload for _, payload in _read_records(file))


def _read_records(file: Path) -> Iterator[tuple[int, bytes]]:
    """Whole records, each with the place after it."""
    data = file.read_bytes()
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise ValueError(f"{file}: not a .wandb file")
    position, parts = FILE_HEADER, b""
    while True:
        if BLOCK - position % BLOCK < HEADER.size:
            position += BLOCK - position % BLOCK
        header = data[position : position + HEADER.size]
        if len(header) < HEADER.size:
            return
        checksum, length, kind = HEADER.unpack(header)
        if kind == 0 and length == 0:
            position += BLOCK - position % BLOCK
            continue
        position += HEADER.size
        part = data[position : position + length]
        if len(part) < length or zlib.crc32(bytes([kind]) + part) != checksum:
            return
        position += length
        parts = part if kind in (FULL, FIRST) else parts + part
        if kind in (FULL, LAST):
            yield position, parts


def read_run(directory: Path, patience: float = 5.0) -> WandbRun:
    """The run in an `offline-run-*` or `run-*` directory.

    W&B's process may write the last record some milliseconds after finish() returned: waits up
    to `patience` seconds for the record that ends a run.
    """
    (file,) = directory.glob("*.wandb")
    deadline, pause = time.monotonic() + patience, 0.01
    while (run := parse_run(file)).exit_code is None and time.monotonic() < deadline:
        time.sleep(pause)
        pause *= 2
    return run


def parse_run(file: Path) -> WandbRun:
    """The run as far as the file goes now.

    Raises:
        ValueError: the file is of another kind.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    found = WandbRun()
    for payload in read_payloads(file):
        record = Record.FromString(payload)
        match record.WhichOneof("record_type"):
            case "run":
                found.run = record.run
                found.config.update(_items(record.run.config.update))
            case "config":
                found.config.update(_items(record.config.update))
            case "history":
                found.rows.append(_items(record.history.item))
            case "summary":
                found.summary.update(_items(record.summary.update))
            case "metric":
                found.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            case "alert":
                found.alerts.append(StoredAlert(record.alert.level, record.alert.title, record.alert.text))
            case "exit":
                found.exit_code = record.exit.exit_code
            case "preempting":
                found.is_preempting = True
    return found


def _items(items: Iterable[Any]) -> dict[str, Any]:
    """Names as they were given, of nested values joined by dots; floats to the bit, NaN too."""
    names = [item.key or ".".join(item.nested_key) for item in items]
    # In one text, as most of the time is that of the calls.
    values = json.loads(f"[{','.join(item.value_json for item in items)}]")
    return dict(zip(names, values, strict=True))
