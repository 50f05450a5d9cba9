"""Stable-SPAM: the published update, its resets, and what the project does otherwise."""

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from adamwprune.optim.stable_spam import StableSPAM
from tests.optim import drive, oracles


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("total", [None, 900])
def test_equals_the_update_written_out(published, total):
    """500 steps with two resets, against float64; some 1e-4 learning rates are rounding."""
    grads, lr, weight = drive.random_grads(500, 200), 1e-3, drive.parameter(200)
    settings = {"lr": lr, "weight_decay": 0.1}
    expected = oracles.stable_spam(
        grads, weight.detach().numpy(), gap=200, total=total, published=published, **settings
    )
    optimizer = StableSPAM(
        [weight], reset_every=200, decay_steps=total, published_reset=published, **settings
    )
    assert np.abs(drive.run(optimizer, weight, grads) - expected).max() / lr < 1e-3


@pytest.mark.parametrize(
    "changed",
    [
        {"gamma1": 0.75},
        {"gamma2": 0.99},
        {"gamma3": 0.99},
        {"reset_every": 199},
        {"decay_steps": 5000},
        {"published_reset": True},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_the_comparison_sees_each_setting(changed):
    """Control of the test above: any other setting is far out of its bound."""
    grads, lr, weight = drive.random_grads(500, 200), 1e-3, drive.parameter(200)
    expected = oracles.stable_spam(grads, weight.detach().numpy(), lr=lr, gap=200, published=False)
    optimizer = StableSPAM([weight], **({"lr": lr, "reset_every": 200} | changed))
    assert np.abs(drive.run(optimizer, weight, grads) - expected).max() / lr > 1e-2


def clip_limit_after_reset(steps, **settings):
    """M^ some steps after a reset, in a long run where the largest entry of every gradient is 1."""
    weight = Parameter(torch.zeros(3))
    optimizer = StableSPAM([weight], **settings)
    for step in range(steps + 1):
        if step == 1:  # 9,999 steps later
            optimizer.param_groups[0]["steps"] = 9_999
            optimizer.state[weight].update(mean_max=torch.ones(()), norm_step=9_999)
        weight.grad = torch.tensor([1.0, -0.5, 0.2])
        optimizer.step()
    state = optimizer.state[weight]
    return state["mean_max"].item() / (1 - 0.999 ** state["norm_step"])


@pytest.mark.parametrize(("steps", "published"), [(100, 10.5), (500, 2.54)])
def test_the_published_reset_turns_adaclip_off(steps, published):
    """Its M^ is 10 times too large 100 steps after a reset; with a counter of its own it is right."""
    assert clip_limit_after_reset(steps, published_reset=True) == pytest.approx(published, rel=0.01)
    assert clip_limit_after_reset(steps) == pytest.approx(1.0, rel=1e-4)


def test_a_spike_is_clipped_to_the_usual_largest_entry():
    """The same norm afterwards, too: a spike of 1,000 is seen by AdamW as nothing special."""
    weight = Parameter(torch.zeros(4))
    optimizer = StableSPAM([weight], gamma1=None)
    for spike in [1.0] * 50 + [1000.0]:
        weight.grad = torch.tensor([spike, 0.5, 0.5, 0.5])
        optimizer.step()
    # M^ = (50 + the last, each by its weight) with gamma3 = .999.
    limit = (1 - 0.999**50 + 0) / (1 - 0.999**51) * 0.999 + 0.001 * 1000 / (1 - 0.999**51)
    new = (optimizer.state[weight]["exp_avg"][0].item() - 0.9 * (1 - 0.9**50)) / 0.1
    assert new == pytest.approx(limit, rel=1e-3)
    assert new < 25


def test_a_tensor_without_gradient_entries_stays_and_recovers():
    """Zero gradients are not divided by their norm, at the start and later."""
    weight = Parameter(torch.ones(4))
    optimizer = StableSPAM([weight], weight_decay=0.0)
    for size in [0.0] * 5 + [1.0] * 5 + [0.0] * 5:
        weight.grad = torch.full((4,), size)
        optimizer.step()
        assert torch.isfinite(weight).all()
        assert size or optimizer.state[weight]["step"] > 5 or torch.equal(weight, torch.ones(4))
    assert (weight < 1).all()


def test_moments_of_different_tensors_are_alike_whatever_their_gradients():
    """Why scores that read v must not be ranked across tensors, and that the optimizer says so."""
    for gamma1, ratio in ((0.7, 1.0), (None, 1e6)):
        weights = [Parameter(torch.zeros(8)), Parameter(torch.zeros(8))]
        optimizer = StableSPAM(weights, gamma1=gamma1)
        for _ in range(5):
            for weight, size in zip(weights, (1.0, 1000.0), strict=True):
                weight.grad = torch.full((8,), size)
            optimizer.step()
        small, large = (optimizer.state[weight]["exp_avg_sq"].mean().item() for weight in weights)
        assert large / small == pytest.approx(ratio, rel=1e-4)
        assert optimizer.normalizes_per_tensor is (gamma1 is not None)


# ------------------------------------------------------------------------------------------- reduction

OFF = {"gamma1": None, "gamma3": None, "reset_every": None}


def test_reduces_to_fused_adamw_to_the_bit():
    """Without AdaClip, AdaGN and resets it is torch's own, state included."""
    grads = drive.random_grads(60, 100)
    first, second = drive.parameter(100), drive.parameter(100)
    ours = StableSPAM([first], lr=1e-2, weight_decay=0.1, **OFF)
    theirs = torch.optim.AdamW([second], lr=1e-2, weight_decay=0.1, fused=True)
    assert np.array_equal(drive.run(ours, first, grads), drive.run(theirs, second, grads))
    for name, value in theirs.state[second].items():
        assert torch.equal(torch.as_tensor(ours.state[first][name], dtype=value.dtype), value)


def test_reduces_to_adamw_on_unit_gradients():
    """With gammas of 0 both parts look at the present gradient alone: nothing is clipped, norms are 1."""
    grads = drive.random_grads(60, 100)
    unit = grads / np.linalg.norm(grads, axis=1, keepdims=True)
    first, second = drive.parameter(100), drive.parameter(100)
    ours = StableSPAM([first], lr=1e-2, gamma1=0.0, gamma2=0.0, gamma3=0.0, reset_every=None)
    theirs = torch.optim.AdamW([second], lr=1e-2, weight_decay=0.0, fused=True)
    moves = drive.run(ours, first, grads) - drive.run(theirs, second, unit)
    assert np.abs(moves).max() / 1e-2 < 1e-3
