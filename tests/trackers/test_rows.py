"""metrics.jsonl as trackers read it: rows and alerts, places, and what a rewind takes back."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamwprune.callbacks.base import Alert
from adamwprune.trackers.rows import (
    BEGINNING,
    AlertEntry,
    end_within,
    read_entries,
    read_rows,
    rewinds,
    voided,
)
from adamwprune.training import ledger as truth
from adamwprune.training.ledger import Ledger

ALERT = Alert("loss_spike", "warn", "loss spike", "12 at step 3")


def test_alerts_come_between_the_rows(tmp_path: Path) -> None:
    """In the order of writing, with step and time; rows alone leave them out."""
    ledger = Ledger(tmp_path / "metrics.jsonl")
    ledger.write(1, 10.0, {"train/loss": 1.0})
    assert ledger.alert(1, 10.5, ALERT)
    ledger.write(2, 11.0, {"train/loss": 0.5})
    ledger.close()
    entries = list(read_entries(tmp_path / "metrics.jsonl"))
    assert [type(entry).__name__ for entry in entries] == ["Entry", "AlertEntry", "Entry"]
    alert = entries[1]
    assert isinstance(alert, AlertEntry)
    assert (alert.step, alert.time, alert.alert, alert.end.line) == (1, 10.5, ALERT, 2)
    assert [entry.end.line for entry in read_rows(tmp_path / "metrics.jsonl")] == [1, 3]
    assert [row["step"] for row in truth.read_rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_replayed_step_raises_its_alert_once(tmp_path: Path) -> None:
    """An exact resume from step 1 meets the alert of step 2 again; another rule, or a later step, is new."""
    file = tmp_path / "metrics.jsonl"
    ledger = Ledger(file)
    for step in (1, 2, 3):
        ledger.write(step, 10.0 + step, {"train/loss": 1.0 / step})
    assert ledger.alert(2, 12.0, ALERT)
    ledger.close()
    ledger = Ledger(file, 1)
    ledger.write(2, 99.0, {"train/loss": 0.5})
    assert not ledger.alert(2, 99.0, ALERT)
    assert ledger.alert(2, 99.0, ALERT._replace(rule="disk_low"))
    assert ledger.alert(3, 99.0, ALERT)
    ledger.close()
    rules = [entry.alert.rule for entry in read_entries(file) if isinstance(entry, AlertEntry)]
    assert rules == ["loss_spike", "disk_low", "loss_spike"]


def test_each_end_of_a_run_is_said(tmp_path: Path) -> None:
    """Preempted at step 2, resumed, out of memory before the next: two ends at one step, both in the file."""
    file = tmp_path / "metrics.jsonl"
    end = Alert("end", "warn", "ended with exit code 75", "SIGTERM")
    for alert in (end, end._replace(level="error", title="ended with exit code 8"), end):
        ledger = Ledger(file, 2)
        assert ledger.alert(2, 5.0, alert)
        ledger.close()
    assert len(list(read_entries(file))) == 3


def test_a_rewind_takes_back_rows_and_alerts_after_its_step(tmp_path: Path) -> None:
    """Lines 3, 4 and 5 are of steps after 2; the same steps, run again, count."""
    file = tmp_path / "metrics.jsonl"
    ledger = Ledger(file)
    for step in range(1, 5):
        ledger.write(step, float(step), {"x": step})
    ledger.alert(4, 4.0, ALERT)
    ledger.close()
    ledger = Ledger(file, 2, exact=False)
    ledger.write(3, 30.0, {"x": 300})
    assert ledger.alert(4, 40.0, ALERT), "the alert that was taken back is new again"
    ledger.close()
    assert rewinds(file) == 1
    assert voided(file) == {3, 4, 5}
    entries = list(read_entries(file, void=voided(file)))
    assert [(entry.step, entry.end.line) for entry in entries] == [(1, 1), (2, 2), (3, 7), (4, 8)]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("row"), st.integers(0, 30)),
            st.tuples(st.just("rewind"), st.integers(0, 30)),
            st.tuples(st.just("alert"), st.integers(0, 30)),
        ),
        max_size=40,
    )
)
def test_both_readers_of_the_ledger_agree(tmp_path_factory: pytest.TempPathFactory, lines) -> None:
    """What a tracker is sent is what plots and resumes read, for any history of rewinds."""
    file = tmp_path_factory.mktemp("ledger") / "metrics.jsonl"
    alert = {"event": "alert", **ALERT._asdict()}
    more = {"row": {"x": 1.5}, "rewind": {"event": "rewind"}, "alert": alert}
    texts = [json.dumps({"step": step, "time": 1.0, **more[kind]}) for kind, step in lines]
    file.write_text("".join(f"{text}\n" for text in texts))
    assert [entry.step for entry in read_rows(file, void=voided(file))] == [
        row["step"] for row in truth.read_rows(file)
    ]


@given(st.integers(0, 200))
def test_a_place_within_a_size_is_between_lines(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    """Reading on from there yields exactly the lines that end after `size` bytes."""
    file = tmp_path_factory.mktemp("ledger") / "metrics.jsonl"
    lines = [json.dumps({"step": step, "time": 1.0, "x": "y" * (step % 7)}) + "\n" for step in range(5)]
    file.write_text("".join(lines))
    place = end_within(file, size)
    assert place.offset <= size
    ends = [sum(map(len, lines[: count + 1])) for count in range(5)]
    assert [entry.step for entry in read_rows(file, place)] == [n for n, end in enumerate(ends) if end > size]
    assert end_within(tmp_path_factory.mktemp("none") / "x", size) == BEGINNING
