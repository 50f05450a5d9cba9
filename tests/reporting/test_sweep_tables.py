"""The tables at the end of a sweep."""

import io

import pytest
from rich.console import Console

from adamwprune.reporting.sweep_tables import job_table, seed_table


def job(number, *swept, accuracy=None, exit_code=0):
    return {
        "job": number,
        "swept": list(swept),
        "exit_code": exit_code,
        "status": "finished" if exit_code == 0 else "failed",
        "reason": "" if exit_code == 0 else "killed (SIGKILL) [by hand]",
        "seconds": 3.0,
        "metrics": {} if accuracy is None else {"test/accuracy": accuracy, "val/accuracy": 0.1},
        "sparsity": 0.9,
    }


def cells(table):
    columns = [list(column.cells) for column in table.columns]
    return list(zip(*columns, strict=True))


def test_means_are_over_jobs_that_differ_in_their_seed_alone():
    """Mean .91 and .80; the sample's standard deviation of .90, .92 is .0141; a failed seed is counted."""
    table = seed_table(
        [
            job(0, "pruning=state", "seed=1", accuracy=0.90),
            job(1, "pruning=state", "seed=2", accuracy=0.92),
            job(2, "pruning=random", "seed=1", accuracy=0.80),
            job(3, "pruning=random", "seed=2", exit_code=1),
        ]
    )
    assert cells(table) == [
        ("state", "91.00 %", "1.41 %", "2", "0", "90.00 %"),
        ("random", "80.00 %", "", "1", "1", "90.00 %"),
    ]


@pytest.mark.parametrize("swept", [["a=1", "a=2"], []])
def test_without_seeds_there_are_no_means(swept):
    """One job an arm has no spread to show; neither has an empty sweep."""
    assert seed_table([job(i, choice, accuracy=0.9) for i, choice in enumerate(swept)]) is None


def test_every_job_has_a_line_that_says_how_it_ended():
    """A line each, unbroken where there are 120 columns."""
    out = io.StringIO()
    results = [
        job(0, "pruning=magnitude", "pruning.target_sparsity=0.95", "seed=1", accuracy=0.9),
        job(1, "pruning=none", "seed=2", exit_code=137),
    ]
    Console(file=out, width=120).print(job_table(results, "2 of 2 jobs run, 1 failed"))
    lines = out.getvalue().splitlines()
    assert "2 of 2 jobs run, 1 failed" in lines[0]
    (row,) = [line for line in lines if "magnitude" in line]
    assert all(value in row for value in ("0.95", "90.00 %", "finished"))
    (failed,) = [line for line in lines if "none" in line]
    assert "failed" in failed
    assert "code 137: killed" in out.getvalue()
    assert "[by hand]" in out.getvalue()


def test_columns_go_by_the_last_part_of_a_key_where_it_is_unique():
    """Two keys with the same end keep their whole names; a job without a choice has an empty cell."""
    swept = ["pruning/schedule=linear", "optimizer.lr=1", "other.lr=2"]
    table = job_table([job(0, *swept, accuracy=0.9), job(1, "optimizer.lr=3", accuracy=0.8)], "")
    heads = [str(column.header) for column in table.columns]
    assert heads[1:4] == ["schedule", "optimizer.lr", "other.lr"]
    assert [row[1:4] for row in cells(table)] == [("linear", "1", "2"), ("", "3", "")]
