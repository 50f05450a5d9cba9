"""What every test starts from: no account, no token, no state of Hydra's, one thread."""

import os

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hypothesis import settings

# Before torch is imported: as many test processes as cores, with one thread each, do not spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# pytest --hypothesis-profile=slow: ten times as many examples of the properties that say tried(n).
settings.register_profile("slow", max_examples=10 * settings.default.max_examples, deadline=None)

_SECRETS = (
    "HF_TOKEN",
    "WANDB_API_KEY",
    "TRACKIO_SPACE_ID",
    "TRACKIO_SERVER_URL",
    "WANDB_MODE",
    "WANDB_ENTITY",
)


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory, monkeypatch):
    """An empty HOME, tracker folders of the test's own, no tokens."""
    home = tmp_path_factory.mktemp("home")
    for name in _SECRETS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TRACKIO_DIR", str(home / "trackio"))
    monkeypatch.setenv("ADAMWPRUNE_OUTPUTS", str(tmp_path_factory.getbasetemp()))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR", str(home / "matplotlib")))


@pytest.fixture(autouse=True)
def _no_hydra_state():
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
