"""Pruned weights stay exactly +0.0, moments too, whatever the optimizer does."""

import pytest
import torch
from torch import nn

from adamwprune.errors import SparsityError
from adamwprune.pruning.masks import Masks
from adamwprune.pruning.state_view import StateView

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}),
    "nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 1e-2}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "amsgrad": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": True}),
}
IMPLEMENTATIONS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def bits(tensor):
    return tensor.detach().view(torch.int32)


def assert_pruned_are_zero(pruner, optimizer):
    """Weight and state, every bit."""
    for name, parameter in pruner.prunable.items():
        pruned = ~pruner.masks[name]
        moments = [value for value in optimizer.state[parameter].values() if value.shape == parameter.shape]
        assert moments
        for tensor in (parameter, *moments):
            assert not bits(tensor)[pruned].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_pruned_weights_and_moments_stay_zero(name, implementation, steps, make_model, make_pruner, train):
    """Exact: not one bit, with weight decay, clipping and 70 steps or more after the last update."""
    kind, settings = OPTIMIZERS[name]
    model = make_model()
    optimizer = kind(model.parameters(), **settings, **IMPLEMENTATIONS[implementation])
    pruner = make_pruner(model, optimizer, end_step=130)
    train(model, optimizer, pruner, 1, steps, look=lambda step: assert_pruned_are_zero(pruner, optimizer))
    pruner.verify(steps)
    assert pruner.pruned() == 288 + 180
    assert pruner.sparsity() == 0.9


@pytest.mark.parametrize("clip", [None, 0.5])
def test_gradients_of_pruned_weights_are_zero_before_clipping(clip, make_model, make_pruner, train):
    """So they do not eat into the norm; the ancestor masked inside the branch that clips."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    pruner = make_pruner(model, optimizer)
    train(model, optimizer, pruner, 1, 60, clip=clip)
    model(torch.randn(8, 16)).square().sum().backward()
    pruner.mask_grads_()
    for name, parameter in pruner.prunable.items():
        assert not bits(parameter.grad)[~pruner.masks[name]].any()
        assert parameter.grad[pruner.masks[name]].count_nonzero() > 10


def test_control_without_zeroing_the_moments_pruned_weights_drift(
    make_model, make_pruner, train, monkeypatch
):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    pruner = make_pruner(model, optimizer)  # before: it tries whether the optimizer keeps zeros
    monkeypatch.setattr(StateView, "zero_pruned_", lambda *_: None)
    train(model, optimizer, pruner, 1, 60)
    with pytest.raises(SparsityError, match="are not 0"):
        pruner.verify(60)


def test_control_without_masking_gradients_pruned_weights_drift(make_model, make_pruner, train, monkeypatch):
    monkeypatch.setattr(Masks, "zero_grads_", lambda _: None)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    pruner = make_pruner(model, optimizer)
    train(model, optimizer, pruner, 1, 60)
    with pytest.raises(SparsityError, match="are not 0"):
        pruner.verify(60)


def test_channels_last_weights_are_pruned_alike(make_pruner):
    """The layout in memory changes where bits lie, not which weights go."""
    masks = {}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 1))
        model = model.to(memory_format=memory_format)
        optimizer = torch.optim.AdamW(model.parameters())
        pruner = make_pruner(model, optimizer, target_sparsity=0.5, start_step=1, end_step=3, update_every=1)
        for step in range(1, 6):
            optimizer.zero_grad()
            inputs = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(step))
            model(inputs.to(memory_format=memory_format)).square().sum().backward()
            pruner.mask_grads_()
            optimizer.step()
            pruner.after_step(step)
            pruner.verify(step)
        masks[memory_format] = pruner.mask_hash()
        assert pruner.pruned() == 108 + 15
    assert len(set(masks.values())) == 1
