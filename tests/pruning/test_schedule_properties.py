"""Schedules and plans: what holds for every window, sparsity and shape of ramp."""

import math
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from adamwprune.errors import ConfigError
from adamwprune.pruning import schedules
from adamwprune.pruning.schedules import Plan, default_update_every, window
from adamwprune.pruning.scopes.segments import pruned_count
from tests.helpers.properties import tried

NAMES = ("zhu_gupta", "linear", "ease_in_cubic", "oneshot", "constant")
SPARSITIES = st.one_of(
    st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]), st.floats(0, 1, exclude_max=True, allow_subnormal=False)
)


@st.composite
def plans(draw):
    """Any plan that is accepted: the initial sparsity may be the target itself."""
    target = draw(SPARSITIES)
    initial = draw(st.one_of(st.just(target), st.just(0.0), st.floats(0, target, allow_subnormal=False)))
    start, length = draw(st.integers(0, 60)), draw(st.integers(0, 120))
    every = draw(st.integers(1, max(1, length - 1)))
    schedule = getattr(schedules, draw(st.sampled_from(NAMES)))
    try:
        return Plan(schedule, target, initial, start, start + length, every)
    except ConfigError:
        assume(False)


def exact_share(name, progress):
    """Of the way to the target, in rational numbers; written from the table of docs/pruning.md."""
    inside = min(max(progress, Fraction(0)), Fraction(1))
    return {
        "zhu_gupta": 1 - (1 - inside) ** 3,
        "linear": inside,
        "ease_in_cubic": inside**3,
        "oneshot": Fraction(progress >= 0),
        "constant": Fraction(1),
    }[name]


@given(plans())
@tried(25)
def test_updates_are_those_of_the_definition(plan):
    """start, +every, ... below end, end itself, and 0 where the run starts sparse."""
    regular = {
        step
        for step in range(plan.start_step, plan.end_step)
        if not (step - plan.start_step) % plan.update_every
    }
    starts_sparse = {0} if plan.sparsity(0) > 0 else set()
    assert plan.updates() == sorted(regular | {plan.end_step} | starts_sparse)


@given(plans(), st.integers(0, 200))
@tried(25)
def test_the_update_in_force_is_the_last_of_them(plan, step):
    due = [update for update in plan.updates() if update <= step]
    assert plan.latest_update(step) == (due[-1] if due else None)
    assert plan.sparsity_in_force(step) == (plan.sparsity(due[-1]) if due else 0.0)


@given(plans(), st.integers(1, 10**9))
@example(Plan(schedules.linear, 0.9, 0.9, 27, 190, 1), 35)
@tried(25)
def test_sparsity_never_falls_leaves_no_room_above_the_target_and_ends_there(plan, size):
    """A plan that stays at one sparsity is no exception: weights that were pruned one too many cannot return.

    In the example the share of .9 that is taken from each of two equal ends added up to a little more or
    less than .9, which is a whole weight of 35.
    """
    values = [plan.sparsity(update) for update in plan.updates()]
    assert values == sorted(values)
    assert plan.initial_sparsity <= values[0]
    assert values[-1] == plan.target_sparsity == plan.sparsity(plan.end_step + 1)
    counts = [pruned_count(size, value) for value in values]
    assert counts == sorted(counts)
    assert counts[-1] == pruned_count(size, plan.target_sparsity)


@given(plans(), st.integers(0, 200))
@tried(25)
def test_sparsity_is_the_formula(plan, step):
    """s_i + f (s_t - s_i) in rational numbers, rounded once; the float's way has four roundings."""
    length = max(1, plan.end_step - plan.start_step)
    progress = Fraction(1) if step >= plan.end_step else Fraction(step - plan.start_step, length)
    share = exact_share(plan.schedule.__name__, progress)
    initial, target = Fraction(plan.initial_sparsity), Fraction(plan.target_sparsity)
    assert plan.sparsity(step) == pytest.approx(float(initial + share * (target - initial)), abs=4e-16)


@given(plans(), st.integers(1, 250))
@tried(20)
def test_mean_density_is_the_mean_over_the_steps_of_a_run(plan, total):
    """Step t + 1 trains with what is in force after t steps."""
    density = math.fsum(1.0 - plan.sparsity_in_force(step) for step in range(total)) / total
    assert plan.mean_density(total) == pytest.approx(density, abs=1e-14)
    assert 1.0 - plan.target_sparsity - 1e-15 <= plan.mean_density(total) <= 1.0


@given(st.integers(1, 10**7), st.floats(0, 1), st.floats(0, 1), st.data())
@tried(25)
def test_a_window_lies_in_the_run_or_is_refused(total, start_fraction, end_fraction, data):
    steps = {
        key: data.draw(st.one_of(st.none(), st.integers(0, total))) for key in ("start_step", "end_step")
    }
    fractions = {"start_fraction": start_fraction, "end_fraction": end_fraction}
    nearest = {
        "start_step": math.floor(start_fraction * total + 0.5),
        "end_step": math.floor(end_fraction * total + 0.5),
    }
    start, end = (nearest[key] if step is None else step for key, step in steps.items())
    if start > end:
        with pytest.raises(ConfigError, match="start_step <= end_step"):
            window(total, **fractions, **steps)
        return
    assert window(total, **fractions, **steps) == (start, end)
    every = default_update_every(start, end)
    assert 1 <= every <= 100
    if end - start >= 2:  # the ramp is a ramp
        assert len(Plan(schedules.linear, 0.5, 0.0, 0, end - start, every).updates()) >= min(50, end - start)
