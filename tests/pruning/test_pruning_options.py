"""The files of conf/pruning against the schema and the functions that they name."""

from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from adamwprune import targets
from adamwprune.config import PruningConfig

CONF = Path(__file__).parents[2] / "conf" / "pruning"
OPTIONS = sorted(CONF.glob("*.yaml"))
PARTS = sorted(CONF.glob("*/*.yaml"))


@pytest.mark.parametrize("file", OPTIONS, ids=lambda file: file.stem)
def test_every_option_has_the_keys_of_the_schema(file):
    """Also none: a sweep may set any key for its pruned arms."""
    keys = yaml.safe_load(file.read_text()).keys() - {"defaults"}
    parts = {"schedule", "scope"} if file.stem != "none" else set()
    assert keys == {field.name for field in fields(PruningConfig)} - parts


@pytest.mark.parametrize("file", OPTIONS + PARTS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_target_exists_and_takes_its_keys(file):
    tree = yaml.safe_load(file.read_text())
    found = list(targets.find_targets(tree, "pruning"))
    assert len(found) == (0 if file.stem == "none" else 1)
    for path, node in found:
        assert targets.problems(node, path) == []
        assert callable(targets.build(node, path))


@pytest.mark.parametrize("file", OPTIONS + PARTS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_key_is_explained(file):
    lines = [line.strip() for line in file.read_text().splitlines()]
    assert lines[0].startswith("# ")
    for above, line in pairwise(lines):
        if line and line[0] not in "#-" and not line.startswith("_target_"):
            assert above.startswith("#"), line


def test_no_option_prunes_by_accident():
    assert all(value in (None, []) for value in yaml.safe_load((CONF / "none.yaml").read_text()).values())
