"""W&B for real: offline runs read back from their files, online runs from a server on 127.0.0.1."""

import math
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adamwprune.callbacks.base import Callback, RunInfo
from adamwprune.trackers import wandb as module
from adamwprune.trackers.loopback import WandbServer
from adamwprune.trackers.trackio import trackio
from adamwprune.trackers.wandb import answers, choose_mode, has_key, wandb
from adamwprune.trackers.wandb_files import OfflineRun, parse_run, read_payloads, read_run
from tests.helpers import trackio_store

package = pytest.importorskip("wandb")

CLOUD = "https://api.forge.coreweave.com"
SUMMARY = {"status": "finished", "metrics": {"final": {"val/loss": 0.5}, "best": {}}}
LogRows = Callable[..., None]
MakeRun = Callable[..., RunInfo]


@pytest.fixture(scope="module", autouse=True)
def _service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep W&B's process, which all runs here share, away from the user's home, and end it at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        package.setup().ensure_service()
        yield
        package.teardown()


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """Start a server without faults."""
    with WandbServer() as started:
        yield started


def follow(callback: Callback, run: RunInfo, log: Callable[[], None], exit_code: int = 0) -> dict[str, Any]:
    """A run from its start to its end; returns the tracker's part of summary.json."""
    callback.on_train_start(run)
    log()
    if exit_code == 0:
        callback.on_train_end(SUMMARY)
    callback.close(exit_code)
    return callback.status()["wandb"]


def offline(run: RunInfo) -> OfflineRun:
    (directory,) = (run.directory / "wandb").glob("offline-run-*")
    return read_run(directory)


def expected(steps: range, **extra: Any) -> list[tuple[int, float, dict[str, Any]]]:
    return [
        (
            step,
            1764000000 + step / 3,
            {
                "train/loss": 1 / (step + 3),
                "train/lr": 0.1 + step,
                "sparsity/layer/conv1.weight": step / 7,
                **extra,
            },
        )
        for step in steps
    ]


# ---- offline


def test_rows_read_back_bit_equal(run: RunInfo, log_rows: LogRows) -> None:
    """Values, steps and times, every metric plotted over trainer/step, configuration, summary, exit code;
    the environment is what it was, and neither host nor command line is in the file."""
    extra = {"note": "x", "none": None, "flag": True, "big": 2**62, "up": math.inf}
    before = dict(os.environ)
    state = follow(wandb(project="p"), run, lambda: log_rows(run, range(300), nan=math.nan, **extra))
    assert dict(os.environ) == before
    (directory,) = (run.directory / "wandb").glob("offline-run-*")
    assert state == {
        **{"state": "closed", "required": False, "sent": 300, "dropped": 0, "errors": {}},
        **{"mode": "offline", "path": str(directory), "sync": f"wandb sync --yes {directory}"},
        "reason": "no key in WANDB_API_KEY or netrc; `wandb login` stores one",
    }
    stored = read_run(directory)
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
    raw = next(directory.glob("*.wandb")).read_bytes()
    assert b"adamwprune.optim.adamw.adamw" in raw
    for secret in (sys.argv[0], os.environ["HOME"], os.getcwd()):
        assert os.fsencode(secret) not in raw


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
    in_wandb = [(step, row) for step, _, row in offline(run).series]
    in_trackio = trackio_store.read_run(tmp_path / "trackio" / f"{run.project}.db", run.run_id)
    assert in_wandb == [(step, row) for step, _, row in in_trackio.series]
    assert in_wandb == [(step, row) for step, _, row in expected(range(200))]
    finals = {key: value for key, value in offline(run).summary.items() if key.startswith(("final/", "run/"))}
    assert finals == in_trackio.ends[0][1]


@pytest.mark.parametrize("exit_code", [1, 7, 75, 130, 143])
def test_end_state(exit_code: int, run: RunInfo, log_rows: LogRows) -> None:
    """The exit code as it is, and the mark of a run that was stopped to be continued."""
    follow(wandb(), run, lambda: log_rows(run, range(3)), exit_code)
    stored = offline(run)
    assert stored.exit_code == exit_code
    assert stored.is_preempting == (exit_code == 75)
    assert len(stored.series) == 3


def test_resumed_run_is_a_second_file_with_the_same_id(
    run: RunInfo, make_run: MakeRun, log_rows: LogRows
) -> None:
    """Preempted at 15, resumed from 10: no row twice and none missing over both files."""
    follow(wandb(), run, lambda: log_rows(run, range(15)), 75)
    (first,) = (run.directory / "wandb").glob("offline-run-*")
    # W&B names a directory by the second: two of one second would be one.
    first = first.rename(first.with_name(first.name.replace("offline-run-", "offline-run-1")))
    follow(wandb(), make_run(first_step=10), lambda: log_rows(run, range(10, 20)))
    files = sorted((run.directory / "wandb").glob("offline-run-*/*.wandb"))
    stored = [read_run(file.parent) for file in files]
    assert [part.run.run_id for part in stored] == [run.run_id] * 2
    assert sorted(row[0] for part in stored for row in part.series) == list(range(20))


def test_jobs_of_one_process_are_runs_of_one_group(make_run: MakeRun, log_rows: LogRows) -> None:
    """W&B's default returns the previous run: job 2's rows in job 1's run under job 1's configuration."""
    runs = [make_run(letter * 12, group="sweep-1") for letter in "abc"]
    callbacks = [wandb() for _ in runs]
    for callback, run in zip(callbacks, runs, strict=True):
        callback.on_train_start(run)
    for length, run in enumerate(runs, 3):
        log_rows(run, range(length))
    for callback in callbacks:
        callback.close(0)
    for length, run in enumerate(runs, 3):
        stored = offline(run)
        assert len(stored.series) == length
        assert (stored.run.run_id, stored.run.run_group, stored.run.job_type) == (
            run.run_id,
            "sweep-1",
            "sweep",
        )


def test_disabled_leaves_no_file(run: RunInfo, log_rows: LogRows) -> None:
    """mode=disabled: for measurements with the tracker's thread but without its work."""
    state = follow(wandb(mode="disabled"), run, lambda: log_rows(run, range(3)))
    assert (state["state"], state["mode"]) == ("closed", "disabled")
    assert not (run.directory / "wandb").exists()


def test_dead_service_is_a_state(run: RunInfo, make_run: MakeRun, log_rows: LogRows) -> None:
    """W&B's process killed in mid-run: a state, nothing raises, and the next run works. How many rows
    still went into the dead connection is not the same twice."""
    callback = wandb()
    callback.on_train_start(run)
    log_rows(run, range(5))
    while callback.status()["wandb"]["sent"] < 5:
        time.sleep(0.01)
    callback.backend._package.setup().ensure_service()._proc._process.kill()
    log_rows(run, range(5, 30))
    callback.close(0)
    state = callback.status()["wandb"]
    assert state["state"] == "degraded"
    assert state["sent"] + state["dropped"] == 30
    assert any("ConnectionResetError" in kind for kind in state["errors"])
    following = make_run("f" * 12)
    assert follow(wandb(), following, lambda: log_rows(following, range(3)))["state"] == "closed"


# ---- the reader of .wandb files


@pytest.fixture(scope="module")
def wandb_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record a run of several 32 KiB blocks, written by W&B itself."""
    directory = tmp_path_factory.mktemp("reader")
    settings = package.Settings(mode="offline", console="off", silent=True, x_disable_stats=True)
    run = package.init(dir=str(directory), project="p", reinit="create_new", settings=settings)
    for step in range(400):
        run.log({f"metric-{step % 7}/value": step / 3, "text": "x" * 200})
    run.finish(exit_code=3)
    (file,) = directory.glob("wandb/offline-run-*/*.wandb")
    assert read_run(file.parent).exit_code == 3
    return file


def test_reader_reads_across_blocks(wandb_file: Path) -> None:
    """Records split at block borders are joined; W&B's own numbering confirms that none is missing."""
    stored = parse_run(wandb_file)
    assert wandb_file.stat().st_size > 3 * 32 * 1024
    assert [row["_step"] for row in stored.rows] == list(range(400))
    assert [row[f"metric-{step % 7}/value"] for step, row in enumerate(stored.rows)] == [
        s / 3 for s in range(400)
    ]


def test_reader_stops_at_a_torn_tail(tmp_path: Path, wandb_file: Path) -> None:
    """The control: a file cut at any of many places yields a prefix of its records, and no exit code."""
    data = wandb_file.read_bytes()
    records = list(read_payloads(wandb_file))
    torn = tmp_path / "torn.wandb"
    for cut in range(7, len(data), 4999):
        torn.write_bytes(data[:cut])
        found = list(read_payloads(torn))
        assert found == records[: len(found)]
        assert parse_run(torn).exit_code is None


def test_reader_notices_damage(tmp_path: Path, wandb_file: Path) -> None:
    """The control: one flipped bit ends the reading there; another kind of file is refused."""
    data = bytearray(wandb_file.read_bytes())
    (length,) = struct.unpack_from("<H", data, 11)
    data[7 + 7 + length + 7] ^= 1  # the first byte of the second record's data
    damaged = tmp_path / "damaged.wandb"
    damaged.write_bytes(data)
    assert len(list(read_payloads(damaged))) == 1
    damaged.write_bytes(b"SQLite format 3")
    with pytest.raises(ValueError, match=r"not a \.wandb file"):
        list(read_payloads(damaged))


# ---- online or not


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
    server.fault = lambda operation: status
    assert answers(server.url) == is_alive


def test_probe_without_a_server(monkeypatch: pytest.MonkeyPatch, server: WandbServer) -> None:
    """Refused, unknown, no URL, or a server that never answers: no, after PROBE seconds at most."""
    monkeypatch.setattr(module, "PROBE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not answers(f"http://127.0.0.1:{port}"), "accepted, never answered"
    assert not answers(f"http://127.0.0.1:{port}")
    assert not answers("nonsense")
    server.fault = lambda operation: server.is_over.wait() and None
    assert not answers(server.url)


@pytest.fixture
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)


@pytest.mark.usefixtures("_key")
def test_online_rows_arrive(run: RunInfo, log_rows: LogRows, server: WandbServer) -> None:
    """The server has every row, configuration, summary and exit code; nothing is left to upload."""
    callback = wandb(project="p", entity="someone", base_url=server.url)
    state = follow(callback, run, lambda: log_rows(run, range(300)))
    assert (state["state"], state["mode"], state["sent"]) == ("closed", "online", 300)
    assert "sync" not in state
    got = [(row["trainer/step"], row["train/loss"], row["_timestamp"]) for row in server.rows]
    assert got == [(step, row["train/loss"], time) for step, time, row in expected(range(300))]
    assert server.config["optimizer"]["value"]["target"] == "adamwprune.optim.adamw.adamw"
    assert server.summary["final/val/loss"] == 0.5
    assert server.exit_code == 0
    assert (server.variables["entity"], server.variables["project"]) == ("someone", "p")


@pytest.mark.usefixtures("_key")
def test_online_start_that_fails_becomes_an_offline_run(
    run: RunInfo, log_rows: LogRows, server: WandbServer
) -> None:
    """A key that the server does not know: recorded offline under the same id, with the line to upload."""
    server.fault = lambda operation: 401
    state = follow(wandb(base_url=server.url), run, lambda: log_rows(run, range(30)))
    assert (state["state"], state["mode"], state["sent"]) == ("closed", "offline", 30)
    assert state["reason"].startswith(server.url)
    assert state["sync"] == f"wandb sync --yes {state['path']}"
    assert offline(run).series == expected(range(30))
    assert offline(run).run.run_id == run.run_id


@pytest.mark.usefixtures("_key")
def test_server_that_hangs_at_the_end_costs_the_deadline(
    run: RunInfo, log_rows: LogRows, server: WandbServer
) -> None:
    """W&B alone would wait for ever; the state says so, with the line that uploads the run later."""
    callback = wandb(base_url=server.url, finish_timeout=1.5)
    callback.on_train_start(run)
    while callback.status()["wandb"]["state"] != "open":
        time.sleep(0.01)
    server.fault = lambda operation: server.is_over.wait() and None
    log_rows(run, range(30))
    started = time.monotonic()
    callback.close(0)
    assert time.monotonic() - started < 10
    state = callback.status()["wandb"]
    assert (state["state"], state["sent"]) == ("degraded", 30)
    assert "finish TimeoutError" in state["errors"]
    assert state["sync"] == f"wandb sync --yes --include-online {state['path']}"


@pytest.mark.slow
@pytest.mark.usefixtures("_key")
def test_online_by_order_without_a_server(run: RunInfo, log_rows: LogRows) -> None:
    """mode=online is not probed: W&B gives up after init_timeout and 10 s, then the run is offline."""
    callback = wandb(mode="online", base_url="http://127.0.0.1:9", init_timeout=1.0)
    state = follow(callback, run, lambda: log_rows(run, range(30)))
    assert (state["state"], state["mode"]) == ("closed", "offline")
    assert offline(run).series == expected(range(30))
