"""`import-wandb`: offline runs of other programs, and our own, in Trackio; twice is once."""

import math
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from adamwprune.errors import CheckpointError
from adamwprune.track.__main__ import main
from adamwprune.track.import_wandb import read_wandb
from adamwprune.trackers.wandb_files import read_run
from tests.helpers import trackio_store
from tests.track.made import PROJECT

wandb = pytest.importorskip("wandb")
pytest.importorskip("trackio")
Make = Callable[..., Any]
Out = pytest.CaptureFixture[str]


def write_foreign(folder: Path, run_id: str = "uq27ti54", steps: range = range(5), end: bool = True) -> Path:
    """An offline run as another program makes it: W&B's own steps, nested names, an image of a kind."""
    run = wandb.init(
        project="theirs",
        id=run_id,
        name="their run",
        group="their group",
        config={"lr": 0.1, "model": {"depth": 3}},
        mode="offline",
        dir=str(folder),
        reinit="create_new",
        settings=wandb.Settings(silent=True, x_disable_stats=True, x_transaction_log_flush_interval=0.1),
    )
    for step in steps:
        bad = math.nan if step == 3 else 1 / (step + 3)
        run.log({"loss": bad, "nested": {"a": step}, "histogram": wandb.Histogram([1, 2, 3])}, step=10 * step)
    run.summary["note"] = "the best of all"
    run.finish(exit_code=0 if end else 3)
    directory = Path(run.settings.sync_dir)
    read_run(directory)  # until it is whole: W&B's process may write the end a moment later
    return directory


def stored(run_id: str, project: str) -> trackio_store.StoredRun:
    return trackio_store.read_run(Path(os.environ["TRACKIO_DIR"]) / f"{project}.db", run_id)


def test_a_run_of_another_program(tmp_path: Path, capsys: Out) -> None:
    """Steps, times, values, configuration, name, group and end; a second import adds no row."""
    directory = write_foreign(tmp_path)
    for _ in range(2):
        assert main(["import-wandb", str(directory)]) == 0
    found = stored("uq27ti54", "theirs")
    truth = read_wandb(directory).rows
    assert [(step, values) for step, _, values in found.series] == [
        (10 * step, {"loss": "NaN" if step == 3 else 1 / (step + 3), "nested.a": step}) for step in range(5)
    ]
    times = [datetime.fromisoformat(time).timestamp() for _, time, _ in found.series]
    assert times == pytest.approx([row.time for row in truth], abs=1e-6)
    assert found.name == "their run"
    assert (found.config["lr"], found.config["model.depth"]) == (0.1, 3)
    assert found.config["_Group"] == "their group"
    finals = {"final/note": "the best of all", "run/status": "finished", "run/exit_code": 0}
    assert found.ends == [(40, finals)]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == said[2] == "theirs/their run: 5 rows, exit code 0"
    assert said[1] == "  trackio: nothing to read before; now 10 values at 5 steps, all equal"
    assert said[3] == "  trackio: 10 values at 5 steps, all equal"


def test_sessions_of_one_run_are_one_run(tmp_path: Path) -> None:
    """An offline resume is a second file; a step that is there twice has its last values."""
    first = write_foreign(tmp_path, steps=range(5), end=False)
    assert read_wandb(first).exit_code == 3
    second = write_foreign(tmp_path, steps=range(4, 8))
    assert first != second
    assert first.parent == second.parent
    found = read_wandb(first.parent)
    assert [row.step for row in found.rows] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert [row.end.line for row in found.rows] == list(range(1, 9))
    assert found.exit_code == 0
    assert read_wandb(first) == read_wandb(second) == found, "a session is no run of its own"


def test_a_run_of_ours_keeps_its_steps(make: Make, tmp_path: Path) -> None:
    """`trainer/step` is the step, not W&B's count of calls; values to the bit."""
    directory = make("a", "wandb").log(range(3, 31, 3)).end()
    assert main(["import-wandb", str(directory / "wandb")]) == 0
    (run_id,) = {part.name.rpartition("-")[2] for part in (directory / "wandb").glob("offline-run-*")}
    found = stored(run_id, PROJECT)
    assert [step for step, _, _ in found.series] == list(range(3, 31, 3))
    assert main(["diff", str(directory), str(next(directory.glob("wandb/offline-run-*/*.wandb")))]) == 0


def test_what_is_no_run_of_wandb_is_refused(tmp_path: Path) -> None:
    """No file, another file, several runs at once: nothing is written."""
    with pytest.raises(CheckpointError, match="no W&B run there"):
        main(["import-wandb", str(tmp_path)])
    (tmp_path / "x.wandb").write_text("no such thing")
    with pytest.raises(CheckpointError, match=r"x\.wandb: not a \.wandb file"):
        main(["import-wandb", str(tmp_path)])
    (tmp_path / "x.wandb").unlink()
    folder = write_foreign(tmp_path, "aaaaaaaa").parent
    write_foreign(tmp_path, "bbbbbbbb")
    with pytest.raises(CheckpointError, match="holds the runs aaaaaaaa, bbbbbbbb"):
        main(["import-wandb", str(folder)])
    assert not Path(os.environ["TRACKIO_DIR"]).exists()


def test_any_part_of_a_resumed_run_brings_all_of_it(tmp_path: Path, capsys: Out) -> None:
    """Two sessions of one id, given one by one, together as a shell's * does, and the other way round."""
    first = write_foreign(tmp_path, steps=range(3))
    second = write_foreign(tmp_path, steps=range(3, 5))
    for given in ([first], [second], [second, first]):
        assert main(["import-wandb", *map(str, given)]) == 0
        assert [step for step, *_ in stored("uq27ti54", "theirs").series] == [0, 10, 20, 30, 40]
