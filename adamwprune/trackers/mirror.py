"""Trackers: a daemon thread per tracker that follows metrics.jsonl.

    loop -> metrics.jsonl, one write a row: the truth of the run, always on
              ^ read by the thread of each tracker: open, log, finish, read back, at its own pace

The ledger is the queue. A tracker that is slow, hanging or dead holds no memory and costs the
loop nothing; what it missed is read again from the file; all trackers get the same rows because
there is only one place to get them from. At the end each tracker's own store is read back and
compared with the file, value by value.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from adamwprune.callbacks.base import Callback, RunInfo
from adamwprune.run_directory import METRICS, shown_path, write_json
from adamwprune.trackers.backend import Backend, finals, first_line, state_file
from adamwprune.trackers.parity import Parity, compare, series
from adamwprune.trackers.rows import (
    BEGINNING,
    AlertEntry,
    Entry,
    end_within,
    read_entries,
    read_rows,
    voided,
)

logger = logging.getLogger(__name__)

# Seconds between two looks at the ledger: what a SIGKILL may cost a tracker, never the ledger.
PAUSE = 0.5
# Seconds between two attempts grow up to this while a tracker refuses rows.
LONGEST_PAUSE = 10.0
# Seconds after which a tracker that is still starting is called late.
LATE = 10.0
# Failed attempts in a row at the end of a run before the rest is given up.
LAST_ATTEMPTS = 3
# Bytes of metrics.jsonl up to which a store is read back at the end of a run: about 80,000
# rows, 3 s and 700 MB of memory. `python -m adamwprune.track verify RUN` has no such limit.
MOST_READ_BACK = 64 * 2**20
# Rows of one log call. Trackio needs about 40 ms for a call of any size.
BATCH = 1000


class Mirror(Callback):
    """Copies metrics.jsonl to one tracker. No hook blocks or raises; close() has a deadline.

    States: starting, late, open, degraded (rows are refused; at the end: rows are missing or
    different, or the tracker did not finish), failed (never opened), closed (every row is in the
    tracker's store, run ended).

    Args:
        backend: the tracker.
        finish_timeout: seconds that the end of a run waits for this tracker, everything included.
        required: whether the run ends with exit code 6 unless the tracker closed; only
            reported by status(), the loop decides.
    """

    def __init__(self, backend: Backend, *, finish_timeout: float, required: bool = False):
        self.backend = backend
        self.finish_timeout = finish_timeout
        self.required = required
        self._run: RunInfo | None = None
        self._size_at_start = 0
        self._position = BEGINNING
        self._void: frozenset[int] = frozenset()
        self._summary: dict[str, Any] = {}
        self._exit_code = 0
        self._started = self._deadline = math.inf
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._state = "starting"
        self._sent = self._dropped = 0
        self._owed: list[AlertEntry] = []  # alerts that the tracker has not taken yet
        self._parity: Parity | None = None
        self._errors: dict[str, dict[str, Any]] = {}
        self._report: dict[str, Any] | None = None

    # -- called by the loop

    def on_train_start(self, run: RunInfo) -> None:
        """Start the thread; returns at once."""
        self._run = run
        self._started = time.monotonic()
        self._size_at_start = self._ledger.stat().st_size if self._ledger.exists() else 0
        self._thread = threading.Thread(target=self._work, name=f"tracker-{self.backend.name}", daemon=True)
        self._thread.start()

    def on_train_end(self, summary: dict[str, Any]) -> None:
        """Keep the final values for the end of the tracker's run."""
        self._summary = summary

    def finish(self, exit_code: int) -> None:
        """Ask the thread to end the tracker's run, and start the deadline; returns at once."""
        if not self._ending.is_set():
            self._exit_code = exit_code
            self._deadline = time.monotonic() + self.finish_timeout
            self._ending.set()

    def close(self, exit_code: int) -> None:
        """End the tracker's run with `exit_code`; returns after `finish_timeout` at the latest."""
        self.finish(exit_code)
        if self._thread is None or self._report is not None:
            return
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        if self._thread.is_alive():
            self._note("finish", TimeoutError(f"gave up after {self.finish_timeout:g} s"))
        self._report = report = self._conclude(is_abandoned=self._thread.is_alive())
        self._keep(report)
        command = report.get("repair") or report.get("sync")
        logger.log(
            logging.INFO if report["state"] == "closed" else logging.WARNING,
            "tracker %s: %s, %d rows sent, %d dropped%s",
            self.backend.name,
            report["state"],
            report["sent"],
            report["dropped"],
            f"; upload them with: {command}" if command else "",
        )

    @property
    def is_stop_requested(self) -> bool:  # type: ignore[override]
        """Whether the tracker's stop button was pressed."""
        return self.backend.is_stop_requested

    def status(self) -> dict[str, Any]:
        """`{name: {state, required, sent, dropped, errors, **facts}}`; final after close()."""
        return {self.backend.name: self._report or self._describe(self._state)}

    # -- called by the thread

    def _work(self) -> None:
        self._call("read", self._copy)

    def _copy(self) -> None:
        assert self._run is not None
        self._void = voided(self._ledger)
        self._position = end_within(self._ledger, self._size_at_start)
        if self._call("open", self.backend.open, self._run) is not None:
            self._state = "failed"
            return
        if self._void:
            self._call("forget", self.backend.forget, self._void)
        if self.backend.idempotent or self.backend.last_step is not None:
            self._position = BEGINNING
        self._state = "open"
        self._keep(self._describe("open"))
        self._follow()
        has_ended = self._end()
        is_verified = self._verify()
        self._state = "closed" if has_ended and is_verified and self._state == "open" else "degraded"

    def _follow(self) -> None:
        """Send rows as they appear in the ledger, until the run ends and none is left."""
        pause = PAUSE
        while not self._ending.wait(pause):
            pause = PAUSE if self._send_all() else min(2 * pause, LONGEST_PAUSE)
        for attempt in range(LAST_ATTEMPTS):
            time.sleep(PAUSE if attempt else 0)
            if self._send_all() or time.monotonic() >= self._deadline:
                return

    def _send_all(self) -> bool:
        entries = read_entries(self._ledger, self._position, self._void)
        most = BATCH if self.backend.idempotent else 1
        while batch := list(islice(entries, most)):
            if not self._send_batch(batch):
                self._state = "degraded"
                return False
        # After the rows, which no alert holds up.
        self._owed = [entry for entry in self._owed if self._call("alert", self.backend.alert, entry)]
        self._state = "degraded" if self._owed else "open"
        return not self._owed

    def _send_batch(self, batch: list[Entry | AlertEntry]) -> bool:
        """Send the rows, note the alerts among them; whether the tracker took the rows."""
        last_step = None if self.backend.idempotent else self.backend.last_step
        is_all = last_step is None
        rows = [entry for entry in batch if isinstance(entry, Entry) and (is_all or entry.step > last_step)]
        if rows and not self._send(rows):
            return False
        # Alerts of any step: a tracker may have the row and not the alert, and shows each once.
        self._owed += [entry for entry in batch if isinstance(entry, AlertEntry)]
        self._position = batch[-1].end
        return True

    def _send(self, rows: list[Entry]) -> bool:
        """Whether the tracker took all of `rows`, or a row's own fault is the reason it did not."""
        error = self._call("log", self.backend.log, rows)
        if error is None:
            self._sent += len(rows)
        elif not isinstance(error, TypeError | ValueError | OverflowError):
            return False
        elif len(rows) > 1:
            # One bad row must not hold back or take with it the rest of its batch.
            return all(self._send([row]) for row in rows)
        else:
            self._dropped += 1
        self._position = rows[-1].end
        return True

    def _end(self) -> bool:
        row = finals(self._summary, self._exit_code)
        for attempt in range(LAST_ATTEMPTS if self.backend.idempotent else 1):
            time.sleep(PAUSE if attempt else 0)
            if self._call("finish", self.backend.finish, self._exit_code, row) is None:
                return True
        return False

    def _verify(self) -> bool:
        """Whether the tracker's store equals the ledger; one that stores a row once is filled up first."""
        if self._is_equal():
            return True
        if not self.backend.idempotent or self._parity is None:
            return False
        self._position, self._sent, self._dropped, self._owed = BEGINNING, 0, 0, []
        return self._send_all() and self._is_equal()

    def _is_equal(self) -> bool:
        error = self._call("verify", self._compare)
        return error is None and (self._parity is None or self._parity.is_equal)

    def _compare(self) -> None:
        assert self._run is not None
        if self._ledger.exists() and self._ledger.stat().st_size > MOST_READ_BACK:
            command = f"python -m adamwprune.track verify {shown_path(self._run.directory)}"
            logger.info("tracker %s: too long a run to read back at its end: %s", self.backend.name, command)
            return
        self._parity = parity(self.backend, self._run)

    def _call(self, phase: str, function: Callable[..., None], *arguments: Any) -> BaseException | None:
        try:
            function(*arguments)
        except BaseException as error:
            # Also SystemExit: a library that exits in this thread must not take the rows with it.
            self._note(phase, error)
            return error
        return None

    # -- both

    @property
    def _ledger(self) -> Path:
        assert self._run is not None
        return self._run.directory / METRICS

    def _note(self, phase: str, error: BaseException) -> None:
        """Count an error; the first of its kind is one line of the log."""
        kind = f"{phase} {type(error).__name__}"
        if kind not in self._errors:
            self._errors[kind] = {"count": 0, "first": first_line(error)}
            logger.warning("tracker %s: %s: %s; training goes on", self.backend.name, kind, first_line(error))
        self._errors[kind]["count"] += 1

    def _keep(self, state: dict[str, Any]) -> None:
        """Write trackers/<name>.json, which outlives a kill; the run goes on without it."""
        assert self._run is not None
        file = state_file(self._run.directory, self.backend.name)
        try:
            file.parent.mkdir(exist_ok=True)
            write_json(file, state)
        except Exception as error:
            logger.warning("tracker %s: %s: %s", self.backend.name, file, first_line(error))

    def _conclude(self, *, is_abandoned: bool) -> dict[str, Any]:
        """The last status: rows that the tracker never took are counted as dropped."""
        with suppress(OSError):
            self._dropped += sum(1 for _ in read_rows(self._ledger, self._position, self._void))
        if self._state in ("starting", "failed"):
            return self._describe("failed")
        is_whole = self._state == "closed" and not self._dropped and not is_abandoned
        return self._describe("closed" if is_whole else "degraded")

    def _describe(self, state: str) -> dict[str, Any]:
        if state == "starting" and time.monotonic() - self._started > LATE:
            state = "late"
        description = {
            "state": state,
            "required": self.required,
            "sent": self._sent,
            "dropped": self._dropped,
            "parity": str(self._parity) if self._parity else None,
            "errors": {kind: dict(error) for kind, error in list(self._errors.items())},
            **self.backend.facts,
        }
        if state in ("degraded", "failed") and self._report is None and self._run is not None:
            description["repair"] = f"python -m adamwprune.track sync {shown_path(self._run.directory)}"
        return description


def parity(backend: Backend, run: RunInfo) -> Parity | None:
    """How the tracker's own store compares with metrics.jsonl; None where it cannot be read back."""
    stored = backend.read_back(run)
    if stored is None:
        return None
    ledger = run.directory / METRICS
    rows = ((entry.step, entry.row) for entry in read_rows(ledger, void=voided(ledger)))
    return compare({at: value for at, value in series(rows).items() if backend.takes(value)}, stored)
