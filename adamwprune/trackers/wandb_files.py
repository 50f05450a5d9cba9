"""Reads a run back from a `.wandb` file of W&B: own framing, the package's record types.

The file is a 7-byte header (`:W&B`, 0xBEE1 little endian, a version byte), then the log format of
LevelDB (doc/log_format.md there): blocks of 32 KiB from the file's start, records with a header of
7 bytes (CRC-32 of type and data, length, type), split at block borders; a block's tail of less
than 7 bytes is padding. W&B's checksum is the plain CRC-32, not LevelDB's masked CRC-32C.
"""

import json
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
HEADER = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What one file holds."""

    rows: list[dict[str, Any]] = field(default_factory=list)  # in order, with W&B's own `_` keys
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)  # metric -> the metric it is plotted over
    run: Any = None  # the RunRecord
    exit_code: int | None = None  # None: the run was never ended
    is_preempting: bool = False

    @property
    def series(self) -> list[tuple[int, float, dict[str, Any]]]:
        """Rows as (trainer/step, time, row without the keys that W&B or we added)."""
        return [
            (
                row["trainer/step"],
                row["_timestamp"],
                {key: value for key, value in row.items() if key != "trainer/step" and key[0] != "_"},
            )
            for row in self.rows
        ]


def read_payloads(file: Path) -> Iterator[bytes]:
    """Yield whole records; stop at the first that is torn or whose checksum is wrong."""
    data = file.read_bytes()
    if data[:4] != b":W&B" or data[4:6] != struct.pack("<H", 0xBEE1):
        raise ValueError(f"{file}: not a .wandb file")
    position, parts = 7, b""
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
            yield parts


def read_run(directory: Path, patience: float = 5.0) -> OfflineRun:
    """The run in an `offline-run-*` directory.

    W&B's process may write the last record some milliseconds after finish() returned: waits up
    to `patience` seconds for the record that ends a run.
    """
    (file,) = directory.glob("*.wandb")
    deadline = time.monotonic() + patience
    while (run := parse_run(file)).exit_code is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return run


def parse_run(file: Path) -> OfflineRun:
    """The run as far as the file goes now."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = OfflineRun()
    for payload in read_payloads(file):
        record = Record.FromString(payload)
        match record.WhichOneof("record_type"):
            case "run":
                found.run = record.run
                found.config.update(_items(record.run.config.update))
            case "history":
                found.rows.append(_items(record.history.item))
            case "summary":
                found.summary.update(_items(record.summary.update))
            case "metric":
                found.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            case "exit":
                found.exit_code = record.exit.exit_code
            case "preempting":
                found.is_preempting = True
    return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
