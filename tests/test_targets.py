"""`_target_` nodes: checked from source text, then by identity."""

import functools
import subprocess
import sys

import pytest

from adamwprune import targets
from adamwprune.errors import ConfigError

LENET = {"_target_": "adamwprune.models.lenet.LeNet5", "num_classes": 10, "in_channels": 1, "image_size": 28}
ADAMW = {"_target_": "adamwprune.optim.adamw.adamw", "lr": 1e-3, "betas": [0.9, 0.95]}


def test_build_binds_the_keys_and_leaves_positional_parameters_to_code():
    """A node gives a partial that code completes."""
    import torch

    bound = targets.build(ADAMW, "optimizer")
    assert isinstance(bound, functools.partial)
    optimizer = bound([{"params": [torch.nn.Parameter(torch.zeros(2))]}])
    assert optimizer.defaults["betas"] == (0.9, 0.95)


@pytest.mark.parametrize("node", [LENET, ADAMW])
def test_signature_from_source_equals_the_imported_one(node):
    """The ast reader and inspect agree on names and required parameters: an independent oracle."""
    import importlib
    import inspect

    module, _, name = node["_target_"].rpartition(".")
    real = inspect.signature(getattr(importlib.import_module(module), name))
    read = targets.read_parameters(node["_target_"])
    keywords = {n: p for n, p in real.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert read.keys() == keywords.keys()
    assert {n for n, p in read.items() if p.required} == {
        n for n, p in keywords.items() if p.default is p.empty
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": -0.1}, "optimizer.lr=-0.1: must be > 0"),
        ({"lr": True}, "optimizer.lr=true: must be a number"),
        ({"lr": None}, "optimizer.lr=null: must be a number"),
        ({"betas": [0.9]}, "must have 2 values"),
        ({"lrr": 1}, "adamw has no lrr; did you mean lr?"),
        ({"_target_": "adamwprune.optim.adamw.adamv"}, "does not define adamv; did you mean adamw?"),
        ({"_target_": "adamwprune.optim.nope.adamw"}, "there is no module adamwprune.optim.nope"),
        ({"_target_": "adamwprune.optim.adamw.torch"}, "does not define torch"),
        ({"_target_": "os.system"}, "not in this package"),
        ({"_target_": "adamwprune_evil.run"}, "not in this package"),
        ({"_target_": "torch.load"}, "not in this package"),
        ({"_target_": 3}, "must be a dotted name"),
        ({"_target_": "adamw"}, "must be a dotted name"),
        ({"_target_": "adamwprune.optim.adamw.adamw "}, "must be a dotted name"),
        ({"_target_": "adamwprune.optim..adamw"}, "must be a dotted name"),
        ({"_target_": "adamwprune.optim.adamw.adam\uff57"}, "must be a dotted name"),
        ({"_target_": "adamwprune.optim.adamw.adamw\n"}, "adamw\\n': must be a dotted name"),
        ({"_target_": ["os.system"]}, "must be a dotted name"),
        ({"_target_": "adamwprune.optim.sgd.torch.load"}, "there is no module"),
        ({"_target_": "adamwprune.optim.sgd.torch"}, "does not define torch"),
        ({"_target_": "adamwprune.launch.os.system"}, "must be a public name of adamwprune.optim"),
        ({"_target_": "adamwprune.run_directory.claim"}, "must be a public name of adamwprune.optim"),
        ({"_target_": "adamwprune.optim.adamw._adamw"}, "must be a public name of adamwprune.optim"),
        ({"_target_": "adamwprune.optim.adamw.adamw.__call__"}, "must be a public name"),
        ({"_partial_": True}, "adamw has no _partial_"),
        ({"_args_": [1]}, "adamw has no _args_"),
        ({"_recursive_": False}, "adamw has no _recursive_"),
        ({"_convert_": "all"}, "adamw has no _convert_"),
    ],
)
def test_each_wrong_node_is_named_and_nothing_is_built(change, words):
    """One line each, the same from `problems` and from `build`."""
    node = {**ADAMW, **change}
    found = targets.problems(node, "optimizer")
    assert len(found) >= 1
    assert words in "; ".join(found)
    with pytest.raises(ConfigError, match="optimizer"):
        targets.build(node, "optimizer")


def test_required_key_is_named_when_missing():
    """A model without its number of classes."""
    node = {key: value for key, value in LENET.items() if key != "num_classes"}
    assert targets.problems(node, "model") == [
        "model.num_classes: missing; LeNet5 needs it, so give model.num_classes=VALUE"
    ]


def test_user_code_runs_only_when_named_exactly(tmp_path, monkeypatch):
    """An allowed name builds; the same node without it, or with a prefix of it, is refused."""
    (tmp_path / "users_code.py").write_text("def model(*, width: int):\n    return width * 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "users_code.model", "width": 21}
    assert targets.build(node, "model", ["users_code.model"])() == 42
    for allowed in ([], ["users_code"], ["users_code.mode"]):
        with pytest.raises(ConfigError, match="not in this package"):
            targets.build(node, "model", allowed)
    assert targets.problems({**node, "width": "x"}, "model", ["users_code.model"]) == [
        "model.width=x: must be an integer"
    ]


def test_a_users_syntax_error_is_named_with_its_line(tmp_path, monkeypatch):
    """Before anything is imported or created."""
    (tmp_path / "broken_code.py").write_text("import torch\ndef model(*, width: int)\n    return width\n")
    monkeypatch.syspath_prepend(tmp_path)
    (problem,) = targets.problems({"_target_": "broken_code.model"}, "model", ["broken_code.model"])
    assert "broken_code.py, line 2: expected ':'" in problem


def test_checking_imports_nothing():
    """The check of a node leaves torch and the target's module unimported."""
    code = (
        "import sys; from adamwprune import targets;"
        f"assert targets.problems({LENET!r}, 'model') == [];"
        "assert 'torch' not in sys.modules and 'adamwprune.models.lenet' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
