"""`status`: the words for each state of a run and of a tracker, at 80 columns and into a pipe."""

import io
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adamwprune import run_directory
from adamwprune.callbacks.console import Terminal
from adamwprune.track import status as module
from adamwprune.track.__main__ import main
from adamwprune.track.status import count_rows, look, plain_lines, status_table
from adamwprune.training.ledger import read_rows

pytest.importorskip("trackio")
pytest.importorskip("wandb")
Make = Callable[..., Any]


def fields(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """What a pipe gets, without the head."""
    assert main(["status", *arguments]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.count("\t") == 7
    return [line.split("\t") for line in lines]


def test_each_state_has_its_line_and_its_command(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole; only here; rows lost since; killed; running; without a tracker."""
    whole = make("a", "trackio", "wandb").log(range(1, 31)).end()
    lost = make("b", "trackio", project="moved").log(range(1, 31)).end("failed", 1)
    killed = make("c", "trackio").log(range(1, 6))
    running = make("d", "trackio").log(range(1, 6))
    for made in (killed, running):
        made.wait("trackio", steps=5)
    make("e").log(range(1, 3)).end("interrupted", 130)
    database = module.read_json(lost / "trackers" / "trackio.json")["path"]
    shutil.move(database, "elsewhere.db")

    with run_directory.locked(running.directory):
        lines = fields(capsys)
    sync = "python -m adamwprune.track sync outputs/2026-11-24"
    offline = next((whole / "wandb").glob("offline-run-*")).relative_to(Path.cwd())
    got = [[line[0].rpartition("/")[2], *line[1:6], line[7]] for line in lines]
    assert got == [
        ["a", "finished", "30", "trackio", "closed", "30", ""],
        ["a", "finished", "30", "wandb", "unsent", "30", f"{sync}/a"],
        ["b", "failed", "30", "trackio", "lost", "", f"{sync}/b"],
        ["c", "killed", "5", "trackio", "not closed", "5", f"{sync}/c"],
        ["d", "running", "5", "trackio", "open", "5", ""],
        ["e", "interrupted", "2", "none", "", "", ""],
    ]
    assert lines[1][6] == str(offline)
    shutil.move("elsewhere.db", database)
    assert fields(capsys, "outputs/2026-11-24/b")[0][4:6] == ["closed", "30"]


def test_a_store_that_was_not_closed_is_counted(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of a degraded tracker come from the store itself."""
    directory = make("a", "trackio").log(range(1, 31)).end()
    state = module.read_json(directory / "trackers" / "trackio.json")
    run_directory.write_json(directory / "trackers" / "trackio.json", {**state, "state": "degraded"})
    with closing(sqlite3.connect(state["path"])) as connection:
        connection.execute("DELETE FROM metrics WHERE step BETWEEN 5 AND 9")
        connection.commit()
    assert fields(capsys)[0][3:6] == ["trackio", "degraded", "25"]


def test_the_table_keeps_within_80_columns(make: Make) -> None:
    """Names longer than the terminal are folded, nothing is cut away; commands are not in the table."""
    directory = make("long-" * 12 + "name", "trackio").log(range(1, 31)).end()
    out = io.StringIO()
    Terminal(file=out, width=80, force_terminal=False).print(status_table([look(directory)]))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = "".join(line.split()[0] for line in lines)
    assert str(directory.relative_to(Path.cwd())) in text


def test_counting_rows_is_what_reading_them_gives(make: Make) -> None:
    """With alerts, a torn line and a rewind; the control: neither lines nor bytes would do."""
    made = make("a").log(range(1, 11)).alert(10)
    ledger = made.directory / "metrics.jsonl"
    assert count_rows(ledger) == len(read_rows(ledger)) == 10
    assert len(ledger.read_text().splitlines()) == 11
    with ledger.open("a") as lines:
        lines.write('{"step": 4, "time": 1.0, "event": "rewind"}\n{"step": 5, "ti')
    assert count_rows(ledger) == len(read_rows(ledger)) == 4
    assert count_rows(made.directory / "none.jsonl") == 0


def test_closed_runs_open_no_store(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of runs are a matter of their folders; the control: one that is not closed is opened."""
    opened: list[str] = []
    real = module.build_trackers
    monkeypatch.setattr(module, "build_trackers", lambda *given: opened.append("x") or real(*given))
    directory = make("a", "trackio").log(range(1, 4)).end()
    assert look(directory).stores[0].rows == 3
    assert opened == []
    (directory / "trackers" / "trackio.json").unlink()
    assert look(directory).stores[0].state == "never opened"
    assert opened == ["x"]


def test_nothing_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert fields(capsys) == []
    assert plain_lines([])[0].startswith("run\t")
