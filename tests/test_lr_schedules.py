"""Learning-rate schedules as formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamwprune.lr_schedules import constant, cosine, step


@pytest.mark.parametrize(
    ("at", "factor"),
    [
        (0, 1 / 11),
        (9, 10 / 11),
        (10, 1.0),
        (60, 0.55),
        (110, 0.1),
        (85, 0.1 + 0.9 * 0.5 * (1 + math.cos(0.75 * math.pi))),
    ],
)
def test_cosine_table(at, factor):
    """Warm-up of 10 steps, then half a cosine over 100 to a tenth."""
    assert cosine(at, 110, warmup_steps=10, final_ratio=0.1) == pytest.approx(factor, rel=1e-12)


@given(st.integers(0, 50), st.integers(1, 500), st.floats(0, 1))
def test_cosine_rises_then_falls_and_stays_in_range(warmup, length, floor):
    """Never above 1, never 0 in warm-up, never below the floor after it."""
    factors = [
        cosine(at, warmup + length, warmup_steps=warmup, final_ratio=floor) for at in range(warmup + length)
    ]
    assert all(0 < factor <= 1 for factor in factors[:warmup])
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert all(floor - 1e-12 <= factor <= 1 for factor in factors[warmup:])


@pytest.mark.parametrize("schedule", [cosine, constant, step])
def test_warm_up_as_a_share_is_that_many_steps(schedule):
    """0.03 of 1,680 steps are 50; steps win over the share."""
    by_share = [schedule(at, 1680, warmup_fraction=0.03) for at in range(1680)]
    assert by_share == [schedule(at, 1680, warmup_steps=50) for at in range(1680)]
    assert by_share == [schedule(at, 1680, warmup_steps=50, warmup_fraction=0.5) for at in range(1680)]


def test_constant_is_one_after_warm_up():
    """And linear before."""
    assert [constant(at, 10, warmup_steps=3) for at in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert constant(0, 10) == 1


def test_step_falls_at_each_milestone():
    """A tenth at half, a hundredth at three quarters."""
    factors = [step(at, 8, milestones=[0.5, 0.75], gamma=0.1) for at in range(8)]
    assert factors == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
