"""Clipping within the step against torch's clip_grad_norm_ before it."""

import copy
import itertools

import pytest
import torch
from torch import nn

from adamwprune.pruning.criteria.state import state
from adamwprune.pruning.dense import Dense
from adamwprune.training.clipping import clipped
from tests.pruning import drive
from tests.pruning.drive import same

# One factor is divided by where torch multiplies by its inverse: two roundings of 2^-24 of the gradient, and
# as many in the norm. Adam's step is scale-free but for eps, so a weight moves by 1e-6 of lr more or less.
CLOSE = {"rtol": 1e-5, "atol": 1e-7}


def stepped(make, steps, clip):
    """Weights after some steps, clipped by torch or by `clipped`."""
    model = drive.network()
    optimizer, pruner = make(model), Dense(model)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        drive.backward(model, step)
        clip(model, optimizer, pruner)
    return model, optimizer


def torchs(largest):
    def clip(model, optimizer, pruner):
        nn.utils.clip_grad_norm_(model.parameters(), largest)
        optimizer.step()

    return clip


def ours(largest):
    def clip(model, optimizer, pruner):
        with clipped(optimizer, float(pruner.mask_and_norm_grads_()), largest):
            optimizer.step()

    return clip


@pytest.mark.parametrize(("name", "implementation"), drive.ALL)
def test_it_equals_torchs_clip_and_step(name, implementation):
    """30 steps that are all clipped, weights and state within 1e-5 (see CLOSE), the gradients too."""

    def make(model):
        return drive.optimizer_of(model, name, implementation)

    first, its = stepped(make, 30, torchs(0.05))
    second, other = stepped(make, 30, ours(0.05))
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(q, p, **CLOSE)
        torch.testing.assert_close(q.grad, p.grad, **CLOSE)
        for key, value in drive.shaped_state(its, p).items():
            torch.testing.assert_close(other.state[q][key], value, **CLOSE)
    assert not hasattr(other, "grad_scale")


@pytest.mark.parametrize("implementation", drive.IMPLEMENTATIONS)
@pytest.mark.parametrize("largest", [None, 1e9])
def test_what_needs_no_clipping_is_left_alone_to_the_bit(largest, implementation):
    """torch multiplies by 1, which changes nothing either."""

    def make(model):
        return drive.optimizer_of(model, "adamw", implementation)

    results = [stepped(make, 10, clip)[0] for clip in (torchs(1e9), ours(largest))]
    assert all(same(p, q) for p, q in zip(*(model.parameters() for model in results), strict=True))


def test_control_clipping_matters():
    def make(model):
        return drive.optimizer_of(model, "sgd", "fused")

    first, second = (stepped(make, 3, ours(largest))[0] for largest in (None, 0.05))
    assert not torch.allclose(first[0].weight, second[0].weight, **CLOSE)


@pytest.mark.parametrize("implementation", drive.IMPLEMENTATIONS)
def test_the_optimizer_is_left_as_it_was_also_after_an_error(implementation):
    """A scale that stayed would shrink every later step."""
    model = drive.network()
    optimizer = drive.optimizer_of(model, "adamw", implementation)
    drive.backward(model, 1)
    before = set(vars(optimizer))
    with pytest.raises(ZeroDivisionError), clipped(optimizer, 2.0, 1.0):
        raise ZeroDivisionError
    assert set(vars(optimizer)) == before
    optimizer.step()
    assert set(vars(optimizer)) == before


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_number_format_plays_no_part(default):
    """The kernel reads the scale as float32."""
    model = drive.network()
    optimizer = drive.optimizer_of(model, "adamw", "fused")
    other = copy.deepcopy(model)
    its_optimizer = drive.optimizer_of(other, "adamw", "fused")
    for network in (model, other):
        drive.backward(network, 1)
    with clipped(its_optimizer, 3.0, 1.0):
        its_optimizer.step()
    torch.set_default_dtype(default)
    try:
        with clipped(optimizer, 3.0, 1.0):
            optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(same(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "implementation", "clip"),
    drive.slow_but(
        itertools.product(("sgd", "adamw-amsgrad"), drive.IMPLEMENTATIONS, drive.CLIPS),
        [
            ("sgd", "for-loop", "torch"),
            ("adamw-amsgrad", "foreach", None),
            ("adamw-amsgrad", "fused", "ours"),
        ],
    ),
)
def test_target_zero_equals_no_pruning_to_the_bit(name, implementation, clip):
    """A7, through the same code with and without clipping and accumulation; state included."""
    criterion = {"criterion": state} if name != "sgd" else {}
    results = []
    for is_dense in (False, True):
        model = drive.network()
        optimizer = drive.optimizer_of(
            model, name, implementation, **({} if name == "sgd" else {"betas": (0.9, 0.9)})
        )
        pruner = (
            Dense(model) if is_dense else drive.pruner_of(model, optimizer, target_sparsity=0.0, **criterion)
        )
        drive.train(model, optimizer, pruner, 1, 45, clip=clip, parts=3)
        pruner.verify(45)
        state_of = [v for p in model.parameters() for v in drive.shaped_state(optimizer, p).values()]
        results.append([*model.parameters(), *state_of])
    assert all(same(p, q) for p, q in zip(*results, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_live_gradient_that_is_not_finite_is_seen(value):
    """In both norms; so the loop takes no such step."""
    model = drive.network()
    optimizer = drive.optimizer_of(model, "adamw", "fused")
    pruner = drive.pruner_of(model, optimizer)
    drive.train(model, optimizer, pruner, 1, 65)
    drive.backward(model, 66)
    model[0].weight.grad[pruner.masks["0.weight"]] = value
    assert not pruner.mask_and_norm_grads_().isfinite()
