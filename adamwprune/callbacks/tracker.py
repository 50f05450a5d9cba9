"""Trackers: a daemon thread per tracker that follows metrics.jsonl.

    loop -> metrics.jsonl, one write a row: the truth of the run, always on
              ^ read by the thread of each tracker: open, log, finish, at its own pace

The ledger is the queue. A tracker that is slow, hanging or dead holds no memory and costs the
loop nothing; what it missed is read again from the file; all trackers get the same rows because
there is only one place to get them from. Rows carry their line number, so a backend that stores
a number once (Trackio) is repaired by a resumed run without any bookkeeping.

A new tracker is one module with a `Backend`, a function that returns `Mirror(backend, ...)`, and
the constant `PACKAGES`; and one file in conf/tracker/.
"""

import ast
import importlib.util
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from adamwprune.callbacks.base import Callback, Row, RunInfo
from adamwprune.run_directory import METRICS

logger = logging.getLogger(__name__)

# Seconds between two looks at the ledger: what a SIGKILL may cost a tracker, never the ledger.
PAUSE = 0.5
# Seconds between two attempts grow up to this while a tracker refuses rows.
LONGEST_PAUSE = 10.0
# Seconds after which a tracker that is still starting is called late.
LATE = 10.0
# Failed attempts in a row at the end of a run before the rest is given up.
LAST_ATTEMPTS = 3
# Rows of one log call. Trackio needs about 40 ms for a call of any size.
BATCH = 1000

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


# ---- the ledger ------------------------------------------------------------------------------


class Position(NamedTuple):
    """A place between two lines of the ledger."""

    offset: int = 0  # bytes
    line: int = 0  # complete lines before it


BEGINNING = Position()


class Entry(NamedTuple):
    """One row of metrics.jsonl."""

    end: Position  # end.line is the row's line number, from 1: unique in a run, kept over resumes
    step: int
    time: float  # seconds since the epoch
    row: Row


def read_rows(ledger: Path, start: Position = BEGINNING) -> Iterator[Entry]:
    """Yield the rows of `ledger` from `start` on; lines without a step (events) are passed over.

    A last line without its newline is being written, or was torn by a kill: not there yet.
    "NaN", "Infinity" and "-Infinity", as JSON writes them in quotes, come back as floats.
    """
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
            if values := _parse(text):
                step, seconds = values.pop("step"), values.pop("time", 0.0)
                yield Entry(Position(offset, line), step, seconds, values)


def _skip(ledger: Path, size: int) -> Position:
    """The end of the last complete line within the first `size` bytes of `ledger`."""
    position = BEGINNING
    if size:
        with ledger.open("rb") as file:
            for text in file:
                if not text.endswith(b"\n") or position.offset + len(text) > size:
                    break
                position = Position(position.offset + len(text), position.line + 1)
    return position


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(text)
    except ValueError:
        return None
    if not isinstance(values, dict) or "event" in values or not isinstance(values.get("step"), int):
        return None
    return {key: _number(value) for key, value in values.items()}


def _number(value: Any) -> Any:
    """A value of metrics.jsonl or summary.json, with the floats that JSON has no numbers for."""
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


# ---- what a tracker gets ---------------------------------------------------------------------


class Backend(Protocol):
    """One tracker. All methods run in one thread of their own and may block or raise."""

    name: str
    # Whether log() and finish() may be called again with what they were given before, and store
    # it once. Such a backend gets rows in batches and, on resume, the whole ledger; any other
    # gets one row at a time and, on resume, only new ones. Read after open().
    idempotent: bool
    # Plain values for summary.json, e.g. path and mode; "sync" is the command that uploads
    # what is only here.
    facts: dict[str, Any]

    def open(self, run: RunInfo) -> None:
        """Import the package and start the run."""

    def log(self, entries: list[Entry]) -> None:
        """Store all of `entries`, or raise."""

    def finish(self, exit_code: int, finals: Row) -> None:
        """Store `finals`, which are no part of any series, and end the run with `exit_code`."""


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as trackers take it: `_target_` becomes `target`, other values plain.

    Trackio refuses keys with a leading underscore, W&B hides them.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key).strip("_") or str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value if isinstance(value, str | int | float | bool | None) else str(value)

    return plain(config)


def finals(summary: Mapping[str, Any], exit_code: int) -> Row:
    """summary.json as one flat row: `final/<metric>`, `best/<metric>`, `best/<metric>/step`, `run/...`.

    The prefixes keep them out of the series: `final/val/loss` is never a point of `val/loss`.
    """
    metrics = summary.get("metrics", {})
    row = {f"final/{name}": value for name, value in metrics.get("final", {}).items()}
    if "sparsity" in summary:
        row["final/sparsity/global"] = summary["sparsity"]["achieved"]
    for name, best in metrics.get("best", {}).items():
        row[f"best/{name}"] = best["value"]
        row[f"best/{name}/step"] = best["step"]
    row |= {f"run/{name}": summary[name] for name in ("status", "steps", "seconds") if name in summary}
    return {**{name: _number(value) for name, value in row.items()}, "run/exit_code": exit_code}


def first_line(error: BaseException) -> str:
    """What an error says, in one line of a log."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Set (or with None unset) environment variables for a block, and put the old values back."""
    before = {name: os.environ.get(name) for name in values}
    _set_environment(values)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


# ---- the thread ------------------------------------------------------------------------------


class Mirror(Callback):
    """Copies metrics.jsonl to one tracker. No hook blocks or raises; close() has a deadline.

    States: starting, late, open, degraded (rows are refused; at the end: rows are missing or the
    tracker did not finish), failed (never opened), closed (every row stored, run ended).

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
        self._summary: dict[str, Any] = {}
        self._exit_code = 0
        self._started = self._deadline = math.inf
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._state = "starting"
        self._sent = self._dropped = 0
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
        logger.log(
            logging.INFO if report["state"] == "closed" else logging.WARNING,
            "tracker %s: %s, %d rows sent, %d dropped%s",
            self.backend.name,
            report["state"],
            report["sent"],
            report["dropped"],
            f"; upload them with: {report['sync']}" if "sync" in report else "",
        )

    def status(self) -> dict[str, Any]:
        """`{name: {state, required, sent, dropped, errors, **facts}}`; final after close()."""
        return {self.backend.name: self._report or self._describe(self._state)}

    # -- called by the thread

    def _work(self) -> None:
        self._call("read", self._copy)

    def _copy(self) -> None:
        self._position = new_rows = _skip(self._ledger, self._size_at_start)
        if self._call("open", self.backend.open, self._run) is not None:
            self._state = "failed"
            return
        self._position = BEGINNING if self.backend.idempotent else new_rows
        self._state = "open"
        self._follow()
        if not self._end():
            self._state = "degraded"
        elif self._state == "open":
            self._state = "closed"

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
        rows = read_rows(self._ledger, self._position)
        most = BATCH if self.backend.idempotent else 1
        while entries := list(islice(rows, most)):
            if not self._send(entries):
                self._state = "degraded"
                return False
        self._state = "open"
        return True

    def _send(self, entries: list[Entry]) -> bool:
        """Whether the tracker took all of `entries`, or a row's own fault is the reason it did not."""
        error = self._call("log", self.backend.log, entries)
        if error is None:
            self._sent += len(entries)
        elif not isinstance(error, TypeError | ValueError | OverflowError):
            return False
        elif len(entries) > 1:
            # One bad row must not hold back or take with it the rest of its batch.
            return all(self._send([entry]) for entry in entries)
        else:
            self._dropped += 1
        self._position = entries[-1].end
        return True

    def _end(self) -> bool:
        row = finals(self._summary, self._exit_code)
        for attempt in range(LAST_ATTEMPTS if self.backend.idempotent else 1):
            time.sleep(PAUSE if attempt else 0)
            if self._call("finish", self.backend.finish, self._exit_code, row) is None:
                return True
        return False

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

    def _conclude(self, *, is_abandoned: bool) -> dict[str, Any]:
        """The last status: rows that the tracker never took are counted as dropped."""
        with suppress(OSError):
            self._dropped += sum(1 for _ in read_rows(self._ledger, self._position))
        if self._state in ("starting", "failed"):
            return self._describe("failed")
        is_whole = self._state == "closed" and not self._dropped and not is_abandoned
        return self._describe("closed" if is_whole else "degraded")

    def _describe(self, state: str) -> dict[str, Any]:
        if state == "starting" and time.monotonic() - self._started > LATE:
            state = "late"
        return {
            "state": state,
            "required": self.required,
            "sent": self._sent,
            "dropped": self._dropped,
            "errors": {kind: dict(error) for kind, error in list(self._errors.items())},
            **self.backend.facts,
        }


# ---- before a run ----------------------------------------------------------------------------


def missing_packages(nodes: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Trackers of the configuration whose package is not installed, with the line that installs it.

    Looks packages up without importing them; what a tracker needs is the constant PACKAGES of
    its module, `{import name: requirement}`, read from the source text.

    Args:
        nodes: the `tracker` node of the configuration, `{name: {"_target_": ..., ...}}`.
    """
    return [
        (name, f"pip install '{requirement}'")
        for name, node in nodes.items()
        for package, requirement in _required_packages(node["_target_"].rpartition(".")[0]).items()
        if importlib.util.find_spec(package) is None
    ]


def _required_packages(module: str) -> dict[str, str]:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return {}
    for statement in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "PACKAGES":
            return ast.literal_eval(statement.value)
    return {}
