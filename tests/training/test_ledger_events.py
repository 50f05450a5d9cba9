"""Alerts in the ledger: told once, also by a run that goes on; and what a reader does with damage."""

import json
import stat

import torch

from adamwprune.callbacks.base import Alert
from adamwprune.training.checkpoint import Checkpoint
from adamwprune.training.ledger import Ledger, read_lines, read_rows


def alert(rule):
    return Alert(*[rule if field == "rule" else f"its {field}" for field in Alert._fields])


def test_an_alert_is_a_line_of_its_own_once_a_step(tmp_path):
    file = tmp_path / "metrics.jsonl"
    ledger = Ledger(file)
    ledger.write(3, 1.0, {"loss": 2.0})
    assert ledger.alert(3, 1.5, alert("spike"))
    assert not ledger.alert(3, 1.6, alert("spike"))
    assert ledger.alert(3, 1.7, alert("disk"))
    assert ledger.alert(4, 1.8, alert("spike"))
    assert ledger.length() == file.stat().st_size
    ledger.close()
    told = [line for line in read_lines(file) if "event" in line]
    assert [(line["step"], line["rule"], line["time"]) for line in told] == [
        (3, "spike", 1.5),
        (3, "disk", 1.7),
        (4, "spike", 1.8),
    ]
    assert {line["event"] for line in told} == {"alert"}
    assert told[0].items() >= alert("spike")._asdict().items()
    assert read_rows(file) == [{"step": 3, "time": 1.0, "loss": 2.0}]


def test_a_run_that_goes_on_tells_no_alert_twice(tmp_path):
    """From step 3: the alert of step 4 is in the file, those of later steps are not."""
    file = tmp_path / "metrics.jsonl"
    before = Ledger(file)
    for step in (3, 4):
        before.write(step, 1.0, {"loss": 1.0})
        before.alert(step, 1.0, alert("spike"))
    before.close()
    after = Ledger(file, 3)
    assert not after.alert(4, 9.0, alert("spike"))
    assert after.alert(5, 9.0, alert("spike"))
    after.close()
    assert [line["step"] for line in read_lines(file) if "rule" in line] == [3, 4, 5]
    again = Ledger(file, 3, exact=False)
    assert again.alert(4, 9.0, alert("spike"))  # what was rewound has not happened
    again.close()


def test_the_file_is_nothing_to_be_executed(tmp_path):
    Ledger(tmp_path / "metrics.jsonl").close()
    assert stat.S_IMODE((tmp_path / "metrics.jsonl").stat().st_mode) & 0o133 == 0


def test_bytes_that_are_no_text_cost_their_line_alone(tmp_path):
    """A disk that returns another block; the rows around it are whole."""
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "time": 1.0}).encode() for step in (1, 2, 3)]
    lines[1] = b"\xff\xfe\x00" + lines[1][3:]
    file.write_bytes(b"\n".join(lines) + b"\n")
    assert [row["step"] for row in read_rows(file)] == [1, 3]


def test_a_checkpoint_has_the_scores_of_its_average_where_it_kept_one(tmp_path):
    weights = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert Checkpoint(tmp_path, 1, weights, {}).evaluated == weights
    average = {"a": torch.full((2,), 0.5)}
    evaluated = Checkpoint(tmp_path, 1, weights, {"average": average}).evaluated
    assert evaluated == {"a": average["a"], "b": weights["b"]}
