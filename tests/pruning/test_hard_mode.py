"""Pruned weights stay exactly +0.0, moments too: what decides that. test_matrix.py has the combinations."""

import copy

import pytest
import torch
from torch import nn

from adamwprune.errors import SparsityError
from adamwprune.pruning.modes.hard import Hard
from adamwprune.pruning.schedules import constant
from adamwprune.pruning.state_view import StateView
from tests.pruning import drive
from tests.pruning.drive import bits


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
    monkeypatch.setattr(Hard, "gradient_masks", lambda _: {})
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


@pytest.mark.parametrize("implementation", drive.IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["nesterov", "adamw-amsgrad"])
def test_a_plan_that_starts_sparse_never_has_a_moment(name, implementation):
    """Pruned when there is no state yet to zero: gradients are masked from the first step on."""
    model = drive.network()
    optimizer = drive.optimizer_of(model, name, implementation)
    pruner = drive.pruner_of(model, optimizer, schedule=constant)
    assert pruner.after_step(0).pruned == 173 + 115
    drive.train(model, optimizer, pruner, 1, 30, look=lambda step: drive.assert_hard(pruner, optimizer, step))


def test_a_gradient_of_minus_zero_moves_no_weight():
    """What norm and mask in one pass leave; torch's SGD even starts its buffer with it. Weights are +0.0."""
    model = drive.network()
    optimizer = drive.optimizer_of(model, "nesterov", "foreach", weight_decay=0.0)
    pruner = drive.pruner_of(model, optimizer, schedule=constant)
    pruner.after_step(0)
    signs = set()

    def look(step):
        for name, parameter in pruner.prunable.items():
            pruned = ~pruner.masks[name]
            assert not bits(parameter)[pruned].any()
            assert not optimizer.state[parameter]["momentum_buffer"][pruned].any()
            signs.update(parameter.grad[pruned].signbit().tolist())

    drive.train(model, optimizer, pruner, 1, 30, clip="ours", look=look)
    assert signs == {True, False}


def test_without_any_state_the_gradient_mask_is_enough():
    """Plain SGD keeps nothing that could move a weight."""
    model = drive.network()
    optimizer = drive.optimizer_of(model, "sgd", "foreach", momentum=0.0)
    pruner = drive.pruner_of(model, optimizer)
    drive.train(
        model,
        optimizer,
        pruner,
        1,
        70,
        look=lambda step: drive.assert_hard(pruner, optimizer, step, least_states=0),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_number_formats_keep_the_invariant(dtype):
    """Every bit of 2 and of 8 bytes."""
    model = drive.network().to(dtype)
    optimizer = drive.optimizer_of(model, "adamw", "foreach", eps=1e-4)
    pruner = drive.pruner_of(model, optimizer)
    for step in range(1, 71):
        optimizer.zero_grad()
        inputs = torch.randn(6, 12, generator=torch.Generator().manual_seed(step)).to(dtype)
        model(inputs).square().mean().backward()
        pruner.mask_and_norm_grads_()
        optimizer.step()
        pruner.after_step(step)
        drive.assert_hard(pruner, optimizer, step, least_states=2)
    assert pruner.sparsity() == 0.9


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.Rprop, torch.optim.ASGD])
def test_state_of_other_shapes_is_left_alone(kind):
    """Row and column means, scalars, and counts that are 0-dim tensors; zeros stay all the same."""
    model = drive.network()
    optimizer = kind(model.parameters(), lr=1e-2)
    pruner = drive.pruner_of(model, optimizer)
    drive.train(model, optimizer, pruner, 1, 70, look=pruner.verify)
    for parameter in pruner.prunable.values():
        others = [t for t in optimizer.state[parameter].values() if t.shape != parameter.shape]
        assert others
        assert all(bool((t != 0).any()) for t in others)


def test_frozen_weights_and_scalars_go_along():
    """A weight without gradient is pruned by its magnitude; a 0-dim parameter has a norm like any other."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.scale = drive.network(), nn.Parameter(torch.tensor(2.0))

        def forward(self, inputs):
            return self.network(inputs) * self.scale

    model = Scaled()
    model.network[0].weight.requires_grad_(False)
    optimizer = drive.optimizer_of(model, "adamw", "fused")
    pruner = drive.pruner_of(model, optimizer)
    drive.train(model, optimizer, pruner, 1, 70, clip="ours", look=pruner.verify)
    assert pruner.pruned() == 173 + 115
    assert model.scale != 2.0


def test_an_optimizer_that_loads_its_own_state_keeps_the_zeros():
    """In the middle of the ramp: the tensors are others, the pruner reads them anew."""
    model = drive.network()
    optimizer = drive.optimizer_of(model, "adamw", "fused")
    pruner = drive.pruner_of(model, optimizer)
    drive.train(model, optimizer, pruner, 1, 42)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    drive.train(
        model, optimizer, pruner, 43, 70, look=lambda step: drive.assert_hard(pruner, optimizer, step)
    )


def test_control_state_from_before_an_update_revives_what_it_pruned():
    """Loading an optimizer's state without the pruner's is no resume; verification tells."""
    model = drive.network()
    optimizer = drive.optimizer_of(model, "adamw", "fused")
    pruner = drive.pruner_of(model, optimizer)
    drive.train(model, optimizer, pruner, 1, 30)
    early = copy.deepcopy(optimizer.state_dict())
    drive.train(model, optimizer, pruner, 31, 65)
    optimizer.load_state_dict(early)
    drive.train(model, optimizer, pruner, 66, 66)
    with pytest.raises(SparsityError, match="are not 0"):
        pruner.verify(66)
