"""The ancestor's AdamWSPAM: its loop, written out, and what it does to the learning rate."""

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from adamwprune.optim.adamw_spam_ancestor import AncestorSPAM
from tests.optim import drive, oracles


@pytest.mark.parametrize(("scale", "weight_decay"), [(1e-3, 0.0), (1.0, 0.1)])
def test_equals_the_ancestor_s_loop_over_two_resets(scale, weight_decay):
    """Against float64, gradients below and above the clipping norm; some 1e-4 learning rates are rounding."""
    grads, lr, weight = drive.random_grads(1200, 200, scale=scale), 1e-3, drive.parameter(200)
    expected = oracles.ancestor_spam(grads, weight.detach().numpy(), lr=lr, weight_decay=weight_decay)
    ours = drive.run(AncestorSPAM([weight], lr=lr, weight_decay=weight_decay), weight, grads)
    assert np.abs(ours - expected).max() / lr < 1e-3


@pytest.mark.parametrize(
    "changed",
    [{"theta": 40.0}, {"spike_z": 2.5}, {"spike_z": None}, {"grad_clip": 0.5}, {"reset_every": 1000}],
    ids=str,
)
def test_the_comparison_sees_each_setting(changed):
    """Control of the test above: any other setting is far out of its bound."""
    grads, lr, weight = drive.random_grads(1200, 200, scale=1.0), 1e-3, drive.parameter(200)
    expected = oracles.ancestor_spam(grads, weight.detach().numpy(), lr=lr)
    ours = drive.run(AncestorSPAM([weight], lr=lr, **changed), weight, grads)
    assert np.abs(ours - expected).max() / lr > 1e-2


def test_a_norm_counts_over_all_groups():
    """Two groups move as one with the same entries."""
    grads = drive.random_grads(60, 20, scale=1.0)
    whole = drive.parameter(20)
    expected = drive.run(AncestorSPAM([whole], reset_every=20), whole, grads)
    halves = [Parameter(part.clone()) for part in drive.parameter(20).detach().split(10)]
    optimizer = AncestorSPAM([{"params": [half]} for half in halves], reset_every=20)
    for grad in grads:
        for half, part in zip(halves, torch.from_numpy(grad).split(10), strict=True):
            half.grad = part.clone()
        optimizer.step()
    assert np.allclose(torch.cat(halves).detach().numpy(), expected[-1], rtol=0, atol=1e-6)


def test_the_learning_rate_is_a_sawtooth_of_mean_one_half():
    """Never multiplied into the group's own; .499 of it on average from the first reset on."""
    weight = Parameter(torch.ones(1))
    optimizer = AncestorSPAM([weight], lr=1e-3)
    applied = []
    for _ in range(1499):
        weight.grad = torch.ones(1)
        optimizer.step()
        applied.append(optimizer.param_groups[0]["applied_lr"])
        assert optimizer.param_groups[0]["lr"] == 1e-3
    assert applied[:499] == [1e-3] * 499
    assert applied[499] == applied[999] == 1e-6
    assert np.mean(applied[499:]) == pytest.approx(0.499e-3, abs=0.001e-3)


def test_calm_steps_fire_too():
    """A z-score above 2 is no rare event: between 2.5 and 5 % of steps of pure noise, rounded outward."""
    grads = np.random.default_rng(0).standard_normal((2000, 100)).astype(np.float32)
    weight = drive.parameter(100)
    optimizer = AncestorSPAM([weight], theta=None, grad_clip=None, reset_every=None)
    fired = 0
    for grad in grads:
        before = optimizer.state[weight]["exp_avg"].clone() if optimizer.state else torch.zeros(100)
        weight.grad = torch.from_numpy(grad)
        optimizer.step()
        unsoftened = 0.9 * before + 0.1 * weight.grad
        fired += not torch.allclose(optimizer.state[weight]["exp_avg"], unsoftened, atol=1e-4)
    assert 0.02 < fired / 2000 < 0.05


def test_reduces_to_fused_amsgrad_to_the_bit():
    """Without clipping, spikes and resets it is torch's own, state included."""
    grads = drive.random_grads(60, 100)
    first, second = drive.parameter(100), drive.parameter(100)
    ours = AncestorSPAM(
        [first], lr=1e-2, weight_decay=0.1, theta=None, spike_z=None, grad_clip=None, reset_every=None
    )
    theirs = torch.optim.AdamW([second], lr=1e-2, weight_decay=0.1, amsgrad=True, fused=True)
    assert np.array_equal(drive.run(ours, first, grads), drive.run(theirs, second, grads))
    for name, value in theirs.state[second].items():
        assert torch.equal(torch.as_tensor(ours.state[first][name], dtype=value.dtype), value)
