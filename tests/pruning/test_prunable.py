"""Which weights are pruned, by module and identity and never by a list of names."""

import pytest
import torch
from torch import nn

from adamwprune.errors import ConfigError
from adamwprune.pruning.prunable import find_prunable


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv, self.up = nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 2)
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 2)


class LanguageModel(nn.Module):
    """Tied embedding and head, and one matrix that two layers share."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(9, 4), nn.Embedding(5, 4)
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(4, 4))
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.tokens.weight


def test_default_set_of_a_convolutional_net():
    prunable, excluded = find_prunable(ConvNet())
    assert list(prunable) == ["conv.weight", "up.weight", "hidden.weight"]
    assert excluded["stem.weight"] == "first convolution"
    assert excluded["head.weight"] == "output head"
    assert excluded["norm.weight"] == excluded["hidden.bias"] == "bias, norm or scale"


def test_default_set_of_a_language_model_has_each_tied_weight_once():
    model = LanguageModel()
    prunable, excluded = find_prunable(model)
    assert list(prunable) == ["first.weight", "third.weight"]
    assert prunable["first.weight"] is model.second.weight
    assert excluded["tokens.weight"] == "embedding, or tied to one"
    assert excluded["positions.weight"] == "embedding, or tied to one"
    assert excluded["scale"] == "not the weight of a Linear or Conv layer"
    assert len(prunable) + len(excluded) == len(list(model.parameters()))


def test_patterns_opt_in_and_out_and_out_wins():
    prunable, excluded = find_prunable(
        ConvNet(), include=["stem.*", "head.weight"], exclude=["*up*", "head*"]
    )
    assert list(prunable) == ["stem.weight", "conv.weight", "hidden.weight"]
    assert excluded["up.weight"] == excluded["head.weight"] == "pruning.exclude"


@pytest.mark.parametrize("name", ["tokens.weight", "head.weight"])
def test_any_name_of_a_tied_weight_will_do(name):
    assert "tokens.weight" in find_prunable(LanguageModel(), include=[name])[0]
    assert "second.weight" not in find_prunable(LanguageModel(), include=["second.weight"])[0]


def test_biases_and_norms_cannot_be_opted_in():
    assert find_prunable(ConvNet(), include=["*"])[0].keys() == {
        "stem.weight", "conv.weight", "up.weight", "hidden.weight", "head.weight",
    }  # fmt: skip


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names(key):
    with pytest.raises(ConfigError, match=rf"pruning\.{key}=hiden\.weight: .*nearest: hidden\.weight"):
        find_prunable(ConvNet(), **{key: ["hiden.weight"]})
