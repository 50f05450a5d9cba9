"""Runs that begin where a test says so, a home without accounts, one W&B process for all."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adamwprune.trackers import mirror
from tests.track.made import Made

ACCOUNTS = ("NETRC", "TRACKIO_PORT", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_ONLINE")


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ACCOUNTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setattr(mirror, "PAUSE", 0.01)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def _wandb_process() -> Iterator[None]:
    """End W&B's process, which all runs here share."""
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Made]]:
    """Make a run that begins: `make("a", "trackio", seed=2).log(range(1, 31)).end()`."""
    all_made: list[Made] = []

    def made(name: str, *trackers: str, **keys: Any) -> Made:
        all_made.append(Made(tmp_path / "outputs" / "2026-11-24" / name, *trackers, **keys))
        return all_made[-1]

    yield made
    for run in all_made:
        for tracker in run.trackers.values():
            tracker.finish(0)  # of a test that left the run running: its threads end
