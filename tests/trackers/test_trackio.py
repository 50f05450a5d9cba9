"""Trackio for real: rows read back from its database with sqlite3, resume, faults, no network."""

import inspect
import math
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from adamwprune.callbacks.base import Callback, RunInfo
from adamwprune.trackers import trackio as module
from adamwprune.trackers.trackio import trackio
from tests.helpers.trackio_store import StoredRun, read_run

pytest.importorskip("trackio")

PROJECT = "lenet5-d12f4"
SUMMARY = {"status": "finished", "metrics": {"final": {"val/loss": 0.5, "val/perplexity": "Infinity"}}}
LogRows = Callable[..., None]
MakeRun = Callable[..., RunInfo]


def follow(callback: Callback, run: RunInfo, log: Callable[[], None], exit_code: int = 0) -> dict[str, Any]:
    """A run from its start to its end; returns the tracker's part of summary.json."""
    callback.on_train_start(run)
    log()
    if exit_code == 0:
        callback.on_train_end(SUMMARY)
    callback.close(exit_code)
    return callback.status()["trackio"]


def read(tmp_path: Path, run: RunInfo) -> StoredRun:
    return read_run(tmp_path / "trackio" / f"{PROJECT}.db", run.run_id)


def expected(steps: range, **extra: Any) -> list[tuple[int, str, dict[str, Any]]]:
    return [
        (
            step,
            datetime.fromtimestamp(1764000000 + step / 3).astimezone().isoformat(),
            {
                "train/loss": 1 / (step + 3),
                "train/lr": 0.1 + step,
                "sparsity/layer/conv1.weight": step / 7,
                **extra,
            },
        )
        for step in steps
    ]


def as_utc(rows: list[tuple[int, str, dict[str, Any]]]) -> list[tuple[int, float, dict[str, Any]]]:
    return [(step, datetime.fromisoformat(time).timestamp(), row) for step, time, row in rows]


def test_rows_read_back_bit_equal(
    tmp_path: Path, make_run: MakeRun, log_rows: LogRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, steps, times (to the microsecond that Trackio stores), config, group, finals; and with a
    token present not one connection (the control: the counter sees one)."""
    connections: list[Any] = []
    connect = socket.socket.connect
    monkeypatch.setattr(
        socket.socket, "connect", lambda self, to: connections.append(to) or connect(self, to)
    )
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    run = make_run(group="sweep-1")
    extra = {"note": "x", "none": None, "flag": True, "big": 2**62}
    state = follow(
        trackio(port=7861), run, lambda: log_rows(run, range(300), nan=math.nan, up=math.inf, **extra)
    )
    assert connections == []
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", 9), timeout=1)
    assert len(connections) == 1

    database = str(tmp_path / "trackio" / f"{PROJECT}.db")
    show = f"TRACKIO_DIR={tmp_path / 'trackio'} GRADIO_SERVER_PORT=7861 trackio show --project {PROJECT}"
    assert state == {
        **{"state": "closed", "required": False, "sent": 300, "dropped": 0, "errors": {}},
        **{"project": PROJECT, "path": database, "way": "storage", "show": show},
    }
    stored = read(tmp_path, run)
    assert as_utc(stored.series) == as_utc(expected(range(300), nan="NaN", up="Infinity", **extra))
    assert stored.log_ids[:2] == ["0123456789ab:1", "0123456789ab:2"]
    assert stored.name == run.name
    assert stored.config["optimizer"] == {
        "target": "adamwprune.optim.adamw.adamw",
        "lr": 1e-3,
        "betas": [0.9, 0.999],
    }
    assert stored.config["_Group"] == "sweep-1"
    assert "_Username" not in stored.config
    finals = {
        "final/val/loss": 0.5,
        "final/val/perplexity": "Infinity",
        "run/status": "finished",
        "run/exit_code": 0,
    }
    assert stored.ends == [(299, finals)]
    assert stored.alerts == []


def test_trackio_itself_sees_the_run(tmp_path: Path, run: RunInfo, log_rows: LogRows) -> None:
    """What its own reader returns, NaN restored, is what was logged."""
    follow(trackio(), run, lambda: log_rows(run, range(5), nan=math.nan))
    from trackio import sqlite_storage, utils

    storage = sqlite_storage.SQLiteStorage
    with module._bound_to(tmp_path / "trackio", utils, sqlite_storage):
        assert storage.get_runs(PROJECT) == [run.name]
        rows = storage.get_logs(PROJECT, run.name)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 4]
    assert all(math.isnan(row["nan"]) for row in rows[:5])


@pytest.mark.parametrize(("exit_code", "level"), [(1, "error"), (75, "warn"), (130, "warn")])
def test_end_state(exit_code: int, level: str, tmp_path: Path, run: RunInfo, log_rows: LogRows) -> None:
    """Trackio keeps no run state: the last row has the exit code, and an alert says what was not 0."""
    follow(trackio(), run, lambda: log_rows(run, range(3)), exit_code)
    stored = read(tmp_path, run)
    assert stored.ends == [(2, {"run/exit_code": exit_code})]
    assert stored.alerts == [(f"ended with exit code {exit_code}", level, 2)]


def test_run_without_a_row(tmp_path: Path, run: RunInfo) -> None:
    """A run that failed before its first row is seen, with its configuration."""
    follow(trackio(), run, lambda: None, 7)
    stored = read(tmp_path, run)
    assert stored.ends == [(0, {"run/exit_code": 7})]
    assert stored.config["seed"] == 1


def test_resume_doubles_nothing_and_fills_holes(
    tmp_path: Path, run: RunInfo, make_run: MakeRun, log_rows: LogRows
) -> None:
    """Preempted at 15, rows 5..9 lost, resumed from 10 to 20: every row once, two ends."""
    follow(trackio(), run, lambda: log_rows(run, range(15)), 75)
    database = tmp_path / "trackio" / f"{PROJECT}.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DELETE FROM metrics WHERE step BETWEEN 5 AND 9")
        connection.commit()
    assert len(read(tmp_path, run).series) == 10
    follow(trackio(), make_run(first_step=10), lambda: log_rows(run, range(10, 20)))
    stored = read(tmp_path, run)
    assert as_utc(sorted(stored.series, key=lambda row: row[0])) == as_utc(expected(range(20)))
    assert [(step, row["run/exit_code"]) for step, row in stored.ends] == [(14, 75), (19, 0)]


def test_runs_of_one_process_keep_apart(tmp_path: Path, make_run: MakeRun, log_rows: LogRows) -> None:
    """Two runs of one name at once, one in a directory of its own: two ids, no row in the wrong place;
    `my.model` does not share a database with `mymodel`."""
    runs = [make_run("a" * 12, project="my.model"), make_run("b" * 12, project="mymodel")]
    callbacks = [trackio(), trackio(dir=str(tmp_path / "other"))]
    for callback, run in zip(callbacks, runs, strict=True):
        callback.on_train_start(run)
    for run in runs:
        log_rows(run, range(5))
    for callback in callbacks:
        callback.close(0)
    databases = [tmp_path / "trackio" / "my-model.db", tmp_path / "other" / "mymodel.db"]
    for database, run in zip(databases, runs, strict=True):
        assert len(read_run(database, run.run_id).series) == 5
    assert read_run(databases[0], "b" * 12).rows == []


def test_remote_variables_are_ignored_aloud(
    tmp_path: Path,
    run: RunInfo,
    log_rows: LogRows,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A left-over space id must not send the run away; the environment stays as it is."""
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/somewhere")
    assert follow(trackio(), run, lambda: log_rows(run, range(3)))["state"] == "closed"
    assert "TRACKIO_SPACE_ID is set and ignored" in caplog.text
    assert module.os.environ["TRACKIO_SPACE_ID"] == "someone/somewhere"
    assert len(read(tmp_path, run).series) == 3


def test_public_way_where_the_private_one_is_gone(
    tmp_path: Path, run: RunInfo, log_rows: LogRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of Trackio: same values at the same steps, still no question to the hub."""
    import huggingface_hub
    from trackio import sqlite_storage, utils

    for bound in (utils, sqlite_storage):
        monkeypatch.setattr(bound, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr(huggingface_hub, "whoami", lambda **_: pytest.fail("asked the hub"))
    monkeypatch.setattr(module, "_BULK_LOG", {"an_argument_of_tomorrow"})
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9")
    state = follow(trackio(), run, lambda: log_rows(run, range(30)))
    assert (state["state"], state["way"], state["sent"]) == ("closed", "public", 30)
    with closing(sqlite3.connect(tmp_path / "trackio" / f"{PROJECT}.db")) as connection:
        (run_id,) = connection.execute("SELECT DISTINCT run_id FROM metrics").fetchone()
    stored = read_run(tmp_path / "trackio" / f"{PROJECT}.db", run_id)
    assert [(step, row) for step, _, row in stored.series] == [
        (step, row) for step, _, row in expected(range(30))
    ]
    assert [(step, row["run/exit_code"]) for step, row in stored.ends] == [(29, 0)]
    assert stored.name == run.name


def test_signature_test_knows_this_version() -> None:
    """The private way is the one in use with the pinned Trackio."""
    from trackio import sqlite_storage

    assert module._has_bulk_log(sqlite_storage)
    assert "steps" in inspect.signature(sqlite_storage.SQLiteStorage.bulk_log).parameters


def test_corrupt_database_costs_no_row_of_the_ledger(tmp_path: Path, run: RunInfo, log_rows: LogRows) -> None:
    """Reported as degraded with every row counted; the file is left as it was."""
    database = tmp_path / "trackio" / f"{PROJECT}.db"
    database.parent.mkdir()
    database.write_bytes(b"this is not a database, and long enough to be noticed" * 100)
    before = database.read_bytes()
    state = follow(trackio(), run, lambda: log_rows(run, range(30)), 1)
    assert (state["state"], state["sent"], state["dropped"]) == ("degraded", 0, 30)
    assert state["errors"]["log DatabaseError"]["first"] == "file is not a database"
    assert database.read_bytes() == before


def test_reserved_project_name_fails_without_raising(make_run: MakeRun, log_rows: LogRows) -> None:
    """Names that Trackio keeps for itself: a state, not an exception."""
    run = make_run(project="registry-x")
    state = follow(trackio(), run, lambda: log_rows(run, range(3)))
    assert (state["state"], state["dropped"]) == ("failed", 3)
    assert "registry-" in state["errors"]["open ValueError"]["first"]


@pytest.mark.slow
def test_lock_held_for_12_seconds_loses_nothing(tmp_path: Path, run: RunInfo, log_rows: LogRows) -> None:
    """Trackio gives up on its lock after 10 s; we do not (its own sender loses the batch)."""
    import fcntl
    import threading

    lock = tmp_path / "trackio" / f"{PROJECT}.lock"
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        threading.Timer(12, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()
        state = follow(trackio(), run, lambda: log_rows(run, range(30)))
    assert (state["state"], state["sent"], state["dropped"]) == ("closed", 30, 0)
    assert list(state["errors"]) == ["log OSError"]
    assert len(read(tmp_path, run).series) == 30
