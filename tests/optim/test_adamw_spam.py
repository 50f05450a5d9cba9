"""SPAM: the published update, the schedule of its resets, and what the project does otherwise."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from adamwprune.optim.adamw_spam import AdamWSPAM
from tests.optim import drive, oracles

PUBLISHED = {"reset_step": False, "clip_zero_v": True}


def worst(ours, oracle, lr):
    """Largest deviation, in units of the learning rate: of what a step may move a weight."""
    return np.abs(ours - oracle).max() / lr


# ------------------------------------------------------------------------------ the published update


def late_grads():
    """1,200 steps with spikes, and an entry whose gradient starts late."""
    grads = drive.random_grads(1200, 200)
    grads[:60, 0] = 0.0
    return grads


@pytest.mark.parametrize(("weight_decay", "bound"), [(0.0, 1e-3), (0.1, 5e-3)])
def test_equals_the_published_update_over_two_resets(weight_decay, bound):
    """Against float64. Float32 rounds 1,200 sums of weights of .05: some 1e-7, or 1e-4 learning rates.

    It also rounds 1 - lr * weight_decay, by 2e-8 in the same direction in each step: 2e-3 of them.
    """
    grads, lr, weight = late_grads(), 1e-3, drive.parameter(200)
    expected = oracles.spam(grads, weight.detach().numpy(), lr=lr, weight_decay=weight_decay)
    ours = drive.run(AdamWSPAM([weight], lr=lr, weight_decay=weight_decay, **PUBLISHED), weight, grads)
    assert worst(ours, expected, lr) < bound


@pytest.mark.parametrize(
    "changed",
    [
        {"theta": 4000.0},
        {"clip_after": 19},
        {"reset_every": 499},
        {"warmup_steps": 149},
        {"eps": 1e-8},
        {"reset_step": True},
        {"clip_zero_v": False},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_the_comparison_sees_each_setting(changed):
    """Control of the test above: any other setting is far out of its bound."""
    grads, lr, weight = late_grads(), 1e-3, drive.parameter(200)
    grads[18] *= 1e3
    expected = oracles.spam(grads, weight.detach().numpy(), lr=lr)
    ours = drive.run(AdamWSPAM([weight], lr=lr, **(PUBLISHED | changed)), weight, grads)
    assert worst(ours, expected, lr) > 1e-2


def first_move(first_gradient, **settings):
    """The step (1, 2, ...) in which an entry first moves whose gradient is 0 before a given step."""
    grads = np.ones((1100, 1), dtype=np.float32)
    grads[: first_gradient - 1] = 0.0
    weight = Parameter(torch.zeros(1))
    return 1 + np.flatnonzero(drive.run(AdamWSPAM([weight], **settings), weight, grads))[0]


@pytest.mark.parametrize(("first_gradient", "thaws"), [(60, 500), (600, 1000), (10, 10), (505, 505)])
def test_published_zero_second_moments_are_frozen_until_the_next_reset(first_gradient, thaws):
    """The published code clips a late first gradient to sqrt(5000 * 0); ours lets it through."""
    assert first_move(first_gradient, **PUBLISHED) == thaws
    assert first_move(first_gradient) == first_gradient


# ------------------------------------------------------------------------------- resets and learning rate


def test_resets_are_where_they_are_said_to_be():
    """The ancestor counted twice a step and reset every 500 instead of 1,000."""
    weight = Parameter(torch.ones(1))
    optimizer = AdamWSPAM([weight], reset_every=10)
    resets = []
    for step in range(1, 46):
        weight.grad = torch.ones(1)
        optimizer.step()
        # Of one gradient of 1 after a reset, (1 - beta1) is left; of several, more.
        if step > 1 and abs(optimizer.state[weight]["exp_avg"].item() - 0.1) < 1e-6:
            resets.append(step)
    assert resets == [10, 20, 30, 40]


def test_the_learning_rate_is_the_formula_s_and_the_group_s_own_stays():
    """Two cycles; the ancestor multiplied the group's own rate, 1e-3 to 5.6e-29 in 200 steps."""
    weight = Parameter(torch.ones(1))
    optimizer = AdamWSPAM([weight], lr=1e-3)
    for step in range(1, 1201):
        base = optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 2400)
        weight.grad = torch.ones(1)
        optimizer.step()
        j = step % 500
        warms = step >= 500 and j < 150
        factor = 1 - 0.99 * (1 + math.cos(math.pi * j / 151)) / 2 if warms else 1.0
        assert optimizer.param_groups[0]["lr"] == base
        assert optimizer.param_groups[0]["applied_lr"] == pytest.approx(factor * base, rel=1e-12)


def test_the_rate_that_is_reported_is_the_one_applied():
    """With a constant gradient, Adam moves a weight by just its learning rate in every step."""
    weight = Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = AdamWSPAM([weight], lr=1e-3, reset_every=100, eps=1e-30)
    for _ in range(400):
        before = weight.item()
        weight.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        assert before - weight.item() == pytest.approx(optimizer.param_groups[0]["applied_lr"], rel=1e-9)


def mean_moves(cycles, **settings):
    """Mean distance of a step in each cycle of 500, in learning rates, with a constant gradient."""
    weight = Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = AdamWSPAM([weight], lr=1.0, **settings)
    ends = []
    for _ in range(500 * (cycles + 1) - 1):  # the first cycle is one short: a reset is step 0 of its own
        weight.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        ends.append(-weight.item())
    starts = [499 + 500 * cycle for cycle in range(cycles + 1)]
    return [(ends[b - 1] - ends[a - 1]) / 500 for a, b in pairwise(starts)]


def test_forgetting_the_step_counter_lengthens_steps():
    """What the published reset does to the length of steps, and why ours restarts the counter."""
    published = mean_moves(12, reset_step=False)
    assert published[:2] == pytest.approx([1.35, 1.58], abs=0.01)
    assert published[-1] == pytest.approx(1.87, abs=0.01)
    assert mean_moves(2) == pytest.approx([0.85, 0.85], abs=0.01)


def test_gradients_since_the_reset_are_counted():
    """Also where the bias correction is not restarted."""
    weight = Parameter(torch.ones(1))
    for reset_step in (True, False):
        optimizer = AdamWSPAM([weight], reset_every=10, reset_step=reset_step)
        counts = []
        for _ in range(22):
            weight.grad = torch.ones(1)
            optimizer.step()
            counts.append(optimizer.param_groups[0]["steps_since_reset"])
        assert counts == [*range(1, 10), *range(1, 11), 1, 2, 3]
        assert optimizer.state[weight]["step"] == (3 if reset_step else 22)


# -------------------------------------------------------------------------------------------- clipping


def test_a_spike_is_clipped_and_nothing_else():
    """The ancestor's AdamWSPAM ran as AdamW: here a spike of 1,000 leaves a trace of sqrt(theta v)."""
    grads = 1e-3 * np.random.default_rng(0).choice([-1.0, 1.0], (40, 50)).astype(np.float32)
    calm = []
    for theta in (5000.0, None):
        weight = drive.parameter(50)
        calm.append(drive.run(AdamWSPAM([weight], theta=theta), weight, grads))
    assert np.array_equal(*calm)
    grads[30, 7] = 1.0
    weight = drive.parameter(50)
    optimizer = AdamWSPAM([weight])
    spiked = drive.run(optimizer, weight, grads)
    assert np.array_equal(np.delete(spiked, 7, axis=1), np.delete(calm[0], 7, axis=1))
    weight_without = drive.parameter(50)
    without = AdamWSPAM([weight_without], theta=None)
    drive.run(without, weight_without, grads)
    variance = [
        o.state[w]["exp_avg_sq"][7].item() for o, w in ((optimizer, weight), (without, weight_without))
    ]
    before = (1 - 0.999**30) * 1e-6
    decay = 0.999**9
    assert variance[0] == pytest.approx(
        decay * (0.999 + 0.001 * 5000) * before + (1 - decay) * 1e-6, rel=1e-4
    )
    assert variance[1] == pytest.approx(decay * (0.999 * before + 0.001) + (1 - decay) * 1e-6, rel=1e-4)


# ------------------------------------------------------------------------------------------- reduction

NEUTRAL = {"theta": None, "reset_every": None, "weight_decay": 0.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_reduces_to_fused_adamw_to_the_bit(dtype):
    """Parameters and state; eps is placed otherwise, so it is too small to matter.

    Tensors of several pieces, in other memory orders, and some without a gradient in some steps.
    """
    shapes = [(600, 601), (7,), (64, 16, 3, 3), (33, 5)]
    generator = torch.Generator().manual_seed(0)
    first = [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    first[2] = Parameter(first[2].detach().to(memory_format=torch.channels_last))
    second = [Parameter(p.detach().clone(memory_format=torch.preserve_format)) for p in first]
    ours = AdamWSPAM(first, lr=1e-2, eps=1e-30, **NEUTRAL)
    theirs = torch.optim.AdamW(second, lr=1e-2, eps=1e-30, weight_decay=0.0, fused=True)
    for step in range(20):
        for index, (p, q) in enumerate(zip(first, second, strict=True)):
            p.grad = None if (step + index) % 4 == 1 else torch.empty_like(p).normal_(generator=generator)
            q.grad = None if p.grad is None else p.grad.clone(memory_format=torch.preserve_format)
        ours.step()
        theirs.step()
    for p, q in zip(first, second, strict=True):
        assert torch.equal(p, q)
        for name, value in theirs.state[q].items():
            assert torch.equal(torch.as_tensor(ours.state[p][name], dtype=value.dtype), value)


def test_reduces_to_adamw_with_eps_and_weight_decay_to_a_bound():
    """SPAM decays after the update, AdamW before: they differ by lr * weight_decay of a step, 1e-3 here."""
    grads, lr = drive.random_grads(50, 100), 1e-2
    first, second = drive.parameter(100), drive.parameter(100)
    ours = AdamWSPAM([first], lr=lr, eps=1e-8, **(NEUTRAL | {"weight_decay": 0.1}))
    theirs = torch.optim.AdamW([second], lr=lr, eps=1e-8, weight_decay=0.1, fused=True)
    difference = np.abs(drive.run(ours, first, grads) - drive.run(theirs, second, grads)).max() / lr
    assert 0 < difference < 50 * 1e-3 * 1.5
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(ours.state[first][name], theirs.state[second][name])
