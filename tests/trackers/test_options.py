"""conf/tracker: the files agree with the functions that they configure, in every form of the choice."""

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from adamwprune.composition import compose, to_config
from adamwprune.targets import problems

OPTIONS = Path(__file__).parents[2] / "conf" / "tracker"
TRACKERS = sorted(file.stem for file in OPTIONS.glob("*.yaml") if file.stem not in ("none", "both"))


def tracker_of(*overrides: str) -> dict[str, Any]:
    return to_config(compose(list(overrides))).tracker


@pytest.mark.parametrize("name", TRACKERS)
def test_file_lists_every_key_with_its_default(name: str) -> None:
    """A key that the function has and the file has not could not be given without a plus sign."""
    (node,) = OmegaConf.to_container(OmegaConf.load(OPTIONS / f"{name}.yaml")).values()
    target = getattr(import_module(f"adamwprune.trackers.{name}"), name)
    assert node.pop("_target_") == f"{target.__module__}.{target.__qualname__}"
    parameters = inspect.signature(target).parameters
    assert list(node) == list(parameters)
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    for key, value in node.items():
        assert "$" in str(value) or value == parameters[key].default, key


@pytest.mark.parametrize("override", ["tracker=both", "tracker=[trackio,wandb]", "tracker=[wandb,trackio]"])
def test_forms_of_both_are_the_same(override: str) -> None:
    """One file per tracker, nested under its name: a list of them is what `both` is."""
    both = tracker_of(override)
    assert both == {**tracker_of("tracker=trackio"), **tracker_of("tracker=wandb")}
    assert all(not problems(node, f"tracker.{name}") for name, node in both.items())


def test_none_is_no_tracker() -> None:
    """The default, too, is an empty mapping."""
    assert tracker_of("tracker=none") == tracker_of() == {}


def test_environment_is_only_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRACKIO_PORT and WANDB_ENTITY fill keys that nobody gave; a key on the command line wins."""
    monkeypatch.setenv("TRACKIO_PORT", "8123")
    monkeypatch.setenv("WANDB_ENTITY", "someone")
    tracker = tracker_of("tracker=both")
    assert (tracker["trackio"]["port"], tracker["wandb"]["entity"]) == (8123, "someone")
    tracker = tracker_of("tracker=both", "tracker.trackio.port=9000", "tracker.wandb.entity=null")
    assert (tracker["trackio"]["port"], tracker["wandb"]["entity"]) == (9000, None)
