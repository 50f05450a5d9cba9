"""Muon: torch's two optimizers, on the parameters that each is for, behind one interface."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from adamwprune.errors import ConfigError
from adamwprune.optim.muon import Muon
from adamwprune.optim.param_groups import group_table, param_groups
from tests.optim import drive


class Network(nn.Module):
    """A convolution, an embedding, two hidden matrices, a norm, and a head, tied or not."""

    def __init__(self, tied):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 6)
        self.convolution = nn.Conv1d(6, 6, 3, padding=1)
        self.first = nn.Linear(6, 12)
        self.norm = nn.LayerNorm(12)
        self.second = nn.Linear(12, 6, bias=False)
        self.head = nn.Linear(6, 7, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        hidden = self.convolution(self.embedding(tokens).T).T
        return self.head(self.second(self.norm(self.first(hidden)).relu()))


def backward(model):
    model.zero_grad()
    tokens = torch.arange(7)
    nn.functional.cross_entropy(model(tokens), (tokens + 1) % 7).backward()


@pytest.mark.parametrize("tied", [True, False])
def test_hidden_matrices_go_to_muon_and_the_rest_to_adamw(tied):
    """By identity: neither embedding nor head, tied or not, no convolution."""
    groups = param_groups(Network(tied), weight_decay=0.1, decay_embeddings=False)
    table = {row["name"]: row["names"] for row in group_table(Muon(groups).param_groups)}
    assert table == {
        "decay/muon": ["first.weight", "second.weight"],
        "decay/adamw": ["convolution.weight"] + ([] if tied else ["head.weight"]),
        "no_decay/adamw": ["embedding.weight", "convolution.bias", "first.bias", "norm.weight", "norm.bias"],
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("adjust_lr", ["match_rms_adamw", "original"])
def test_equals_torch_s_two_optimizers_to_the_bit(tied, adjust_lr):
    """20 steps with a learning rate that changes in each, parameters and state."""
    one = Network(tied)
    two = copy.deepcopy(one)
    groups = param_groups(one, weight_decay=0.1, decay_embeddings=False)
    ours = Muon(groups, lr=0.02, adam_lr=0.003, betas=[0.8, 0.9], adjust_lr=adjust_lr)
    matrices = [two.first.weight, two.second.weight]
    decay = [two.convolution.weight] + ([] if tied else [two.head.weight])
    others = [p for p in two.parameters() if not any(p is q for q in [*matrices, *decay])]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn=adjust_lr)
    adamw = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=0.003,
        betas=(0.8, 0.9),
        fused=True,
    )
    bases = [[group["lr"] for group in o.param_groups] for o in (ours, muon, adamw)]
    for step in range(20):
        for optimizer, base in zip((ours, muon, adamw), bases, strict=True):
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * (1 - step / 40)
        for model in (one, two):
            backward(model)
        ours.step()
        muon.step()
        adamw.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)
        state = muon.state[q] if q in muon.state else adamw.state[q]
        assert ours.state[p].keys() == state.keys()
        assert all(torch.equal(ours.state[p][name], value) for name, value in state.items())


def test_each_kind_has_its_own_learning_rate():
    """The loop reads it from the groups and scales it there."""
    optimizer = Muon(
        param_groups(Network(True), weight_decay=0.1, decay_embeddings=False), lr=0.02, adam_lr=0.003
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.003, 0.003]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


def test_a_model_without_hidden_matrices_is_refused():
    """Of a single layer, which is the head."""
    groups = param_groups(nn.Linear(4, 4), weight_decay=0.0, decay_embeddings=False)
    with pytest.raises(ConfigError, match="choose optimizer=adamw"):
        Muon(groups)


def test_muon_revives_pruned_weights():
    """The update of an entry depends on its whole matrix: mode hard cannot hold it at 0."""
    weight = Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    pruned = torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.no_grad():
        weight[pruned] = 0.0
    optimizer = drive.make("muon", [weight])
    for grad in drive.random_grads(5, 64):
        weight.grad = torch.from_numpy(grad).view(8, 8).clone().masked_fill_(pruned, 0.0)
        optimizer.step()
    assert (weight[pruned] != 0).all()
