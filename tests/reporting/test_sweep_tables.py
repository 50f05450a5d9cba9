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
        ("pruning=state", "test/accuracy", "91.00 %", "1.41 %", "2", "0", "90.00 %"),
        ("pruning=random", "test/accuracy", "80.00 %", "", "1", "1", "90.00 %"),
    ]


@pytest.mark.parametrize("swept", [["a=1", "a=2"], []])
def test_without_seeds_there_are_no_means(swept):
    """One job an arm has no spread to show; neither has an empty sweep."""
    assert seed_table([job(i, choice, accuracy=0.9) for i, choice in enumerate(swept)]) is None


def test_every_job_has_a_line_that_says_how_it_ended():
    out = io.StringIO()
    results = [job(0, "seed=1", accuracy=0.9), job(1, "seed=2", exit_code=137)]
    Console(file=out, width=200).print(job_table(results, "2 of 2 jobs run, 1 failed"))
    lines = out.getvalue().splitlines()
    assert "2 of 2 jobs run, 1 failed" in lines[0]
    assert any("failed, exit code 137" in line for line in lines)
    assert any("test/accuracy 90.00 %" in line for line in lines)


def test_choices_go_by_the_last_part_of_their_key_where_it_is_unique():
    """A line of 80 columns holds them; two keys with the same end keep their whole names."""
    swept = ["pruning.target_sparsity=0.5", "pruning/schedule=linear", "optimizer.lr=1", "other.lr=2"]
    (row,) = cells(job_table([job(0, *swept, accuracy=0.9)], ""))
    assert row[1] == "target_sparsity=0.5 schedule=linear optimizer.lr=1 other.lr=2"
