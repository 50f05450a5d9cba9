"""What optimizers and pruners are said to keep, against what they do keep."""

import pytest
import torch
from torch import Tensor, nn

from adamwprune.composition import CONF_DIR
from adamwprune.fit.states import optimizer_bytes, prunable_weights, pruning_bytes_per_weight
from adamwprune.models.gpt2 import GPT2
from adamwprune.optim.param_groups import param_groups
from adamwprune.targets import build
from tests.helpers.runs import configure

OPTIMIZERS = sorted(path.stem for path in (CONF_DIR / "optimizer").glob("*.yaml"))
TINY = {"vocab_size": 30, "block_size": 6, "n_layer": 1, "n_head": 2, "n_embd": 20, "dropout": 0.0}


def groups_of(model):
    return param_groups(model, weight_decay=0.1, decay_embeddings=False)


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(option, marks=() if option in ("muon", "adamwspam") else pytest.mark.slow)
        for option in OPTIMIZERS
    ],
)
def test_optimizer_states_are_those_of_the_real_one(option):
    """Every option, on a GPT-2 with convolutions' and embeddings' shapes, which really takes a step."""
    node = configure(
        "model=gpt2-nano", "data=synthetic_tokens", f"optimizer={option}", "pruning=none"
    ).optimizer
    make = build(node, "optimizer")
    model = nn.ModuleDict({"text": GPT2(**TINY), "image": nn.Conv2d(3, 4, 5)})
    optimizer = make(groups_of(model))
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    real = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
    with torch.device("meta"):
        same = nn.ModuleDict({"text": GPT2(**TINY), "image": nn.Conv2d(3, 4, 5)})
    assert optimizer_bytes(groups_of(same), make) == real > 0


def test_states_of_other_shapes_are_counted_by_dimension():
    """Factors by row and column, squares of one side: what Adafactor and Shampoo keep."""

    class Factored(torch.optim.Optimizer):
        def step(self):
            for parameter in self.param_groups[0]["params"]:
                rows, columns = parameter.shape
                self.state[parameter] |= {"row": torch.zeros(rows, 1), "left": torch.zeros(columns, columns)}

    weight = torch.empty(30, 20, device="meta")
    found = optimizer_bytes([{"params": [weight]}], lambda groups: Factored(groups, {}))
    assert found == 4 * (30 * 1 + 20 * 20)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        pytest.param(["pruning=magnitude"], 1, marks=pytest.mark.slow),  # a bool mask
        pytest.param(["pruning=state", "pruning/mode=soft"], 1, marks=pytest.mark.slow),
        pytest.param(["pruning=movement"], 5, marks=pytest.mark.slow),  # and a float32 sum
        pytest.param(["pruning=state", "pruning/mode=ste"], 5, marks=pytest.mark.slow),  # and a dense copy
        (["pruning=movement", "pruning/mode=ste"], 9),
    ],
)
def test_pruning_keeps_so_many_bytes_a_weight(overrides, expected):
    """By the docstrings of masks.py, sources.py and ste.py."""
    config = configure("data=synthetic_images", *overrides)
    names = ("criterion", "schedule", "selection", "mode")
    parts = {part: build(getattr(config.pruning, part), f"pruning.{part}") for part in names}
    assert pruning_bytes_per_weight(build(config.optimizer, "optimizer"), parts) == expected


def test_prunable_weights_are_those_of_the_pruner():
    """Without embeddings and the tied head, as by default."""
    with torch.device("meta"):
        model = GPT2(**TINY)
    assert prunable_weights(model, [], []) == 12 * 20 * 20
