"""The files of conf/pruning: what they compose to, and the schema and functions that they name."""

from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from adamwprune import targets
from adamwprune.composition import CONF_DIR, complete, compose, to_config
from adamwprune.config import PruningConfig, to_plain
from adamwprune.errors import ConfigError
from adamwprune.pruning.schedules import Plan

CONF = CONF_DIR / "pruning"
CRITERIA = sorted(file.stem for file in CONF.glob("*.yaml") if file.stem != "none")
PARTS = sorted(file for file in CONF.glob("*/*.yaml") if file.parent.name != "plan")
FILES = sorted(CONF.glob("**/*.yaml"))
FUNCTIONS = {file.stem for file in (CONF_DIR.parent / "adamwprune/pruning/criteria").glob("[a-z]*.py")}
# Keys that conf/pruning/plan holds, once for all criteria.
SHARED = {field.name for field in fields(PruningConfig)} - {
    "criterion",
    "schedule",
    "scope",
    "selection",
    "mode",
}


def name_of(file: Path) -> str:
    return str(file.relative_to(CONF).with_suffix(""))


def pruning(*overrides: str) -> dict[str, Any]:
    """The section `pruning` of a checked configuration."""
    return to_plain(to_config(compose(complete(list(overrides)))))["pruning"]


def loaded(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------- every criterion


def test_every_criterion_has_an_option_and_every_option_a_criterion():
    """Two functions choose what grows back, in mode soft; bitter7 is another name of state."""
    assert set(CRITERIA) == FUNCTIONS - {"grow_momentum", "grow_gradient"} | {"bitter7"}


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_takes_every_part(name):
    """Its own function, and schedule, scope, selection and mode of the command line."""
    chosen = ("schedule=linear", "scope=global", "selection=sorting", "mode=soft")
    found = pruning(f"pruning={name}", *(f"pruning/{choice}" for choice in chosen))
    function = "state" if name == "bitter7" else name
    assert found["criterion"]["_target_"] == f"adamwprune.pruning.criteria.{function}.{function}"
    assert [
        found[part]["_target_"].removeprefix("adamwprune.pruning.") for part in ("schedule", "scope")
    ] == [
        "schedules.linear",
        "scopes.global_.global_",
    ]
    assert [found[part]["_target_"].rpartition(".")[2] for part in ("selection", "mode")] == [
        "sorting",
        "Soft",
    ]
    assert callable(targets.build(found["criterion"], "pruning.criterion"))


def test_defaults_are_the_same_for_all_criteria():
    """What differs between two criteria is the criterion."""
    magnitude, state = pruning("pruning=magnitude"), pruning("pruning=state")
    assert magnitude.pop("criterion") != state.pop("criterion")
    assert magnitude == state
    assert [magnitude[part]["_target_"].rpartition(".")[2] for part in ("schedule", "scope")] == [
        "zhu_gupta",
        "layerwise",
    ]
    assert [magnitude[part]["_target_"].rpartition(".")[2] for part in ("selection", "mode")] == [
        "streaming",
        "Hard",
    ]
    assert (magnitude["start_fraction"], magnitude["end_fraction"]) == (0.25, 0.75)


def test_shared_keys_are_written_once():
    """In the plan; none has them null."""
    holders = [
        file for file in FILES if SHARED & (loaded(file).keys() | loaded(file).get("pruning", {}).keys())
    ]
    assert [name_of(file) for file in holders] == ["none", "plan/ramp"]
    assert loaded(CONF / "plan/ramp.yaml")["pruning"].keys() == SHARED


def test_bitter7_is_another_name_of_state():
    """Node by node."""
    assert pruning("pruning=bitter7") == pruning("pruning=state")


def test_random_masks_follow_the_seed_of_the_run_unless_told():
    """Runs with several seeds have several random masks."""
    assert pruning("pruning=random", "seed=7")["criterion"]["seed"] == 7
    assert pruning("pruning=random", "seed=7", "pruning.criterion.seed=1")["criterion"]["seed"] == 1


@pytest.mark.parametrize(
    "setting", ["random pruning.criterion.seed=-1", "shuffled_state pruning.criterion.q=0.6"]
)
def test_settings_have_their_ranges(setting):
    """A number outside is refused by its key."""
    name, key = setting.split()
    with pytest.raises(ConfigError, match=f"{key}: must be from 0 to"):
        pruning(f"pruning={name}", key)


# ------------------------------------------------------------------------------------------- none


def test_none_has_every_key_of_the_schema_and_all_are_empty():
    """A sweep may set any key for its pruned arms; nothing is pruned by accident."""
    none = loaded(CONF / "none.yaml")
    assert none.keys() == {field.name for field in fields(PruningConfig)}
    assert all(value in (None, []) for value in none.values())


@pytest.mark.parametrize("part", ["schedule=linear", "scope=nm", "selection=sorting", "mode=soft"])
def test_parts_of_no_pruning_are_refused(part):
    """A run that was meant to be pruned does not start dense."""
    with pytest.raises(ConfigError, match=f"pruning/{part}: .* pruning=none prunes nothing"):
        pruning(f"pruning/{part}")
    with pytest.raises(ConfigError, match="prunes nothing"):
        pruning("optimizer=adamwprune", "pruning=none", f"pruning/{part}")


# ------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("file", PARTS, ids=name_of)
def test_every_part_names_a_target_that_takes_its_keys(file):
    """One node, one file, in the group of its kind."""
    ((path, node),) = targets.find_targets(loaded(file), "pruning")
    assert targets.problems(node, path) == []
    assert callable(targets.build(node, path))
    kind = {"schedule": "schedules", "scope": "scopes", "selection": "selection", "mode": "modes"}[
        file.parent.name
    ]
    assert node["_target_"].startswith(f"adamwprune.pruning.{kind}.")


@pytest.mark.parametrize("file", [file for file in PARTS if file.parent.name == "schedule"], ids=name_of)
def test_every_schedule_is_one(file):
    """Plan refuses what does not rise from 0 to 1."""
    schedule = targets.build(loaded(file), "pruning.schedule")
    assert Plan(schedule, 0.9, start_step=0, end_step=100).sparsity(100) == 0.9


@pytest.mark.parametrize("file", [file for file in PARTS if file.parent.name == "scope"], ids=name_of)
def test_every_scope_makes_segments_with_its_defaults(file):
    """At half, which fits N:M too: each scope prunes half of three matrices to a rounding."""
    ((path, node),) = targets.find_targets(loaded(file), "pruning")
    shapes = [(16, 24), (8, 16), (32, 8)]
    segments = targets.build(node, path)(shapes, 0.5)
    tensors = {tensor for segment in segments for tensor in segment.tensors}
    assert tensors == {0, 1, 2}


@pytest.mark.parametrize(("option", "n", "m"), [("nm", 2, 4), ("nm_4_8", 4, 8)])
def test_nm_brings_the_target_that_fits_it(option, n, m):
    """In place of the model's, before anything that is typed."""
    default = pruning("pruning=state", f"pruning/scope={option}")
    assert (default["target_sparsity"], default["scope"]["n"], default["scope"]["m"]) == (0.5, n, m)
    keys = ("pruning.scope.n=1", f"pruning.target_sparsity={1 - 1 / m}")
    typed = pruning("optimizer=adamwprune", f"pruning/scope={option}", *keys)
    assert (typed["target_sparsity"], typed["scope"]["n"]) == (1 - 1 / m, 1)
    assert pruning("optimizer=adamwprune")["target_sparsity"] == 0.9


# ------------------------------------------------------------------------------------- house rules


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_key_is_explained(file):
    """The file says what it is, and a comment stands above each key."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    head = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert head.startswith("# ")
    is_section = {"defaults:", "recipe:", "pruning:"}
    for above, line in pairwise(lines):
        if line and line[0] not in "#-" and not line.startswith("_target_") and line not in is_section:
            assert above.startswith("#"), line
