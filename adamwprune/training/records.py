"""Where a run's rows and events go: the ledger first, then each callback, rank 0 only.

A callback that raises is dropped with one warning; the run and its metrics.jsonl go on.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adamwprune.callbacks.base import Callback, RunInfo
from adamwprune.errors import DiskError
from adamwprune.training.ledger import Ledger
from adamwprune.training.metrics import sanitise

log = logging.getLogger(__name__)


class Records:
    """The ledger and the callbacks of one run; with neither, on the other ranks, silent."""

    def __init__(
        self,
        ledger: Ledger | None = None,
        callbacks: Sequence[Callback] = (),
        mask_updates: Ledger | None = None,
    ) -> None:
        self._ledger, self._mask_updates = ledger, mask_updates
        self._callbacks = list(callbacks)
        self._active = list(callbacks)

    def start(self, run: RunInfo) -> None:
        """Tell every callback who the run is."""
        self._each("on_train_start", run)

    def step_end(self, step: int) -> None:
        """Tell every callback that a step is done."""
        self._each("on_step_end", step)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one row and hand the same row to every callback."""
        if self._ledger is None:
            return
        row, now = sanitise(metrics), time.time()
        self._ledger.write(step, now, row)
        self._each("on_log", step, now, row)

    def mask_updated(self, step: int, event: Mapping[str, Any]) -> None:
        """Write everything that is known of a mask update; its numbers come with the row of the step."""
        if self._mask_updates is not None:
            self._mask_updates.write(step, time.time(), sanitise(event))

    def checkpoint_saved(self, step: int, directory: Path) -> None:
        """Tell every callback about a verified checkpoint."""
        self._each("on_checkpoint_saved", step, directory)

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
        return [ledger for ledger in (self._ledger, self._mask_updates) if ledger is not None]

    def _each(self, hook: str, *arguments: Any) -> None:
        for callback in list(self._active):
            try:
                getattr(callback, hook)(*arguments)
            except Exception as error:
                self._active.remove(callback)
                log.warning(
                    "%s failed in %s and is left out from now on: %s", type(callback).__name__, hook, error
                )
