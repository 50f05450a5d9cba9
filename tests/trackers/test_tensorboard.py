"""TensorBoard for real: event files read back with its own EventAccumulator, as its page does."""

import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamwprune.callbacks.base import Alert, Callback, RunInfo
from adamwprune.composition import compose, to_config
from adamwprune.targets import build
from adamwprune.trackers import tensorboard as module
from adamwprune.trackers.backend import missing_packages
from adamwprune.trackers.mirror import parity
from adamwprune.trackers.rows import AlertEntry, Entry, Position, read_entries
from adamwprune.trackers.tensorboard import TensorBoard, tensorboard
from adamwprune.training.ledger import Ledger

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

ROOT = Path(__file__).parents[2]
SUMMARY = {"status": "finished", "metrics": {"final": {"val/loss": 0.1}}}
LogRows = Callable[..., None]
MakeRun = Callable[..., RunInfo]


def copy(run: RunInfo, exit_code: int = 0, tracker: Callback | None = None) -> dict[str, Any]:
    """Send the ledger as it is, as a session does; the tracker's part of summary.json."""
    tracker = tracker or tensorboard()
    tracker.on_train_start(run)
    if exit_code == 0:
        tracker.on_train_end(SUMMARY)
    tracker.close(exit_code)
    (state,) = tracker.status().values()
    return state


def load(run: RunInfo) -> EventAccumulator:
    """What TensorBoard shows of the run, without leaving out points."""
    shown = EventAccumulator(str(run.directory / "tensorboard"), tensor_size_guidance={"scalars": 0})
    shown.Reload()
    return shown


def points(shown: EventAccumulator, name: str) -> list[tuple[int, float]]:
    """Steps and exact values of a scalar."""
    return [(event.step, event.tensor_proto.double_val[0]) for event in shown.Tensors(name)]


def texts(shown: EventAccumulator, name: str) -> list[tuple[int, str]]:
    return [(event.step, make_ndarray(event.tensor_proto).item().decode()) for event in shown.Tensors(name)]


def sizes(run: RunInfo) -> list[int]:
    return [file.stat().st_size for file in sorted((run.directory / "tensorboard").iterdir())]


def test_rows_read_back_bit_equal(run: RunInfo, log_rows: LogRows) -> None:
    """Steps, times, float64 to the bit and float32 for the page, NaN and infinities too; the
    configuration, alerts and final values where the page looks for them; text is not taken."""
    extra = {"nan": math.nan, "up": math.inf, "huge": 1e300, "tiny": 5e-324, "big": 2**62, "flag": True}
    log_rows(run, range(300), **extra, note="x", none=None, odd=2**62 + 1)
    ledger = Ledger(run.directory / "metrics.jsonl", 299)
    ledger.alert(299, 1764000100.0, Alert("loss_spike", "warn", "loss spike", "much"))
    ledger.close()
    state = copy(run)
    assert (state["state"], state["sent"], state["dropped"], state["errors"]) == ("closed", 300, 0, {})
    assert state["parity"] == "2700 values at 300 steps, all equal"
    assert state["show"] == f"tensorboard --logdir {state['path']}"

    shown = load(run)
    series = {"train/loss", "train/lr", "sparsity/layer/conv1.weight", *extra}
    others = {"config", "alerts", "final/val/loss", "run/status", "run/exit_code"}
    assert set(shown.Tags()["tensors"]) == series | others | {"_hparams_/session_start_info"}
    loss = shown.Tensors("train/loss")
    assert [event.wall_time for event in loss] == [1764000000 + step / 3 for step in range(300)]
    assert points(shown, "train/loss") == [(step, 1 / (step + 3)) for step in range(300)]
    assert [make_ndarray(event.tensor_proto) for event in loss] == [
        np.float32(1 / (s + 3)) for s in range(300)
    ]
    assert all(math.isnan(value) for _, value in points(shown, "nan"))
    for name in extra.keys() - {"nan"}:
        assert points(shown, name) == [(step, extra[name]) for step in range(300)], name

    ((_, config),) = texts(shown, "config")
    assert "    optimizer:\n      target: adamwprune.optim.adamw.adamw\n" in config
    assert texts(shown, "alerts") == [(299, "**warn: loss spike**\n\nmuch")]
    assert points(shown, "final/val/loss") == [(299, 0.1)]
    assert points(shown, "run/exit_code") == [(299, 0.0)]
    assert texts(shown, "run/status") == [(299, "finished")]
    (content,) = shown.PluginTagToContent("hparams").values()
    start = HParamsPluginData.FromString(content).session_start_info
    assert start.group_name == run.name
    assert {key: value.number_value for key, value in start.hparams.items() if value.number_value} == {
        "seed": 1,
        "optimizer.lr": 1e-3,
    }
    assert start.hparams["optimizer.betas"].string_value == "[0.9, 0.999]"


@pytest.mark.parametrize("exit_code", [1, 75, 130])
def test_end_state(exit_code: int, run: RunInfo, log_rows: LogRows) -> None:
    """TensorBoard keeps no run state: it is a scalar beside the last row."""
    log_rows(run, range(3))
    copy(run, exit_code)
    assert points(load(run), "run/exit_code") == [(2, exit_code)]


def test_run_without_a_row(run: RunInfo) -> None:
    """A run that failed before its first row is seen, with its configuration."""
    assert copy(run, 7)["state"] == "closed"
    shown = load(run)
    assert points(shown, "run/exit_code") == [(0, 7)]
    assert len(texts(shown, "config")) == 1


def test_resume_after_a_kill_leaves_no_hole_and_doubles_nothing(
    run: RunInfo, make_run: MakeRun, log_rows: LogRows
) -> None:
    """Killed in the middle of writing row 12 of 15; resumed from 10 to 20, then filled once more."""
    log_rows(run, range(15))
    killed = TensorBoard()
    killed.open(run)
    killed.log([entry for entry in read_entries(run.directory / "metrics.jsonl") if entry.step < 12])
    (file,) = (run.directory / "tensorboard").iterdir()
    whole = file.read_bytes()
    killed.log([entry for entry in read_entries(run.directory / "metrics.jsonl") if entry.step == 12])
    file.write_bytes(file.read_bytes()[: len(whole) + 30])
    assert [step for step, _ in points(load(run), "train/loss")] == list(range(12))
    assert str(parity(TensorBoard(), run)).startswith("of 45 values 9 missing; first: step 12 ")

    resumed = make_run(first_step=10, is_continued=True)
    log_rows(resumed, range(10, 20))
    for _ in range(2):
        assert copy(resumed)["parity"] == "60 values at 20 steps, all equal"
        shown = load(run)
        assert points(shown, "train/loss") == [(step, 1 / (step + 3)) for step in range(20)]
        assert points(shown, "run/exit_code") == [(19, 0.0)]
        assert len(texts(shown, "config")) == 1
    assert [size > 0 for size in sizes(run)] == [False, True], "the file before is empty, older ones are gone"


@pytest.mark.parametrize("removes", [False, True])
def test_rewind_reaches_a_page_that_is_open(
    removes: bool, run: RunInfo, make_run: MakeRun, log_rows: LogRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 5 to 9 are taken back: gone from the file, and from a reader that had read them. Control: a
    reader whose file is removed instead of emptied never gets to the next one."""
    log_rows(run, range(10))
    copy(run)
    page = load(run)
    assert len(points(page, "train/loss")) == 10
    ledger = Ledger(run.directory / "metrics.jsonl", 4, exact=False)
    for step in range(5, 8):
        ledger.write(step, 9.0, {"train/loss": 100.0 + step})
    ledger.close()
    if removes:
        monkeypatch.setattr(module.os, "truncate", lambda file, size: os.unlink(file))
    state = copy(make_run(is_continued=True, rewinds=1))
    assert state["parity"] == "18 values at 8 steps, all equal"
    after = [(step, 1 / (step + 3)) for step in range(5)] + [(step, 100.0 + step) for step in range(5, 8)]
    assert points(load(run), "train/loss") == after
    page.Reload()
    assert (points(page, "train/loss") == after) is not removes


def test_alerts_and_rows_that_come_again_are_stored_once(run: RunInfo) -> None:
    """What is the promise of `idempotent`; the control: a later row is stored."""
    backend = TensorBoard()
    backend.open(run)
    rows = [Entry(Position(step, step), step, 5.0, {"loss": 0.5}) for step in range(1, 4)]
    alert = AlertEntry(Position(9, 4), 3, 5.0, Alert("r", "info", "title", "text"))
    for _ in range(2):
        backend.log(rows[:2])
        backend.alert(alert)
    backend.log(rows)
    assert points(load(run), "loss") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert len(texts(load(run), "alerts")) == 1


def test_full_disk_tears_no_record(run: RunInfo, log_rows: LogRows) -> None:
    """A write that the file system takes only a part of raises, leaves nothing and can be repeated."""
    log_rows(run, range(20))
    rows = list(read_entries(run.directory / "metrics.jsonl"))
    backend = TensorBoard()
    backend.open(run)
    backend.log(rows[:10])
    before = sizes(run)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] + 100, limits[1]))
    try:
        with pytest.raises(OSError, match="disk full"):
            backend.log(rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sizes(run) == before
    backend.log(rows)
    assert [step for step, _ in points(load(run), "train/loss")] == list(range(20))


def test_files_of_others_are_left_alone(run: RunInfo, log_rows: LogRows) -> None:
    """A file that a user's own writer put beside ours."""
    other = run.directory / "tensorboard" / "events.out.tfevents.1764000000.host.1.0"
    other.parent.mkdir()
    other.write_bytes(b"theirs")
    log_rows(run, range(3))
    assert copy(run)["state"] == "closed"
    assert other.read_bytes() == b"theirs"


def test_beside_trackio(tmp_path: Path, run: RunInfo, log_rows: LogRows) -> None:
    """`tracker=[trackio,tensorboard]`: the same rows in both, each compared."""
    pytest.importorskip("trackio")
    config = to_config(compose(["tracker=[trackio,tensorboard]"])).tracker
    trackers = [build(node, f"tracker.{name}")() for name, node in config.items()]
    log_rows(run, range(10), nan=math.nan)
    for tracker in trackers:
        tracker.on_train_start(run)
    for tracker in trackers:
        tracker.close(0)
    states = [tracker.status()[name] for name, tracker in zip(config, trackers, strict=True)]
    assert [state["state"] for state in states] == ["closed", "closed"]
    assert [state["parity"] for state in states] == ["40 values at 10 steps, all equal"] * 2


def test_tensorflow_and_torch_stay_out(tmp_path: Path, run: RunInfo, log_rows: LogRows) -> None:
    """TensorBoard's own writer imports TensorFlow where it finds it: seconds, and a gigabyte. Control:
    the module that stands for it is found, and ends whoever imports it."""
    (tmp_path / "tensorflow.py").write_text("import os; os._exit(3)")
    log_rows(run, range(3))
    code = f"""
import sys
from pathlib import Path
from adamwprune.callbacks.base import RunInfo
from adamwprune.trackers.tensorboard import tensorboard
tracker = tensorboard()
tracker.on_train_start(RunInfo("0123456789ab", "n", "p", None, Path({str(run.directory)!r}), {{}}))
tracker.close(0)
print(tracker.status()["tensorboard"]["parity"], {{"torch"}} & sys.modules.keys(), flush=True)
import tensorflow
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("9 values at 3 steps, all equal set()", 3), done.stderr


def test_missing_package_is_said_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is created; no import is tried."""
    util = sys.modules["importlib.util"]
    find_spec = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name in module.PACKAGES else find_spec(name))
    nodes = to_config(compose(["tracker=tensorboard"])).tracker
    ((name, line),) = missing_packages(nodes)
    assert (name, line) == ("tensorboard", f"pip install '{module.PACKAGES['tensorboard']}'")
