"""`verify` and `diff`: equal is equal to the bit, and what is not is named."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adamwprune import run_directory
from adamwprune.track.__main__ import main
from tests.track.made import row

pytest.importorskip("trackio")
Make = Callable[..., Any]
Out = pytest.CaptureFixture[str]


def database(directory: Path) -> sqlite3.Connection:
    """The Trackio database of a run, to break something in it."""
    state = json.loads((directory / "trackers" / "trackio.json").read_text())
    return sqlite3.connect(state["path"], isolation_level=None)


# ---- verify


def test_a_whole_store_is_equal(make: Make, capsys: Out) -> None:
    directory = make("a", "trackio").log(range(1, 31)).end()
    assert main(["verify", str(directory)]) == 0
    assert capsys.readouterr().out == "trackio: 150 values at 30 steps, all equal\n"


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM metrics WHERE step = 7", "5 missing; first: step 7 perf/step_time_ms: "),
        (
            "UPDATE metrics SET metrics = json_set(metrics, '$.\"train/lr\"', 5) WHERE step = 9",
            "1 different; first: step 9 train/lr: 0.00011111111111111112, stored 5",
        ),
        ("UPDATE metrics SET step = 8 WHERE step = 9", "5 missing, 5 different; first: step 8 perf/step"),
    ],
)
def test_one_value_off_is_named_with_the_repair(make: Make, capsys: Out, statement: str, words: str) -> None:
    directory = make("a", "trackio").log(range(1, 31)).end()
    with closing(database(directory)) as connection:
        connection.execute(statement)
    assert main(["verify", str(directory)]) == 1
    said = capsys.readouterr().out
    assert words in said
    assert said.endswith("\nrepair: python -m adamwprune.track sync outputs/2026-11-24/a\n")


def test_a_store_that_cannot_be_read_is_not_equal(make: Make, capsys: Out) -> None:
    directory = make("a", "trackio").log(range(1, 4)).end()
    state = json.loads((directory / "trackers" / "trackio.json").read_text())
    Path(state["path"]).write_bytes(b"no database" * 1000)
    assert main(["verify", str(directory)]) == 1
    assert "trackio: DatabaseError: " in capsys.readouterr().out


def test_a_run_without_a_tracker_has_nothing_to_compare(make: Make, capsys: Out) -> None:
    assert main(["verify", str(make("a").log(range(1, 4)).end())]) == 0
    assert capsys.readouterr().out == "outputs/2026-11-24/a: has no tracker; metrics.jsonl has 3 rows\n"


# ---- diff


def test_equal_runs_are_equal_but_for_what_is_measured(make: Make, capsys: Out) -> None:
    """Names, trackers and step times differ; with --all the times show."""
    first, second = make("a").log(range(1, 31)).end(), make("b", "trackio").log(range(1, 31)).end()
    assert main(["diff", str(first), str(second)]) == 0
    assert capsys.readouterr().out == "120 values at 30 steps, all equal\n"
    assert main(["diff", "--all", str(first), str(second)]) == 1
    assert "metrics: perf/step_time_ms, time" in capsys.readouterr().out


def test_other_seeds_differ_and_the_first_difference_is_named(make: Make, capsys: Out) -> None:
    first, second = make("a").log(range(1, 31)).end(), make("b", seed=2).log(range(1, 31)).end()
    assert main(["diff", str(first), str(second)]) == 1
    left, right = row(1, seed=1)["train/loss"], row(1, seed=2)["train/loss"]
    assert capsys.readouterr().out == (
        "configuration: seed: 1 -> 2\n"
        "30 of 120 values differ, at 30 steps, from step 1 on:\n"
        f"  train/loss: {left!r} and {right!r}\n"
        "  metrics: train/loss\n"
    )


def test_a_run_that_got_less_far_differs(make: Make, capsys: Out) -> None:
    first, second = make("a").log(range(1, 31)).end(), make("b").log(range(1, 30)).end()
    assert main(["diff", str(first), str(second)]) == 1
    said = capsys.readouterr().out
    assert "4 of 120 values differ, at 1 steps, from step 30 on" in said
    assert "sparsity/layer/conv1.weight: 4.285714285714286 and nothing" in said


def test_rows_that_a_rewind_took_back_do_not_count(make: Make, capsys: Out) -> None:
    first, made = make("a").log(range(1, 31)).end(), make("b", seed=2).log(range(1, 31))
    record = run_directory.read_json(made.directory / "run.json")
    run_directory.write_json(
        made.directory / "run.json", {**record, "config": {**record["config"], "seed": 1}}
    )
    with (made.directory / "metrics.jsonl").open("a") as ledger:
        ledger.write('{"step": 0, "time": 1.0, "event": "rewind"}\n')
    made.seed = 1
    assert main(["diff", str(first), str(made.log(range(1, 31)).end())]) == 0
