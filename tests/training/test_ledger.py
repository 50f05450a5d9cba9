"""metrics.jsonl: whole lines, append-only, honest on resume."""

import json
import math

import pytest
import torch

from adamwprune.errors import CheckpointError, DiskError
from adamwprune.training.ledger import Ledger, read_rows
from adamwprune.training.metrics import sanitise


def write(file, steps, *, start=0, exact=True, loss=lambda step: float(step)):
    ledger = Ledger(file, start, exact=exact)
    for step in steps:
        ledger.write(step, 1000.0 + step, {"train/loss": loss(step), "perf/step_time_ms": 1.0})
    ledger.close()


def test_each_line_is_one_object_with_step_time_and_names(tmp_path):
    """The format that outsiders rely on."""
    file = tmp_path / "metrics.jsonl"
    write(file, [1, 10])
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"step": 1, "time": 1001.0, "train/loss": 1.0, "perf/step_time_ms": 1.0},
        {"step": 10, "time": 1010.0, "train/loss": 10.0, "perf/step_time_ms": 1.0},
    ]


def test_not_finite_values_are_texts_that_json_holds(tmp_path):
    """NaN is not JSON; a reader elsewhere must not fail on it."""
    file = tmp_path / "metrics.jsonl"
    ledger = Ledger(file)
    ledger.write(1, 1.0, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": None})
    ledger.close()
    assert json.loads(file.read_text()) == {
        "step": 1,
        "time": 1.0,
        "a": "NaN",
        "b": "Infinity",
        "c": "-Infinity",
        "d": None,
    }


def test_replayed_rows_are_compared_not_repeated(tmp_path):
    """An exact resume adds only new steps."""
    file = tmp_path / "metrics.jsonl"
    write(file, [1, 2, 3, 4])
    before = file.read_bytes()
    write(file, [3, 4, 5], start=2)
    assert file.read_bytes().startswith(before)
    assert [row["step"] for row in read_rows(file)] == [1, 2, 3, 4, 5]


def test_a_replayed_row_that_differs_is_an_error(tmp_path):
    """Control for the comparison: another loss at a replayed step ends the run with exit 5."""
    file = tmp_path / "metrics.jsonl"
    write(file, [1, 2, 3])
    with pytest.raises(CheckpointError, match=r"train/loss was 3.0, is 3.5"):
        write(file, [3], start=2, loss=lambda step: step + 0.5)


def test_measured_values_may_differ_on_replay(tmp_path):
    """Step times and memory are no part of the comparison."""
    file = tmp_path / "metrics.jsonl"
    write(file, [1, 2])
    ledger = Ledger(file, 1)
    ledger.write(2, 5000.0, {"train/loss": 2.0, "perf/step_time_ms": 99.0})
    ledger.close()
    assert len(read_rows(file)) == 2


def test_a_torn_last_line_is_cut_and_only_that(tmp_path):
    """What a kill leaves: whole rows stay, the half one goes."""
    file = tmp_path / "metrics.jsonl"
    write(file, [1, 2])
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"step": 3, "ti')
    Ledger(file, 2).close()
    assert file.read_bytes() == whole


def test_a_rewind_takes_later_rows_back(tmp_path):
    """A run that goes on with changes marks the cut; readers drop what it took back."""
    file = tmp_path / "metrics.jsonl"
    write(file, [1, 2, 3, 4])
    write(file, [3, 4], start=2, exact=False, loss=lambda step: 100.0 + step)
    assert [(row["step"], row["train/loss"]) for row in read_rows(file)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 103.0),
        (4, 104.0),
    ]
    assert len(file.read_text().splitlines()) == 7


def test_a_full_disk_is_said(tmp_path):
    """/dev/full refuses every byte."""
    link = tmp_path / "metrics.jsonl"
    link.symlink_to("/dev/full")
    ledger = Ledger.__new__(Ledger)
    import os

    ledger.file, ledger._replayed, ledger._descriptor = link, {}, os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(DiskError, match="No space left"):
        ledger.write(1, 1.0, {"a": 1.0})


def test_sanitise_gives_plain_values():
    """Tensors and NumPy numbers of one element become numbers; objects are left out."""
    import numpy as np

    row = sanitise(
        {
            "tensor": torch.tensor(1.5),
            "numpy": np.float32(2.5),
            "int": np.int64(3),
            "one": torch.ones(1, 1),
            "many": torch.ones(2),
            "object": object(),
            "none": None,
            "text": "x",
            "big": 2**70,
            "nested": {"a": 1, "b": {"c": torch.tensor(2)}},
            4: 5,
        }
    )
    assert row == {
        "tensor": 1.5,
        "numpy": 2.5,
        "int": 3,
        "one": 1.0,
        "none": None,
        "text": "x",
        "big": float(2**70),
        "nested/a": 1,
        "nested/b/c": 2,
        "4": 5,
    }
    assert {type(value) for value in row.values()} <= {int, float, str, type(None)}
