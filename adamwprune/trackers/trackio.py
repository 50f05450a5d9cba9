"""Trackio: rows in a local SQLite database, one per project. No account, no network.

Two ways to write, chosen at open:

- `_Storage`, Trackio's own storage function: our run id and times, each row stored once however
  often it is sent, errors raised so that a row can be sent again. It is private, so its
  signature is tested first.
- `_PublicRun`, the public API, where that test fails or Trackio's directory is on a network file
  system: a batch that Trackio cannot write within 10 s is lost there without an error.

At the end one more row holds the final values under names of their own (`final/...`, `best/...`,
`run/exit_code`; the dashboard draws them as bars), and a run that did not end with 0 an alert:
Trackio itself keeps no run state. Behaviour measured with Trackio 0.43.0.
"""

import inspect
import logging
import os
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Protocol

from adamwprune.callbacks.base import Callback, Row, RunInfo
from adamwprune.ranges import Positive, Range
from adamwprune.trackers.backend import Backend, environment, public_config
from adamwprune.trackers.mirror import Mirror
from adamwprune.trackers.rows import Entry

PACKAGES = {"trackio": "trackio>=0.43,<0.44"}

logger = logging.getLogger(__name__)

# Left over in the environment, each would turn a local run into a remote one without a word.
REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
_BULK_LOG = {"project", "run", "run_id", "metrics_list", "steps", "timestamps", "config", "log_ids"}
_directory_lock = threading.Lock()


def trackio(
    *,
    dir: str | None = None,
    port: Annotated[int, Range(least=1, most=65535)] = 7860,
    finish_timeout: Positive = 30.0,
    required: bool = False,
) -> Callback:
    """The tracker `trackio`.

    Args:
        dir: directory of the databases; None is TRACKIO_DIR, else trackio/ below HF_HOME.
        port: port of the dashboard on 127.0.0.1.
        finish_timeout: seconds that the end of a run waits for Trackio.
        required: whether the run ends with exit code 6 if a row is missing at its end.
    """
    return Mirror(Trackio(dir=dir, port=port), finish_timeout=finish_timeout, required=required)


class Trackio(Backend):
    """The backend: picks a writer at open, passes rows on, writes the row that ends a run."""

    name = "trackio"
    idempotent = True

    def __init__(self, *, dir: str | None, port: int):
        super().__init__()
        self.directory = dir
        self.port = port
        self._writer: _Writer
        self._last: Entry | None = None

    def open(self, run: RunInfo) -> None:
        """Choose the writer; raises ValueError for a project name that Trackio reserves."""
        from huggingface_hub.constants import HF_HOME

        chosen = self.directory or os.environ.get("TRACKIO_DIR") or f"{HF_HOME}/trackio"
        directory = Path(chosen).expanduser().resolve()
        with environment(TRACKIO_DIR=str(directory)):  # which Trackio reads once, when imported
            from trackio import sqlite_storage, utils
        # Trackio drops the dot, so that my.model and mymodel would share a database.
        project = run.project.replace(".", "-")
        sqlite_storage.SQLiteStorage.validate_project_name(project)
        for name in REMOTE:
            if os.environ.get(name):
                logger.warning("tracker trackio: %s is set and ignored; this run stays local", name)
        with _bound_to(directory, utils, sqlite_storage):
            is_private_way = _has_bulk_log(sqlite_storage) and utils.get_storage_mode() == "sqlite"
        if is_private_way:
            self._writer = _Storage(run, project, directory, utils, sqlite_storage)
        else:
            self._writer = _PublicRun(run, project, directory, utils)
        self.idempotent = is_private_way
        show = f"GRADIO_SERVER_PORT={self.port} trackio show --project {project}"
        self.facts.update(
            project=project,
            path=str(directory / f"{project}.db"),
            way=self._writer.way,
            show=f"TRACKIO_DIR={shlex.quote(str(directory))} {show}",
        )
        logger.info("tracker trackio: project %s in %s", project, self.facts["path"])

    def log(self, entries: list[Entry]) -> None:
        """Store rows at their own steps, times and numbers."""
        self._writer.write(entries)
        self._last = entries[-1]

    def finish(self, exit_code: int, finals: Row) -> None:
        """Write the last row and, for an exit code other than 0, an alert."""
        self._writer.end(self._last, exit_code, finals)


class _Writer(Protocol):
    way: str

    def write(self, entries: list[Entry]) -> None: ...

    def end(self, last: Entry | None, exit_code: int, finals: Row) -> None: ...


class _Storage:
    """Writes through SQLiteStorage.bulk_log; a row's log_id is `<run id>:<line of metrics.jsonl>`."""

    way = "storage"

    def __init__(self, run: RunInfo, project: str, directory: Path, utils: ModuleType, storage: ModuleType):
        self._run = run
        self._project = project
        self._directory = directory
        self._modules = (utils, storage)
        self._storage = storage.SQLiteStorage
        self._config: dict[str, Any] | None = public_config(run.config)

    def write(self, entries: list[Entry]) -> None:
        times = [_iso(entry.time) for entry in entries]
        ids = [f"{self._run.run_id}:{entry.end.line}" for entry in entries]
        self._store([entry.row for entry in entries], [entry.step for entry in entries], times, ids)

    def end(self, last: Entry | None, exit_code: int, finals: Row) -> None:
        # Numbered after the last row: a run that is continued gets one such row for each of its ends.
        step, time, line = (last.step, last.time, last.end.line) if last else (self._run.first_step, None, 0)
        end_id = f"{self._run.run_id}:{line}:end"
        self._store([finals], [step], [_iso(time)], [end_id])
        if exit_code:
            with _bound_to(self._directory, *self._modules):
                self._storage.bulk_alert(
                    project=self._project,
                    run=self._run.name,
                    run_id=self._run.run_id,
                    titles=[f"ended with exit code {exit_code}"],
                    texts=[None],
                    levels=["error" if exit_code < 64 else "warn"],  # 75, 130 and 143 were asked for
                    steps=[step],
                    timestamps=[_iso(time)],
                    alert_ids=[end_id],
                )

    def _store(self, rows: list[Row], steps: list[int], times: list[str], ids: list[str]) -> None:
        config = self._config and {**self._config, "_Created": times[0], "_Group": self._run.group}
        with _bound_to(self._directory, *self._modules):
            self._storage.bulk_log(
                project=self._project,
                run=self._run.name,
                run_id=self._run.run_id,
                metrics_list=rows,
                steps=steps,
                timestamps=times,
                config=config,
                log_ids=ids,
            )
        self._config = None  # stored: once is enough


class _PublicRun:
    """Writes through trackio.init and Run.log: run id and times are Trackio's, resume is by name."""

    way = "public"

    def __init__(self, run: RunInfo, project: str, directory: Path, utils: ModuleType):
        import trackio
        import trackio.run

        if Path(utils.TRACKIO_DIR).resolve() != directory.resolve():
            raise RuntimeError(
                f"Trackio is bound to {utils.TRACKIO_DIR} in this process; asked for {directory}"
            )
        self._first_step = run.first_step
        with environment(**dict.fromkeys(REMOTE)), _without_hub(trackio.run):
            self._run = trackio.init(
                project=project,
                name=run.name,
                group=run.group,
                config=public_config(run.config),
                resume="allow" if run.first_step else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def write(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._run.log(entry.row, step=entry.step)

    def end(self, last: Entry | None, exit_code: int, finals: Row) -> None:
        self._run.log(finals, step=last.step if last else self._first_step)
        self._run.finish()


def _has_bulk_log(storage: ModuleType) -> bool:
    """Whether this version's storage takes what `_Storage` gives it."""
    function = getattr(storage.SQLiteStorage, "bulk_log", None)
    return function is not None and inspect.signature(function).parameters.keys() >= _BULK_LOG


@contextmanager
def _bound_to(directory: Path, *modules: ModuleType) -> Iterator[None]:
    """Trackio's directory for a block: a constant, set at import, that a second run must not inherit."""
    with _directory_lock:
        before = [module.TRACKIO_DIR for module in modules]
        for module in modules:
            module.TRACKIO_DIR = directory
        try:
            yield
        finally:
            for module, value in zip(modules, before, strict=True):
                module.TRACKIO_DIR = value


@contextmanager
def _without_hub(module: ModuleType) -> Iterator[None]:
    """trackio.init without its question to the Hugging Face hub who the user is (it may hang for ever)."""
    before = getattr(module, "_get_default_namespace", None)
    if before is not None:
        module._get_default_namespace = lambda: None
    try:
        yield
    finally:
        if before is not None:
            module._get_default_namespace = before


def _iso(seconds: float | None) -> str:
    moment = datetime.now(timezone.utc) if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat()
