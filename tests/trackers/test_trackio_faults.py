"""Trackio with each fault that a machine can have: what it costs the run, the ledger, and later.

Every case has the same three parts: training is not held up and its ledger is whole; the state says
what is missing, in one line with the file's name; and once the fault is gone, the same ledger makes
Trackio whole again. Trackio's own waits (10 s for its lock, 30 s for SQLite's) are shortened.
"""

import fcntl
import functools
import json
import logging
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adamwprune.callbacks.base import Alert, RunInfo
from adamwprune.track.sync import sync
from adamwprune.trackers import trackio_database as files
from adamwprune.trackers.trackio import trackio
from adamwprune.training.ledger import Ledger
from tests.helpers import runs
from tests.helpers.trackio_store import StoredRun, read_run

pytest.importorskip("trackio")

ROOT = Path(__file__).parents[2]
PROJECT = "lenet5-d12f4"
LogRows = Callable[..., None]
MakeRun = Callable[..., RunInfo]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Where the project of all runs is, or will be."""
    directory = tmp_path / "trackio"
    directory.mkdir()
    return directory / f"{PROJECT}.db"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackio waits 0.1 s for its lock instead of 10 s, and 0.2 s for SQLite's instead of 30 s."""
    from trackio import sqlite_storage

    hasty = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 100))
    monkeypatch.setattr(sqlite_storage, "time", hasty)
    connection = sqlite_storage.SQLiteStorage._get_connection.__wrapped__
    monkeypatch.setitem(connection.__kwdefaults__, "timeout", 0.2)


def fill(run: RunInfo, finish_timeout: float = 20.0) -> dict[str, Any]:
    """Send a finished ledger, as the end of a run or a later process does; the tracker's state."""
    callback = trackio(finish_timeout=finish_timeout)
    callback.on_train_start(run)
    callback.close(0)
    return callback.status()["trackio"]


def steps(stored: StoredRun) -> list[int]:
    return sorted(step for step, *_ in stored.series)


def wait_until(condition: Callable[[], Any]) -> None:
    """At most 20 s, for a busy machine."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_for(database: Path, run: RunInfo, is_there: Callable[[StoredRun], Any]) -> None:
    """Wait until the database, which may not be there yet or be damaged, holds what is asked for."""

    def is_stored() -> bool:
        with suppress(sqlite3.Error):
            return database.exists() and bool(is_there(read_run(database, run.run_id)))
        return False

    wait_until(is_stored)


# ---- locks


@contextmanager
def flock(database: Path) -> Iterator[None]:
    """Trackio's own lock, as another of its processes holds it."""
    with database.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def transaction(database: Path) -> Iterator[None]:
    """SQLite's lock of a database in use."""
    with closing(sqlite3.connect(database, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS other (x)")
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


LOCKS = pytest.mark.parametrize(
    ("lock", "error"), [(flock, "log OSError"), (transaction, "log OperationalError")]
)


@LOCKS
@pytest.mark.usefixtures("impatient")
def test_rows_wait_for_a_lock(lock: Any, error: str, database: Path, run: RunInfo, log_rows: LogRows) -> None:
    """Held for longer than Trackio waits, then let go: every row arrives, once; the refusals are counted."""
    callback = trackio(finish_timeout=20.0)
    with lock(database):
        callback.on_train_start(run)
        log_rows(run, range(30))
        wait_until(lambda: callback.status()["trackio"]["errors"])
        state = callback.status()["trackio"]
        assert (state["state"], state["sent"]) == ("degraded", 0)
    callback.close(0)
    state = callback.status()["trackio"]
    assert (state["state"], state["sent"], state["dropped"]) == ("closed", 30, 0)
    assert list(state["errors"]) == [error]
    assert state["errors"][error]["first"].startswith(f"{database}: ")
    assert steps(read_run(database, run.run_id)) == list(range(30))


@LOCKS
@pytest.mark.usefixtures("impatient")
def test_a_lock_that_is_never_let_go_costs_the_deadline(
    lock: Any, error: str, database: Path, run: RunInfo, log_rows: LogRows
) -> None:
    """The end of the run is not held up for longer; a later process stores all rows."""
    log_rows(run, range(30))
    with lock(database):
        started = time.monotonic()
        state = fill(run, finish_timeout=0.3)
        assert time.monotonic() - started < 10
    assert (state["state"], state["sent"], state["dropped"]) == ("degraded", 0, 30)
    assert state["repair"] == f"python -m adamwprune.track sync {run.directory}"
    assert fill(run)["parity"] == "90 values at 30 steps, all equal"
    assert steps(read_run(database, run.run_id)) == list(range(30))


@LOCKS
@pytest.mark.slow
def test_a_lock_held_for_12_seconds_loses_nothing(
    lock: Any, error: str, database: Path, run: RunInfo, log_rows: LogRows
) -> None:
    """Trackio's own sender gives up its lock after 10 s and loses the batch; SQLite's it waits out."""
    log_rows(run, range(30))
    released = threading.Event()

    def hold() -> None:
        with lock(database):
            held.set()
            time.sleep(12)
        released.set()

    held = threading.Event()
    threading.Thread(target=hold).start()
    assert held.wait(10)
    state = fill(run, finish_timeout=30.0)
    assert released.is_set()
    assert (state["state"], state["sent"], state["dropped"]) == ("closed", 30, 0)
    assert list(state["errors"]) == (["log OSError"] if lock is flock else [])
    assert steps(read_run(database, run.run_id)) == list(range(30))


# ---- damage


def wipe_pages(database: Path) -> None:
    """All but the first page, as a failing disk does."""
    size = database.stat().st_size
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def wipe_head(database: Path) -> None:
    """Zeros where the file begins, as a power failure leaves them."""
    with database.open("r+b") as file:
        file.write(bytes(4096))


def cut(database: Path) -> None:
    """Half of the file, as an interrupted copy."""
    os.truncate(database, database.stat().st_size // 2)


DAMAGES = pytest.mark.parametrize("damage", [wipe_pages, wipe_head, cut])


def moved(database: Path) -> list[Path]:
    """What was moved aside."""
    return sorted(database.parent.glob("*.corrupt-*[0-9]"))


@DAMAGES
def test_a_damaged_database_is_moved_aside_and_the_run_stored_afresh(
    damage: Callable[[Path], None],
    database: Path,
    make_run: MakeRun,
    log_rows: LogRows,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not deleted, one warning with both paths; the other run of the project comes back from its ledger."""
    other, run = make_run("a" * 12), make_run("b" * 12)
    log_rows(other, range(50))
    fill(other)
    damage(database)
    damaged = database.read_bytes()
    log_rows(run, range(30))
    state = fill(run)
    assert (state["state"], state["dropped"], state["errors"]) == ("closed", 0, {})
    stored = read_run(database, run.run_id)
    assert steps(stored) == list(range(30))
    assert stored.config["seed"] == 1
    (aside,) = moved(database)
    assert aside.read_bytes() == damaged
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"{database} was damaged and is now {aside}" in warning
    assert "the other runs of the project are in that file" in warning

    assert read_run(database, other.run_id).rows == []
    assert fill(other)["state"] == "closed"
    assert steps(read_run(database, other.run_id)) == list(range(50))
    assert moved(database) == [aside]


@DAMAGES
def test_damage_in_the_middle_of_a_run_costs_it_no_row(
    damage: Callable[[Path], None], database: Path, run: RunInfo, log_rows: LogRows
) -> None:
    """Rows and alerts from before it are stored again, at once and not only at the end."""
    callback = trackio()
    callback.on_train_start(run)
    log_rows(run, range(20))
    ledger = Ledger(run.directory / "metrics.jsonl", 19)
    ledger.alert(19, 1764000007.0, Alert("loss_spike", "warn", "loss spike", "much"))
    ledger.close()
    wait_for(database, run, lambda stored: stored.alerts)
    damage(database)
    log_rows(run, range(20, 30))

    wait_for(database, run, lambda stored: len(stored.series) == 30 and stored.config["seed"] == 1)
    callback.close(0)
    state = callback.status()["trackio"]
    assert (state["state"], state["dropped"]) == ("closed", 0)
    stored = read_run(database, run.run_id)
    assert steps(stored) == list(range(30))
    assert [title for title, *_ in stored.alerts] == ["loss spike"]
    assert stored.config["seed"] == 1
    assert len(moved(database)) == 1


def damage_page_with(database: Path, text: bytes) -> None:
    """One page in the middle of the rows, where nothing is written any more."""
    data = database.read_bytes()
    page = data.index(text) // 4096 * 4096
    with database.open("r+b") as file:
        file.seek(page)
        file.write(b"\xff" * 8)


def test_damage_where_nothing_is_written_is_found_by_a_later_process(
    database: Path, run: RunInfo, make_run: MakeRun, log_rows: LogRows
) -> None:
    """A run that goes on, or is filled, looks at the whole file first; until then it is degraded."""
    log_rows(run, range(400))
    fill(run)
    damage_page_with(database, b'"train/lr":100.1')
    state = fill(run)
    assert state["state"] == "degraded"
    assert "malformed" in state["errors"]["verify DatabaseError"]["first"]
    assert moved(database) == []
    assert fill(make_run(is_continued=True))["parity"] == "1200 values at 400 steps, all equal"
    assert len(moved(database)) == 1


def test_of_two_runs_that_see_the_damage_one_mends_it(
    database: Path, make_run: MakeRun, log_rows: LogRows
) -> None:
    """The second finds a sound database under the lock, and does not move that aside."""
    both = [make_run("a" * 12), make_run("b" * 12)]
    log_rows(both[0], range(50))
    log_rows(both[1], range(50))
    fill(both[0])
    wipe_pages(database)
    callbacks = [trackio(finish_timeout=20.0) for _ in both]
    for callback, run in zip(callbacks, both, strict=True):
        callback.on_train_start(run)
    for callback in callbacks:
        callback.close(0)
    assert [callback.status()["trackio"]["state"] for callback in callbacks] == ["closed", "closed"]
    assert [steps(read_run(database, run.run_id)) for run in both] == [list(range(50))] * 2
    assert len(moved(database)) == 1


def test_a_database_that_another_process_has_mended_is_left_in_its_place(
    database: Path, run: RunInfo, log_rows: LogRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite stumbled over the old file; by the time that the lock is had, a sound one is there."""
    from trackio import sqlite_storage

    storage = sqlite_storage.SQLiteStorage
    errors = [sqlite3.DatabaseError("database disk image is malformed")]
    bulk_log = storage.bulk_log

    def stumble_once(**arguments: Any) -> None:
        if errors:
            raise errors.pop()
        bulk_log(**arguments)

    log_rows(run, range(30))
    fill(run)
    monkeypatch.setattr(storage, "bulk_log", staticmethod(functools.wraps(bulk_log)(stumble_once)))
    assert fill(run)["state"] == "closed"
    assert not errors
    assert moved(database) == []


def test_a_log_beside_a_damaged_database_goes_with_it(database: Path) -> None:
    """SQLite would apply it to the next database of that name."""
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).write_bytes(suffix.encode() + b"\0")
    aside = files.move_aside(database)
    assert sorted(path.name for path in database.parent.iterdir()) == sorted(
        aside.name + suffix for suffix in ("", "-wal", "-shm")
    )
    assert aside.name.startswith(f"{database.name}.corrupt-2")


@pytest.mark.parametrize("content", [b"", bytes(5000), b"SQLite format 3\0" + bytes(5000)])
def test_what_is_damaged_and_what_is_something_else(tmp_path: Path, content: bytes) -> None:
    """An empty file is a database; zeros and half a header are damage; other files are left alone."""
    file = tmp_path / "x.db"
    file.write_bytes(content)
    assert not files.is_foreign(file)
    assert files.is_corrupt(file) == bool(content)
    file.write_bytes(b"notes of somebody\n" * 500)
    assert files.is_foreign(file)
    assert not files.is_corrupt(file)


# ---- no database can be had


def text_file(database: Path) -> Callable[[], None]:
    """Another program's file in its place."""
    database.write_bytes(b"this is not a database, and long enough to be noticed" * 100)
    return database.unlink


def directory(database: Path) -> Callable[[], None]:
    """A directory in its place."""
    database.mkdir()
    return database.rmdir


def file_for_directory(database: Path) -> Callable[[], None]:
    """A file where Trackio's directory should be."""
    database.parent.rmdir()
    database.parent.write_text("")
    return database.parent.unlink


def newer_schema(database: Path) -> Callable[[], None]:
    """The database of a Trackio that this one does not know."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA user_version = 99")
    return database.unlink


OBSTACLES: list[tuple[Callable[[Path], Callable[[], None]], str, str]] = [
    (text_file, "degraded", "no database, and left as it is"),
    (directory, "degraded", "no database, and left as it is"),
    (file_for_directory, "degraded", "File exists"),
    (newer_schema, "failed", "made by a newer Trackio (schema 99, this one knows 2)"),
]


@pytest.mark.parametrize(("obstacle", "state", "reason"), OBSTACLES)
def test_what_is_in_the_way_is_named_and_left_alone(
    obstacle: Callable[[Path], Callable[[], None]],
    state: str,
    reason: str,
    database: Path,
    run: RunInfo,
    log_rows: LogRows,
) -> None:
    """The rows stay in the ledger; one line says which file it is, and the state what sends them later."""
    remove = obstacle(database)
    before = _content(database)
    callback = trackio()
    callback.on_train_start(run)
    log_rows(run, range(30))
    callback.close(0)
    found = callback.status()["trackio"]
    assert (found["state"], found["sent"], found["dropped"]) == (state, 0, 30)
    first = next(iter(found["errors"].values()))["first"]
    assert str(database) in first
    assert reason in first
    assert found["repair"] == f"python -m adamwprune.track sync {run.directory}"
    assert _content(database) == before
    remove()
    assert fill(run)["parity"] == "90 values at 30 steps, all equal"


def _content(path: Path) -> bytes | list[Path] | None:
    if path.is_file():
        return path.read_bytes()
    return list(path.iterdir()) if path.is_dir() else None


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    """A file system in memory, where this user may mount one."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], capture_output=True)
    if done.returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def remount(directory: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", directory], check=True)


@pytest.mark.parametrize(
    ("broken", "mended", "reason"),
    [("ro", "rw", "Read-only file system"), ("size=300k", "size=10m", "disk is full")],
)
def test_a_file_system_that_refuses(
    broken: str, mended: str, reason: str, database: Path, run: RunInfo, log_rows: LogRows
) -> None:
    """Read-only, or full: degraded with every row in the ledger; whole once the file system is."""
    log_rows(run, range(500))
    with mounted(database.parent, broken):
        state = fill(run)
        assert (state["state"], state["dropped"]) == ("degraded", 500)
        assert reason in next(iter(state["errors"].values()))["first"]
        remount(database.parent, mended)
        assert fill(run)["parity"] == "1500 values at 500 steps, all equal"


def test_a_quota_that_is_used_up(database: Path, run: RunInfo, log_rows: LogRows) -> None:
    """The same where no file may grow beyond a size; the kernel's limit needs no rights."""
    log_rows(run, range(500))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        state = fill(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert (state["state"], state["dropped"]) == ("degraded", 500)
    assert fill(run)["parity"] == "1500 values at 500 steps, all equal"


# ---- other processes

FOLLOW = """
import json, sys, threading, time
from pathlib import Path
from adamwprune.callbacks.base import RunInfo
from adamwprune.trackers import mirror, trackio
from adamwprune.training.ledger import Ledger

mirror.PAUSE = 0.02
run = RunInfo(run_id="0123456789ab", name="r", project="lenet5-d12f4", group=None, config={"seed": 1},
              directory=Path(sys.argv[1]))

def follow(callback):
    started = time.monotonic()
    callback.on_train_start(run)
    blocked = time.monotonic() - started
    callback.close(0)
    return callback.status()["trackio"] | {"blocked": blocked}
"""
ASK_THE_HUB = """
states = [follow(trackio.trackio())]
trackio._STORAGE["bulk_log"] = {"an_argument_of_tomorrow"}
states += [follow(trackio.trackio())]
print(json.dumps(states), flush=True)
sys.stdin.readline()
from huggingface_hub import whoami
whoami()
"""
TRAIN_FOR_EVER = """
callback = trackio.trackio()
callback.on_train_start(run)
ledger = Ledger(run.directory / "metrics.jsonl")
for step in range(1, 10**6):
    ledger.write(step, time.time(), {"train/loss": 1 / step})
    time.sleep(0.001)
"""


@contextmanager
def process(code: str, run: RunInfo, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Another Python process, which does not outlive the block."""
    command = [sys.executable, "-c", FOLLOW + code, str(run.directory)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, text=True, stdin=pipe, stdout=pipe
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def test_a_hub_that_never_answers_is_never_asked(run: RunInfo, log_rows: LogRows) -> None:
    """With a token, by either way to write: no connection, nothing waits. The control: whoami() comes."""
    log_rows(run, range(30))
    with socket.create_server(("127.0.0.1", 0)) as hub:
        endpoint = f"http://127.0.0.1:{hub.getsockname()[1]}"
        with process(ASK_THE_HUB, run, HF_TOKEN="hf_" + "x" * 34, HF_ENDPOINT=endpoint) as asking:
            assert asking.stdout is not None
            assert asking.stdin is not None
            # Trackio's own way to write greets, too.
            states = json.loads(next(line for line in asking.stdout if line.startswith("[")))
            assert [(state["way"], state["state"]) for state in states] == [
                ("storage", "closed"),
                ("public", "closed"),
            ]
            assert all(state["blocked"] < 1 for state in states)
            hub.settimeout(0.01)
            with pytest.raises(TimeoutError):
                hub.accept()
            asking.stdin.write("\n")
            asking.stdin.flush()
            hub.settimeout(30)
            hub.accept()[0].close()


def test_a_killed_process_loses_no_row(database: Path, make_run: MakeRun) -> None:
    """SIGKILL in mid-run, and rows lost within: a later process stores each that is missing, once."""
    run = make_run(is_continued=True, first_step=1)
    with process(TRAIN_FOR_EVER, run) as training:
        wait_for(database, run, lambda stored: len(stored.series) > 100)
        training.send_signal(signal.SIGKILL)
        training.wait()
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM metrics WHERE step BETWEEN 20 AND 29")
    written = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()[:-1]]
    stored = read_run(database, run.run_id)
    assert 90 < len(stored.series) < len(written)
    assert stored.ends == []
    state = fill(run)
    assert (state["state"], state["errors"]) == ("closed", {})
    stored = read_run(database, run.run_id)
    assert steps(stored)[: len(written)] == [line["step"] for line in written]
    assert len(set(stored.log_ids)) == len(stored.log_ids)


# ---- whole runs: the same bits as without a tracker

SHORT = (*runs.IMAGES, "optimizer=adamwprune", "trainer.max_steps=24", "trainer.log_every=3")
TRACKED = (*SHORT, "tracker=trackio", "tracker.trackio.finish_timeout=1.0", f"project={PROJECT}")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a tracker."""
    return runs.run(tmp_path_factory.mktemp("plain") / "run", *SHORT)


@contextmanager
def obstacle(make: Callable[[Path], Callable[[], None]], database: Path) -> Iterator[None]:
    remove = make(database)
    yield
    remove()


def damaged(database: Path) -> Iterator[None]:
    """Something that was a database."""
    database.write_bytes(files.MAGIC + b"\xa5" * 20_000)
    yield


WHOLE = [
    pytest.param(flock, "degraded", id="lock"),
    pytest.param(contextmanager(damaged), "closed", id="damaged", marks=pytest.mark.slow),
    *(
        pytest.param(
            lambda database, make=make: obstacle(make, database),
            state,
            id=make.__name__,
            marks=pytest.mark.slow,
        )
        for make, state, _ in OBSTACLES
    ),
    pytest.param(transaction, "degraded", id="transaction", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("fault", "state"), WHOLE)
@pytest.mark.usefixtures("impatient")
def test_training_is_bitwise_that_without_a_tracker(
    fault: Any, state: str, tmp_path: Path, database: Path, plain: Path
) -> None:
    """Weights and rows; the run finishes, its summary says what came of Trackio, and a sync repairs it."""
    with fault(database):
        tracked = runs.run(tmp_path / "tracked", *TRACKED)
    assert runs.rows(tracked) == runs.rows(plain)
    weights, others = runs.final_weights(tracked), runs.final_weights(plain)
    assert weights.keys() == others.keys()
    assert all(weights[name].equal(others[name]) for name in weights)
    summary = runs.summary(tracked)
    assert (summary["status"], summary["trackers"]["trackio"]["state"]) == ("finished", state)
    assert ("repair" in summary["trackers"]["trackio"]) == (state != "closed")

    # The repair: the fault is gone, and `python -m adamwprune.track sync RUN` stores what is missing.
    assert sync(tracked)
    run_id = json.loads((tracked / "run.json").read_text())["run_id"]
    truth = [row.pop("step") for row in runs.rows(tracked)]
    assert [step for step, *_ in read_run(database, run_id).series] == truth
