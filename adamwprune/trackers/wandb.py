"""Weights & Biases: online where a key and a server exist, else offline with the line to upload it.

Every row is one history record at its own `trainer/step` and time. Final values go to the run's
summary as `final/...` and `best/...`.

A run is one or more sessions with the same id, each with a file in the run's folder: the first, one
for each resume, and one more if W&B's own process dies. A session sends what W&B lacks, from
metrics.jsonl: online what the server has not got, offline what no file has. W&B numbers rows by
itself (`_step`); that number goes on over the sessions, and is nobody's axis.

Files that need no upload by hand are marked as `wandb sync` marks those that it has uploaded: those of
online sessions whose upload the server confirms, and older offline ones once an online session has
begun, which sends their rows itself. Behaviour measured with W&B 0.31.0.
"""

import logging
import math
import os
import shlex
import threading
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

from adamwprune.callbacks.base import Callback, Row, RunInfo
from adamwprune.credentials import redacted
from adamwprune.ranges import Positive
from adamwprune.run_directory import METRICS, shown_path
from adamwprune.trackers.backend import Backend, environment, first_line, public_config, recorded_facts
from adamwprune.trackers.mirror import Mirror
from adamwprune.trackers.parity import Series, series
from adamwprune.trackers.rows import AlertEntry, Entry, read_entries, read_rows, voided
from adamwprune.trackers.wandb_files import (
    STEP,
    StoredAlert,
    WandbRun,
    fragments,
    is_offline,
    is_synced,
    mark_synced,
    mend,
    parse_run,
    read_run,
    started,
)
from adamwprune.trackers.wandb_server import choose_mode, last_step_on_server

PACKAGES = {"wandb": "wandb>=0.31,<0.32"}

logger = logging.getLogger(__name__)

# Exit code of a run that was stopped to be continued.
PREEMPTED = 75
# Characters that W&B allows for the title of an alert.
LONGEST_TITLE = 63
# Seconds between two questions whether the server has got everything, and to the last of them.
ASK_EVERY, ASK_FOR = 0.2, 5.0

# Seconds that W&B's process outlives ours at most (measured: half a second).
OUTLIVES = 1.0

# All runs of a process share W&B's process, and its traces in the environment.
_package_lock = threading.RLock()


def wandb(
    *,
    project: str | None = None,
    entity: str | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    base_url: str | None = None,
    init_timeout: Positive = 10.0,
    flush_interval: Positive = 1.0,
    finish_timeout: Positive = 30.0,
    required: bool = False,
) -> Callback:
    """The tracker `wandb`.

    Args:
        project: None is the run's project.
        entity: user or team; None is the account's default.
        mode: auto is WANDB_MODE if set, else online where a key exists and the server answers
            within 3 s, else offline. Where online fails, the run is recorded offline.
        base_url: server; None is WANDB_BASE_URL, else the hosted service.
        init_timeout: seconds that an online start may take.
        flush_interval: seconds between writes to disk: what a SIGKILL loses offline.
        finish_timeout: seconds that the end of a run waits for W&B.
        required: whether the run ends with exit code 6 if a row is missing at its end.
    """
    backend = WandB(
        project=project,
        entity=entity,
        mode=mode,
        base_url=base_url,
        settings={
            "init_timeout": init_timeout,
            "x_transaction_log_flush_interval": flush_interval,
            # Sooner than our own deadline, so that W&B can still say what it could not send.
            "finish_timeout": finish_timeout * 2 / 3,
        },
    )
    return Mirror(backend, finish_timeout=finish_timeout, required=required)


class WandB(Backend):
    """The backend: run objects of the wandb package, never the package's global run."""

    name = "wandb"
    idempotent = False

    def __init__(
        self,
        *,
        project: str | None,
        entity: str | None,
        mode: str,
        base_url: str | None,
        settings: dict[str, Any],
    ):
        super().__init__()
        self.project = project
        self.entity = entity
        self.mode = mode
        self.base_url = base_url
        self.settings = settings
        self._stop = threading.Event()
        self._info: RunInfo
        # Of the session:
        self._package: Any = None
        self._library: Any = None  # stands for W&B's process
        self._run: Any = None  # None: W&B's process is gone, or nothing has begun
        self._file: Path | None = None
        self._axes: set[str] = set()  # metrics that are plotted over STEP
        self._earlier = _Earlier()
        self._stored: Container[int] = ()  # steps that W&B had when the session began
        self._newest = -1  # the last step that W&B should have by now
        self._number = 0  # of the next row, W&B's `_step`
        self._has_ended = False

    @property
    def is_stop_requested(self) -> bool:
        """Whether the stop button of the run's page was pressed; W&B looks every 15 s or so."""
        return self._stop.is_set()

    # -- a session

    def open(self, run: RunInfo) -> None:
        """Start the run, or go on with it; an online start that fails becomes an offline one."""
        self._info = run
        _outlast_orphans(fragments(run.directory, run.tracker_id))
        self._begin()

    def _begin(self) -> None:
        """Begin a session, and find out what W&B has."""
        with _package_environment():
            import wandb

            self._package = wandb
            self._earlier = _look_up(self._info.directory, self._info.tracker_id)
            for file in filter(is_offline, self._earlier.files):
                mend(file)
            self._connect()
            base_url = self.base_url or os.environ.get("WANDB_BASE_URL") or self._library.settings.base_url
            mode, reason = choose_mode(self.mode, base_url)
            try:
                self._start(mode, base_url)
            except Exception as error:
                if not _is_loss(error):
                    if mode != "online":
                        raise
                    mode, reason = "offline", f"{base_url}: {first_line(error)}"
                self._give_up_start()
                self._start(mode, base_url)
            self._describe(mode, reason)

    def _connect(self) -> None:
        """Join W&B's process, or start it."""
        settings = self._package.Settings(silent=True)
        try:
            self._library = self._package.setup(settings)
        except Exception as error:
            if not _is_loss(error):
                raise
            os.environ.pop("WANDB_SERVICE", None)  # which names one that has gone
            self._library = self._package.setup(settings)

    def _start(self, mode: str, base_url: str) -> None:
        if mode == "offline":
            _wait_for_another_second(self._earlier.files)
        self._run = self._init(mode, base_url)
        self._file, self._axes = Path(self._run.settings.sync_file), set()
        self._run.define_metric(STEP)
        self._stored, self._number = self._earlier.steps, self._earlier.rows
        if mode == "online" and self._is_continued:
            self._stored = range(last_step_on_server(self._run, self.settings["init_timeout"]) + 1)
            self._number = self._run.starting_step
            # What only a file that was never sent has, nobody has seen.
            sent = [file for file in self._earlier.files if is_synced(file) or not is_offline(file)]
            self._earlier = self._earlier._replace(alerts=_alerts(sent))
            for file in filter(is_offline, self._earlier.files):
                mark_synced(file)
        steps = [entry.step for entry in self._ledger()]
        missing = next((step for step in steps if step not in self._stored), None)
        self.last_step = max(steps, default=-1) if missing is None else missing - 1
        self._newest, self._has_ended = self.last_step, False

    def _init(self, mode: str, base_url: str) -> Any:
        settings = {
            **self.settings,
            "mode": mode,
            "base_url": base_url,
            "finish_timeout_raises": True,
            # The default interrupts the main thread.
            "stop_fn": lambda: self._stop.set(),  # W&B copies its settings: a lock cannot be
            # Nothing of the machine, the command line or the repository leaves by this road.
            "host": "",
            "x_disable_meta": True,
            "x_disable_machine_info": True,
            "x_disable_stats": True,
            "x_save_requirements": False,
            "disable_git": True,
            "save_code": False,
            # The terminal belongs to the loop, and the log is train.log.
            "console": "off",
            "silent": True,
        }
        package, run = self._package, self._info
        known = {key: value for key, value in settings.items() if key in package.Settings.model_fields}
        return package.init(
            project=self.project or run.project,
            entity=self.entity or None,
            id=None if _is_agent() else run.tracker_id,
            name=run.name,
            group=run.group,
            job_type="sweep" if run.group else "train",
            tags=run.tags or None,
            notes=run.notes,
            dir=str(run.directory),
            config=public_config(run.config),
            # Ignored offline, where a continued run is a second file with the same id.
            resume="allow" if mode == "online" and self._is_continued else None,
            reinit="create_new",
            settings=package.Settings(**known),
        )

    @property
    def _is_continued(self) -> bool:
        """Whether W&B may have rows of the run. The agent of a W&B sweep names its runs itself."""
        has_begun = self._info.is_continued or self._info.first_step > 0 or bool(self._earlier.files)
        return has_begun and not _is_agent()

    def _describe(self, mode: str, reason: str) -> None:
        reason = redacted(reason)  # an address may have a password
        for key in ("reason", "sync", "upload", "url"):  # of the session before
            self.facts.pop(key, None)
        self.facts.update(mode=mode)
        if mode != "disabled":
            self.facts.update(path=self._run.settings.sync_dir)
        if mode == "online":
            self.facts.update(url=redacted(self._run.url), upload="unverified")
        if mode == "offline":
            self.facts.update(reason=reason, sync=self._sync_command())
        if _is_agent():
            self.facts.update(id=self._run.id)
        logger.info("tracker wandb: %s%s", mode, f" ({reason})" if reason else "")

    def _sync_command(self) -> str:
        """What uploads the files; W&B's own command sends an online session's rows a second time."""
        unsent = [file for file in (*self._earlier.files, self._file) if not is_synced(file)]
        if not all(map(is_offline, unsent)):
            return f"python -m adamwprune.track sync {shlex.quote(str(shown_path(self._info.directory)))}"
        server = f"WANDB_BASE_URL={shlex.quote(self.base_url)} " if self.base_url else ""
        return f"{server}wandb sync --yes {shlex.join(str(file.parent) for file in unsent)}"

    def _give_up_start(self) -> None:
        """Leave nothing of a start that failed: W&B's process holds its id, its file has nothing to send."""
        for file in fragments(self._info.directory, self._info.tracker_id):
            if file not in self._earlier.files:
                mark_synced(file)
        self._end_process()
        self._connect()

    def _end_process(self) -> None:
        """End W&B's process if it is still this session's; its other runs begin another session."""
        if self._package.setup() is self._library:
            with suppress(Exception, SystemExit):
                self._package.teardown()

    @contextmanager
    def _connection(self) -> Iterator[None]:
        """Raise ConnectionError where W&B's process is gone; then `_run` is None until a session begins."""
        if self._run is None:
            raise ConnectionError("W&B's process is gone")
        try:
            yield
        except Exception as error:
            if not _is_loss(error):
                raise
            run, self._run = self._run, None
            with _package_environment():
                with suppress(Exception):
                    run.finish(exit_code=1)  # or the interpreter's exit trips over it
                self._end_process()
            raise ConnectionError(f"W&B's process is gone: {first_line(error)}") from error

    # -- rows

    def log(self, entries: list[Entry]) -> None:
        """Store rows at their own steps and times.

        Raises:
            ConnectionError: W&B's process is gone; the next call starts another, and sends what was
                lost with it.
        """
        if self._run is None:
            self._begin()
            self._fill(before=entries[0].step)
        with self._connection():
            for entry in entries:
                self._write(entry)

    def alert(self, entry: AlertEntry) -> None:
        """Show an alert, unless an earlier session did."""
        with self._connection():
            self._show(entry)

    def _fill(self, before: float) -> None:
        """Send what W&B lacks of the steps before `before`."""
        with self._connection():
            for entry in read_entries(self._info.directory / METRICS, void=self._void):
                if entry.step >= before:
                    return
                if isinstance(entry, Entry):
                    self._write(entry)
                elif entry.step >= self.last_step:
                    self._show(entry)

    def _write(self, entry: Entry) -> None:
        self._newest = max(self._newest, entry.step)
        if entry.step in self._stored:
            return
        # By name: it is not said whether a glob crosses the slashes of a layer's name.
        for name in entry.row.keys() - self._axes:
            self._run.define_metric(name, step_metric=STEP, step_sync=True)
            self._axes.add(name)
        row = {**entry.row, STEP: entry.step, "_timestamp": entry.time}
        # Without commit W&B holds a row that has a number until the next one.
        self._run.log(row, step=self._number, commit=True)
        self._number += 1

    def _show(self, entry: AlertEntry) -> None:
        _, level, title, text = entry.alert
        alert = StoredAlert(level.upper(), title[:LONGEST_TITLE], f"step {entry.step}: {text}")
        if alert not in self._earlier.alerts:
            # W&B keeps alerts of one title a minute apart by default, and if told 0.
            self._run.alert(alert.title, alert.text, alert.level, wait_duration=timedelta(microseconds=1))

    def _ledger(self) -> Iterator[Entry]:
        return read_rows(self._info.directory / METRICS, void=self._void)

    @property
    def _void(self) -> frozenset[int]:
        return voided(self._info.directory / METRICS)

    # -- the end

    def finish(self, exit_code: int, finals: Row) -> None:
        """Write the summary, end the run, and have the server confirm the upload.

        Raises:
            TimeoutError: rows were still to be sent.
            RuntimeError: the server has not got them, although W&B is done.
            ConnectionError: W&B's process went, and so did the next.
        """
        try:
            self._end(exit_code, finals)
        except ConnectionError:
            self._begin()
            self._fill(before=math.inf)
            self._end(exit_code, finals)
        if self.facts["mode"] == "online":
            with _package_environment():
                self._confirm()
                self._complete_copy(exit_code)

    def _end(self, exit_code: int, finals: Row) -> None:
        with self._connection():
            self._run.summary.update(finals)
            if exit_code == PREEMPTED:
                self._run.mark_preempting()
            self._run.finish(exit_code=exit_code)
        self._has_ended = True

    def _confirm(self) -> None:
        """Ask the server for its last row: of an upload that was refused W&B says nothing."""
        patience = min(ASK_FOR, self.settings["finish_timeout"] / 4)
        deadline = time.monotonic() + patience
        while (has := last_step_on_server(self._run, patience)) < self._newest:
            if time.monotonic() >= deadline:
                raise RuntimeError(
                    f"the upload failed: the server has rows up to step {has} of {self._newest}"
                )
            time.sleep(ASK_EVERY)
        self.facts["upload"] = "confirmed"
        for file in fragments(self._info.directory, self._run.id):
            mark_synced(file)

    def _complete_copy(self, exit_code: int) -> None:
        """Write to a file of their own the rows that only the server has: a kill may lose them here."""
        if not self._is_continued:
            return
        run = self._run
        read_run(self._file.parent)  # until it is whole
        self._earlier = _look_up(self._info.directory, run.id)
        if all(entry.step in self._earlier.steps for entry in self._ledger()):
            return
        self._start("offline", run.settings.base_url)
        self._fill(before=math.inf)
        self._end(exit_code, {})
        mark_synced(self._file)

    def read_back(self, run: RunInfo) -> Series | None:
        """All rows in the run's folder, which are those that W&B was given; None where it is disabled."""
        known = {**recorded_facts(run, self.name), **self.facts}
        if known.get("mode") == "disabled":
            return None
        files = fragments(run.directory, known.get("id", run.tracker_id))
        parts = (self._read(file) for file in files)
        return series((step, row) for part in parts for step, _, row in part.series)

    def _read(self, file: Path) -> WandbRun:
        """What is in a file; of the one that has just ended, when it is whole."""
        return read_run(file.parent) if self._has_ended and file == self._file else parse_run(file)


class _Earlier(NamedTuple):
    """What the sessions before have left in the run's folder."""

    files: tuple[Path, ...] = ()
    steps: frozenset[int] = frozenset()
    alerts: frozenset[StoredAlert] = frozenset()
    rows: int = 0  # by W&B's count


def _look_up(directory: Path, run_id: str) -> _Earlier:
    files = tuple(fragments(directory, run_id))
    parts = [parse_run(file) for file in files]
    return _Earlier(
        files,
        frozenset(step for part in parts for step, _, _ in part.series),
        _alerts(files),
        1 + max((row["_step"] for part in parts for row in part.rows), default=-1),
    )


def _alerts(files: Iterable[Path]) -> frozenset[StoredAlert]:
    return frozenset(alert for file in files for alert in parse_run(file).alerts)


def _outlast_orphans(files: Sequence[Path]) -> None:
    """Wait for W&B's process of a run that was killed: it outlives the run, and may still write."""
    recent = [file for file in files if abs(time.time() - file.stat().st_mtime) < OUTLIVES]
    if any(parse_run(file).exit_code is None for file in recent):
        time.sleep(OUTLIVES)


def _wait_for_another_second(files: Sequence[Path]) -> None:
    """`wandb sync` sends the files of a run in the order of the seconds of their starts."""
    while any(started(file) == time.strftime("%Y%m%d_%H%M%S") for file in files):
        time.sleep(0.05)


def _is_agent() -> bool:
    """Whether an agent of a W&B sweep runs this process; it gives the run its id."""
    return "WANDB_SWEEP_ID" in os.environ


def _is_loss(error: Exception) -> bool:
    """Whether W&B's process is gone."""
    from wandb.sdk.lib.asyncio_manager import AlreadyJoinedError
    from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    ended_by_another_run = AlreadyJoinedError
    died = ConnectionError, HandleAbandonedError, MailboxClosedError, WandbServiceConnectionError
    return isinstance(error, (ended_by_another_run, *died))


@contextmanager
def _package_environment() -> Iterator[None]:
    """One thread at a time, without traces in the environment.

    Error reports would go out even offline. W&B announces its process in WANDB_SERVICE, which no
    later process of ours should join.
    """
    with (
        _package_lock,
        environment(WANDB_ERROR_REPORTING="false", WANDB_SERVICE=os.environ.get("WANDB_SERVICE")),
    ):
        yield
