"""`sync` and `replay`: exactly what is missing, at its own step and time, once."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from adamwprune import run_directory
from adamwprune.errors import CheckpointError, ConfigError
from adamwprune.track import fill
from adamwprune.track.__main__ import main
from adamwprune.track.replay import compose_options
from adamwprune.track.status import look
from adamwprune.trackers.loopback import WandbServer
from adamwprune.trackers.rows import read_rows
from adamwprune.trackers.trackio import Trackio
from adamwprune.trackers.wandb_files import parse_run
from tests.helpers import trackio_store
from tests.track.made import PROJECT

pytest.importorskip("trackio")
pytest.importorskip("wandb")
Make = Callable[..., Any]
Out = pytest.CaptureFixture[str]


def stored(directory: Path, database: Path | None = None) -> trackio_store.StoredRun:
    """What Trackio's database holds of a run."""
    record = run_directory.read_json(directory / "run.json")
    return trackio_store.read_run(
        database or Path(os.environ["TRACKIO_DIR"]) / f"{PROJECT}.db", record["run_id"]
    )


def delete(directory: Path, where: str) -> int:
    """Take rows out of a run's database; how many."""
    state = run_directory.read_json(directory / "trackers" / "trackio.json")
    with closing(sqlite3.connect(state["path"], isolation_level=None)) as connection:
        return connection.execute(f"DELETE FROM metrics WHERE {where}").rowcount


# ---- sync


@pytest.mark.parametrize(
    "where", ["step BETWEEN 5 AND 9", "step > 20", "step = 1", "1 = 1", "json_extract(metrics, '$.x') = 1"]
)
def test_rows_that_a_store_lost_come_back_as_they_were(make: Make, capsys: Out, where: str) -> None:
    """Holes inside, at the end, everything, nothing: the same rows, times and numbers; a second sync
    adds none, and takes no row for another."""
    directory = make("a", "trackio").log(range(1, 31)).end()
    before = stored(directory)
    lost = delete(directory, where)
    is_whole = lost == 0
    assert main(["verify", str(directory)]) == (0 if is_whole else 1)
    for _ in range(2):
        assert main(["sync", str(directory)]) == 0
        after = stored(directory)
        assert sorted(after.series) == sorted(before.series)
        assert sorted(after.log_ids) == sorted(before.log_ids)
    assert main(["verify", str(directory)]) == 0
    said = capsys.readouterr().out
    assert ("values were missing; now 150 values at 30 steps, all equal" in said) != is_whole


def test_without_a_run_all_that_is_incomplete_is_synced(make: Make, capsys: Out) -> None:
    """One that a tracker was degraded in, one that was killed; not the whole one, not the running one."""
    whole = make("whole", "trackio").log(range(1, 11)).end()
    degraded = make("degraded", "trackio").log(range(1, 11)).end()
    killed, running = make("killed").log(range(1, 11)), make("running").log(range(1, 11))
    delete(degraded, f"step = 3 AND run_id = '{run_directory.read_json(degraded / 'run.json')['run_id']}'")
    file = degraded / "trackers" / "trackio.json"
    run_directory.write_json(file, {**run_directory.read_json(file), "state": "degraded"})
    with run_directory.locked(running.directory):
        assert main(["sync"]) == 0
        said = capsys.readouterr().out
        assert said.splitlines()[0] == "incomplete: 2"
        assert [line.split(":")[0] for line in said.splitlines() if line.startswith("outputs")] == [
            "outputs/2026-11-24/degraded",
            "outputs/2026-11-24/killed",
        ]
        assert main(["sync"]) == 0
        assert capsys.readouterr().out == "nothing to send\n"
        assert main(["sync", str(running.directory)]) == 6
        assert capsys.readouterr().out.startswith("outputs/2026-11-24/running: running; ")
    assert run_directory.read_json(killed.directory / "summary.json")["exit_code"] == 137
    assert not (running.directory / "summary.json").exists()
    summary = run_directory.read_json(degraded / "summary.json")
    assert summary["trackers"]["trackio"]["state"] == "closed"
    assert run_directory.read_json(whole / "summary.json")["status"] == "finished"


def test_a_tracker_that_stays_broken_is_exit_code_6(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    """And the others are whole all the same."""
    directory = make("a", "trackio").log(range(1, 31)).end()
    delete(directory, "step = 4")

    def refuse(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Trackio, "log", refuse)
    assert main(["sync", str(directory)]) == 6
    assert "trackio: 5 values were missing; now of 150 values 5 missing" in capsys.readouterr().out
    assert run_directory.read_json(directory / "summary.json")["trackers"]["trackio"]["state"] == "degraded"


def test_a_run_that_is_only_here_is_uploaded_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    """Recorded offline on purpose, and asked to be sent: without a key nothing is touched, with one the
    server gets every row at its own time, once."""
    options = compose_options(["wandb"], ["tracker.wandb.mode=offline"], project=PROJECT)
    directory = make("a", tracker=options).log(range(3, 31, 3)).alert(6).end()
    files = sorted(directory.glob("wandb/*/*.wandb"))
    assert look(directory).stores[0].state == "unsent"
    assert main(["sync", str(directory)]) == 6
    assert "wandb: not uploaded: no key in WANDB_API_KEY" in capsys.readouterr().out
    assert sorted(directory.glob("wandb/*/*.wandb")) == files
    assert main(["verify", str(directory)]) == 0
    assert capsys.readouterr().out.endswith("all equal; only here, not uploaded\n")

    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        for _ in range(2):
            assert main(["sync", str(directory)]) == 0
            truth = [(entry.step, entry.time) for entry in read_rows(directory / "metrics.jsonl")]
            assert [(row["trainer/step"], row["_timestamp"]) for row in server.run.rows] == truth
        assert (server.run.name, server.run.exit_code) == ("run-a", 0)
        assert len(server.run.alerts) == 1, "what an offline session showed, nobody has seen"
        assert server.run.summary["final/val/loss"] == 0.25
    assert look(directory).stores[0].state == "closed"
    assert run_directory.read_json(directory / "run.json")["config"]["tracker"] == options
    assert "options" not in run_directory.read_json(directory / "trackers" / "wandb.json")


def test_an_upload_that_the_server_refuses_is_exit_code_6(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    """All rows are here, none is there; with a server that takes them, the same command sends them."""
    directory = make("a", "wandb").log(range(1, 11)).end()
    monkeypatch.setattr(fill, "PATIENCE", 3.0)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        server.fail = lambda operation: 404 if operation == "file_stream" else None
        assert main(["sync", str(directory)]) == 6
        assert "  wandb: finish RuntimeError: " in capsys.readouterr().out
        assert look(directory).stores[0].state == "degraded"
        server.fail = lambda operation: None
        assert main(["sync", str(directory)]) == 0
        assert [row["trainer/step"] for row in server.run.rows] == list(range(1, 11))


def test_a_run_that_its_server_lost_is_rebuilt_by_replay(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    """Online to its end; the server comes back empty. verify says whom it asked, replay sends all, once."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with WandbServer() as first:
        monkeypatch.setenv("WANDB_BASE_URL", first.url)
        directory = make("a", "wandb").log(range(1, 11)).end()
        assert len(first.run.rows) == 10
    with WandbServer() as second:
        monkeypatch.setenv("WANDB_BASE_URL", second.url)
        assert main(["verify", str(directory)]) == 0
        assert "the server was not asked" in capsys.readouterr().out
        for _ in range(2):
            assert main(["replay", str(directory), "--to", "wandb"]) == 0
            assert [row["trainer/step"] for row in second.run.rows] == list(range(1, 11))


@pytest.mark.parametrize("tracker", ["trackio", "tensorboard"])
def test_a_store_with_more_than_the_ledger_is_left_as_it_is(make: Make, capsys: Out, tracker: str) -> None:
    """metrics.jsonl was lost: the tracker may have the last copy of the rows, and sync cannot help."""
    directory = make("a", tracker).log(range(1, 11)).end()
    ledger = directory / "metrics.jsonl"
    rows, _ = ledger.read_bytes(), ledger.write_bytes(b"")
    assert main(["sync", str(directory)]) == 6
    assert "values that metrics.jsonl lacks" in capsys.readouterr().out
    ledger.write_bytes(rows)
    assert main(["verify", str(directory)]) == 0


# ---- code of others


def test_a_record_may_not_allow_its_own_code(make: Make, tmp_path: Path) -> None:
    """What a run.json names is imported only if the command line trusts it; the control: it does."""
    directory = make("a").end()
    record = run_directory.read_json(directory / "run.json")
    record["config"] |= {"tracker": {"x": {"_target_": "os.getcwd"}}, "allow_targets": ["os.getcwd"]}
    run_directory.write_json(directory / "run.json", record)
    with pytest.raises(ConfigError, match=r"add 'allow_targets=\[os\.getcwd\]' to the command line"):
        main(["verify", str(directory)])
    with pytest.raises(ConfigError, match="there is no module os"):  # whose source could be read
        main(["verify", str(directory), "allow_targets=[os.getcwd]"])


# ---- replay


def test_a_run_comes_into_a_tracker_that_it_never_had(make: Make, tmp_path: Path, capsys: Out) -> None:
    """Names, steps, values and times are those of the ledger; the second replay adds nothing; from then
    on the run's other commands know the tracker."""
    directory = make("a").log(range(1, 31)).alert(30).end()
    option = f"tracker.trackio.dir={tmp_path / 'other'}"
    for _ in range(2):
        assert main(["replay", str(directory), "--to", "trackio", option]) == 0
    found = stored(directory, tmp_path / "other" / f"{PROJECT}.db")
    truth = list(read_rows(directory / "metrics.jsonl"))
    assert [(step, values["train/loss"]) for step, _, values in found.series] == [
        (entry.step, entry.row["train/loss"]) for entry in truth
    ]
    times = [datetime.fromisoformat(time).timestamp() for _, time, _ in found.series]
    assert times == pytest.approx([entry.time for entry in truth], abs=1e-6)
    assert found.name == "run-a"
    assert [row["run/exit_code"] for _, row in found.ends] == [0]
    assert [(title, step) for title, _, step in found.alerts] == [("loss spike", 30)]

    assert main(["verify", str(directory)]) == 0
    assert capsys.readouterr().out.endswith("trackio: 150 values at 30 steps, all equal\n")
    assert main(["sync", str(directory)]) == 0
    record = run_directory.read_json(directory / "run.json")
    assert record["config"]["tracker"] == {}  # the run itself had none


def test_a_run_comes_into_several_trackers_at_once(make: Make) -> None:
    """W&B in the run's folder, at original steps and times; TensorBoard beside it."""
    pytest.importorskip("tensorboard")
    directory = make("a").log(range(1, 31)).end("failed", 7)
    names = ["--to", "wandb", "tensorboard", "tracker.wandb.mode=offline"]
    for _ in range(2):
        assert main(["replay", str(directory), *names]) == 0
    (file,) = directory.glob("wandb/offline-run-*/*.wandb")
    found = parse_run(file)
    truth = [(entry.step, entry.time, entry.row) for entry in read_rows(directory / "metrics.jsonl")]
    assert found.series == truth
    assert found.exit_code == 7
    assert [store.tracker for store in look(directory).stores] == ["tensorboard", "wandb"]
    assert main(["verify", str(directory)]) == 0


def test_replay_refuses_what_it_cannot_do(make: Make) -> None:
    """Before anything is written."""
    running = make("a").log(range(1, 4))
    with (
        run_directory.locked(running.directory),
        pytest.raises(CheckpointError, match="running; wait for its end"),
    ):
        main(["replay", str(running.directory), "--to", "trackio"])
    directory = make("b").log(range(1, 4)).end()
    with pytest.raises(ConfigError, match=r"tracker\.trackio\.prot"):
        main(["replay", str(directory), "--to", "trackio", "tracker.trackio.prot=1"])
    with pytest.raises(ConfigError, match="unrecognized arguments: seed=1"):
        main(["replay", str(directory), "seed=1", "--to", "trackio"])
    with pytest.raises(ConfigError, match="invalid choice: 'none'"):
        main(["replay", str(directory), "--to", "none"])
    assert not (directory / "trackers").exists()


def test_keys_of_a_tracker_are_refused_where_none_is_chosen(make: Make) -> None:
    directory = make("a").end()
    with pytest.raises(ConfigError, match="only replay and import-wandb"):
        main(["sync", str(directory), "tracker.trackio.dir=x"])
