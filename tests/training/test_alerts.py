"""Alerts: what is wrong is said once, with numbers; what is well is never complained of."""

import math
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adamwprune.config import AlertsConfig
from adamwprune.pruning import Pruner
from adamwprune.pruning.criteria.magnitude import magnitude
from adamwprune.pruning.schedules import Plan, constant, ease_in_cubic, linear, oneshot, zhu_gupta
from adamwprune.pruning.scopes.layerwise import layerwise
from adamwprune.pruning.scopes.nm import nm
from adamwprune.training import alerts
from adamwprune.training.alerts import MaskPlan, Watch

OFF = {"loss_spike": None, "throughput_drop": None, "stalled_updates": None, "disk_free_gib": None}


def watch(tmp_path=".", plan=None, quiet=0.0, **limits):
    """A watch with no rule but those whose limits are given; not_finite has none."""
    return Watch(AlertsConfig(**{**OFF, **limits}, quiet=quiet), directory=tmp_path, plan=plan)


def said(watch, rows, first=1, every=10.0):
    """(step, rule) of each alert over rows that come every 10 s."""
    found = [
        (step, alert) for step, row in enumerate(rows, first) for alert in watch.look(step, every * step, row)
    ]
    for _, alert in found:
        assert alert.level in ("info", "warn", "error")
        assert alert.title
        assert "\n" not in alert.title + alert.text
        assert any(character.isdigit() for character in alert.title + alert.text), "no number in it"
    return [(step, alert.rule) for step, alert in found]


def losses(values, key="train/loss"):
    return [{key: value} for value in values]


def falling(length, seed, start=10.9, end=3.2, noise=0.05):
    """Training as it should be: fast first, then slower, with noise."""
    generator = random.Random(seed)
    return [
        end + (start - end) * math.exp(-8.0 * i / length) + generator.gauss(0.0, noise) for i in range(length)
    ]


# ------------------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("key", ["train/loss", "val/loss"])
def test_a_loss_that_is_not_finite_is_an_error(key, value):
    """As the loop has it, and as a row has it that was read from metrics.jsonl; whatever is switched off."""
    looking = watch()
    looking.look(1, 1.0, {key: 2.5})
    (alert,) = looking.look(2, 2.0, {key: value, "sparsity/global": 0.0})
    assert (alert.rule, alert.level) == ("not_finite", "error")
    assert key in alert.text
    assert str(value) in alert.text
    assert "2.5 at step 1" in alert.text, "the last good value is where to look"


def test_both_losses_are_named_in_one_alert():
    (alert,) = watch().look(3, 0.0, {"train/loss": math.nan, "val/loss": math.inf})
    assert "train/loss is nan" in alert.text
    assert "val/loss is inf" in alert.text


def test_no_alert_for_what_is_finite_or_absent_or_no_loss():
    """Control: the rule looks at losses, not at metrics that may be NaN."""
    rows = [
        {"train/loss": 1e30},
        {"val/loss": 0},
        {"val/loss": None},
        {},
        {"prune/jaccard_magnitude_new": math.nan, "val/perplexity": math.inf},
    ]
    assert said(watch(), rows) == []


# ------------------------------------------------------------------------------------- loss spike


@pytest.mark.parametrize("seed", range(10))
def test_ordinary_training_has_no_spike_and_a_spike_is_found(seed):
    """A falling loss with noise, early and late; then the same with one loss back at its beginning."""
    rows = losses(falling(300, seed))
    assert said(watch(loss_spike=10.0), rows) == []
    rows[200] = {"train/loss": 6.0}
    assert said(watch(loss_spike=10.0), rows) == [(201, "loss_spike")]


@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-6, 1e-3])
@pytest.mark.parametrize("level", [0.002, 2.302585])
def test_a_quiet_plateau_has_no_spikes(noise, level):
    """Hundreds of deviations, and still nothing: 0.09 nats. Where the deviation is 0 as well."""
    quiet = [level + noise * (i % 2) for i in range(60)]
    assert said(watch(loss_spike=10.0), losses([*quiet, level + 0.09])) == []
    assert said(watch(loss_spike=10.0), losses([*quiet, level + 0.2])) == [(61, "loss_spike")]


@pytest.mark.parametrize("rows_before", [0, 1, alerts.FEWEST - 1, alerts.FEWEST])
def test_a_short_history_says_nothing(rows_before):
    found = said(watch(loss_spike=10.0), losses([1.0] * rows_before + [9.0]))
    assert bool(found) == (rows_before >= alerts.FEWEST)


def test_a_new_level_is_said_until_it_is_the_usual_one():
    """A loss that jumps and stays: half a window of alerts (of which the throttle leaves one)."""
    rows = losses([1.0, 1.02] * 50 + [2.0] * 100)
    spikes = [step for step, _ in said(watch(loss_spike=10.0), rows)]
    assert spikes == list(range(101, 101 + alerts.WINDOW // 2))
    assert len(said(watch(loss_spike=10.0, quiet=300.0), rows)) == 1


def test_training_and_validation_have_their_own_history():
    """One may lie far from the other; a spike of either counts."""
    rows = [{"train/loss": 0.5, "val/loss": 3.0} for _ in range(20)]
    assert said(watch(loss_spike=10.0), rows) == []
    assert said(watch(loss_spike=10.0), [*rows, {"val/loss": 4.0}]) == [(21, "loss_spike")]
    assert said(watch(loss_spike=10.0), [*rows, {"train/loss": 3.0}]) == [(21, "loss_spike")]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.0, 20.0), min_size=30, max_size=120), st.floats(1.0, 20.0))
def test_spikes_are_those_of_the_definition(values, limit):
    """An oracle in NumPy: more than limit MAD and 0.1 above the median of at most 50 rows before."""
    expected = []
    for i, value in enumerate(values):
        before = np.array(values[max(0, i - 50) : i])
        if len(before) < 10:
            continue
        above = value - np.median(before)
        if above > 0.1 and above > limit * np.median(np.abs(before - np.median(before))):
            expected.append((i + 1, "loss_spike"))
    assert said(watch(loss_spike=limit), losses(values)) == expected


# -------------------------------------------------------------------------------- stalled sparsity

SCHEDULES = [zhu_gupta, linear, ease_in_cubic, oneshot, constant]


def mask_plan(plan, weights=10**6):
    """Of a scope that prunes whole weights: floor(s N + 1/2) of them."""
    return MaskPlan(
        updates=plan.updates(),
        update_every=plan.update_every,
        sparsity=lambda step: math.floor(plan.sparsity_in_force(step) * weights + 0.5) / weights,
    )


def sparsity_rows(planned, steps, made=lambda step: True):
    """Rows of a run whose masks follow the plan at the updates that are made."""
    rows, sparsity = [], 0.0
    for step in range(1, steps + 1):
        if made(step):
            sparsity = max(sparsity, planned.sparsity(step))
        rows.append({"sparsity/global": sparsity})
    return rows


@settings(deadline=None, max_examples=40)
@given(
    schedule=st.sampled_from(SCHEDULES),
    target=st.floats(0.1, 0.99),
    initial=st.sampled_from([0.0, 0.05]),
    window=st.tuples(st.integers(0, 50), st.integers(3, 50)),
    update_every=st.integers(1, 9),
    weights=st.sampled_from([20, 3_000, 10**6]),
    log_every=st.integers(1, 7),
)
def test_a_run_on_its_plan_is_never_stalled(
    schedule, target, initial, window, update_every, weights, log_every
):
    """Any schedule, even where it asks for less than one more weight; any cadence of rows; and after it."""
    start, length = window
    plan = Plan(schedule, target, initial, start, start + length, min(update_every, length - 1))
    planned = mask_plan(plan, weights)
    rows = [
        row if step % log_every == 0 else {}
        for step, row in enumerate(sparsity_rows(planned, start + length + 40), 1)
    ]
    assert said(watch(plan=planned, stalled_updates=1), rows) == []


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("log_every", [1, 3])
def test_updates_that_do_nothing_are_counted(limit, log_every):
    """Masks stand still from step 40 on; updates are planned at 40, 50, 60, ...: the limit-th is told."""
    planned = mask_plan(Plan(linear, 0.9, 0.0, 20, 120, 10))
    rows = sparsity_rows(planned, 150, made=lambda step: step < 40)
    rows = [row if step % log_every == 0 else {} for step, row in enumerate(rows, 1)]
    first, rule = said(watch(plan=planned, stalled_updates=limit), rows)[0]
    told_at = 40 + 10 * (limit - 1)
    assert (first, rule) == (told_at + -told_at % log_every, "stalled_sparsity")


def test_an_update_that_waits_is_no_stall():
    """One that comes a little late, before the next is missed as well."""
    planned = mask_plan(Plan(linear, 0.9, 0.0, 20, 120, 10))
    rows = sparsity_rows(planned, 150, made=lambda step: not 60 <= step < 67)
    assert said(watch(plan=planned, stalled_updates=2), rows) == []
    assert said(watch(plan=planned, stalled_updates=1), rows) != []


def test_a_sparsity_that_rises_behind_its_plan_is_no_stall():
    """Every update raises it, to 95 % of what is planned; control: it says so when no update is left."""
    planned = mask_plan(Plan(linear, 0.9, 0.0, 20, 120, 10))
    rows = [{"sparsity/global": 0.95 * planned.sparsity(step)} for step in range(1, 201)]
    looking = watch(plan=planned, stalled_updates=2)
    assert said(looking, rows[:139]) == []
    assert said(looking, rows[139:], first=140)[0] == (140, "stalled_sparsity")


@pytest.mark.parametrize("schedule", [oneshot, zhu_gupta])
def test_a_run_that_ends_below_its_target_says_so(schedule):
    """The last update is lost: time goes on in updates after it, so the second that is missed is told."""
    planned = mask_plan(Plan(schedule, 0.9, 0.0, 20, 120, 10))
    rows = sparsity_rows(planned, 200, made=lambda step: 20 < step < 120 and schedule is not oneshot)
    steps = [step for step, _ in said(watch(plan=planned, stalled_updates=2), rows)]
    assert steps[0] == (30 if schedule is oneshot else 130)
    assert steps[-1] == 200, "and again as long as it lasts"


def test_weights_that_come_back_are_a_stall():
    """Masks say one thing, the weights another: the sparsity falls after step 160 and stays there."""
    planned = mask_plan(Plan(linear, 0.9, 0.0, 20, 120, 10))
    rows = sparsity_rows(planned, 200)
    for row in rows[160:]:
        row["sparsity/global"] = 0.4
    assert said(watch(plan=planned, stalled_updates=2), rows)[0] == (180, "stalled_sparsity")


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("scope", [nm, layerwise])
def test_a_real_pruner(scope, works, monkeypatch):
    """2:4 stays at one of three levels for many updates, as planned; control: masks that never change."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    pruner = Pruner(
        model,
        optimizer,
        criterion=magnitude,
        target_sparsity=0.5,
        start_step=10,
        end_step=50,
        update_every=2,
        scope=scope,
        include=["*"],
    )
    if not works:
        monkeypatch.setattr(pruner, "after_step", lambda step: None)
    planned = MaskPlan(
        pruner.plan.updates(),
        pruner.plan.update_every,
        lambda step: pruner.planned_count(step) / pruner.prunable_count,
    )
    rows = []
    for step in range(1, 71):
        model(torch.randn(4, 16)).square().mean().backward()
        pruner.mask_grads_()
        optimizer.step()
        optimizer.zero_grad()
        pruner.after_step(step)
        rows.append({"sparsity/global": pruner.sparsity()})
    found = said(watch(plan=planned, stalled_updates=2), rows)
    assert (found == []) == works


# -------------------------------------------------------------------------------- throughput drop


def rates(values, unit="images"):
    return [{f"perf/{unit}_per_second": value} for value in values]


@pytest.mark.parametrize("unit", ["images", "tokens"])
def test_training_that_becomes_slow_is_told(unit):
    """Told at the third slow row, by how much it is slower."""
    looking = watch(throughput_drop=0.5)
    assert said(looking, rates([1000.0] * 20 + [400.0] * 2, unit)) == []
    (alert,) = looking.look(23, 230.0, *rates([400.0], unit))
    assert alert.rule == "throughput_drop"
    assert "60 %" in alert.text
    assert unit in alert.title


@pytest.mark.parametrize(
    "values",
    [
        [10.0, 300.0] + [1000.0] * 40,  # the start: caches, compilation
        [1000.0] * 20 + [100.0, 90.0] + [1000.0] * 20,  # a hiccup
        [1000.0] * 20 + [510.0] * 40,  # slower, within the limit
        [1000.0] * 20 + [5000.0] * 40,  # faster
        [1000.0] * (alerts.FEWEST - 3) + [100.0] * 3,  # nobody knows yet what is usual
        [0.0] * 40,
    ],
)
def test_no_alert_for_a_start_a_hiccup_or_a_small_loss(values):
    assert said(watch(throughput_drop=0.5), rates(values)) == []


def test_many_slow_rows_within_a_moment_are_a_hiccup():
    """Rows of single steps, 5 ms each: a tracker's import slows some of them; ten seconds of it are told."""
    values = rates([1000.0] * 20 + [100.0] * 10 + [1000.0] * 20)
    assert said(watch(throughput_drop=0.5), values, every=0.005) == []
    assert said(watch(throughput_drop=0.5), values, every=1.2) == [(30, "throughput_drop")]


def test_the_time_between_two_sessions_is_not_slow():
    """Slow rows before a kill, an hour of nothing, a slow first row: no drop. Ten slow seconds are one."""
    looking = watch(throughput_drop=0.5)
    earlier = rates([100.0] * 30 + [20.0] * 2)
    for step, row in enumerate(earlier, 1):
        looking.learn(step, 0.1 * step, row)
    looking.resume()
    assert looking.look(33, 3600.0, *rates([20.0])) == []
    assert looking.look(34, 3601.0, *rates([20.0])) == []
    (alert,) = looking.look(35, 3611.0, *rates([20.0]))
    assert alert.rule == "throughput_drop"


def test_rows_without_throughput_do_not_count():
    """Evaluations and mask updates have rows of their own."""
    rows = [row for rate in rates([1000.0] * 20 + [400.0] * 3) for row in (rate, {"val/loss": 1.0})]
    assert said(watch(throughput_drop=0.5), rows) == [(45, "throughput_drop")]


# ------------------------------------------------------------------------------------------- disk


@pytest.fixture
def disk(monkeypatch):
    """A disk whose free space the test sets, and which counts how often it is looked at."""
    state = SimpleNamespace(free_gib=10.0, looks=[], error=None)

    def disk_usage(path):
        state.looks.append(path)
        if state.error:
            raise state.error
        return SimpleNamespace(total=0, used=0, free=int(state.free_gib * 2**30))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    return state


def test_a_disk_that_fills_up_is_told(disk, tmp_path):
    looking = watch(tmp_path, disk_free_gib=1.0)
    assert looking.look(1, 1000.0, {}) == []
    disk.free_gib = 0.25
    (alert,) = looking.look(2, 1000.0 + alerts.DISK_EVERY, {})
    assert alert.rule == "disk_low"
    assert "0.25 GiB" in alert.title
    assert "alerts.disk_free_gib=1" in alert.text
    assert set(disk.looks) == {tmp_path}


def test_the_disk_is_looked_at_now_and_then(disk):
    """Rows of 100 s, four a second."""
    said(watch(disk_free_gib=1.0), [{}] * 400, every=0.25)
    assert len(disk.looks) == math.ceil(100 / alerts.DISK_EVERY)


def test_a_disk_that_cannot_be_read_is_not_this_rules_to_tell(disk):
    disk.error = OSError("gone")
    assert said(watch(disk_free_gib=1.0), [{}] * 10) == []


def test_the_real_disk(tmp_path):
    """More than nothing, less than a million GiB are free here."""
    assert said(watch(tmp_path, disk_free_gib=0.0), [{}]) == []
    assert said(watch(tmp_path, disk_free_gib=1e6), [{}]) == [(1, "disk_low")]


# ------------------------------------------------------------------------------------- all of them

WRONG = [
    {
        "train/loss": 1.0 if i < 40 else 9.0,
        "perf/tokens_per_second": 1e4 if i < 40 else 1e3,
        "sparsity/global": 0.0,
    }
    for i in range(60)
]
EVERYTHING = {"loss_spike": 10.0, "throughput_drop": 0.5, "stalled_updates": 2, "disk_free_gib": 1.0}
STUCK = mask_plan(Plan(linear, 0.9, 0.0, 10, 50, 5))
RULES = {
    "loss_spike": "loss_spike",
    "throughput_drop": "throughput_drop",
    "stalled_updates": "stalled_sparsity",
    "disk_free_gib": "disk_low",
}


@pytest.mark.parametrize("key", EVERYTHING)
def test_null_switches_one_rule_off(key, disk):
    disk.free_gib = 0.1
    found = {rule for _, rule in said(watch(plan=STUCK, **EVERYTHING | {key: None}), WRONG)}
    assert found == set(RULES.values()) - {RULES[key]}


def test_a_dense_run_has_no_sparsity_to_reach(disk):
    assert "stalled_sparsity" not in {rule for _, rule in said(watch(plan=None, **EVERYTHING), WRONG)}


@pytest.mark.parametrize(("quiet", "steps"), [(0.0, list(range(1, 61))), (300.0, [1, 31]), (1e9, [1])])
def test_a_rule_that_goes_on_speaks_now_and_then(quiet, steps):
    """Rows come every 10 s."""
    rows = losses([math.nan] * 60)
    assert [step for step, _ in said(watch(quiet=quiet), rows)] == steps


def test_one_rule_does_not_silence_another():
    rows = [*losses([math.nan]), *losses([1.0] * 20), *losses([5.0])]
    looking = watch(loss_spike=10.0, quiet=1e6)
    assert [rule for _, rule in said(looking, rows)] == ["not_finite", "loss_spike"]


def test_a_clock_that_is_set_back_silences_nobody():
    looking = watch(quiet=300.0)
    assert looking.look(1, 1e9, {"train/loss": math.nan})
    assert looking.look(2, 1e8, {"train/loss": math.nan})
    assert not looking.look(3, 1e8 + 299, {"train/loss": math.nan})


@pytest.mark.parametrize("cut", [0, 5, 25, 45])
def test_a_resumed_run_sees_what_an_unbroken_one_sees(cut, disk):
    """Rows that were learnt say nothing, and are the history of those that follow."""
    unbroken = said(watch(plan=STUCK, **EVERYTHING), WRONG)
    resumed = watch(plan=STUCK, **EVERYTHING)
    for step, row in enumerate(WRONG[:cut], 1):
        assert resumed.learn(step, 10.0 * step, row) is None
    found = said(resumed, WRONG[cut:], first=cut + 1)
    assert found == [(step, rule) for step, rule in unbroken if step > cut]
    assert found, "control: there was something to see"


def test_without_the_history_a_resumed_run_is_blind(disk):
    """Control: what learn() is for."""
    assert {rule for _, rule in said(watch(**EVERYTHING), WRONG[45:], first=46)} == set()


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=5),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.sampled_from(["NaN", "Infinity"]),
)
KEYS = [
    "train/loss",
    "val/loss",
    "sparsity/global",
    "perf/images_per_second",
    "perf/tokens_per_second",
    "other",
]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.dictionaries(st.sampled_from(KEYS), JUNK), max_size=40), st.data())
def test_no_row_is_too_odd(rows, data):
    """Whatever the values, steps and times: alerts or none, never an error; twice the same."""
    steps = data.draw(st.lists(st.integers(0, 10**6), min_size=len(rows), max_size=len(rows)))
    times = data.draw(st.lists(st.floats(0, 2e9), min_size=len(rows), max_size=len(rows)))
    limits = {**EVERYTHING, "disk_free_gib": None}
    first, second = (watch(plan=STUCK, quiet=10.0, **limits) for _ in range(2))
    for line in zip(steps, times, rows, strict=True):
        assert first.look(*line) == second.look(*line)
