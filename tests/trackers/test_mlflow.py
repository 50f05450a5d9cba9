"""MLflow for real: runs read back from its SQLite database with sqlite3 alone."""

import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from adamwprune.callbacks.base import Alert, RunInfo
from adamwprune.composition import compose, to_config
from adamwprune.targets import build
from adamwprune.trackers import mlflow as module
from adamwprune.trackers.backend import missing_packages
from adamwprune.trackers.mirror import Mirror, parity
from adamwprune.trackers.mlflow import MLflow, mlflow
from adamwprune.trackers.rows import Entry, Position, read_entries
from adamwprune.training.ledger import Ledger

for package in module.PACKAGES:
    pytest.importorskip(package)

# SQLAlchemy 2.1 says so of MLflow's own code.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

ROOT = Path(__file__).parents[2]
PROJECT = "lenet5-d12f4"
SUMMARY = {"status": "finished", "metrics": {"final": {"val/loss": 0.1}}}
LogRows = Callable[..., None]
MakeRun = Callable[..., RunInfo]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make MLflow's tables once: they take a second."""
    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    module._client(f"sqlite:///{file}").get_experiment_by_name("none")
    return file


@pytest.fixture
def database(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a database where a run without options looks for it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))


class Stored(NamedTuple):
    """What the database holds of a run; metrics are (key, step, milliseconds, value)."""

    uuid: str
    name: str
    status: str
    times: tuple[int, int]
    metrics: list[tuple[str, int, int, float]]
    params: dict[str, str]
    tags: dict[str, str]

    def series(self, name: str) -> list[tuple[int, float]]:
        return [(step, value) for key, step, _, value in self.metrics if key == name]


def stored_runs(database: Path) -> list[Stored]:
    """All runs, in the order of their start, then of their making."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:

        def select(what: str, uuid: str) -> list[tuple[Any, ...]]:
            return connection.execute(f"SELECT {what} WHERE run_uuid = ?", (uuid,)).fetchall()

        runs = connection.execute(
            "SELECT run_uuid, r.name, status, start_time, end_time FROM runs r JOIN experiments e "
            "ON r.experiment_id = e.experiment_id WHERE e.name = ? ORDER BY start_time, r.rowid",
            (PROJECT,),
        ).fetchall()
        return [
            Stored(
                uuid,
                name,
                status,
                (start, end),
                sorted(
                    (key, step, moment, math.nan if is_nan else value)
                    for key, step, moment, value, is_nan in select(
                        "key, step, timestamp, value, is_nan FROM metrics", uuid
                    )
                ),
                dict(select("key, value FROM params", uuid)),
                dict(select("key, value FROM tags", uuid)),
            )
            for uuid, name, status, start, end in runs
        ]


def copy(run: RunInfo, exit_code: int = 0, **keys: Any) -> dict[str, Any]:
    """Send the ledger as it is, as a session does; the tracker's part of summary.json."""
    tracker = mlflow(**keys)
    tracker.on_train_start(run)
    if exit_code == 0:
        tracker.on_train_end(SUMMARY)
    tracker.close(exit_code)
    return tracker.status()["mlflow"]


def expected(steps: range) -> list[tuple[int, float]]:
    return [(step, 1 / (step + 3)) for step in steps]


def test_rows_read_back_bit_equal(database: Path, make_run: MakeRun, log_rows: LogRows) -> None:
    """Values, steps, times, configuration, tags, alerts, finals; text is not taken."""
    extra = {"huge": 1e300, "tiny": 5e-324, "big": 2**62, "flag": True}
    run = make_run(group="sweep-1", tags=("dense", "v2"), notes="what it is for")
    log_rows(run, range(300), **extra, nan=math.nan, up=math.inf, note="x", none=None, odd=2**62 + 1)
    ledger = Ledger(run.directory / "metrics.jsonl", 299)
    ledger.alert(299, 1764000100.0, Alert("loss_spike", "warn", "loss spike", "much"))
    ledger.close()
    state = copy(run)
    uri = f"sqlite:///{database}"
    assert state == {
        **{"state": "closed", "required": False, "sent": 300, "dropped": 0, "errors": {}},
        **{"parity": "2700 values at 300 steps, all equal", "tracking_uri": uri, "path": str(database)},
        "show": f"mlflow ui --backend-store-uri {uri}",
    }
    (stored,) = stored_runs(database)
    assert (stored.name, stored.status) == (run.name, "FINISHED")
    moments = {step: round(1000 * (1764000000 + step / 3)) for step in range(300)}
    assert stored.times == (moments[0], moments[299])
    assert stored.series("train/loss") == expected(range(300))
    assert {step: moment for key, step, moment, _ in stored.metrics if key == "train/loss"} == moments
    for name, value in extra.items():
        assert stored.series(name) == [(step, value) for step in range(300)], name
    assert all(math.isnan(value) for _, value in stored.series("nan"))
    assert set(stored.series("up")) == {(step, sys.float_info.max) for step in range(300)}
    assert stored.series("final/val/loss") == [(299, 0.1)]
    assert stored.series("run/exit_code") == [(299, 0.0)]
    assert {key for key, *_ in stored.metrics}.isdisjoint({"note", "none", "odd"})
    assert stored.params == {
        **{"seed": "1", "group": "None", "optimizer.betas": "[0.9, 0.999]"},
        **{"optimizer.target": "adamwprune.optim.adamw.adamw", "optimizer.lr": "0.001"},
    }
    assert stored.tags == {
        **{"adamwprune.run_id": run.run_id, "group": "sweep-1", "dense": "true", "v2": "true"},
        **{"mlflow.note.content": "what it is for", "mlflow.runName": run.name, "run/status": "finished"},
        "alert/299/loss_spike": "warn: loss spike: much",
    }
    assert not (database.parent / "mlruns").exists()


def test_end_states(database: Path, make_run: MakeRun, log_rows: LogRows) -> None:
    """What was asked for or came from outside is KILLED, an error FAILED; a run without a row too."""
    ends = {1: "FAILED", 7: "FAILED", 75: "KILLED", 130: "KILLED", 137: "KILLED", 143: "KILLED"}
    for code in ends:
        run = make_run(f"{code:012x}")
        if code != 7:
            log_rows(run, range(3))
        assert copy(run, code)["state"] == "closed"
    stored = {run.tags["adamwprune.run_id"]: run for run in stored_runs(database)}
    assert {code: stored[f"{code:012x}"].status for code in ends} == ends
    assert all(stored[f"{code:012x}"].series("run/exit_code")[0][1] == code for code in ends)


def test_resume_after_a_kill_leaves_no_hole_and_doubles_nothing(
    database: Path, run: RunInfo, make_run: MakeRun, log_rows: LogRows
) -> None:
    """Killed with row 12 of 15 stored in part; resumed from 10 to 20 in the same run of MLflow, then
    filled once more, and once more after rows were lost from the middle of the store."""
    log_rows(run, range(15), nan=math.nan)
    killed = MLflow(tracking_uri=None)
    killed.open(run)
    for entry in read_entries(run.directory / "metrics.jsonl"):
        if entry.step < 12:
            killed.log([entry])
        elif entry.step == 12:
            killed.log([entry._replace(row={"train/lr": entry.row["train/lr"]})])
    (stored,) = stored_runs(database)
    assert (stored.status, stored.series("train/loss")) == ("RUNNING", expected(range(12)))
    assert str(parity(MLflow(tracking_uri=None), run)).startswith("of 60 values 11 missing; first: step 12 ")

    resumed = make_run(first_step=10, is_continued=True)
    log_rows(resumed, range(10, 20), nan=math.nan)
    for lost in (range(0), range(0), range(5, 8)):
        with closing(sqlite3.connect(database)) as connection:
            connection.executemany("DELETE FROM metrics WHERE step = ?", [(step,) for step in lost])
            connection.commit()
        assert copy(resumed)["parity"] == "80 values at 20 steps, all equal"
        (stored,) = stored_runs(database)
        assert (stored.status, stored.series("train/loss")) == ("FINISHED", expected(range(20)))
        assert len(stored.series("nan")) == 20
        assert stored.series("run/exit_code") == [(19, 0.0)]


def test_only_what_mlflow_lacks_is_sent_again(
    database: Path, run: RunInfo, make_run: MakeRun, log_rows: LogRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding out that a metric is there takes MLflow twice as long as storing it."""
    log_rows(run, range(15))
    copy(run, 75)
    log_rows(run, range(15, 20))
    sent = []
    log_batch = module._client(f"sqlite:///{database}").__class__.log_batch
    monkeypatch.setattr(
        "mlflow.MlflowClient.log_batch",
        lambda self, run_id, metrics=(), **others: (
            sent.extend(metric.step for metric in metrics) or log_batch(self, run_id, metrics, **others)
        ),
    )
    assert copy(make_run(first_step=15, is_continued=True))["state"] == "closed"
    assert set(sent) == set(range(15, 20))


def test_a_rewind_is_a_new_run_with_all_that_counts(
    database: Path, run: RunInfo, make_run: MakeRun, log_rows: LogRows
) -> None:
    """Rows 5 to 9 were taken back: MLflow has no way to remove them from the first."""
    log_rows(run, range(10))
    copy(run, 75)
    ledger = Ledger(run.directory / "metrics.jsonl", 4, exact=False)
    for step in range(5, 8):
        ledger.write(step, 1764000009.0, {"train/loss": 100.0 + step})
    ledger.close()
    state = copy(make_run(first_step=4, is_continued=True, rewinds=1))
    assert state["parity"] == "18 values at 8 steps, all equal"
    first, second = stored_runs(database)
    assert (first.tags["adamwprune.run_id"], first.status) == (run.run_id, "KILLED")
    assert first.series("train/loss") == expected(range(10))
    assert second.tags["adamwprune.run_id"] == f"{run.run_id}-r1"
    assert second.series("train/loss") == [
        *expected(range(5)),
        *((step, 100.0 + step) for step in range(5, 8)),
    ]


def test_what_mlflow_refuses_costs_only_itself(
    database: Path, run: RunInfo, log_rows: LogRows, caplog: pytest.LogCaptureFixture
) -> None:
    """A metric's name costs its row, a parameter's name the parameters of the run."""
    run.config["a key (odd)"] = 1
    log_rows(run, range(5))
    log_rows(run, range(5, 6), **{"what?": 1.0})
    log_rows(run, range(6, 9))
    try:
        state = copy(run)
    finally:
        del run.config["a key (odd)"]
    assert (state["state"], state["sent"]) == ("degraded", 8)
    assert "what?" in state["errors"]["log ValueError"]["first"]
    assert "tracker mlflow: parameters: " in caplog.text
    (stored,) = stored_runs(database)
    assert stored.series("train/loss") == [*expected(range(5)), *expected(range(6, 9))]


def test_the_store_is_found_again(
    database: Path, tmp_path: Path, run: RunInfo, log_rows: LogRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the run's folder recorded, from any directory and whatever the environment says now; the
    key wins over the environment, which wins over the default. Nothing is made by looking."""
    log_rows(run, range(3))
    assert str(parity(MLflow(tracking_uri="sqlite:///other/none.db"), run)).startswith(
        "of 9 values 9 missing"
    )
    assert not (tmp_path / "other").exists()
    copy(run)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///environment.db")
    assert str(parity(MLflow(tracking_uri=None), run)) == "9 values at 3 steps, all equal"
    backend = MLflow(tracking_uri="sqlite:///key.db?timeout=9")
    assert backend._choose_uri(run) == f"sqlite:///{tmp_path}/other/key.db?timeout=9"
    (run.directory / "trackers" / "mlflow.json").unlink()
    assert MLflow(tracking_uri=None)._choose_uri(run) == f"sqlite:///{tmp_path}/other/environment.db"


def test_a_password_is_in_no_record() -> None:
    """The address of a server is, and of a server without a password the page of the run."""

    class Info:
        experiment_id, run_id = "1", "abc"

    backend = MLflow(tracking_uri=None)
    backend._describe("postgresql://me:secret@db.example/mlflow", Info)
    assert backend.facts == {"url": "postgresql://db.example/mlflow"}
    backend = MLflow(tracking_uri=None)
    backend._describe("https://mlflow.example/", Info)
    assert backend.facts == {
        "tracking_uri": "https://mlflow.example/",
        "url": "https://mlflow.example/#/experiments/1/runs/abc",
    }


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Start a server that takes every connection and answers nothing, until the test is over."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


def test_a_server_that_never_answers_costs_its_deadline(
    silent_server: str, run: RunInfo, log_rows: LogRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's end waits finish_timeout (10 s of grace for a busy machine); its rows are counted."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = mlflow(tracking_uri=silent_server, finish_timeout=0.3)
    tracker.on_train_start(run)
    log_rows(run, range(3))
    started = time.monotonic()
    tracker.close(0)
    state = tracker.status()["mlflow"]
    assert 0.3 <= time.monotonic() - started < 10
    assert (state["state"], state["dropped"]) == ("failed", 3)
    assert state["repair"] == f"python -m adamwprune.track sync {run.directory}"


def test_beside_others(database: Path, run: RunInfo, log_rows: LogRows) -> None:
    """`tracker=[trackio,tensorboard,mlflow]`: the same rows in all, each compared."""
    pytest.importorskip("trackio")
    pytest.importorskip("tensorboard")
    config = to_config(compose(["tracker=[trackio,tensorboard,mlflow]"])).tracker
    trackers: list[Mirror] = [build(node, f"tracker.{name}")() for name, node in config.items()]
    log_rows(run, range(10), nan=math.nan, up=math.inf)
    for tracker in trackers:
        tracker.on_train_start(run)
    for tracker in trackers:
        tracker.close(0)
    states = [tracker.status()[name] for name, tracker in zip(config, trackers, strict=True)]
    assert [state["state"] for state in states] == ["closed"] * 3
    assert [state["parity"] for state in states] == ["50 values at 10 steps, all equal"] * 3


def test_nothing_asks_the_network(database: Path, run: RunInfo, log_rows: LogRows) -> None:
    """No name is looked up and no connection made, in a process that no test framework shows itself to.
    Control: with MLflow's telemetry, started by hand in the same process, the next run asks for a name."""
    log_rows(run, range(3))
    code = f"""
import os, socket, threading
from pathlib import Path
from adamwprune.callbacks.base import RunInfo
asked, answered = [], threading.Event()
def refuse(*address, **keys):
    asked.append(address)
    answered.set()
    raise OSError("no network")
socket.getaddrinfo = socket.socket.connect = refuse
from adamwprune.trackers.mlflow import mlflow
tracker = mlflow()
tracker.on_train_start(RunInfo("0123456789ab", "n", "p", None, Path({str(run.directory)!r}), {{"a": 1}}))
tracker.close(0)
print(tracker.status()["mlflow"]["parity"], len(asked), "MLFLOW_DISABLE_TELEMETRY" in os.environ)
from mlflow import MlflowClient, telemetry
telemetry.set_telemetry_client()
MlflowClient("sqlite:///mlflow.db").create_run("1")
answered.wait(20)
print(asked[0][0], flush=True)
os._exit(0)
"""
    shown = ("CI", "DO_NOT_TRACK", "MLFLOW_", "PYTEST_", "GITHUB_", "JENKINS_", "BUILD", "RUNBOT")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(shown)}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    ours, telemetry = done.stdout.splitlines()
    assert ours == "9 values at 3 steps, all equal 0 False", done.stderr
    assert "mlflow" in telemetry
    assert done.stderr == "", "the terminal belongs to the run"


def test_missing_package_is_said_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that is missing, before anything is created."""
    util = sys.modules["importlib.util"]
    find_spec = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name in module.PACKAGES else find_spec(name))
    nodes = to_config(compose(["tracker=mlflow"])).tracker
    lines = missing_packages(nodes)
    assert {name for name, _ in lines} == {"mlflow"}
    assert all(any(requirement in line for _, line in lines) for requirement in module.PACKAGES.values())


@pytest.mark.slow
def test_a_database_that_is_locked_for_12_seconds_loses_nothing(
    database: Path, run: RunInfo, log_rows: LogRows
) -> None:
    """MLflow gives up after 5 s; its rows are sent again."""
    tracker = mlflow()
    tracker.on_train_start(run)
    while not stored_runs(database):
        time.sleep(0.05)
    with closing(sqlite3.connect(database, check_same_thread=False)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        log_rows(run, range(30))
        threading.Timer(12, lock.rollback).start()
        tracker.close(0)
    state = tracker.status()["mlflow"]
    assert (state["state"], state["sent"], state["dropped"]) == ("closed", 30, 0)
    assert stored_runs(database)[0].series("train/loss") == expected(range(30))


@pytest.mark.slow
def test_processes_that_start_together_share_a_new_database(tmp_path: Path, log_rows: LogRows) -> None:
    """Six jobs of a sweep, with neither tables nor experiment before: six runs, none without a row."""
    code = """
import sys
from pathlib import Path
from adamwprune.callbacks.base import RunInfo
from adamwprune.trackers.mlflow import mlflow
directory = Path(sys.argv[1])
tracker = mlflow(tracking_uri=f"sqlite:///{directory.parent}/new.db", finish_timeout=60.0)
tracker.on_train_start(RunInfo(directory.name, directory.name, "lenet5-d12f4", "sweep", directory, {"a": 1}))
tracker.close(0)
print(tracker.status()["mlflow"]["parity"])
"""
    jobs = []
    for number in range(6):
        run = RunInfo(f"{number:012x}", "n", PROJECT, None, tmp_path / f"{number:012x}", {})
        run.directory.mkdir()
        log_rows(run, range(10))
        command = [sys.executable, "-c", code, str(run.directory)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        jobs.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    assert {job.communicate()[0].strip() for job in jobs} == {"30 values at 10 steps, all equal"}
    stored = stored_runs(tmp_path / "new.db")
    assert {run.name for run in stored} == {f"{number:012x}" for number in range(6)}
    assert all(len(run.series("train/loss")) == 10 for run in stored)


def test_the_same_row_is_stored_once(database: Path, run: RunInfo) -> None:
    """What is the promise of `idempotent`, NaN included; the control: at another time it is another."""
    backend = MLflow(tracking_uri=None)
    backend.open(run)
    row = Entry(Position(9, 1), 1, 5.0, {"loss": 0.5, "nan": math.nan})
    for _ in range(3):
        backend.log([row])
    assert len(stored_runs(database)[0].metrics) == 2
    backend.log([row._replace(time=6.0)])
    assert len(stored_runs(database)[0].metrics) == 4
