"""Where a run's rows and events go: the ledger first, then each callback, rank 0 only.

Rules look at each row that was written; what they find goes into the ledger too, from where trackers
take it, and to the log.

A callback that raises is dropped with one warning; the run and its metrics.jsonl go on.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamwprune.callbacks.base import Alert, Callback, Row, RunInfo
from adamwprune.errors import DiskError, exit_code_of
from adamwprune.training.ledger import END, Ledger
from adamwprune.training.metrics import sanitise

if TYPE_CHECKING:
    from adamwprune.training.alerts import Watch

log = logging.getLogger(__name__)

# Exit codes from here on are stops that were asked for: 75, 130, 143.
FIRST_ASKED_FOR = 64
LEVELS = {"info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}


class Records:
    """The ledger and the callbacks of one run; with neither, on the other ranks, silent."""

    def __init__(
        self,
        ledger: Ledger | None = None,
        callbacks: Sequence[Callback] = (),
        mask_updates: Ledger | None = None,
        watch: "Watch | None" = None,
        samples: Ledger | None = None,
    ) -> None:
        self._ledger, self._mask_updates, self._samples = ledger, mask_updates, samples
        self._watch = watch
        self._step = 0
        self._dropped: Counter[str] = Counter()
        self._callbacks = list(callbacks)
        self._active = list(callbacks)

    def start(self, run: RunInfo) -> None:
        """Tell every callback who the run is."""
        self._step = run.first_step
        self._each("on_train_start", run)

    def step_end(self, step: int) -> None:
        """Tell every callback that a step is done."""
        self._step = step
        self._each("on_step_end", step)

    @property
    def is_stop_requested(self) -> bool:
        """Whether a tracker's stop button was pressed."""
        return any(callback.is_stop_requested for callback in self._active)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one row and hand the same row to every callback."""
        if self._ledger is None:
            return
        row, now = self._sanitise(metrics), time.time()
        self._ledger.write(step, now, row)
        self._each("on_log", step, now, row)
        self._look(step, now, row)

    def _sanitise(self, metrics: Mapping[str, Any]) -> Row:
        """The row as plain values; a metric that is none is named once in the log."""
        known = set(self._dropped)
        row = sanitise(metrics, self._dropped)
        for key in self._dropped.keys() - known:
            log.warning("%s: is no number, text or None, so it is left out of metrics.jsonl", key)
        return row

    def _look(self, step: int, now: float, row: Row) -> None:
        if self._watch is None:
            return
        try:
            alerts = self._watch.look(step, now, row)
        except Exception as error:
            self._watch = None
            log.warning("alerts failed and are left out from now on: %s", error)
            return
        for alert in alerts:
            self.alert(step, alert)

    def alert(self, step: int, alert: Alert) -> None:
        """Write an alert to the ledger, from where trackers take it, and to the log."""
        if self._ledger is not None and self._ledger.alert(step, time.time(), alert):
            log.log(LEVELS[alert.level], "step %d: %s: %s", step, alert.title, alert.text)

    def mask_updated(self, step: int, event: Mapping[str, Any]) -> None:
        """Write everything that is known of a mask update; its numbers come with the row of the step."""
        if self._mask_updates is not None:
            self._mask_updates.write(step, time.time(), sanitise(event))

    def sampled(self, step: int, texts: Sequence[str]) -> None:
        """Write what the model made of each prompt."""
        if self._samples is None:
            return
        self._samples.write(step, time.time(), {f"text/{number}": text for number, text in enumerate(texts)})
        for text in texts:
            log.info("step %d: %s", step, text)

    def checkpoint_saved(self, step: int, directory: Path) -> None:
        """Tell every callback about a verified checkpoint."""
        self._each("on_checkpoint_saved", step, directory)

    def lengths(self) -> dict[str, int]:
        """Bytes so far of each file of rows, by name: a checkpoint is of no use where they are lost."""
        return {ledger.file.name: ledger.length() for ledger in self._ledgers()}

    def sync(self) -> None:
        """Make the rows so far survive a power cut."""
        for ledger in self._ledgers():
            ledger.sync()

    def finished(self, summary: dict[str, Any]) -> None:
        """Tell every callback how a complete run ended."""
        self._each("on_train_end", summary)

    def failed(self, error: BaseException) -> None:
        """Tell every callback why the run ends early."""
        self._each("on_exception", error)
        try:
            self.alert(self._step, ending(error))
        except DiskError as second:
            log.warning("%s", second)  # which may be why the run ends

    def close(self, exit_code: int) -> dict[str, Any]:
        """Close the ledger, then every callback; return what the callbacks say of themselves."""
        for ledger in self._ledgers():
            try:
                ledger.close()
            except DiskError as error:
                log.warning("not synced: %s", error)
        self._each("finish", exit_code)  # all trackers finish at once, within one deadline
        statuses: dict[str, Any] = {}
        for callback in self._callbacks:
            try:
                callback.close(exit_code)
                statuses.update(callback.status())
            except Exception as error:
                log.warning("%s did not close: %s", type(callback).__name__, error)
        return statuses

    def _ledgers(self) -> list[Ledger]:
        ledgers = (self._ledger, self._mask_updates, self._samples)
        return [ledger for ledger in ledgers if ledger is not None]

    def _each(self, hook: str, *arguments: Any) -> None:
        for callback in list(self._active):
            try:
                getattr(callback, hook)(*arguments)
            except Exception as error:
                self._active.remove(callback)
                log.warning(
                    "%s failed in %s and is left out from now on: %s", type(callback).__name__, hook, error
                )


def ending(error: BaseException) -> Alert:
    """The alert of a run that ends early: a warning where that was asked for, else an error."""
    code = exit_code_of(error)
    level = "error" if code < FIRST_ASKED_FOR else "warn"
    return Alert(END, level, f"ended with exit code {code}", str(error))
