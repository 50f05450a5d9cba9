"""A run with its ledger, and a home in which no account, no token and no other run exists."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamwprune.callbacks.base import RunInfo
from adamwprune.trackers import mirror
from adamwprune.training.ledger import Ledger
from adamwprune.training.metrics import sanitise

CONFIG = {
    "seed": 1,
    "optimizer": {"_target_": "adamwprune.optim.adamw.adamw", "lr": 1e-3, "betas": [0.9, 0.999]},
    "group": None,
}
ACCOUNTS = (
    "HF_TOKEN",
    "NETRC",
    "TRACKIO_PORT",
    "TRACKIO_SERVER_URL",
    "TRACKIO_SPACE_ID",
    "TRACKIO_STORAGE_MODE",
    "WANDB_API_KEY",
    "WANDB_BASE_URL",
    "WANDB_ENTITY",
    "WANDB_IDENTITY_TOKEN_FILE",
    "WANDB_MODE",
    "WANDB_SWEEP_ID",
)


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ACCOUNTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "wandb"))
    monkeypatch.setattr(mirror, "PAUSE", 0.01)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunInfo]:
    """Make a RunInfo whose directory exists."""

    def make(run_id: str = "0123456789ab", **changes: Any) -> RunInfo:
        directory = tmp_path / "outputs" / run_id
        directory.mkdir(parents=True, exist_ok=True)
        facts = {"name": "lenet5_adamw_20261124", "project": "lenet5-d12f4", "group": None, **changes}
        return RunInfo(run_id=run_id, directory=directory, config=CONFIG, **facts)

    return make


@pytest.fixture
def run(make_run: Callable[..., RunInfo]) -> RunInfo:
    """Make the run that most tests need."""
    return make_run()


@pytest.fixture
def log_rows() -> Callable[..., None]:
    """Log a row per step as the loop does: sanitised, then one line of the ledger."""

    def log(run: RunInfo, steps: range, **extra: Any) -> None:
        # Steps that the file has already are compared, not written: a resumed run replays them.
        ledger = Ledger(run.directory / "metrics.jsonl", step=steps.start - 1)
        for step in steps:
            row = {
                "train/loss": 1 / (step + 3),
                "train/lr": 0.1 + step,
                "sparsity/layer/conv1.weight": step / 7,
            }
            ledger.write(step, 1764000000 + step / 3, sanitise({**row, **extra}))
        ledger.close()

    return log
