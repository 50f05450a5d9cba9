"""W&B offline, for real: runs read back from their files; and which mode is chosen."""

import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from adamwprune.callbacks.base import Alert, RunInfo
from adamwprune.trackers import wandb_server as module
from adamwprune.trackers.loopback import WandbServer
from adamwprune.trackers.trackio import trackio
from adamwprune.trackers.wandb import wandb
from adamwprune.trackers.wandb_files import StoredAlert, fragments, mend, parse_run, started
from adamwprune.trackers.wandb_server import answers, choose_mode, has_key
from adamwprune.training.ledger import Ledger
from tests.helpers import trackio_store
from tests.helpers.wandb_runs import (
    SUMMARY,
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
    pytest.mark.usefixtures("wandb_process"),
    # Threads of W&B that find its process gone.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

CLOUD = "https://api.forge.coreweave.com"
ALL = "all equal"
LogRows = Callable[..., None]
MakeRun = Callable[..., RunInfo]


def stored_steps(run: RunInfo) -> list[int]:
    """Steps in all files of the run's id, as often as they are there."""
    files = fragments(run.directory, run.tracker_id)
    return sorted(step for file in files for step, _, _ in parse_run(file).series)


# ---- one session


def test_rows_read_back_bit_equal(run: RunInfo, log_rows: LogRows) -> None:
    """Values, steps and times, every metric plotted over trainer/step, configuration, summary, exit code;
    the environment is what it was, and neither host nor command line is in the file."""
    extra = {"note": "x", "none": None, "flag": True, "big": 2**62, "up": math.inf}
    before = dict(os.environ)
    state = follow(wandb(project="p"), run, lambda: log_rows(run, range(300), nan=math.nan, **extra))
    assert dict(os.environ) == before
    (file,) = fragments(run.directory)
    assert state == {
        **{"state": "closed", "required": False, "sent": 300, "dropped": 0, "errors": {}},
        "parity": f"2700 values at 300 steps, {ALL}",
        **{"mode": "offline", "path": str(file.parent), "sync": f"wandb sync --yes {file.parent}"},
        "reason": "no key in WANDB_API_KEY or netrc; `wandb login` stores one",
    }
    stored = local(run)
    assert [row["_step"] for row in stored.rows] == list(range(300))
    assert all(math.isnan(row.pop("nan")) for row in stored.rows)
    assert stored.series == expected(range(300), **extra)
    assert {stored.axes[name] for name in (*stored.series[0][2], "nan")} == {"trainer/step"}
    assert stored.config["optimizer"] == {
        "target": "adamwprune.optim.adamw.adamw",
        "lr": 1e-3,
        "betas": [0.9, 0.999],
    }
    assert stored.summary["final/val/loss"] == 0.5
    assert stored.summary["run/status"] == "finished"
    assert stored.exit_code == 0
    assert (stored.run.run_id, stored.run.display_name, stored.run.project) == (run.run_id, run.name, "p")
    assert (stored.run.host, stored.run.git.remote_url) == ("", "")
    # The control: a value of the configuration is found so.
    raw = file.read_bytes()
    assert b"adamwprune.optim.adamw.adamw" in raw
    for secret in (sys.argv[0], os.environ["HOME"], os.getcwd()):
        if secret == "-c":  # a worker of xdist: two letters occur by chance
            continue
        assert os.fsencode(secret) not in raw


def test_parity_sees_what_is_not_in_the_file(run: RunInfo, log_rows: LogRows) -> None:
    """The control: a value that W&B was not given is missing, one that was changed on its way differs."""
    callback = wandb()
    write = callback.backend._write

    def sabotage(entry: Any) -> None:
        row = {**entry.row, **({"train/lr": 0.0} if entry.step == 3 else {})}
        if entry.step != 5:
            write(entry._replace(row=row))

    callback.backend._write = sabotage
    state = follow(callback, run, lambda: log_rows(run, range(10)))
    assert (state["state"], state["sent"]) == ("degraded", 10)
    assert state["parity"] == "of 30 values 3 missing, 1 different; first: step 3 train/lr: 3.1, stored 0"
    assert "track sync" in state["repair"]


def test_both_trackers_hold_what_was_logged(tmp_path: Path, run: RunInfo, log_rows: LogRows) -> None:
    """tracker=both: the same rows at the same steps under the same names in either store."""
    callbacks = [trackio(), wandb()]
    for callback in callbacks:
        callback.on_train_start(run)
    log_rows(run, range(200))
    for callback in callbacks:
        callback.on_train_end(SUMMARY)
    for callback in callbacks:
        callback.close(0)
    in_wandb = [(step, row) for step, _, row in local(run).series]
    in_trackio = trackio_store.read_run(tmp_path / "trackio" / f"{run.project}.db", run.run_id)
    assert in_wandb == [(step, row) for step, _, row in in_trackio.series]
    assert in_wandb == [(step, row) for step, _, row in expected(range(200))]
    finals = {key: value for key, value in local(run).summary.items() if key.startswith(("final/", "run/"))}
    assert finals == in_trackio.ends[0][1]


def test_end_states(make_run: MakeRun, log_rows: LogRows) -> None:
    """The exit code as it is, the mark of a run that was stopped to be continued, the alerts in order."""
    for exit_code in (1, 2, 4, 6, 7, 75, 130, 137, 143):
        run = make_run(f"{exit_code:012x}", tags=("dense", "v2"), notes="what it is for")
        callback = wandb()
        callback.on_train_start(run)
        log_rows(run, range(3))
        ledger = Ledger(run.directory / "metrics.jsonl", step=2)
        ledger.alert(2, 1764000000.0, Alert("loss_spike", "warn", "loss spike", "train/loss is 7"))
        ledger.alert(2, 1764000001.0, Alert("end", "error", "ended " * 20, "at step 2"))
        assert end(callback, exit_code)["state"] == "closed"
        stored = local(run)
        assert stored.exit_code == exit_code
        assert stored.is_preempting == (exit_code == 75)
        assert len(stored.series) == 3
        assert stored.alerts == [
            StoredAlert("WARN", "loss spike", "step 2: train/loss is 7"),
            StoredAlert("ERROR", ("ended " * 20)[:63], "step 2: at step 2"),
        ]
        assert (list(stored.run.tags), stored.run.notes) == (["dense", "v2"], "what it is for")


def test_jobs_of_one_process_are_runs_of_one_group(make_run: MakeRun, log_rows: LogRows) -> None:
    """W&B's default returns the previous run: job 2's rows in job 1's run under job 1's configuration."""
    before = os.environ.get("WANDB_SERVICE")
    runs = [make_run(letter * 12, group="sweep-1") for letter in "abc"]
    callbacks = [wandb() for _ in runs]
    for callback, run in zip(callbacks, runs, strict=True):
        callback.on_train_start(run)
    for length, run in enumerate(runs, 3):
        log_rows(run, range(length))
    for callback in callbacks:
        callback.close(0)
    for length, run in enumerate(runs, 3):
        stored = local(run)
        assert len(stored.series) == length
        assert (stored.run.run_id, stored.run.run_group, stored.run.job_type) == (
            run.run_id,
            "sweep-1",
            "sweep",
        )
    assert os.environ.get("WANDB_SERVICE") == before


def test_disabled_leaves_no_file(run: RunInfo, log_rows: LogRows) -> None:
    """mode=disabled: for measurements with the tracker's thread but without its work."""
    state = follow(wandb(mode="disabled"), run, lambda: log_rows(run, range(3)))
    assert (state["state"], state["mode"], state["parity"]) == ("closed", "disabled", None)
    assert "path" not in state
    assert not (run.directory / "wandb").exists()
    assert wandb().backend.read_back(run) is None  # in another process, too


def test_offline_makes_no_connection(
    make_run: MakeRun, log_rows: LogRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By configuration and by environment, with a key and a server; the control: `auto` asks it."""
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(module, "PROBE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        listener.settimeout(0.5)
        for letter, mode, environment in (("a", "offline", "online"), ("b", "auto", "offline")):
            monkeypatch.setenv("WANDB_MODE", environment)
            run = make_run(letter * 12)
            state = follow(wandb(mode=mode), run, lambda run=run: log_rows(run, range(3)))
            assert (state["state"], state["mode"]) == ("closed", "offline")
        with pytest.raises(TimeoutError):
            listener.accept()
        monkeypatch.delenv("WANDB_MODE")
        run = make_run("c" * 12)
        assert follow(wandb(), run, lambda: log_rows(run, range(3)))["reason"].startswith("no answer")
        listener.accept()[0].close()


# ---- several sessions


def test_a_resumed_run_is_a_second_file_with_the_same_id(
    run: RunInfo, make_run: MakeRun, log_rows: LogRows
) -> None:
    """Preempted at 15, resumed from 10: no row twice and none missing over both files, W&B's numbers go
    on, and one line uploads both."""
    follow(wandb(), run, lambda: log_rows(run, range(15)), 75)
    state = follow(wandb(), make_run(first_step=10, is_continued=True), lambda: log_rows(run, range(10, 20)))
    files = fragments(run.directory)
    stored = [parse_run(file) for file in files]
    assert [part.run.run_id for part in stored] == [run.run_id] * 2
    assert [row["_step"] for part in stored for row in part.rows] == list(range(20))
    assert [step for part in stored for step, _, _ in part.series] == list(range(20))
    assert state["sync"] == f"wandb sync --yes {files[0].parent} {files[1].parent}"
    assert started(files[0]) < started(files[1])  # the order in which that line sends them
    assert (state["sent"], state["parity"]) == (5, f"60 values at 20 steps, {ALL}")


def test_what_a_session_lost_is_filled_by_the_next(
    run: RunInfo, make_run: MakeRun, log_rows: LogRows
) -> None:
    """A torn file and a hole: exactly what no file has; alerts of the first session are not sent again."""
    ledger = Ledger(run.directory / "metrics.jsonl")
    callback = wandb()
    callback.on_train_start(run)
    ledger.alert(0, 1764000000.0, Alert("disk_low", "warn", "disk low", "1 GiB"))
    log_rows(run, range(100))
    end(callback, 143)
    (file,) = fragments(run.directory)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    first = stored_steps(run)
    assert 10 < len(first) < 90
    log_rows(run, range(100, 110))  # of a session that W&B never heard of
    continued = make_run(first_step=110, is_continued=True)
    state = follow(wandb(), continued, lambda: log_rows(run, range(110, 120)))
    assert stored_steps(run) == list(range(120))
    mended = file.stat().st_size
    assert len(data) // 3 < mended <= len(data) // 2
    mend(file)  # finds no torn record, which `wandb sync` would stop at
    assert file.stat().st_size == mended
    assert (state["sent"], state["parity"]) == (120 - len(first), f"360 values at 120 steps, {ALL}")
    assert [alert.title for part in map(parse_run, fragments(run.directory)) for alert in part.alerts] == [
        "disk low"
    ]

    fragments(run.directory)[0].unlink()  # a hole from the beginning on
    assert stored_steps(run)[0] > 10
    follow(wandb(), make_run(first_step=120, is_continued=True), lambda: None)
    assert stored_steps(run) == list(range(120))


def test_after_a_rewind_there_is_a_new_run(run: RunInfo, make_run: MakeRun, log_rows: LogRows) -> None:
    """W&B cannot take rows back: `<run id>-r1` has all that counts, from the first step on."""
    follow(wandb(), run, lambda: log_rows(run, range(15)), 75)
    ledger = Ledger(run.directory / "metrics.jsonl", step=9, exact=False)
    ledger.close()
    rewound = make_run(first_step=9, is_continued=True, rewinds=1)
    state = follow(wandb(), rewound, lambda: log_rows(run, range(10, 20)))
    assert stored_steps(rewound) == list(range(20))
    assert stored_steps(run) == list(range(15))
    (file,) = fragments(run.directory, f"{run.run_id}-r1")
    assert state["sync"] == f"wandb sync --yes {file.parent}"
    assert (state["state"], state["parity"]) == ("closed", f"60 values at 20 steps, {ALL}")


def test_a_killed_run_is_closed_later(run: RunInfo, make_run: MakeRun, log_rows: LogRows) -> None:
    """By another process: its exit code, and the alert that says so although no row comes after it."""
    callback = wandb()
    callback.on_train_start(run)
    log_rows(run, range(20))
    wait(callback, sent=20)
    callback.backend._run.finish(exit_code=1)  # the kill; only its file is left
    ledger = Ledger(run.directory / "metrics.jsonl", step=19)
    ledger.alert(19, 1764000000.0, Alert("end", "error", "killed, exit code 137", "at step 19"))
    state = follow(wandb(), make_run(first_step=19, is_continued=True), lambda: None, exit_code=137)
    assert (state["state"], state["sent"]) == ("closed", 0)
    last = parse_run(fragments(run.directory)[-1])
    assert last.exit_code == 137
    assert last.alerts == [StoredAlert("ERROR", "killed, exit code 137", "step 19: at step 19")]
    callback.finish(1)


@pytest.mark.slow
def test_killed_resumed_and_uploaded_by_hand(
    run: RunInfo, make_run: MakeRun, log_rows: LogRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL offline, a second session, the printed line: the server has every row once; a second time
    it sends nothing."""
    kill_after(run, steps=200, seconds=0.0)
    time.sleep(1.0)  # W&B's process may still write what it has
    (file,) = fragments(run.directory)
    os.truncate(file, file.stat().st_size * 9 // 10)
    assert 0 < len(stored_steps(run)) < 200
    state = follow(wandb(), make_run(is_continued=True, first_step=199), lambda: None)
    assert stored_steps(run) == list(range(200))
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        for _ in range(2):
            said = sync_by_hand(state["sync"])
            assert [row["trainer/step"] for row in server.run.rows] == list(range(200))
            assert [row["_step"] for row in server.run.rows] == list(range(200))
            assert server.run.exit_code == 0
        assert "No runs to sync" in said


# ---- W&B's own process


def kill_process() -> None:
    """SIGKILL W&B's process; of an earlier one only its exit code may be left."""
    alive = [
        child
        for child in psutil.Process().children()
        if child.name() == "wandb-core" and child.status() != psutil.STATUS_ZOMBIE
    ]
    assert len(alive) == 1
    alive[0].kill()
    alive[0].wait(5)


def test_a_run_outlives_the_death_of_its_process(run: RunInfo, make_run: MakeRun, log_rows: LogRows) -> None:
    """Killed in mid-run, and again at the end: each time another session fills what went with it, so the
    run is whole; another run of the same process is, too."""
    callback, other = wandb(), wandb()
    neighbour = make_run("f" * 12)
    callback.on_train_start(run)
    other.on_train_start(neighbour)
    log_rows(run, range(5))
    log_rows(neighbour, range(3))
    wait(callback, sent=5)
    wait(other, sent=3)
    kill_process()
    log_rows(run, range(5, 30))
    ledger = Ledger(run.directory / "metrics.jsonl", step=29)
    ledger.alert(29, 1764000000.0, Alert("disk_low", "warn", "disk low", "1 GiB"))
    wait(callback, sent=30)
    kill_process()
    state = end(callback)
    assert (state["state"], state["sent"], state["dropped"]) == ("closed", 30, 0)
    assert state["parity"] == f"90 values at 30 steps, {ALL}"
    assert list(state["errors"]) == ["log ConnectionError"]
    assert len(fragments(run.directory)) == 3
    assert set(stored_steps(run)) == set(range(30))
    last = parse_run(fragments(run.directory)[-1])
    assert (last.exit_code, last.summary["final/val/loss"]) == (0, 0.5)
    alerts = {alert for file in fragments(run.directory) for alert in parse_run(file).alerts}
    assert alerts == {StoredAlert("WARN", "disk low", "step 29: 1 GiB")}
    assert end(other)["parity"] == f"9 values at 3 steps, {ALL}"


def test_a_new_run_finds_a_dead_process(make_run: MakeRun, log_rows: LogRows) -> None:
    """Which nobody had noticed."""
    for letter in "ab":
        run = make_run(letter * 12)
        assert follow(wandb(), run, lambda run=run: log_rows(run, range(3)))["state"] == "closed"
        kill_process()


# ---- online or not


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """Start a server without faults."""
    with WandbServer() as started:
        yield started


@pytest.mark.parametrize(
    ("asked", "environment", "key", "reachable", "mode"),
    [
        ("auto", None, True, True, "online"),
        ("auto", None, True, False, "offline"),
        ("auto", None, False, True, "offline"),
        ("auto", "", True, True, "online"),
        ("auto", "nonsense", True, True, "online"),
        ("auto", "offline", True, True, "offline"),
        ("auto", "dryrun", True, True, "offline"),
        ("auto", "disabled", True, True, "disabled"),
        ("auto", "online", True, False, "online"),
        ("auto", "run", True, False, "online"),
        ("auto", "online", False, True, "offline"),
        ("online", "offline", True, False, "online"),
        ("online", None, False, True, "offline"),
        ("offline", "online", True, True, "offline"),
        ("disabled", "online", True, True, "disabled"),
    ],
)
def test_mode(
    asked: str,
    environment: str | None,
    key: bool,
    reachable: bool,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The key of the configuration wins, then WANDB_MODE, then the probe; never online without a key,
    where W&B would prompt."""
    monkeypatch.setattr(module, "answers", lambda base_url: reachable)
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    chosen, reason = choose_mode(asked, CLOUD)
    assert chosen == mode
    is_fallback = mode == "offline" and asked != "offline" and environment not in ("offline", "dryrun")
    assert bool(reason) == is_fallback


def test_key_in_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key for this server or, as W&B has it, for the address behind the hosted one; no other host's."""
    file = tmp_path / "home" / ".netrc"
    file.parent.mkdir()
    assert not has_key(CLOUD)
    for host, is_key in (("api.wandb.ai", True), ("api.forge.coreweave.com", True), ("github.com", False)):
        file.write_text(f"machine {host}\n  login user\n  password {'a' * 40}\n")
        file.chmod(0o600)
        assert has_key(CLOUD) == is_key, host
    file.write_text("machine 127.0.0.1:8080\n  login user\n  password x\n")
    assert has_key("http://127.0.0.1:8080")
    file.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("NETRC", str(tmp_path / "elsewhere"))
    assert has_key("http://127.0.0.1:8080")


@pytest.mark.parametrize(
    ("status", "is_alive"), [(200, True), (400, True), (401, True), (404, True), (500, False), (503, False)]
)
def test_probe_of_a_server(status: int, is_alive: bool, server: WandbServer) -> None:
    """Any answer but a server's own error counts: the probe carries no key, so it may be refused."""
    server.fail = lambda operation: status
    assert answers(server.url) == is_alive


def test_probe_without_a_server(monkeypatch: pytest.MonkeyPatch, server: WandbServer) -> None:
    """Refused, unknown, no URL, or a server that never answers: no, after PROBE seconds at most."""
    monkeypatch.setattr(module, "PROBE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not answers(f"http://127.0.0.1:{port}"), "accepted, never answered"
    assert not answers(f"http://127.0.0.1:{port}")
    assert not answers("nonsense")
    server.fail = server.hang
    assert not answers(server.url)
