"""Trackio: rows in a local SQLite database, one per project. No account, no network.

Two ways to write, chosen at open:

- `_Storage`, Trackio's own storage functions: our run id and times, each row and alert stored once
  however often it is sent, rows that a rewind took back removed, errors raised so that a row can be
  sent again. They are private, so their signatures are tested first.
- `_PublicRun`, the public API, where that test fails or Trackio's directory is on a network file
  system: a batch that Trackio cannot write within 10 s is lost there without an error.

At the end of each session one more row holds the final values under names of their own (`final/...`,
`best/...`, `run/exit_code`; the dashboard draws them as bars), as Trackio itself keeps no run state.
Behaviour measured with Trackio 0.43.0.
"""

import inspect
import logging
import os
import shlex
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Protocol

from adamwprune.callbacks.base import Callback, Row, RunInfo
from adamwprune.ranges import Positive, Range
from adamwprune.run_directory import METRICS
from adamwprune.trackers import trackio_database as files
from adamwprune.trackers.backend import Backend, environment, public_config, recorded_facts
from adamwprune.trackers.mirror import BATCH, Mirror
from adamwprune.trackers.parity import Series
from adamwprune.trackers.rows import AlertEntry, Entry, read_entries, voided

PACKAGES = {"trackio": "trackio>=0.43,<0.44"}

logger = logging.getLogger(__name__)

PORT = 7860
# Left over in the environment, each would turn a local run into a remote one without a word.
REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID")
# What `_Storage` calls, with the arguments that it gives.
_STORAGE: Mapping[str, set[str]] = {
    "bulk_log": {"project", "run", "run_id", "metrics_list", "steps", "timestamps", "config", "log_ids"},
    "bulk_alert": {
        "project",
        "run",
        "run_id",
        "titles",
        "texts",
        "levels",
        "steps",
        "timestamps",
        "alert_ids",
    },
    "init_db": {"project"},
    "_get_process_lock": {"project"},
    "_get_connection": {"db_path"},
    "_ensure_hub_loaded": set(),
}
_directory_lock = threading.Lock()


def trackio(
    *,
    dir: str | None = None,
    port: Annotated[int, Range(least=1, most=65535)] = PORT,
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
        """Choose the writer.

        Raises:
            ValueError: the project's name is one that Trackio reserves.
            RuntimeError: a newer Trackio has made the database.
        """
        database = self._database(run)
        asked = self.directory or self._known(run).get("dir")
        with environment(TRACKIO_DIR=str(database.parent)):  # which Trackio reads once, when imported
            from trackio import sqlite_storage, utils
        sqlite_storage.SQLiteStorage.validate_project_name(database.stem)
        _refuse_newer(database, sqlite_storage)
        for name in REMOTE:
            if os.environ.get(name):
                logger.warning("tracker trackio: %s is set and ignored; this run stays local", name)
        with _bound_to(database.parent, utils, sqlite_storage):
            has_files = utils.get_storage_mode() == "sqlite"
        self.idempotent = has_files and _has_storage_functions(sqlite_storage)
        if self.idempotent:
            self._writer = _Storage(run, database, utils, sqlite_storage)
        else:
            self._writer = _PublicRun(run, database, utils, has_files=has_files)
            self.last_step = self._writer.last_step
        self.facts.update(
            project=database.stem,
            path=str(database),
            **({"dir": asked} if asked else {}),
            **self._writer.facts,
            show=show_command(database, self.port),
        )
        logger.info("tracker trackio: project %s in %s", database.stem, database)

    def log(self, entries: list[Entry]) -> None:
        """Store rows at their own steps, times and numbers."""
        self._writer.write(entries)
        self._last = entries[-1]

    def alert(self, entry: AlertEntry) -> None:
        """Show an alert; the dashboard has the levels info, warn and error, too."""
        self._writer.alert(entry)

    def forget(self, lines: Collection[int]) -> None:
        """Remove the rows and alerts of these lines of metrics.jsonl."""
        self._writer.forget(lines)

    def finish(self, exit_code: int, finals: Row) -> None:
        """Write the row that ends this session of the run."""
        self._writer.end(self._last, finals)

    def read_back(self, run: RunInfo) -> Series | None:
        """All series of the run in its database; None for fragments, which only the dashboard reads.

        Raises:
            FileNotFoundError: there is no database.
            sqlite3.Error: it is damaged, or no database.
        """
        known = self._known(run)
        if known.get("way") == _PublicRun.FRAGMENTS:
            return None
        return files.read_run(self._database(run), known.get("id", run.run_id))

    def _known(self, run: RunInfo) -> dict[str, Any]:
        return {**recorded_facts(run, self.name), **self.facts}

    def _database(self, run: RunInfo) -> Path:
        """Where the run's project is: where the run is on record, unless another directory is asked for."""
        known = self._known(run)
        if self.directory in (None, known.get("dir")) and "path" in known and Path(known["path"]).is_file():
            return Path(known["path"])
        return find_directory(self.directory) / f"{trackio_name(run.project)}.db"


class _Writer(Protocol):
    @property
    def facts(self) -> dict[str, Any]: ...

    def write(self, entries: list[Entry]) -> None: ...

    def alert(self, entry: AlertEntry) -> None: ...

    def forget(self, lines: Collection[int]) -> None: ...

    def end(self, last: Entry | None, finals: Row) -> None: ...


class _Storage:
    """Writes through Trackio's SQLiteStorage; a row's log_id is `<run id>:<line of metrics.jsonl>`.

    Each call waits up to 10 s for the lock of the project and up to 30 s for SQLite's, then raises.
    A damaged database is moved aside, and the run stored afresh from its metrics.jsonl.
    """

    def __init__(self, run: RunInfo, database: Path, *modules: ModuleType):
        self.facts = {"way": "storage"}
        self._run = run
        self._database = database
        self._modules = modules  # those that hold Trackio's directory
        self._storage = modules[-1].SQLiteStorage
        self._config: dict[str, Any] = {**trackio_config(run), "_Group": run.group}
        self._has_config = False
        self._unwanted: set[str] = set()  # log ids
        with self._bound(), environment(**dict.fromkeys(REMOTE)):
            self._storage._ensure_hub_loaded()  # which looks for a bucket to fetch, once in a process
        if run.is_continued and files.is_corrupt(database):
            with suppress(OSError):  # locked: it is looked at again where SQLite stumbles over it
                self._move_aside_if_corrupt()

    def write(self, entries: list[Entry]) -> None:
        self._on_sound_database(self._write, entries)

    def alert(self, entry: AlertEntry) -> None:
        self._on_sound_database(self._alert, entry)

    def forget(self, lines: Collection[int]) -> None:
        self._unwanted |= {self._id(line) for line in lines} | {self._end_id(line) for line in lines}
        self._on_sound_database(self._remove_unwanted)

    def end(self, last: Entry | None, finals: Row) -> None:
        self._on_sound_database(self._end, last, finals)

    def _write(self, entries: list[Entry]) -> None:
        self._remove_unwanted()  # if that failed before
        self._log(
            [entry.row for entry in entries],
            [entry.step for entry in entries],
            [_iso(entry.time) for entry in entries],
            [self._id(entry.end.line) for entry in entries],
        )

    def _end(self, last: Entry | None, finals: Row) -> None:
        # Numbered after the last row: a run that is continued gets one such row for each of its ends.
        step, time, line = (last.step, last.time, last.end.line) if last else (self._run.first_step, None, 0)
        self._unwanted.add(self._end_id(line))  # of a session that ended here with another exit code
        self._remove_unwanted()
        self._has_config = False  # once more: it is lost if somebody removed the database
        self._log([finals], [step], [_iso(time)], [self._end_id(line)])

    def _log(self, rows: list[Row], steps: list[int], times: list[str], ids: list[str]) -> None:
        self._config.setdefault("_Created", times[0])
        with self._bound():
            self._storage.bulk_log(
                **self._identity,
                metrics_list=rows,
                steps=steps,
                timestamps=times,
                config=None if self._has_config else self._config,
                log_ids=ids,
            )
        self._has_config = True

    def _alert(self, entry: AlertEntry) -> None:
        with self._bound():
            self._storage.bulk_alert(
                **self._identity,
                titles=[entry.alert.title],
                texts=[entry.alert.text],
                levels=[entry.alert.level],
                steps=[entry.step],
                timestamps=[_iso(entry.time)],
                alert_ids=[self._id(entry.end.line)],
            )

    def _remove_unwanted(self) -> None:
        """Delete rows and alerts as Trackio deletes runs: under its lock, in one transaction."""
        if not self._unwanted:
            return
        ids = [(name, self._run.run_id) for name in self._unwanted]
        with self._bound():
            database = self._storage.init_db(self._database.stem)
            with self._lock(), self._storage._get_connection(database) as connection:
                connection.executemany("DELETE FROM metrics WHERE log_id = ? AND run_id = ?", ids)
                connection.executemany("DELETE FROM alerts WHERE alert_id = ? AND run_id = ?", ids)
        self._unwanted.clear()

    # -- damage

    def _on_sound_database(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call `function`; where the database is damaged, again on a new one that has the run so far."""
        try:
            try:
                function(*arguments)
            except sqlite3.DatabaseError as error:
                if not files.is_damage(error) or files.is_foreign(self._database):
                    raise
                self._move_aside_if_corrupt()
                self._store_all()
                function(*arguments)
        except (sqlite3.Error, OSError) as error:
            raise self._explained(error) from error

    def _move_aside_if_corrupt(self) -> None:
        """Under the project's lock: of several runs that see the damage, the first one mends it."""
        with self._bound(), self._lock():
            if not files.is_corrupt(self._database):
                return
            aside = files.move_aside(self._database)
        logger.warning(
            "tracker trackio: %s was damaged and is now %s; this run is stored afresh, the other runs of the "
            "project are in that file: python -m adamwprune.track sync FOLDER stores those of a folder again",
            *(self._database, aside),
        )

    def _store_all(self) -> None:
        self._has_config = False
        ledger = self._run.directory / METRICS
        entries = read_entries(ledger, void=voided(ledger))
        while batch := list(islice(entries, BATCH)):
            if rows := [entry for entry in batch if isinstance(entry, Entry)]:
                self._write(rows)
            for entry in batch:
                if isinstance(entry, AlertEntry):
                    self._alert(entry)

    def _explained(self, error: Exception) -> Exception:
        """The error with the database's path, which SQLite leaves out."""
        if files.is_foreign(self._database):
            return OSError(
                f"{self._database}: no database, and left as it is; move it away, or choose another "
                "tracker.trackio.dir"
            )
        return type(error)(f"{self._database}: {error}")

    # -- what all calls need

    @property
    def _identity(self) -> dict[str, str]:
        return {"project": self._database.stem, "run": self._run.name, "run_id": self._run.run_id}

    def _id(self, line: int) -> str:
        return files.log_id(self._run.run_id, line)

    def _end_id(self, line: int) -> str:
        return f"{self._id(line)}:end"

    def _bound(self) -> AbstractContextManager[None]:
        return _bound_to(self._database.parent, *self._modules)

    def _lock(self) -> AbstractContextManager[Any]:
        return self._storage._get_process_lock(self._database.stem)


class _PublicRun:
    """Writes through trackio.init and its run: id and times are Trackio's, resume is by name.

    No row can be taken back or sent twice: a rewind starts a run `<name>-r1`, and a resumed run gets
    what lies behind its last step.
    """

    FRAGMENTS = "fragments"

    def __init__(self, run: RunInfo, database: Path, utils: ModuleType, *, has_files: bool):
        import trackio
        import trackio.run

        refuse_other_directory(database.parent, utils)
        self._first_step = run.first_step
        with environment(**dict.fromkeys(REMOTE)), _without_hub(trackio.run):
            self._run = trackio.init(
                project=database.stem,
                name=f"{run.name}-r{run.rewinds}" if run.rewinds else run.name,
                group=run.group,
                config=trackio_config(run),
                resume="allow" if run.is_continued else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self._level = trackio.AlertLevel
        self.facts = {"way": "public" if has_files else self.FRAGMENTS, "id": self._run.id}
        self.last_step = _last_step(database, self._run.id) if has_files else None

    def write(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._run.log(entry.row, step=entry.step)

    def alert(self, entry: AlertEntry) -> None:
        title, text, level = entry.alert.title, entry.alert.text, self._level(entry.alert.level)
        self._run.alert(title, text=text, level=level, step=entry.step)

    def forget(self, lines: Collection[int]) -> None:
        pass

    def end(self, last: Entry | None, finals: Row) -> None:
        self._run.log(finals, step=last.step if last else self._first_step)
        self._run.finish()


# ------------------------------------------------------------------------- Trackio's names


def trackio_config(run: RunInfo) -> dict[str, Any]:
    """The configuration without levels, `optimizer.lr`: the dashboard groups runs by such keys only."""
    return dict(_flat(public_config(run.config)))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def trackio_name(project: str) -> str:
    """A project's name in Trackio, which drops dots: my.model and mymodel would share a database."""
    return project.replace(".", "-")


# ------------------------------------------------------------------------- Trackio's directory


def find_directory(chosen: str | Path | None) -> Path:
    """The directory of the databases: the one given, else TRACKIO_DIR, else Trackio's own default."""
    return Path(chosen or os.environ.get("TRACKIO_DIR") or _default_directory()).expanduser().resolve()


def _default_directory() -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "trackio"


def refuse_other_directory(directory: Path, utils: ModuleType) -> None:
    """Raise RuntimeError where Trackio was imported with another directory, which it keeps."""
    if Path(utils.TRACKIO_DIR).resolve() != directory.resolve():
        raise RuntimeError(f"Trackio is bound to {utils.TRACKIO_DIR} in this process; asked for {directory}")


def show_command(database: Path, port: int) -> str:
    """The line that serves the project's dashboard, whatever the environment is by then."""
    command = f"python -m adamwprune.track dashboard --project {database.stem}"
    if database.parent != _default_directory().expanduser().resolve():
        command += f" --dir {shlex.quote(str(database.parent))}"
    return command if port == PORT else f"{command} --port {port}"


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


# ------------------------------------------------------------------------------------ versions


def _has_storage_functions(storage: ModuleType) -> bool:
    """Whether this version's storage has all that `_Storage` calls, with those arguments."""
    functions = {name: getattr(storage.SQLiteStorage, name, None) for name in _STORAGE}
    return all(
        function is not None and inspect.signature(function).parameters.keys() >= _STORAGE[name]
        for name, function in functions.items()
    )


def _refuse_newer(database: Path, storage: ModuleType) -> None:
    known, found = getattr(storage, "SCHEMA_VERSION", None), files.schema_version(database)
    if known is not None and found > known:
        raise RuntimeError(
            f"{database}: made by a newer Trackio (schema {found}, this one knows {known}); "
            "install that Trackio, or choose another tracker.trackio.dir"
        )


def _last_step(database: Path, run_id: str) -> int:
    if not database.exists():
        return -1
    return max((step for step, _ in files.read_run(database, run_id)), default=-1)


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
