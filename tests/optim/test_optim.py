"""Optimizers: torch's own update, fused; decay groups by identity."""

import pytest
import torch
from torch import nn

from adamwprune.optim.adam import adam
from adamwprune.optim.adamw import adamw
from adamwprune.optim.param_groups import group_table, param_groups
from adamwprune.optim.sgd import sgd


class Tied(nn.Module):
    """An embedding tied to the head, a norm, a block and a frozen weight."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.block = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.norm(self.frozen(self.block(self.embedding(tokens)))))


def names(groups):
    return {group["name"]: group["names"] for group in groups}


def test_groups_by_identity():
    """Matrices decay; biases, norms and the tied embedding do not; each parameter once."""
    groups = param_groups(Tied(), weight_decay=0.1, decay_embeddings=False)
    assert names(groups) == {
        "decay": ["block.weight"],
        "no_decay": ["embedding.weight", "block.bias", "norm.weight", "norm.bias"],
    }
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_embeddings_decay_on_request():
    """The switch moves the tied weight, once."""
    groups = param_groups(Tied(), weight_decay=0.1, decay_embeddings=True)
    assert names(groups)["decay"] == ["embedding.weight", "block.weight"]


def test_group_table_counts_every_trained_parameter_once():
    """The table of the run record adds up."""
    model = Tied()
    table = group_table(param_groups(model, weight_decay=0.1, decay_embeddings=False))
    assert sum(row["parameters"] for row in table) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (sgd, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (adam, torch.optim.Adam, {"lr": 1e-2, "betas": [0.9, 0.95], "amsgrad": True}),
        (adamw, torch.optim.AdamW, {"lr": 1e-2, "betas": [0.9, 0.95], "eps": 1e-7}),
    ],
)
def test_equals_torch_on_hand_made_groups(ours, theirs, settings):
    """20 steps, parameters and state; fused against fused, so bitwise."""
    torch.manual_seed(0)
    first, second = Tied(), Tied()
    second.load_state_dict(first.state_dict())
    a = ours(param_groups(first, weight_decay=0.3, decay_embeddings=False), **settings)
    betas = {"betas": tuple(settings["betas"])} if "betas" in settings else {}
    no_decay = [second.embedding.weight, second.block.bias, second.norm.weight, second.norm.bias]
    b = theirs(
        [{"params": [second.block.weight], "weight_decay": 0.3}, {"params": no_decay, "weight_decay": 0.0}],
        fused=True,
        **{**settings, **betas},
    )
    tokens = torch.randint(7, (5,))
    for _ in range(20):
        for model, optimizer in ((first, a), (second, b)):
            optimizer.zero_grad()
            model(tokens).square().mean().backward()
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    for p, q in (
        (first.block.weight, second.block.weight),
        (first.embedding.weight, second.embedding.weight),
    ):
        assert a.state[p].keys() == b.state[q].keys()
        assert all(
            torch.equal(a.state[p][key], b.state[q][key]) for key in a.state[p] if a.state[p][key] is not None
        )


def test_a_tied_weight_moves_as_once():
    """The ancestor stepped it twice under its wrapper: 0.1095 instead of 0.0549."""
    model = Tied()
    before = model.embedding.weight.clone()
    optimizer = sgd(
        param_groups(model, weight_decay=0.0, decay_embeddings=False), lr=0.5, momentum=0.0, weight_decay=0.0
    )
    model(torch.arange(7)).sum().backward()
    gradient = model.embedding.weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(model.embedding.weight, before - 0.5 * gradient, rtol=1e-6, atol=1e-7)
