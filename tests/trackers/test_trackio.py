"""Trackio for real: rows read back from its database with sqlite3, resume, rewind, both ways to write."""

import json
import math
import os
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from adamwprune.callbacks.base import Alert, Callback, RunInfo
from adamwprune.trackers import trackio as module
from adamwprune.trackers import trackio_database as files
from adamwprune.trackers.mirror import Mirror
from adamwprune.trackers.trackio import Trackio, trackio
from adamwprune.training.ledger import Ledger
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


def fill(callback: Callback, run: RunInfo, exit_code: int = 0) -> dict[str, Any]:
    """What a later process does with a finished ledger."""
    return follow(callback, run, lambda: None, exit_code)


def read(tmp_path: Path, run: RunInfo) -> StoredRun:
    return read_run(tmp_path / "trackio" / f"{PROJECT}.db", run.run_id)


def change(tmp_path: Path, statement: str) -> None:
    """Change the project's database behind Trackio's back."""
    with closing(sqlite3.connect(tmp_path / "trackio" / f"{PROJECT}.db")) as connection, connection:
        connection.execute(statement)


def alert(run: RunInfo, step: int, level: str = "warn") -> None:
    """An alert in the run's ledger, as the loop writes it."""
    ledger = Ledger(run.directory / "metrics.jsonl", step)
    ledger.alert(step, 1764000000.5, Alert(f"rule-{level}", level, f"{level} at {step}", "much"))
    ledger.close()


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


# ---- rows


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

    directory = tmp_path / "trackio"
    show = f"python -m adamwprune.track dashboard --project {PROJECT} --dir {directory} --port 7861"
    assert state == {
        **{"state": "closed", "required": False, "sent": 300, "dropped": 0, "errors": {}},
        "parity": "2700 values at 300 steps, all equal",
        **{"project": PROJECT, "path": f"{directory}/{PROJECT}.db", "way": "storage", "show": show},
    }
    stored = read(tmp_path, run)
    assert as_utc(stored.series) == as_utc(expected(range(300), nan="NaN", up="Infinity", **extra))
    assert stored.log_ids[:2] == ["0123456789ab:1", "0123456789ab:2"]
    assert stored.name == run.name
    # Without levels: the dashboard groups runs by plain values of the first level only.
    assert (
        stored.config.items()
        >= {
            "seed": 1,
            "optimizer.target": "adamwprune.optim.adamw.adamw",
            "optimizer.lr": 1e-3,
            "_Group": "sweep-1",
            "_Created": stored.rows[0][1],
        }.items()
    )
    assert stored.config["optimizer.betas"] == [0.9, 0.999]
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
    """What its own readers return, NaN restored, is what was logged."""
    log_rows(run, range(5), nan=math.nan)
    alert(run, 4, "error")
    fill(trackio(), run)
    from trackio import sqlite_storage, utils

    storage = sqlite_storage.SQLiteStorage
    with module._bound_to(tmp_path / "trackio", utils, sqlite_storage):
        assert storage.get_runs(PROJECT) == [run.name]
        rows = storage.get_logs(PROJECT, run.name)
        (shown,) = storage.get_alerts(PROJECT, run.name)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 4]
    assert all(math.isnan(row["nan"]) for row in rows[:5])
    assert (shown["title"], shown["text"], shown["level"]) == ("error at 4", "much", "error")


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


def test_alerts_are_stored_once_with_their_levels(tmp_path: Path, run: RunInfo, log_rows: LogRows) -> None:
    """At their own steps and times; a second process that sends the ledger again adds none."""
    log_rows(run, range(3))
    for level in ("info", "warn", "error"):
        alert(run, 2, level)
    for _ in range(2):
        assert fill(trackio(), run)["state"] == "closed"
    stored = read(tmp_path, run)
    assert stored.alerts == [("info at 2", "info", 2), ("warn at 2", "warn", 2), ("error at 2", "error", 2)]
    assert stored.alert_ids == ["0123456789ab:4", "0123456789ab:5", "0123456789ab:6"]


# ---- ends


@pytest.mark.parametrize("exit_code", [1, 75, 130])
def test_a_run_that_ends_early_has_its_exit_code(
    exit_code: int, tmp_path: Path, run: RunInfo, log_rows: LogRows
) -> None:
    """In the row that ends it; the alert comes from the ledger, the tracker makes none of its own."""
    follow(trackio(), run, lambda: log_rows(run, range(3)), exit_code)
    stored = read(tmp_path, run)
    assert stored.ends == [(2, {"run/exit_code": exit_code})]
    assert stored.alerts == []


def test_a_run_without_a_row(tmp_path: Path, run: RunInfo) -> None:
    """A run that failed before its first row is seen, with its configuration."""
    assert fill(trackio(), run, 7)["state"] == "closed"
    stored = read(tmp_path, run)
    assert stored.ends == [(0, {"run/exit_code": 7})]
    assert stored.config["seed"] == 1


def test_an_end_at_the_same_row_replaces_the_one_before(
    tmp_path: Path, run: RunInfo, make_run: MakeRun, log_rows: LogRows
) -> None:
    """Stopped at its very last step, then continued: it finished; and a sync afterwards changes nothing."""
    follow(trackio(), run, lambda: log_rows(run, range(5)), 75)
    for _ in range(2):
        fill(trackio(), make_run(is_continued=True))
    ((step, finals),) = read(tmp_path, run).ends
    assert (step, finals["run/exit_code"], finals["final/val/loss"]) == (4, 0, 0.5)


# ---- resume and rewind


def test_resume_doubles_nothing_and_fills_holes(
    tmp_path: Path, run: RunInfo, make_run: MakeRun, log_rows: LogRows
) -> None:
    """Preempted at 15, rows 5..9 lost, resumed from 10 to 20: every row once, an end for each session."""
    follow(trackio(), run, lambda: log_rows(run, range(15)), 75)
    change(tmp_path, "DELETE FROM metrics WHERE step BETWEEN 5 AND 9")
    assert len(read(tmp_path, run).series) == 10
    continued = make_run(first_step=10, is_continued=True)
    state = follow(trackio(), continued, lambda: log_rows(run, range(10, 20)))
    assert (state["state"], state["parity"]) == ("closed", "60 values at 20 steps, all equal")
    stored = read(tmp_path, run)
    assert as_utc(sorted(stored.series, key=lambda row: row[0])) == as_utc(expected(range(20)))
    assert [(step, row["run/exit_code"]) for step, row in stored.ends] == [(14, 75), (19, 0)]


def rewind(run: RunInfo, to: int, steps: range) -> None:
    """The ledger of a resume that is not exact: other values from `to` on, and one alert."""
    ledger = Ledger(run.directory / "metrics.jsonl", to, exact=False)
    for step in steps:
        ledger.write(step, 1764000000 + step / 3, {"train/loss": 100.0 + step})
    ledger.close()


def test_a_rewind_removes_rows_alerts_and_the_end(
    tmp_path: Path, run: RunInfo, make_run: MakeRun, log_rows: LogRows
) -> None:
    """What was taken back is gone, here and in no other run; what comes instead is there."""
    other = make_run("b" * 12)
    for each in (run, other):
        log_rows(each, range(10))
        alert(each, 3)
        alert(each, 9)
        fill(trackio(), each, 75)
    rewind(run, 4, range(5, 8))
    state = fill(trackio(), make_run(first_step=4, is_continued=True, rewinds=1))
    assert (state["state"], state["errors"]) == ("closed", {})
    stored = read(tmp_path, run)
    assert [step for step, *_ in stored.series] == list(range(8))
    assert [row["train/loss"] for _, _, row in stored.series[5:]] == [105, 106, 107]
    assert stored.alerts == [("warn at 3", "warn", 3)]
    assert [step for step, _ in stored.ends] == [7]
    kept = read(tmp_path, other)
    assert (len(kept.series), len(kept.alerts), len(kept.ends)) == (10, 2, 1)


def test_a_rewind_that_is_refused_is_made_up_for(
    tmp_path: Path, run: RunInfo, make_run: MakeRun, log_rows: LogRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock was held when the rows should have gone: they go with the next write, not at the end."""
    follow(trackio(), run, lambda: log_rows(run, range(10)), 75)
    rewind(run, 4, range(5, 8))
    from trackio import sqlite_storage

    get_lock, locks = sqlite_storage.SQLiteStorage._get_process_lock, []

    def refuse_once(project: str) -> Any:
        locks.append(project)
        if len(locks) == 1:
            raise OSError("Could not acquire database lock after 10 seconds")
        return get_lock(project)

    monkeypatch.setattr(sqlite_storage.SQLiteStorage, "_get_process_lock", staticmethod(refuse_once))
    callback = trackio()
    callback.on_train_start(make_run(first_step=4, is_continued=True, rewinds=1))
    deadline = time.monotonic() + 20
    while [step for step, *_ in read(tmp_path, run).series] != list(range(8)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    callback.close(0)
    state = callback.status()["trackio"]
    assert (state["state"], list(state["errors"])) == ("closed", ["forget OSError"])


# ---- reading back


def test_values_come_back_as_they_were(run: RunInfo, log_rows: LogRows) -> None:
    """NaN and infinities are floats again; ends are no part of a series."""
    follow(trackio(), run, lambda: log_rows(run, range(2), nan=math.nan, down=-math.inf, note="x", none=None))
    series = Trackio(dir=None, port=7860).read_back(run)
    assert math.isnan(series.pop((0, "nan")))
    assert {key: value for (step, key), value in series.items() if step == 0} == {
        "train/loss": 1 / 3,
        "train/lr": 0.1,
        "sparsity/layer/conv1.weight": 0.0,
        **{"down": -math.inf, "note": "x", "none": None},
    }
    assert {step for step, _ in series} == {0, 1}


def test_a_line_that_was_filled_later_does_not_win(tmp_path: Path, run: RunInfo) -> None:
    """Two rows at one step: the last line counts, also where the first was lost and stored again."""
    rows = [{"step": 1, "time": 1.0, "a": 1, "b": 1}, {"step": 1, "time": 2.0, "a": 2}]
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fill(trackio(), run)
    change(tmp_path, "DELETE FROM metrics WHERE log_id = '0123456789ab:1'")
    assert fill(trackio(), run)["state"] == "closed"
    assert read(tmp_path, run).log_ids == [f"0123456789ab:{line}" for line in ("2", "1", "2:end")]
    assert Trackio(dir=None, port=7860).read_back(run) == {(1, "a"): 2, (1, "b"): 1}


def test_a_store_is_found_where_the_run_is_on_record(
    tmp_path: Path, run: RunInfo, make_run: MakeRun, log_rows: LogRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another shell, with another TRACKIO_DIR and working directory, a later process goes on there."""
    monkeypatch.chdir(tmp_path)
    follow(trackio(dir="store"), run, lambda: log_rows(run, range(5)), 75)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.chdir("/")
    for directory in (None, "store"):
        state = fill(trackio(dir=directory), make_run(is_continued=True))
        assert (state["state"], state["path"]) == ("closed", str(tmp_path / "store" / f"{PROJECT}.db"))
    assert not (tmp_path / "elsewhere").exists()

    # Another directory that is asked for is another store.
    state = fill(trackio(dir=str(tmp_path / "second")), make_run(is_continued=True))
    assert (state["state"], state["path"]) == ("closed", str(tmp_path / "second" / f"{PROJECT}.db"))
    # And where the file on record is gone, the run is stored as the environment says.
    (tmp_path / "second" / f"{PROJECT}.db").unlink()
    assert fill(trackio(), make_run(is_continued=True))["path"].startswith(str(tmp_path / "elsewhere"))


def test_a_store_that_is_not_there_is_an_error(tmp_path: Path, run: RunInfo) -> None:
    """And not an empty one: `verify` must not call nothing equal to nothing. Nothing is created."""
    with pytest.raises(FileNotFoundError, match="no such database"):
        Trackio(dir=None, port=7860).read_back(run)
    assert not (tmp_path / "trackio").exists()


# ---- options and names


@pytest.mark.parametrize("name", module.REMOTE)
def test_remote_variables_are_ignored_aloud(
    name: str,
    tmp_path: Path,
    run: RunInfo,
    log_rows: LogRows,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was left over must not send the run away, or fetch a bucket; the environment stays as it is."""
    from trackio import bucket_storage, sqlite_storage

    monkeypatch.setattr(sqlite_storage.SQLiteStorage, "_dataset_import_attempted", False)
    asked: list[str] = []
    monkeypatch.setattr(bucket_storage, "download_bucket_to_trackio_dir", asked.append)
    monkeypatch.setenv(name, "someone/somewhere")
    assert follow(trackio(), run, lambda: log_rows(run, range(3)))["state"] == "closed"
    assert f"{name} is set and ignored" in caplog.text
    assert os.environ[name] == "someone/somewhere"
    assert len(read(tmp_path, run).series) == 3
    assert asked == []


def test_the_line_that_shows_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is not a default is in it."""
    monkeypatch.setattr(module, "_default_directory", lambda: tmp_path / "hub" / "trackio")
    own, other = tmp_path / "hub" / "trackio" / "p.db", tmp_path / "a b" / "p.db"
    line = "python -m adamwprune.track dashboard --project p"
    assert module.show_command(own, 7860) == line
    assert module.show_command(own, 8080) == f"{line} --port 8080"
    assert module.show_command(other, 7860) == f"{line} --dir '{tmp_path}/a b'"


def test_reserved_project_name_fails_without_raising(make_run: MakeRun, log_rows: LogRows) -> None:
    """Names that Trackio keeps for itself: a state, not an exception."""
    run = make_run(project="registry-x")
    state = follow(trackio(), run, lambda: log_rows(run, range(3)))
    assert (state["state"], state["dropped"]) == ("failed", 3)
    assert "registry-" in state["errors"]["open ValueError"]["first"]


# ---- the public way


@pytest.fixture
def another_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of Trackio whose storage functions take other arguments."""
    import huggingface_hub
    from trackio import sqlite_storage, utils

    for bound in (utils, sqlite_storage):
        monkeypatch.setattr(bound, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr(huggingface_hub, "whoami", lambda **_: pytest.fail("asked the hub"))
    monkeypatch.setitem(module._STORAGE, "bulk_log", {"an_argument_of_tomorrow"})
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9")


@pytest.mark.usefixtures("another_trackio")
def test_the_public_way_stores_the_same(tmp_path: Path, run: RunInfo, log_rows: LogRows) -> None:
    """Same values at the same steps, alerts and end; still no question to the hub."""
    log_rows(run, range(30), nan=math.nan)
    alert(run, 29, "error")
    state = fill(trackio(), run)
    assert (state["state"], state["way"], state["sent"]) == ("closed", "public", 30)
    assert state["parity"] == "120 values at 30 steps, all equal"
    stored = read_run(tmp_path / "trackio" / f"{PROJECT}.db", state["id"])
    assert [(step, row) for step, _, row in stored.series] == [
        (step, row) for step, _, row in expected(range(30), nan="NaN")
    ]
    assert [(step, row["run/exit_code"]) for step, row in stored.ends] == [(29, 0)]
    assert stored.alerts == [("error at 29", "error", 29)]
    assert stored.name == run.name
    assert stored.config["optimizer.lr"] == 1e-3


@pytest.mark.usefixtures("another_trackio")
def test_the_public_way_goes_on_and_starts_anew_after_a_rewind(
    tmp_path: Path, run: RunInfo, make_run: MakeRun, log_rows: LogRows
) -> None:
    """A resumed run gets what lies behind its last step; what cannot be taken back stays."""
    first = follow(trackio(), run, lambda: log_rows(run, range(10)), 75)
    state = follow(trackio(), make_run(first_step=5, is_continued=True), lambda: log_rows(run, range(5, 15)))
    assert (state["id"], state["state"], state["sent"]) == (first["id"], "closed", 5)
    rewind(run, 4, range(5, 8))
    state = fill(trackio(), make_run(first_step=4, is_continued=True, rewinds=1))
    assert (state["state"], state["parity"]) == ("closed", "18 values at 8 steps, all equal")
    assert state["id"] != first["id"]
    stored = read_run(tmp_path / "trackio" / f"{PROJECT}.db", state["id"])
    assert stored.name == f"{run.name}-r1"
    assert [step for step, *_ in stored.series] == list(range(8))


def test_fragments_of_a_network_file_system_are_not_read_back(
    tmp_path: Path, run: RunInfo, log_rows: LogRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trackio writes them for its dashboard; the run is closed, and nothing is claimed about them."""
    from trackio import sqlite_storage, utils

    for bound in (utils, sqlite_storage):
        monkeypatch.setattr(bound, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setenv("TRACKIO_STORAGE_MODE", "jsonl")
    state = follow(trackio(), run, lambda: log_rows(run, range(5)))
    assert (state["state"], state["way"], state["parity"]) == ("closed", "fragments", None)
    written = [json.loads(line) for f in tmp_path.rglob("inbox/*/*.jsonl") for line in f.open()]
    assert [line["step"] for line in written if "train/lr" in line["metrics"]] == list(range(5))


def test_signature_test_knows_this_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The private way is the one in use with the pinned Trackio; a function that is gone ends it."""
    from trackio import sqlite_storage

    assert module._has_storage_functions(sqlite_storage)
    monkeypatch.delattr(sqlite_storage.SQLiteStorage, "bulk_alert")
    assert not module._has_storage_functions(sqlite_storage)


# ---- the files


def test_log_ids_name_lines() -> None:
    """Those of Trackio and of other runs name none."""
    assert files.line_of(files.log_id("ab", 7), "ab") == 7
    assert [files.line_of(name, "ab") for name in ("ab:7:end", "cd:7", "3f7c", None)] == [0, 0, 0, 0]


def test_a_row_that_trackio_changed_is_found(tmp_path: Path, run: RunInfo, log_rows: LogRows) -> None:
    """The control of parity: one bit less in one value, and the run is degraded with its repair."""
    log_rows(run, range(5))
    fill(trackio(), run)
    change(tmp_path, "UPDATE metrics SET metrics = replace(metrics, '0.2,', '0.20000000000000004,')")
    state = fill(trackio(), run)
    assert state["state"] == "degraded"
    assert "1 different; first: step 2 train/loss: 0.2, stored 0.20000000000000004" in state["parity"]
    assert state["repair"].startswith("python -m adamwprune.track sync ")


def test_the_callback_is_a_mirror() -> None:
    """With its own deadline."""
    callback = trackio(finish_timeout=5.0, required=True)
    assert isinstance(callback, Mirror)
    assert (callback.finish_timeout, callback.required) == (5.0, True)
