"""Whole runs with both trackers, read back from Trackio's database and W&B's offline files."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from adamwprune.callbacks.console import Console
from adamwprune.errors import Preempted, RunError
from adamwprune.trackers import wandb_files
from adamwprune.trackers.trackio import Trackio
from adamwprune.training import run as run_module
from adamwprune.training.run import train
from tests.helpers import trackio_store
from tests.helpers.ranks import run_ranks, train_and_look
from tests.helpers.runs import IMAGES, rows, run, start, summary

TRACKED = (*IMAGES, "optimizer=adamwprune", "tracker=both", "trainer.max_steps=24", "trainer.log_every=3")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def stored(directory):
    """What each tracker holds of the run in `directory`."""
    record = json.loads((directory / "run.json").read_text())
    (database,) = Path(os.environ["TRACKIO_DIR"]).glob(f"{record['project']}.db")
    (offline,) = (directory / "wandb").glob("offline-run-*")
    return record, trackio_store.read_run(database, record["run_id"]), wandb_files.read_run(offline)


def ledger(directory):
    """(step, time, metrics) of each row of metrics.jsonl."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "event" not in line]
    return [(line.pop("step"), line.pop("time"), line) for line in lines]


def series(pairs):
    """Rows without the trackers' own additions at the end (finals, exit code)."""
    own = ("final/", "best/", "run/")
    kept = [(step, {k: v for k, v in row.items() if not k.startswith(own)}) for step, row in pairs]
    return [(step, row) for step, row in kept if row]


def test_both_trackers_hold_the_rows_of_the_ledger(tmp_path):
    """Same steps, same names, same values, bit for bit; same name, group and end state."""
    directory = run(tmp_path / "run", *TRACKED, "group=g1")
    record, trackio, wandb = stored(directory)
    truth = [(step, row) for step, _, row in ledger(directory)]
    assert len(truth) > 20
    assert series((step, row) for step, _, row in trackio.rows) == truth
    in_wandb = [
        (row["trainer/step"], {k: v for k, v in row.items() if not k.startswith("_") and k != "trainer/step"})
        for row in wandb.rows
    ]
    assert series(in_wandb) == truth

    assert trackio.name == wandb.run.display_name == record["name"]
    assert wandb.run.run_group == "g1"
    assert wandb.exit_code == 0
    final = summary(directory)["metrics"]["final"]
    assert wandb.summary["final/test/accuracy"] == final["test/accuracy"]
    assert trackio.rows[-1][2]["run/exit_code"] == 0
    report = summary(directory)["trackers"]
    assert {name: (report[name]["state"], report[name]["dropped"]) for name in report} == {
        "trackio": ("closed", 0),
        "wandb": ("closed", 0),
    }


@pytest.mark.parametrize(("kind", "code"), [("diverged", 7), ("preempted", 75), ("failed", 1)])
def test_a_run_that_ends_early_is_closed_with_its_code(tmp_path, monkeypatch, kind, code):
    """Both trackers know the exit code on each path out; the ledger is whole."""
    extra = ("trainer.stop_step=12",) if kind == "preempted" else ()
    config, directory = start(tmp_path / "run", *TRACKED, *extra)
    real = run_module.run_steps.__globals__["accumulate_gradients"]
    calls = []

    def faulty(training, batches):
        loss = real(training, batches)
        calls.append(1)
        if len(calls) == 10 and kind == "diverged":
            training.model.fc1.weight.grad.fill_(math.nan)
        if len(calls) == 10 and kind == "failed":
            raise RuntimeError("a bug")
        return loss

    monkeypatch.setitem(run_module.run_steps.__globals__, "accumulate_gradients", faulty)
    with pytest.raises(RunError):
        train(config, directory)
    _, trackio, wandb = stored(directory)
    assert wandb.exit_code == trackio.rows[-1][2]["run/exit_code"] == code == summary(directory)["exit_code"]
    assert wandb.is_preempting == (kind == "preempted")
    assert len(series((step, row) for step, _, row in trackio.rows)) == len(ledger(directory))


def test_trackers_change_no_bit_of_training(tmp_path):
    """Rows with both trackers are those without."""
    tracked = run(tmp_path / "tracked", *TRACKED)
    plain = run(tmp_path / "plain", *TRACKED, "tracker=none")
    assert rows(tracked) == rows(plain)


def test_a_resumed_run_is_one_run_in_trackio_without_a_row_twice(tmp_path):
    """Same id and name; the second session adds what the first had not."""
    config, directory = start(tmp_path / "run", *TRACKED, "trainer.stop_step=12")
    with pytest.raises(Preempted):
        train(config, directory)
    config.trainer.stop_step = None
    train(config, directory)
    record = json.loads((directory / "run.json").read_text())
    (database,) = Path(os.environ["TRACKIO_DIR"]).glob("*.db")
    trackio = trackio_store.read_run(database, record["run_id"])
    truth = [(step, row) for step, _, row in ledger(directory)]
    assert series((step, row) for step, _, row in trackio.rows) == truth


def test_two_ranks_make_one_run_in_each_store(tmp_path):
    """Rank 0 alone talks to the trackers."""
    config, directory = start(tmp_path / "run", *TRACKED, "hardware.num_devices=2")
    run_ranks(train_and_look, 2, config, directory)
    _, trackio, wandb = stored(directory)
    truth = [step for step, _, _ in ledger(directory)]
    assert [step for step, _ in series((step, row) for step, _, row in trackio.rows)] == truth
    assert len(wandb.rows) == len(truth)
    assert len(list((directory / "wandb").glob("offline-run-*"))) == 1


def test_the_stop_button_of_a_tracker_saves_and_stops_the_run(tmp_path, monkeypatch):
    """Pressed after ten steps: exit 75 with a checkpoint of the next; the resumed run goes on to its end."""
    config, directory = start(tmp_path / "run", *TRACKED, "tracker=trackio")
    real = Console.on_step_end

    def press(self, step):
        real(self, step)
        if step == 10:
            monkeypatch.setattr(Trackio, "is_stop_requested", True)

    monkeypatch.setattr(Console, "on_step_end", press)
    with pytest.raises(Preempted, match="stop button: stopped and saved at step 10"):
        train(config, directory)
    assert summary(directory)["exit_code"] == 75
    monkeypatch.setattr(Trackio, "is_stop_requested", False)
    train(config, directory)
    assert summary(directory)["steps"] == 24


def test_a_resumed_run_that_fails_at_once_says_so_where_it_stands(tmp_path, monkeypatch):
    """Preempted at step 12, then twice a failure before step 13: three ends at step 12, in both."""
    config, directory = start(tmp_path / "run", *TRACKED, "trainer.stop_step=12")
    with pytest.raises(Preempted):
        train(config, directory)
    config.trainer.stop_step = None

    def fail(training, batches):
        raise RunError("no more")  # the same words each time

    monkeypatch.setitem(run_module.run_steps.__globals__, "accumulate_gradients", fail)
    for _ in range(2):
        with pytest.raises(RunError):
            train(config, directory)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    ends = [(line["step"], line["title"]) for line in lines if line.get("rule") == "end"]
    titles = ["ended with exit code 75", "ended with exit code 1", "ended with exit code 1"]
    assert ends == [(12, title) for title in titles]
    record = json.loads((directory / "run.json").read_text())
    (database,) = Path(os.environ["TRACKIO_DIR"]).glob("*.db")
    alerts = trackio_store.read_run(database, record["run_id"]).alerts
    assert [(step, title) for title, _, step in alerts] == ends
    shown = [wandb_files.parse_run(file).alerts for file in wandb_files.fragments(directory)]
    # The same words at the same step are one alert to W&B, whose runs each have their exit code.
    assert [alert.title for part in shown for alert in part] == titles[:2]
