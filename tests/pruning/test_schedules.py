"""Schedules, window and plan against tables computed by hand."""

import numpy as np
import pytest

from adamwprune.errors import ConfigError
from adamwprune.pruning import schedules
from adamwprune.pruning.schedules import Plan, window

HALF = {"zhu_gupta": 0.4375, "linear": 0.25, "ease_in_cubic": 0.0625, "oneshot": 0.5, "constant": 0.5}

# Mean density at targets 0.5, 0.7, 0.9, window 25 to 75 %.
DENSITY = {
    "zhu_gupta": (0.688, 0.563, 0.438),
    "linear": (0.750, 0.650, 0.550),
    "ease_in_cubic": (0.813, 0.738, 0.663),
    "oneshot": (0.625, 0.475, 0.325),
    "constant": (0.5, 0.3, 0.1),
}
MEAN_OF_RAMP = {"zhu_gupta": 3 / 4, "linear": 1 / 2, "ease_in_cubic": 1 / 4, "oneshot": 1.0}


def plan(name, target=0.5, initial=0.0, start=1000, end=3000, every=1):
    return Plan(getattr(schedules, name), target, initial, start, end, every)


@pytest.mark.parametrize("name", HALF)
def test_sparsity_halfway(name):
    """zhu_gupta has reached 7/8 of the target by then, the ancestor's cubic 1/8."""
    assert plan(name).sparsity(2000) == pytest.approx(HALF[name], abs=1e-15)


@pytest.mark.parametrize("name", HALF)
def test_sparsity_before_and_after_the_window(name):
    before = 0.5 if name == "constant" else 0.1
    for step in (0, 999):
        assert plan(name, initial=0.1).sparsity(step) == before
    for step in (3000, 3001, 10**9):
        assert plan(name, initial=0.1).sparsity(step) == 0.5


def test_zhu_gupta_equals_the_published_formula():
    """s_f + (s_i - s_f) * (1 - p)^3; rounding differs in the last place."""
    p = np.linspace(0, 1, 11)
    values = [plan("zhu_gupta", 0.8, 0.2).sparsity(1000 + round(2000 * x)) for x in p]
    np.testing.assert_allclose(values, 0.8 + (0.2 - 0.8) * (1 - p) ** 3, rtol=1e-14)


@pytest.mark.parametrize("name", DENSITY)
@pytest.mark.parametrize(("target", "column"), [(0.5, 0), (0.7, 1), (0.9, 2)])
def test_mean_density_equals_the_table(name, target, column):
    """Updates at every one of 4,000 steps; the table has three digits."""
    density = plan(name, target).mean_density(4000)
    assert density == pytest.approx(DENSITY[name][column], abs=6e-4)


def test_mean_density_of_oneshot_halfway_equals_the_table():
    densities = [plan("oneshot", target, start=2000).mean_density(4000) for target in (0.5, 0.7, 0.9)]
    assert densities == pytest.approx([0.750, 0.650, 0.550])


@pytest.mark.parametrize("name", MEAN_OF_RAMP)
def test_mean_density_equals_the_closed_form_with_initial_sparsity(name):
    """1 - [a s_i + (b - a)(s_i + c (s_f - s_i)) + (1 - b) s_f]; a step of 1/4000 is the difference."""
    a, b, c, s_i, s_f = 0.25, 0.75, MEAN_OF_RAMP[name], 0.2, 0.8
    closed = 1 - (a * s_i + (b - a) * (s_i + c * (s_f - s_i)) + (1 - b) * s_f)
    assert plan(name, s_f, s_i).mean_density(4000) == pytest.approx(closed, abs=2e-4)


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("total", [1, 17, 40, 100])
def test_mean_density_is_that_of_a_simulated_run(name, total):
    """Step t + 1 trains with the sparsity in force after t steps, held between updates."""
    ramp = plan(name, 0.9, 0.1, start=7, end=40, every=6)
    simulated = 1 - np.mean([ramp.sparsity_in_force(step) for step in range(total)])
    assert ramp.mean_density(total) == pytest.approx(simulated, abs=1e-14)


def test_updates_are_regular_and_always_include_the_end():
    ramp = plan("linear", start=10, end=35, every=10)
    assert ramp.updates() == [10, 20, 30, 35]
    latest = {step: ramp.latest_update(step) for step in (0, 9, 10, 19, 20, 34, 35, 99)}
    assert latest == {0: None, 9: None, 10: 10, 19: 10, 20: 20, 34: 30, 35: 35, 99: 35}


@pytest.mark.parametrize(("name", "initial"), [("constant", 0.0), ("linear", 0.2)])
def test_a_plan_that_starts_sparse_has_an_update_at_step_0(name, initial):
    ramp = plan(name, initial=initial, start=10, end=35, every=10)
    assert ramp.updates() == [0, 10, 20, 30, 35]
    assert ramp.latest_update(3) == 0


@pytest.mark.parametrize(
    ("total", "keys", "expected"),
    [
        (1000, {}, (250, 750)),
        (10, {}, (3, 8)),  # 2.5 and 7.5 round up
        (1000, {"start_fraction": 0.0, "end_fraction": 1.0}, (0, 1000)),
        (1000, {"start_step": 100}, (100, 750)),
        (1000, {"end_step": 600}, (250, 600)),
        (1000, {"start_step": 0, "end_step": 0}, (0, 0)),
        (1000, {"start_step": 100, "start_fraction": 0.9, "end_step": 200}, (100, 200)),
    ],
)
def test_window_from_fractions_and_steps(total, keys, expected):
    assert window(total, **keys) == expected


@pytest.mark.parametrize(
    "keys",
    [{"start_step": 800}, {"end_step": 1001}, {"end_step": 100}, {"start_step": -1}, {"end_fraction": 1.2}],
)
def test_window_outside_the_run_is_refused(keys):
    with pytest.raises(ConfigError, match="start_step"):
        window(1000, **keys)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"target": 1.0}, "target_sparsity=1.0: must be in"),
        ({"target": -0.1}, "target_sparsity"),
        ({"target": float("nan")}, "target_sparsity"),
        ({"initial": 0.6}, "initial_sparsity=0.6"),
        ({"start": 3001}, "start_step=3001"),
        ({"start": -1}, "start_step=-1"),
        ({"every": 0}, "update_every=0"),
        ({"every": 2000}, "no update inside; must be < 2000"),
        ({"start": 3000}, "no update inside"),
    ],
)
def test_impossible_plan_is_refused(keys, words):
    with pytest.raises(ConfigError, match=words):
        plan("zhu_gupta", **keys)


def test_one_shot_needs_no_update_inside():
    assert plan("oneshot", start=3000, every=5000).updates() == [3000]


@pytest.mark.parametrize("schedule", [lambda p: 0.9 * p, lambda p: 1.0 - p, lambda p: 4 * p * (1 - p) + p])
def test_schedule_that_falls_or_misses_the_target_is_refused(schedule):
    with pytest.raises(ConfigError, match=r"pruning\.schedule"):
        Plan(schedule, 0.5, 0.0, 0, 10, 1)
