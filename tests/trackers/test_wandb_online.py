"""W&B online, for real: the wandb package against a server on 127.0.0.1, with all that can go wrong there."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from adamwprune.callbacks.base import Alert, Callback, RunInfo
from adamwprune.trackers.loopback import ServedAlert, ServedRun, WandbServer
from adamwprune.trackers.wandb import wandb
from adamwprune.trackers.wandb_files import fragments, is_offline, is_synced, parse_run
from adamwprune.training.ledger import Ledger
from tests.helpers.wandb_runs import (
    end,
    expected,
    follow,
    kill_after,
    local,
    sync_by_hand,
    wait,
    wandb_process,  # noqa: F401
)

pytest.importorskip("wandb")
pytestmark = [
    pytest.mark.usefixtures("wandb_process", "_key"),
    # Threads of W&B that find its process gone.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

SLOW_FAULTS = [pytest.param(fault, marks=pytest.mark.slow) for fault in (404, 500)]
LogRows = Callable[..., None]
MakeRun = Callable[..., RunInfo]


@pytest.fixture
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """Start a server without faults."""
    with WandbServer() as started:
        yield started


def online(server: WandbServer, **options: Any) -> Callback:
    """The tracker, which sends its rows every second instead of every 15."""
    callback = wandb(**{"mode": "online", "base_url": server.url, **options})
    callback.backend.settings["x_file_stream_transmit_interval"] = 1.0
    return callback


def series(run: ServedRun) -> list[tuple[int, float, dict[str, Any]]]:
    """The server's rows, as `WandbRun.series`."""
    return [
        (row.pop("trainer/step"), row["_timestamp"], {key: row[key] for key in row if key[0] != "_"})
        for row in map(dict, run.rows)
    ]


# ---- all is well


def test_rows_arrive_and_the_server_confirms_them(
    make_run: MakeRun, log_rows: LogRows, server: WandbServer
) -> None:
    """Rows to the bit, names, configuration, alerts, summary, exit code; and W&B's own command finds
    nothing left to send."""
    run = make_run(group="g1", tags=("dense", "v2"), notes="what for")
    callback = wandb(project="p", entity="team", base_url=server.url)
    callback.on_train_start(run)
    ledger = Ledger(run.directory / "metrics.jsonl")
    for step in (0, 1):  # of one title, within a minute
        ledger.alert(step, 1764000000.0, Alert(f"rule{step}", "warn", "loss spike", "train/loss is 7"))
    log_rows(run, range(300))
    state = end(callback)
    assert (state["state"], state["mode"], state["sent"]) == ("closed", "online", 300)
    assert state["parity"] == "900 values at 300 steps, all equal"
    assert state["upload"] == "confirmed"
    assert "sync" not in state
    served = server.run
    assert series(served) == expected(range(300)) == local(run).series
    assert served.config["optimizer"]["value"]["target"] == "adamwprune.optim.adamw.adamw"
    assert served.summary["final/val/loss"] == 0.5
    assert (served.exit_code, served.is_preempting) == (0, False)
    assert (served.run_id, served.entity, served.project) == (run.run_id, "team", "p")
    assert (served.name, served.group, served.job_type) == (run.name, "g1", "sweep")
    assert (served.tags, served.notes) == (["dense", "v2"], "what for")
    assert served.alerts == [
        ServedAlert("WARN", "loss spike", f"step {step}: train/loss is 7") for step in (0, 1)
    ]
    assert is_synced(fragments(run.directory)[0])


def test_several_runs_of_one_process(make_run: MakeRun, log_rows: LogRows, server: WandbServer) -> None:
    """Each with its own rows and exit code."""
    runs = [make_run(letter * 12) for letter in "abc"]
    callbacks = [online(server) for _ in runs]
    for callback, run in zip(callbacks, runs, strict=True):
        callback.on_train_start(run)
    for length, run in enumerate(runs, 3):
        log_rows(run, range(length))
    for callback, code in zip(callbacks, (0, 1, 75), strict=True):
        callback.finish(code)
    for callback, code in zip(callbacks, (0, 1, 75), strict=True):
        assert end(callback, code)["state"] == "closed"
    for length, (run, code) in enumerate(zip(runs, (0, 1, 75), strict=True), 3):
        served = server[run.run_id]
        assert series(served) == expected(range(length))
        assert (served.exit_code, served.is_preempting) == (code, code == 75)


def test_the_stop_button_is_noticed(
    run: RunInfo, log_rows: LogRows, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and does nothing by itself: the run goes on until the loop asks, and ends as it likes."""
    from wandb.sdk.lib import run_stopping

    monkeypatch.setattr(run_stopping, "_SLEEP", lambda seconds: asyncio.sleep(0.02))
    callback = online(server)
    callback.on_train_start(run)
    wait(callback)
    log_rows(run, range(5))
    assert not callback.backend.is_stop_requested
    server.run.is_stopped = True
    while not callback.backend.is_stop_requested:
        time.sleep(0.01)
    log_rows(run, range(5, 10))
    assert end(callback, 75)["state"] == "closed"
    assert series(server.run) == expected(range(10))
    assert (server.run.exit_code, server.run.is_preempting) == (75, True)


# ---- a server that fails


@pytest.mark.parametrize("fault", ["bad key", 401, *SLOW_FAULTS, "hang"])
def test_a_start_that_fails_becomes_an_offline_run(
    fault: int | str,
    run: RunInfo,
    log_rows: LogRows,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A key that is none, one that is not known, no such project, a broken server, one that never
    answers: recorded offline under the same id, with the line to upload it."""
    if fault == "bad key":
        monkeypatch.setenv("WANDB_API_KEY", "abc")
    elif fault == "hang":
        server.fail = server.hang
    else:
        server.fail = lambda operation: fault
    state = follow(online(server, init_timeout=0.5), run, lambda: log_rows(run, range(30)))
    assert (state["state"], state["mode"], state["sent"]) == ("closed", "offline", 30)
    assert state["reason"].startswith(server.url)
    assert state["sync"] == f"WANDB_BASE_URL={server.url} wandb sync --yes {state['path']}"
    stored = parse_run(fragments(run.directory, run.run_id)[-1])
    assert stored.series == expected(range(30))
    assert [file for file in fragments(run.directory) if not is_synced(file)] == [
        fragments(run.directory)[-1]
    ]


def test_a_start_that_fails_costs_other_runs_nothing(
    make_run: MakeRun, log_rows: LogRows, server: WandbServer
) -> None:
    """W&B's process has to go with it; the run beside it begins another session, and is whole."""
    first, second = make_run("a" * 12), make_run("b" * 12)
    callbacks = [online(server), online(server)]
    callbacks[0].on_train_start(first)
    log_rows(first, range(5))
    wait(callbacks[0], sent=5)
    server.fail = lambda operation: 401 if operation == "UpsertBucket" else None
    callbacks[1].on_train_start(second)
    wait(callbacks[1])
    server.fail = lambda operation: None
    log_rows(first, range(5, 20))
    log_rows(second, range(3))
    assert [end(callback)["state"] for callback in callbacks] == ["closed", "closed"]
    assert series(server[first.run_id]) == expected(range(20))
    assert callbacks[1].status()["wandb"]["mode"] == "offline"


@pytest.mark.parametrize("fault", [401, *SLOW_FAULTS, "hang"])
def test_an_upload_that_fails_at_the_end_is_seen(
    fault: int | str, run: RunInfo, log_rows: LogRows, server: WandbServer
) -> None:
    """W&B gives up on 401 and 404 in time and without an error; for others it would wait for ever. The
    rows are here, and one command sends them once the server is back."""
    callback = online(server, finish_timeout=1.5)
    callback.on_train_start(run)
    wait(callback)
    server.fail = (
        server.hang if fault == "hang" else lambda operation: fault if operation == "file_stream" else None
    )
    log_rows(run, range(30))
    started = time.monotonic()
    state = end(callback)
    assert time.monotonic() - started < 10
    assert (state["state"], state["sent"], state["upload"]) == ("degraded", 30, "unverified")
    assert state["parity"] == "90 values at 30 steps, all equal"
    kind = "finish TimeoutError" if fault in (500, "hang") else "finish RuntimeError"
    assert kind in state["errors"]
    assert "track sync" in state["repair"]
    assert "sync" not in state

    server.fail = lambda operation: None
    continued = RunInfo(**{**vars(run), "first_step": 29, "is_continued": True})
    state = follow(online(server), continued, lambda: None)
    assert (state["state"], state["upload"]) == ("closed", "confirmed")
    assert series(server.run) == expected(range(30))
    assert server.run.exit_code == 0
    assert all(map(is_synced, fragments(run.directory)))


def test_a_server_that_has_gone_costs_the_deadline(run: RunInfo, log_rows: LogRows) -> None:
    """No connection at all at the end."""
    with WandbServer() as server:
        callback = online(server, finish_timeout=1.5)
        callback.on_train_start(run)
        wait(callback)
    log_rows(run, range(30))
    started = time.monotonic()
    state = end(callback)
    assert time.monotonic() - started < 10
    assert (state["state"], state["sent"], state["upload"]) == ("degraded", 30, "unverified")


@pytest.mark.parametrize("seconds", [1.5, pytest.param(20.0, marks=pytest.mark.slow)])
def test_an_outage_in_mid_run_costs_nothing(
    seconds: float, run: RunInfo, log_rows: LogRows, server: WandbServer
) -> None:
    """The server answers 500 for a while; W&B tries again, and all rows arrive in their order."""
    callback = online(server, finish_timeout=60.0)
    callback.on_train_start(run)
    wait(callback)
    log_rows(run, range(10))
    refused: list[str] = []
    server.fail = lambda operation: refused.append(operation) or 500
    time.sleep(seconds / 2)
    log_rows(run, range(10, 20))
    time.sleep(seconds / 2)
    server.fail = lambda operation: None
    assert "file_stream" in refused
    log_rows(run, range(20, 30))
    state = end(callback)
    assert (state["state"], state["upload"], state["errors"]) == ("closed", "confirmed", {})
    assert series(server.run) == expected(range(30))


@pytest.mark.slow
def test_an_upload_that_is_refused_once_is_seen(run: RunInfo, log_rows: LogRows, server: WandbServer) -> None:
    """On 404 in mid-run W&B stops to send for good, and ends as if all were well. The control: it does."""
    callback = online(server)
    callback.on_train_start(run)
    wait(callback)
    refused: list[str] = []
    server.fail = lambda operation: refused.append(operation) or 404 if operation == "file_stream" else None
    log_rows(run, range(10))
    while not refused:
        time.sleep(0.01)
    server.fail = lambda operation: None
    log_rows(run, range(10, 20))
    state = end(callback)
    assert server.run.rows == []
    assert (state["state"], state["upload"]) == ("degraded", "unverified")
    assert state["errors"]["finish RuntimeError"]["first"] == (
        "the upload failed: the server has rows up to step -1 of 19"
    )


# ---- several sessions


@pytest.mark.parametrize("seconds", [0.0, pytest.param(3.0, marks=pytest.mark.slow)])
def test_resume_after_a_kill(
    seconds: float, run: RunInfo, make_run: MakeRun, log_rows: LogRows, server: WandbServer
) -> None:
    """SIGKILL before the server has a row, when its summary names one already; and after it has some:
    none is missing, none is there twice."""
    kill_after(run, steps=50, seconds=seconds, url=server.url)
    assert server.run.exit_code is None
    assert seconds == 0.0 or len(server.run.rows) == 50
    continued = make_run(is_continued=True, first_step=40)
    state = follow(online(server), continued, lambda: None)
    assert (state["state"], state["upload"]) == ("closed", "confirmed")
    assert state["parity"] == "50 values at 50 steps, all equal"
    assert [row["trainer/step"] for row in server.run.rows] == list(range(50))
    assert [row["_step"] for row in server.run.rows][-1] in (49, 50)
    assert server.run.exit_code == 0


def test_what_the_server_lacks_is_filled(
    run: RunInfo, make_run: MakeRun, log_rows: LogRows, server: WandbServer
) -> None:
    """It lost its last rows, whatever its summary says; alerts are not sent again. The control: the
    summary does name the last step."""
    callback = online(server)
    callback.on_train_start(run)
    Ledger(run.directory / "metrics.jsonl").alert(19, 1764000000.0, Alert("r", "warn", "title", "text"))
    log_rows(run, range(20))
    end(callback, 143)
    for lost in (1, 7, 20):
        del server.run.rows[20 - lost :]
        assert server.run.summary["trainer/step"] == 19
        continued = make_run(is_continued=True, first_step=19)
        state = follow(online(server), continued, lambda: None)
        assert (state["sent"], state["state"], state["upload"]) == (lost, "closed", "confirmed")
        assert series(server.run) == expected(range(20))
    assert len(server.run.alerts) == 1


def test_what_only_the_server_has_is_copied(
    run: RunInfo, make_run: MakeRun, log_rows: LogRows, server: WandbServer
) -> None:
    """A kill may leave less in the file than on the server, or the folder's copy lacks the file: the
    server gets nothing twice, and the files are whole again, which W&B's own command leaves alone."""
    follow(online(server), run, lambda: log_rows(run, range(20)), 75)
    (file,) = fragments(run.directory)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    assert len(parse_run(file).rows) < 20
    continued = make_run(is_continued=True, first_step=19)
    state = follow(online(server), continued, lambda: log_rows(run, range(20, 30)))
    assert (state["state"], state["parity"]) == ("closed", "90 values at 30 steps, all equal")
    assert series(server.run) == expected(range(30))
    files = fragments(run.directory)
    assert sorted(map(is_offline, files)) == [False, False, True]
    assert all(map(is_synced, files))
    (copy,) = filter(is_offline, files)
    assert parse_run(copy).exit_code == 0
    assert {step for step, _, _ in parse_run(copy).series} == set(range(20)) - {
        step for step, _, _ in parse_run(file).series
    }


def test_offline_then_online(run: RunInfo, make_run: MakeRun, log_rows: LogRows, server: WandbServer) -> None:
    """The online session sends the rows of the offline ones too, so their files are no longer for
    `wandb sync`."""
    follow(wandb(mode="offline"), run, lambda: log_rows(run, range(10)), 75)
    (file,) = fragments(run.directory)
    assert not is_synced(file)
    callback = online(server)
    callback.on_train_start(make_run(is_continued=True, first_step=9))
    wait(callback)
    assert is_synced(file)
    log_rows(run, range(10, 15))
    state = end(callback)
    assert (state["state"], state["sent"]) == ("closed", 15)
    assert series(server.run) == expected(range(15))


def test_online_killed_then_offline(
    run: RunInfo, make_run: MakeRun, log_rows: LogRows, server: WandbServer
) -> None:
    """`wandb sync` would send what the killed session had sent already: the line is our own, and does
    what it says."""
    callback = online(server, init_timeout=0.5)
    callback.on_train_start(run)
    log_rows(run, range(10))
    wait(callback, sent=10)
    while len(server.run.rows) < 10:
        time.sleep(0.01)
    process = next(child for child in psutil.Process().children() if child.name() == "wandb-core")
    process.kill()
    process.wait(5)
    server.fail = lambda operation: 500
    log_rows(run, range(10, 15))
    wait(callback, sent=15)
    state = end(callback)
    assert (state["state"], state["mode"]) == ("closed", "offline")
    assert state["sync"] == f"python -m adamwprune.track sync {run.directory}"
    server.fail = lambda operation: None
    state = follow(online(server), make_run(is_continued=True, first_step=14), lambda: None)
    assert series(server.run) == expected(range(15))
    assert all(map(is_synced, fragments(run.directory)))


def test_a_run_outlives_the_death_of_its_process(
    run: RunInfo, log_rows: LogRows, server: WandbServer
) -> None:
    """Killed in mid-run: the next session sends what the server lacks."""
    callback = online(server)
    callback.on_train_start(run)
    log_rows(run, range(10))
    wait(callback, sent=10)
    process = next(
        child
        for child in psutil.Process().children()
        if child.name() == "wandb-core" and child.status() != psutil.STATUS_ZOMBIE
    )
    process.kill()
    process.wait(5)
    log_rows(run, range(10, 30))
    state = end(callback)
    assert (state["state"], state["upload"], state["sent"]) == ("closed", "confirmed", 30)
    assert series(server.run) == expected(range(30))
    assert len(fragments(run.directory)) == 2


def test_after_a_rewind_there_is_a_new_run(
    run: RunInfo, make_run: MakeRun, log_rows: LogRows, server: WandbServer
) -> None:
    """Complete under its own id; the old one stays as it is."""
    follow(online(server), run, lambda: log_rows(run, range(15)), 75)
    Ledger(run.directory / "metrics.jsonl", step=9, exact=False).close()
    rewound = make_run(first_step=9, is_continued=True, rewinds=1)
    state = follow(online(server), rewound, lambda: log_rows(run, range(10, 20)))
    assert (state["state"], state["upload"]) == ("closed", "confirmed")
    assert series(server[f"{run.run_id}-r1"]) == expected(range(20))
    assert series(server[run.run_id]) == expected(range(15))
    assert server[f"{run.run_id}-r1"].group == server[run.run_id].group


@pytest.mark.slow
def test_wandb_sync_leaves_a_confirmed_run_alone(
    run: RunInfo, make_run: MakeRun, log_rows: LogRows, server: WandbServer
) -> None:
    """Even where it is told to include online runs; the control: without the mark it sends all rows again."""
    follow(online(server), run, lambda: log_rows(run, range(10)))
    (file,) = fragments(run.directory)
    command = f"wandb sync --yes --include-online {file.parent}"
    assert "No runs to sync" in sync_by_hand(command, WANDB_BASE_URL=server.url)
    assert len(server.run.rows) == 10
    file.with_suffix(".wandb.synced").unlink()
    sync_by_hand(command, WANDB_BASE_URL=server.url)
    assert len(server.run.rows) == 20


@pytest.mark.slow
def test_online_by_order_without_a_server(run: RunInfo, log_rows: LogRows) -> None:
    """mode=online is not probed: W&B gives up after init_timeout and 10 s, then the run is offline."""
    callback = wandb(mode="online", base_url="http://127.0.0.1:9", init_timeout=1.0)
    state = follow(callback, run, lambda: log_rows(run, range(30)))
    assert (state["state"], state["mode"]) == ("closed", "offline")
    (file,) = (file for file in fragments(run.directory) if not is_synced(file))
    assert parse_run(file).series == expected(range(30))
