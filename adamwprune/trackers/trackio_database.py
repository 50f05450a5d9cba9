"""Trackio's databases as files: read, judged and moved aside with sqlite3 alone.

A project is one SQLite file `<project>.db` in WAL mode, with `-wal` and `-shm` beside it while it is
in use. A run's rows are in `metrics(run_id, run_name, timestamp, step, metrics, log_id)`, the values
as JSON with "NaN", "Infinity" and "-Infinity" in quotes; `PRAGMA user_version` is the version of
the schema. Read with Trackio 0.43; the file format is https://www.sqlite.org/fileformat.html.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from adamwprune.trackers.parity import Series, series
from adamwprune.trackers.rows import from_json

# What every SQLite file starts with.
MAGIC = b"SQLite format 3\0"
# What SQLite says of a file that is damaged; it says the second of any other file, too.
_DAMAGE = ("malformed", "is not a database")


def read_run(database: Path, run_id: str) -> Series:
    """All series of a run; of rows at one step, the last line of metrics.jsonl counts.

    Raises:
        FileNotFoundError: there is no database.
        sqlite3.Error: it cannot be read.
    """
    query = "SELECT step, metrics, log_id FROM metrics WHERE run_id = ? ORDER BY id"
    with opened(database) as connection:
        stored = connection.execute(query, (run_id,)).fetchall()
    # A row that was lost and sent again later lies behind younger ones.
    stored.sort(key=lambda row: line_of(row[2], run_id))
    return series((step, _values(metrics)) for step, metrics, _ in stored)


def log_id(run_id: str, line: int) -> str:
    """The name under which a line of metrics.jsonl is stored once."""
    return f"{run_id}:{line}"


def line_of(stored: str | None, run_id: str) -> int:
    """The line of metrics.jsonl that a log id names; 0 for a row that Trackio numbered."""
    prefix, _, line = (stored or "").partition(":")
    return int(line) if prefix == run_id and line.isdecimal() else 0


def _values(metrics: str | bytes) -> dict[str, Any]:
    """The values of a row; none of one that no program of ours has written."""
    try:
        values = json.loads(metrics)
    except (ValueError, TypeError, RecursionError):
        return {}
    return {key: from_json(value) for key, value in values.items()} if isinstance(values, dict) else {}


def schema_version(database: Path) -> int:
    """The version of the schema; 0 where there is no database, or none that can be read now."""
    try:
        with opened(database) as connection:
            return int(connection.execute("PRAGMA user_version").fetchone()[0])
    except (OSError, sqlite3.Error):
        return 0


@contextmanager
def opened(database: Path) -> Iterator[sqlite3.Connection]:
    """The database, read-only; a reader neither waits for a writer nor holds one up. Errors name the file."""
    if not database.exists():
        raise FileNotFoundError(f"{database}: no such database")
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise type(error)(f"{database}: {error}") from error


# ------------------------------------------------------------------------------------- damage


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file is damaged, and not that it is busy, full or out of reach."""
    return isinstance(error, sqlite3.DatabaseError) and any(words in str(error) for words in _DAMAGE)


def is_foreign(database: Path) -> bool:
    """Whether something else is in the place of a database: a directory, or a file of another kind.

    An empty file is a database, and one that starts with zeros was one.
    """
    if not database.is_file():
        return database.exists()
    with database.open("rb") as file:
        head = file.read(len(MAGIC))
    return head.strip(b"\0") != b"" and head != MAGIC


def is_corrupt(database: Path) -> bool:
    """Whether an SQLite file is damaged, anywhere: reads all of it, about 1 s for a GB.

    A file that is none of SQLite's, or that cannot be read now, is not called corrupt.
    """
    if not database.exists() or is_foreign(database):
        return False
    try:
        with opened(database) as connection:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
    except sqlite3.Error as error:
        return is_damage(error)


def move_aside(database: Path) -> Path:
    """Rename a database and what belongs to it to `<name>.db.corrupt-<time>`; the new path.

    To be called under the lock of its project. Nothing is deleted: `sqlite3 FILE .recover` may be tried.
    """
    aside = database.with_name(f"{database.name}.corrupt-{datetime.now():%Y%m%d_%H%M%S_%f}")
    # The database last: a log that it left behind would be applied to the next one.
    for suffix in ("-wal", "-shm", ""):
        part = database.with_name(database.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside
