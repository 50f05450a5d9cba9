"""`test`: it passes where a tracker works, and says what is off where it does not."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamwprune.track import fake_training
from adamwprune.track.__main__ import main
from adamwprune.track.fake_training import fake_rows
from adamwprune.trackers.loopback import ServedRun
from adamwprune.trackers.trackio import Trackio

pytest.importorskip("trackio")
pytest.importorskip("wandb")
Out = pytest.CaptureFixture[str]
ALL = "7000 values at 1000 steps, all equal"


def folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "temporary").glob("adamwprune-test-*"))


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(fake_training.tempfile, "tempdir", str(tmp_path / "temporary"))


def test_the_fake_training_is_that_of_its_formulas() -> None:
    """1,000 steps, the same each time; noise and limits where they belong."""
    rows = dict(fake_rows())
    assert rows == dict(fake_rows()) != dict(fake_rows(seed=2))
    assert list(rows) == list(range(1, 1001))
    noise = [row["train/loss"] - 2.5 * math.exp(-2 * step / 1000) for step, row in rows.items()]
    assert sum(noise) / 1000 == pytest.approx(0.1, abs=0.003)
    for step, row in rows.items():
        assert row["val/perplexity"] == math.exp(row["train/loss"])
        assert row["train/lr"] == pytest.approx(1e-3 * math.exp(-step / 2000))
        assert abs(row["memory/peak_gib"] * 1024 - 2000) <= 100
    assert rows[1000]["sparsity/global"] == pytest.approx(0.5 * (1 - math.exp(-3)))
    assert rows[1000]["val/accuracy"] == pytest.approx(0.1 + 0.85 * (1 - math.exp(-1.5)))
    assert max(row["val/accuracy"] for row in rows.values()) <= 0.95


def test_both_trackers_pass_and_leave_nothing(
    tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the user's own store either; with --keep the folder stays."""
    monkeypatch.setenv("WANDB_API_KEY", "the user's own")
    assert main(["test", "trackio", "wandb"]) == 0
    said = capsys.readouterr().out
    assert said.count("pass in ") == 2
    assert said.count(f"  its store: {ALL}\n") == said.count(f"  metrics.jsonl: {ALL}\n") == 2
    assert said.count(f"  the server: {ALL}\n") == 1
    assert os.environ["WANDB_API_KEY"] == "the user's own"
    assert folders(tmp_path) == []
    assert not Path(os.environ["TRACKIO_DIR"]).exists()

    assert main(["test", "trackio", "--keep"]) == 0
    (folder,) = folders(tmp_path)
    assert str(folder) in capsys.readouterr().out
    assert (folder / "trackio" / "adamwprune-test.db").exists()


def drop_a_row(log: Callable[..., None]) -> Callable[..., None]:
    return lambda self, entries: log(self, [entry for entry in entries if entry.step != 500])


def change_a_value(log: Callable[..., None]) -> Callable[..., None]:
    def changed(self: Trackio, entries: list[Any]) -> None:
        log(self, [e._replace(row={**e.row, "train/lr": 1.0}) if e.step == 500 else e for e in entries])

    return changed


@pytest.mark.parametrize(
    ("sabotage", "words"),
    [
        (drop_a_row, "of 7000 values 7 missing; first: step 500 memory/peak_gib"),
        (change_a_value, "of 7000 values 1 different; first: step 500 train/lr"),
    ],
)
def test_a_tracker_that_loses_or_changes_one_value_fails(
    capsys: Out, monkeypatch: pytest.MonkeyPatch, sabotage: Callable[..., Any], words: str
) -> None:
    monkeypatch.setattr(Trackio, "log", sabotage(Trackio.log))
    assert main(["test", "trackio"]) == 6
    said = capsys.readouterr().out
    assert said.startswith("trackio: FAIL")
    assert words in said
    assert f"  metrics.jsonl: {ALL}\n" in said


def test_a_server_that_loses_a_row_fails(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's own file has it: only the server's side shows the loss."""
    real = ServedRun.take

    def lossy(self: ServedRun, body: dict[str, Any]) -> None:
        real(self, body)
        self.rows = [row for row in self.rows if row.get("trainer/step") != 500]

    monkeypatch.setattr(ServedRun, "take", lossy)
    assert main(["test", "wandb"]) == 6
    assert "the server: of 7000 values" in capsys.readouterr().out


def test_the_real_server_is_asked_for_on_purpose_only(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    """With WANDB_ONLINE=1 it says so; without an account that is no pass, although the run is kept here."""
    monkeypatch.setenv("WANDB_ONLINE", "1")
    assert main(["test", "wandb"]) == 6
    said = capsys.readouterr().out
    assert said.startswith("wandb: WANDB_ONLINE=1: a run on the real server")
    assert "wandb: FAIL" in said
    assert "  the server: not reached: no key in WANDB_API_KEY or netrc" in said


def test_a_tracker_that_does_not_open_fails(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no such device")

    monkeypatch.setattr(Trackio, "open", refuse)
    assert main(["test", "trackio"]) == 6
    assert "  open OSError: no such device\n" in capsys.readouterr().out


def test_it_imports_no_torch_and_asks_for_nothing(tmp_path: Path) -> None:
    """In a process of its own, without an account, a terminal or torch."""
    code = (
        "import sys; sys.modules['torch'] = None; from adamwprune.track.__main__ import main; "
        "sys.exit(main(['test', 'trackio', 'wandb']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pass in") == 2
