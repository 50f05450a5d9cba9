"""TensorBoard: an event file in the run's folder; `tensorboard --logdir outputs` shows all runs.

A row is one record at its own step and time. Each number is there as float32, which is all that
TensorBoard's fast reader knows (it shows no point of a float64 series), and exactly beside it. The
configuration is on the pages TEXT and HPARAMS, alerts are on TEXT, final values are scalars and texts
with names of their own.

Each session of a run writes a file of its own, anew from metrics.jsonl, empties the one before, and
begins by telling readers that what they have seen no longer counts. So there is no hole after a kill,
no row twice, and none that a rewind took back, in a page that is open too.

The records are TensorBoard's, its writer is not: it imports TensorFlow where that is installed.
Behaviour measured with TensorBoard 2.21.0.
"""

import errno
import io
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from adamwprune.callbacks.base import Callback, Row, RunInfo
from adamwprune.config import flatten
from adamwprune.ranges import Positive
from adamwprune.run_directory import shown_path
from adamwprune.trackers.backend import Backend, is_exact_number, public_config
from adamwprune.trackers.mirror import Mirror
from adamwprune.trackers.parity import Series, series
from adamwprune.trackers.rows import BEGINNING, AlertEntry, Entry

PACKAGES = {"tensorboard": "tensorboard>=2.21,<3"}


def tensorboard(*, finish_timeout: Positive = 30.0, required: bool = False) -> Callback:
    """The tracker `tensorboard`.

    Args:
        finish_timeout: seconds that the end of a run waits for the event file.
        required: whether the run ends with exit code 6 if a row is missing at its end.
    """
    return Mirror(TensorBoard(), finish_timeout=finish_timeout, required=required)


class TensorBoard(Backend):
    """The backend: appends events to the file of this session."""

    name = "tensorboard"
    idempotent = True

    def __init__(self) -> None:
        super().__init__()
        self._file: Path
        self._last: tuple[int, float]  # step and time of the last row
        self._end_of_rows = self._end_of_alerts = BEGINNING  # what is written of metrics.jsonl

    def open(self, run: RunInfo) -> None:
        """Begin the file, with the configuration."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        now, folder = time.time(), _folder(run)
        folder.mkdir(exist_ok=True)
        for file in _files(run):
            # Not removed yet: the slow reader would look for it for ever, instead of going on.
            os.truncate(file, 0) if file.stat().st_size else file.unlink()
        # Readers take files in the order of their names; two sessions may start within a second.
        self._file = folder / f"events.out.tfevents.{now:.6f}.{run.run_id}"
        self._last = (run.first_step, now)
        show = f"tensorboard --logdir {shlex.quote(str(shown_path(folder)))}"
        self.facts.update(path=str(folder), show=show)
        restart = Event(step=0, wall_time=now, session_log=SessionLog(status=SessionLog.START))
        self._append(
            [Event(wall_time=now, file_version="brain.Event:2"), restart, _event(0, now, _head(run))]
        )

    def log(self, entries: list[Entry]) -> None:
        """Append the rows that are not there."""
        if new := [entry for entry in entries if entry.end > self._end_of_rows]:
            self._append([_event(entry.step, entry.time, self._scalars(entry.row)) for entry in new])
            self._last, self._end_of_rows = (new[-1].step, new[-1].time), new[-1].end

    def alert(self, entry: AlertEntry) -> None:
        """Show an alert on the page TEXT."""
        if entry.end > self._end_of_alerts:
            text = f"**{entry.alert.level}: {entry.alert.title}**\n\n{entry.alert.text}"
            self._append([_event(entry.step, entry.time, [_text("alerts", text)])])
            self._end_of_alerts = entry.end

    def finish(self, exit_code: int, finals: Row) -> None:
        """Append the final values at the last row's step; TensorBoard itself knows no end of a run."""
        texts = [_text(name, str(value)) for name, value in finals.items() if not self.takes(value)]
        self._append([_event(*self._last, [*self._scalars(finals), *texts])])

    def takes(self, value: Any) -> bool:
        """Numbers that float64 holds."""
        return is_exact_number(value)

    def read_back(self, run: RunInfo) -> Series:
        """All scalars, exactly."""
        return series(
            (
                event.step,
                {
                    item.tag: item.tensor.double_val[0]
                    for item in event.summary.value
                    if item.tensor.double_val
                },
            )
            for file in _files(run)
            for event in _events(file)
        )

    def _scalars(self, row: Row) -> list[Any]:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_FLOAT
        from tensorboard.plugins.scalar.metadata import create_summary_metadata

        metadata = create_summary_metadata(display_name=None, description=None)
        numbers = {name: value for name, value in row.items() if self.takes(value)}
        return [
            Summary.Value(
                tag=name,
                metadata=metadata,
                tensor=TensorProto(dtype=DT_FLOAT, float_val=[value], double_val=[value]),
            )
            for name, value in numbers.items()
        ]

    def _append(self, events: list[Any]) -> None:
        """Write all or nothing: what a full disk took of a part is cut off again."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        data = io.BytesIO()
        for event in events:
            RecordWriter(data).write(event.SerializeToString())
        with self._file.open("ab", buffering=0) as file:
            size = file.tell()
            if file.write(data.getbuffer()) < data.tell():
                file.truncate(size)
                raise OSError(errno.ENOSPC, "disk full", str(self._file))


def _folder(run: RunInfo) -> Path:
    return run.directory / "tensorboard"


def _files(run: RunInfo) -> list[Path]:
    return sorted(_folder(run).glob(f"events.out.tfevents.*.{run.run_id}"))


def _events(file: Path) -> Iterator[Any]:
    """What a file holds, up to a torn record."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.errors import DataLossError, OutOfRangeError
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    reader = PyRecordReader_New(str(file))
    with suppress(DataLossError, OutOfRangeError):
        while True:
            reader.GetNext()
            yield Event.FromString(reader.record())


def _head(run: RunInfo) -> list[Any]:
    """The configuration, as text and for the page HPARAMS."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    config = public_config(run.config)
    text = "    " + yaml.safe_dump(config, sort_keys=False).replace("\n", "\n    ")
    hparams = {
        key: value if isinstance(value, bool | int | float) else str(value) for key, value in flatten(config)
    }
    return [_text("config", text), *hparams_pb(hparams, trial_id=run.name).value]


def _text(name: str, text: str) -> Any:
    from tensorboard.plugins.text.summary_v2 import text_pb

    return text_pb(name, text).value[0]


def _event(step: int, moment: float, values: list[Any]) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Event(step=step, wall_time=moment, summary=Summary(value=values))
