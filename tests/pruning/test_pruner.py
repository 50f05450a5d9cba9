"""The pruner as a whole: exact counts, what it refuses, resume, the record."""

import io
import json
import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adamwprune import pruning
from adamwprune.errors import CheckpointError, ConfigError, RunError, SparsityError
from adamwprune.pruning.criteria.magnitude import magnitude
from adamwprune.pruning.criteria.state import state
from adamwprune.pruning.dense import Dense
from adamwprune.pruning.masks import Masks
from adamwprune.pruning.pruner import Pruner
from adamwprune.pruning.schedules import constant, linear, oneshot
from adamwprune.pruning.scopes.global_ import global_
from adamwprune.pruning.scopes.layerwise import layerwise
from adamwprune.pruning.scopes.row import row
from adamwprune.pruning.scopes.segments import pruned_count


def adamw(model, **keywords):
    return torch.optim.AdamW(model.parameters(), **{"lr": 1e-2, "betas": (0.9, 0.5), **keywords})


def prune_once(model, optimizer, target, scope, criterion=magnitude):
    pruner = Pruner(
        model,
        optimizer,
        criterion=criterion,
        schedule=oneshot,
        scope=scope,
        target_sparsity=target,
        start_step=1,
        end_step=1,
        update_every=1,
    )
    return pruner, pruner.after_step(1)


FILLS = {
    "random": lambda p: p.normal_(),
    "half zeros": lambda p: p.normal_().mul_(torch.rand(p.shape) < 0.5),
    "all equal": lambda p: p.fill_(0.25),
    "few values": lambda p: p.normal_().mul_(2).round_(),
}


@given(
    target=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.5, 0.9, 0.999])),
    scope=st.sampled_from([layerwise, global_]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    fill=st.sampled_from(sorted(FILLS)),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_exact_count_for_every_scope_target_dtype_and_tie(target, scope, dtype, fill, seed):
    """Ties made the ancestor overshoot .50 to .786; here the count is exact per segment."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(17, 11), nn.Linear(11, 13), nn.Linear(13, 2)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            FILLS[fill](parameter)
    sizes = [187, 143] if scope is layerwise else [330]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if any(pruned_count(size, target) == size for size in sizes):
        with pytest.raises(ConfigError, match="rounds to all"):
            prune_once(model, optimizer, target, scope)
        return
    pruner, _ = prune_once(model, optimizer, target, scope)
    assert pruner.pruned() == pruner.planned_count(1) == sum(pruned_count(size, target) for size in sizes)
    for name, parameter in pruner.prunable.items():
        assert not parameter[~pruner.masks[name]].any()
    pruner.verify(1)


@pytest.mark.parametrize("scope", [layerwise, global_])
@pytest.mark.parametrize("criterion", [magnitude, state])
def test_every_update_of_a_ramp_meets_its_plan(scope, criterion, make_model, make_pruner, train):
    model = make_model()
    optimizer = adamw(model)
    pruner = make_pruner(model, optimizer, criterion=criterion, scope=scope)
    pruned = []

    def look(step):
        pruner.verify(step)
        assert pruner.pruned() == pruner.planned_count(step)
        pruned.append(pruner.pruned())

    train(model, optimizer, pruner, 1, 60, look=look)
    assert pruned == sorted(pruned)
    assert pruned[-1] == 468
    assert pruned[4] == 0
    assert pruned[9] > 0
    assert pruner.is_final(50)
    assert not pruner.is_final(49)


def test_scores_are_read_at_updates_and_at_no_other_step(make_model, make_pruner, train):
    """The ancestor ran its threshold search 489 times in 500 steps."""
    calls = []

    def counted(weight):
        calls.append(weight.numel())
        return weight.abs()

    model = make_model()
    optimizer = adamw(model)
    pruner = make_pruner(model, optimizer, criterion=counted, schedule=linear)
    per_step = []
    train(model, optimizer, pruner, 1, 80, look=lambda step: per_step.append(len(calls)))
    steps = [step for step in range(2, 81) if per_step[step - 1] > per_step[step - 2]]
    assert steps == [10, 15, 20, 25, 30, 35, 40, 45, 50]  # at step 5 the plan is still 0


def test_an_update_reports_what_it_did(make_model, make_pruner, train):
    model = make_model()
    optimizer = adamw(model)
    pruner = make_pruner(model, optimizer)
    train(model, optimizer, pruner, 1, 19)
    magnitudes = [p.detach().abs().flatten().sort().values for p in pruner.prunable.values()]
    before = pruner.pruned()
    update = pruner.after_step(20)
    assert (update.step, update.pruned) == (20, pruner.pruned())
    assert update.newly_pruned == update.pruned - before > 0
    assert update.sparsity == update.pruned / 520
    counts = [segment.count for segment in layerwise([(20, 16), (10, 20)], pruner.plan.sparsity(20))]
    thresholds = [m[k - 1].item() for m, k in zip(magnitudes, counts, strict=True)]
    assert update.thresholds == dict(zip(pruner.prunable, thresholds, strict=True))
    assert pruner.after_step(20) is None


def test_an_update_that_was_passed_over_is_made_up_for(make_model, make_pruner):
    model = make_model()
    pruner = make_pruner(model, adamw(model))
    with pytest.raises(SparsityError, match="are to be pruned, the masks prune 0"):
        pruner.verify(32)
    assert pruner.after_step(32).pruned == pruner.planned_count(30)
    pruner.verify(32)


@pytest.mark.parametrize(("schedule", "initial"), [(constant, 0.0), (linear, 0.4)])
def test_a_plan_that_starts_sparse_prunes_before_the_first_step(schedule, initial, make_model, make_pruner):
    model = make_model()
    pruner = make_pruner(
        model, adamw(model), schedule=schedule, initial_sparsity=initial, target_sparsity=0.8
    )
    assert pruner.after_step(0).pruned == pruner.planned_count(0) == (416 if schedule is constant else 208)
    with pytest.raises(ConfigError, match="before the first step, when the optimizer has no exp_avg_sq"):
        make_pruner(
            model,
            adamw(model),
            criterion=state,
            schedule=schedule,
            initial_sparsity=initial,
            target_sparsity=0.8,
        )


def test_state_criterion_prunes_by_the_state(make_model, make_pruner, train):
    """Same weights, other moments, other masks: v is not decoration."""
    model = make_model()
    optimizer = adamw(model)
    pruner = make_pruner(model, optimizer, criterion=state, schedule=oneshot, start_step=19, end_step=19)
    train(model, optimizer, pruner, 1, 18)
    model(torch.randn(8, 16)).square().sum().backward()
    optimizer.step()
    view = {
        n: p.detach().abs() * optimizer.state[p]["exp_avg_sq"] ** 0.25 for n, p in pruner.prunable.items()
    }
    pruner.after_step(19)
    for name, score in view.items():
        assert score[pruner.masks[name]].min() >= score[~pruner.masks[name]].max()


@pytest.mark.parametrize("q", [0.25, 0.5])
@pytest.mark.parametrize("scope", [layerwise, global_])
def test_scaling_all_gradients_changes_no_mask(q, scope, make_model, make_pruner, train):
    """v * c^2 with c = 4^j is exact, so equal masks are demanded; an eps in the score would fail."""
    hashes = set()
    for j in (-6, 0, 6):
        model = make_model()
        optimizer = adamw(model)
        pruner = make_pruner(model, optimizer, criterion=partial(state, q=q), scope=scope, start_step=20)
        train(model, optimizer, pruner, 1, 19)
        for moments in optimizer.state.values():
            moments["exp_avg"] *= 4.0**j
            moments["exp_avg_sq"] *= 16.0**j
        pruner.after_step(50)
        hashes.add(pruner.mask_hash())
    assert len(hashes) == 1


def test_unseen_weights_are_kept_and_counted(make_pruner):
    """A dead input: v of its column is exactly 0, a score of 0 would prune it wholesale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.Linear(10, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    pruner = make_pruner(
        model, optimizer, criterion=state, target_sparsity=0.5, schedule=oneshot, start_step=1
    )
    model(torch.randn(8, 4) * torch.tensor([1.0, 0.0, 1.0, 1.0])).square().sum().backward()
    optimizer.step()
    assert pruner.after_step(1).layer_unseen == {"0.weight": 10}
    assert pruner.masks["0.weight"][:, 1].all()
    assert pruner.pruned() == 20


@pytest.mark.parametrize("unseen", ["keep", "prune"])
def test_unseen_weights_that_crowd_out_others_are_told_or_pruned(unseen, make_pruner, caplog):
    """Five inputs of six are dead: at 50 % all that is kept would be theirs, and the layer would be blind."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 2))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.9))
    once = {"schedule": oneshot, "start_step": 1, "end_step": 1, "update_every": 1, "target_sparsity": 0.5}
    pruner, other = (
        make_pruner(model, optimizer, criterion=state, unseen=choice, **once)
        for choice in (unseen, {"keep": "prune", "prune": "keep"}[unseen])
    )
    caplog.clear()
    model(torch.randn(8, 6) * (torch.arange(6) == 2)).square().sum().backward()
    optimizer.step()
    assert pruner.after_step(1).unseen == (30 if unseen == "keep" else 20)
    assert bool(pruner.masks["0.weight"][:, 2].any()) is (unseen == "prune")
    told = "no gradient ever reached 30 of the 30 live weights of 0.weight" in caplog.text
    assert told is (unseen == "keep")
    assert pruner.describe()["unseen"] == unseen
    assert unseen == "keep" or "live weights" not in caplog.text
    with pytest.raises(CheckpointError, match="unseen="):
        other.load_state_dict(pruner.state_dict())


@pytest.mark.parametrize("unseen", ["keep", "prune"])
def test_state_with_q_0_is_magnitude_but_for_unseen_zeros(make_pruner, unseen):
    """A weight that is 0 behind a dead input: magnitude prunes it, state keeps what it knows nothing of."""
    hashes = []
    for criterion in (magnitude, partial(state, q=0.0)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 10), nn.Linear(10, 2))
        with torch.no_grad():
            model[0].weight[:, :3] = 0.0
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.9))
        once = {"schedule": oneshot, "start_step": 1, "end_step": 1, "update_every": 1}
        pruner = make_pruner(
            model, optimizer, criterion=criterion, unseen=unseen, target_sparsity=0.5, **once
        )
        model(torch.randn(8, 8) * (torch.arange(8) > 2)).square().sum().backward()
        optimizer.step()
        pruner.after_step(1)
        hashes.append(pruner.mask_hash())
    assert (hashes[0] == hashes[1]) is (unseen == "prune")


def test_target_zero_equals_dense_bitwise(make_model, make_pruner, train, snapshot):
    results = []
    for make in (lambda m, o: make_pruner(m, o, target_sparsity=0.0, criterion=state), lambda m, o: Dense(m)):
        model = make_model()
        optimizer = adamw(model)
        pruner = make(model, optimizer)
        train(model, optimizer, pruner, 1, 60)
        pruner.verify(60)
        assert pruner.is_final(60)
        assert pruner.mean_density(60) == 1.0
        assert pruner.sparsity() == 0.0
        results.append(snapshot(model, optimizer))
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name


@pytest.mark.parametrize("criterion", [magnitude, state])
@pytest.mark.parametrize("stop", [3, 22, 25, 55])
def test_resume_equals_the_unbroken_run_bitwise(criterion, stop, make_model, make_pruner, train, snapshot):
    """Before, between, at and after updates; through torch.save and weights_only."""

    def build():
        model = make_model()
        optimizer = adamw(model)
        return model, optimizer, make_pruner(model, optimizer, criterion=criterion)

    model, optimizer, pruner = build()
    train(model, optimizer, pruner, 1, stop)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], file)
    train(model, optimizer, pruner, stop + 1, 60)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, its_optimizer, its_pruner = build()
    for part, part_state in zip((resumed, its_optimizer, its_pruner), saved, strict=True):
        part.load_state_dict(part_state)
    train(resumed, its_optimizer, its_pruner, stop + 1, 60)

    expected, found = snapshot(model, optimizer), snapshot(resumed, its_optimizer)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert its_pruner.mask_hash() == pruner.mask_hash()
    assert its_pruner.pruned() == 468


def test_control_without_the_masks_a_resumed_run_differs(make_model, make_pruner, train, snapshot):
    """Gradients of pruned weights eat into the clipped norm, though their weights are pruned again."""
    results = []
    for forget in (False, True):
        model = make_model()
        optimizer = adamw(model)
        pruner = make_pruner(model, optimizer)
        train(model, optimizer, pruner, 1, 22)
        train(model, optimizer, make_pruner(model, optimizer) if forget else pruner, 23, 24, clip=0.01)
        results.append(snapshot(model, optimizer)["2.weight"])
    assert not torch.equal(*results)


@pytest.fixture
def trained(make_model, make_pruner, train):
    model = make_model()
    optimizer = adamw(model)
    pruner = make_pruner(model, optimizer)
    train(model, optimizer, pruner, 1, 60)
    return model, pruner


def test_one_revived_weight_fails_verification(trained):
    model, pruner = trained
    pruner.verify(60)
    with torch.no_grad():
        model[0].weight.view(-1)[(~pruner.masks["0.weight"]).view(-1).nonzero()[0]] = 1e-30
    with pytest.raises(SparsityError, match=r"step 60: 288 weights of 0\.weight .* 1 of these are not 0"):
        pruner.verify(60)


@pytest.mark.parametrize("kept", [True, False])
def test_one_changed_mask_entry_fails_verification(kept, trained):
    pruner = trained[1]
    mask = pruner.masks["2.weight"].view(-1)
    mask[(mask != kept).nonzero()[0]] = kept
    with pytest.raises(SparsityError, match=rf"180 weights of 2\.weight .* prune {179 if kept else 181}"):
        pruner.verify(60)


def test_a_moved_mask_entry_fails_verification_too(trained):
    """The count is right, the place is wrong."""
    pruner = trained[1]
    mask = pruner.masks["2.weight"].view(-1)
    kept, pruned = mask.nonzero()[0], (~mask).nonzero()[0]
    mask[kept], mask[pruned] = False, True
    with pytest.raises(SparsityError, match="are not 0"):
        pruner.verify(60)


def test_a_target_that_was_never_applied_fails_verification(make_model, make_pruner):
    """The ancestor reported 0 % as success, six times."""
    model = make_model()
    with pytest.raises(SparsityError, match=r"288 weights .* the masks prune 0"):
        make_pruner(model, adamw(model)).verify(60)


def test_counts_come_from_the_weights(trained):
    model, pruner = trained
    counts = {"total": 583, "prunable": 520, "nonzero": 115, "nonzero_prunable": 52, "pruned": 468}
    assert pruner.counts() == counts
    assert pruner.layer_sparsity() == {"0.weight": 0.9, "2.weight": 0.9}
    with torch.no_grad():
        model[0].weight.zero_()
    assert pruner.layer_sparsity()["0.weight"] == 1.0
    assert pruner.sparsity() == Dense(model).sparsity() == 1 - 20 / 520
    assert Dense(model).counts()["pruned"] == 0


def test_model_state_has_the_keys_of_a_dense_model(trained, make_model):
    assert trained[0].state_dict().keys() == make_model().state_dict().keys()


def test_state_is_small_and_plain(trained):
    packed = trained[1].state_dict()
    assert {name: bits.numel() for name, bits in packed["masks"]["packed"].items()} == {
        "0.weight": 40,
        "2.weight": 25,
    }
    assert (packed["pruned"], packed["last_update"]) == (468, 50)
    json.dumps(packed["configuration"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"target_sparsity": 0.8}, "target_sparsity=0.9 instead of 0.8"),
        ({"criterion": state}, "criterion="),
        ({"criterion": lambda weight: weight.abs()}, "<lambda>"),
        ({"scope": global_}, "scope="),
        ({"end_step": 55}, "end_step=50 instead of 55"),
        ({"exclude": ["2.*"]}, "prunable="),
    ],
)
def test_state_of_another_configuration_is_refused(changed, words, trained, make_pruner):
    model, pruner = trained
    with pytest.raises(CheckpointError, match=words):
        make_pruner(model, adamw(model), **changed).load_state_dict(pruner.state_dict())


def test_another_setting_of_a_criterion_is_another_configuration(trained, make_pruner):
    model = trained[0]
    saved = make_pruner(model, adamw(model), criterion=partial(state, q=0.5)).state_dict()
    make_pruner(model, adamw(model), criterion=partial(state, q=0.5)).load_state_dict(saved)
    with pytest.raises(CheckpointError, match=r"'q': 0\.5"):
        make_pruner(model, adamw(model), criterion=state).load_state_dict(saved)


def test_dense_and_pruned_states_are_not_exchanged(trained, make_pruner):
    model, pruner = trained
    with pytest.raises(CheckpointError, match="pruned run"):
        Dense(model).load_state_dict(pruner.state_dict())
    with pytest.raises(CheckpointError, match="dense run"):
        pruner.load_state_dict(Dense(model).state_dict())
    Dense(model).load_state_dict(Dense(model).state_dict())


def test_weights_must_fit_the_masks(trained, make_model, make_pruner):
    """Fresh weights with trained masks: the model was not loaded before."""
    fresh = make_model()
    with pytest.raises(CheckpointError, match="load the model first"):
        make_pruner(fresh, adamw(fresh)).load_state_dict(trained[1].state_dict())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_criterion_that_the_optimizer_cannot_feed_is_refused_at_once(momentum, make_model, make_pruner):
    """Not at the first update, and never silently as magnitude."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    with pytest.raises(ConfigError, match="criterion=state: needs exp_avg_sq, which SGD does not keep"):
        make_pruner(model, optimizer, criterion=state)
    make_pruner(model, optimizer, criterion=magnitude)


def test_settings_of_the_weights_group_decide_what_is_kept(make_model, make_pruner):
    """AMSGrad in the group, not in the defaults."""

    def fisher(weight, max_exp_avg_sq):
        return weight.abs() * max_exp_avg_sq

    model = make_model()
    group = {"params": model.parameters(), "amsgrad": True}
    make_pruner(model, torch.optim.AdamW([group]), criterion=fisher, end_step=100)
    words = "needs max_exp_avg_sq, which AdamW does not keep; choose optimizer=adamwadv, or pruning=magnitude"
    with pytest.raises(ConfigError, match=words):
        make_pruner(model, adamw(model), criterion=fisher)


def test_a_weight_that_was_never_stepped_is_an_error_not_magnitude(make_model, make_pruner, train):
    model = make_model()
    model[2].weight.requires_grad_(False)
    optimizer = adamw(model)
    pruner = make_pruner(model, optimizer, criterion=state)
    with pytest.raises(RunError, match=r"step 10: the optimizer keeps no exp_avg_sq for 2\.weight.*exclude"):
        train(model, optimizer, pruner, 1, 60)
    assert pruner.pruned() == 0
    allowed = make_pruner(model, optimizer, criterion=state, exclude=["2.weight"])
    train(model, optimizer, allowed, 1, 60)
    assert allowed.pruned() == 288


def test_a_cold_second_moment_is_warned_of(make_model, make_pruner, caplog):
    """3 / (1 - beta2): 3,000 steps at .999, 60 at .95; no reason to warn without v."""
    model = make_model()
    for betas, criterion, start, warned in [
        ((0.9, 0.999), state, 2999, True),
        ((0.9, 0.999), state, 3001, False),
        ((0.9, 0.95), state, 59, True),
        ((0.9, 0.95), state, 61, False),
        ((0.9, 0.999), magnitude, 0, False),
    ]:
        caplog.clear()
        make_pruner(model, adamw(model, betas=betas), criterion=criterion, start_step=start, end_step=4000)
        assert ("averages too few gradients" in caplog.text) is warned, (betas, start)


class Restarting(torch.optim.Adam):
    """Adam whose moments and step counts restart every `reset_every` steps, as SPAM's do."""

    def __init__(self, params, reset_every):
        super().__init__(params, betas=(0.9, 0.9))
        self.param_groups[0]["reset_every"] = reset_every
        self.steps = 0

    def step(self, closure=None):
        if self.steps and self.steps % self.param_groups[0]["reset_every"] == 0:
            self.state.clear()
        self.steps += 1
        super().step(closure)


def test_an_update_waits_until_restarted_moments_mean_something(make_model, make_pruner, train):
    """20 gradients, or .1 / (1 - beta2) if that is more; magnitude does not read them and does not wait."""
    for criterion, expected in ((state, [16, 24, 51, 56, 60]), (magnitude, [16, 24, 32, 40, 48, 56, 60])):
        model = make_model()
        optimizer = Restarting(model.parameters(), reset_every=31)
        plan = {"start_step": 8, "end_step": 60, "update_every": 8, "schedule": linear}
        pruner = make_pruner(model, optimizer, criterion=criterion, **plan)
        seen, updates = pruner.pruned(), []

        def look(step, pruner=pruner, updates=updates):
            nonlocal seen
            if pruner.pruned() != seen:
                updates.append(step)
                seen = pruner.pruned()

        train(model, optimizer, pruner, 1, 90, look=look)
        assert updates == expected, criterion
        pruner.verify(90)


def test_moments_that_restart_too_often_are_refused(make_model, make_pruner):
    """Masks would wait for ever, and the run would fail at its end; magnitude needs no moments."""
    model = make_model()
    optimizer = Restarting(model.parameters(), reset_every=20)
    with pytest.raises(
        ConfigError, match=r"optimizer\.reset_every=20: moments restart before .* 20 gradients"
    ):
        make_pruner(model, optimizer, criterion=state)
    make_pruner(model, optimizer, criterion=magnitude)
    optimizer.param_groups[0]["reset_every"] = 21
    make_pruner(model, optimizer, criterion=state)


def test_nothing_to_prune_is_refused(make_model, make_pruner):
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ConfigError, match=r"no weight to prune.*0\.weight"):
        make_pruner(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert Dense(model).sparsity() == 0.0
    assert Dense(model).layer_sparsity() == {}


def test_the_record_tells_what_the_live_objects_are(make_model, make_pruner):
    """Labels come from the built object: the ancestor's "state" runs were movement."""
    model = make_model()
    record = make_pruner(model, adamw(model), criterion=partial(state, q=0.5), scope=global_).describe()
    assert record == {
        "criterion": {"name": "state", "q": 0.5},
        "schedule": {"name": "zhu_gupta"},
        "scope": {"name": "global", "normalize": "none", "max_layer_sparsity": None},
        "selection": {"name": "streaming"},
        "mode": {"name": "hard"},
        "unseen": "keep",
        "target_sparsity": 0.9,
        "initial_sparsity": 0.0,
        "start_step": 5,
        "end_step": 50,
        "update_every": 5,
        "prunable": {"0.weight": 320, "2.weight": 200},
        "excluded": {
            "bias, norm or scale": ["0.bias", "2.bias", "4.bias"],
            "output head": ["4.weight"],
        },
    }
    assert json.loads(json.dumps(record)) == record
    dense = Dense(model).describe()
    assert dense == {"criterion": {"name": "none"}, "target_sparsity": 0.0} | {
        key: record[key] for key in ("prunable", "excluded")
    }


def test_dense_has_the_interface_of_the_pruner():
    """What the engine calls; the others are for loops without an engine, and for checks before a run."""

    def public(cls):
        return {name for name in dir(cls) if not name.startswith("_")}

    assert public(Dense) == public(Pruner) - {"over", "attach", "check_resets", "mode"}


def test_mean_density_is_that_of_the_masks(make_model, make_pruner, train):
    """Half a weight per tensor and update is the rounding of counts."""
    model = make_model()
    optimizer = adamw(model)
    pruner = make_pruner(model, optimizer)
    live = [0]
    train(model, optimizer, pruner, 1, 79, look=lambda step: live.append(pruner.pruned()))
    assert pruner.mean_density(80) == pytest.approx(1 - sum(live) / 80 / 520, abs=1e-3)


def test_packages_are_imported_without_torch():
    """A configuration is checked before torch, which takes 1.8 s; the lazy name works all the same."""
    code = (
        "import sys, adamwprune.pruning, adamwprune.pruning.criteria, adamwprune.pruning.schedules, "
        "adamwprune.pruning.schedules; assert 'torch' not in sys.modules; "
        "from adamwprune.pruning import Pruner; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_masks_do_not_depend_on_the_number_of_threads(make_pruner):
    hashes = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(700, 900), nn.Linear(900, 2))
        optimizer = adamw(model)
        pruner = make_pruner(model, optimizer, criterion=state, schedule=oneshot, start_step=1)
        optimizer.state[model[0].weight]["exp_avg_sq"] = torch.rand(900, 700) * 1e-9
        pruner.after_step(1)
        hashes.add(pruner.mask_hash())
    assert len(hashes) == 1


def test_an_update_that_waits_has_not_reached_the_target(make_model, make_pruner, train):
    """Else the best score of a run could be that of a dense model: due at step 31, masks come at 50."""
    model = make_model()
    optimizer = Restarting(model.parameters(), reset_every=30)
    plan = {"schedule": oneshot, "start_step": 31, "end_step": 31, "update_every": 1}
    pruner = make_pruner(model, optimizer, criterion=state, **plan)
    final = []
    train(model, optimizer, pruner, 1, 60, look=lambda step: final.append(pruner.is_final(step)))
    assert pruner.plan.sparsity_in_force(31) == 0.9
    assert final.index(True) + 1 == 50
    assert pruner.pruned() == 468


def test_attached_pruners_go_on_where_they_were(make_model, make_pruner):
    """Steps count on after a resume; a count behind the masks is refused; a sparse start is sparse."""
    model = make_model()
    optimizer = adamw(model)
    pruner = make_pruner(model, optimizer)
    pruner.attach(20)
    assert pruner.pruned() == pruner.planned_count(20) > 0
    with pytest.raises(ConfigError, match="the masks are those of step 20"):
        pruner.attach(19)
    sparse = make_pruner(model, optimizer, schedule=constant, target_sparsity=0.8)
    sparse.attach()
    assert sparse.pruned() == 416


def test_a_count_that_the_masks_do_not_have_is_refused(make_model, make_pruner, train):
    """A state put together from two checkpoints; the pruner stays as it was."""
    model = make_model()
    pruner = make_pruner(model, adamw(model))
    pruner.attach(20)
    saved, before = pruner.state_dict(), pruner.mask_hash()
    with pytest.raises(CheckpointError, match="weights should be pruned, the masks prune"):
        pruner.load_state_dict({**saved, "pruned": saved["pruned"] + 1})
    assert pruner.mask_hash() == before
    pruner.load_state_dict(saved)


def test_an_optimizer_that_has_stepped_is_not_tried_but_looked_at(make_model, make_pruner, train):
    """What it lacks after real steps it will lack at the update."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, make_pruner(model, optimizer), 1, 1)
    words = "needs exp_avg_sq, which SGD does not keep; choose optimizer=adamw, or pruning=magnitude"
    with pytest.raises(ConfigError, match=words):
        make_pruner(model, optimizer, criterion=state)


def test_a_target_that_a_scope_rounds_far_away_is_refused_with_the_one_it_reaches():
    """Rows of 3 weights: 1/2 would become 2/3."""
    model = nn.Sequential(nn.Linear(3, 40), nn.Linear(40, 2))
    keys = {"criterion": magnitude, "start_step": 1, "end_step": 1, "update_every": 1, "schedule": oneshot}
    with pytest.raises(
        ConfigError, match=r"scope=row rounds it to 0\.6667; set pruning\.target_sparsity=0\.6667"
    ):
        Pruner(model, adamw(model), target_sparsity=0.5, scope=row, **keys)
    assert Pruner(model, adamw(model), target_sparsity=0.6667, scope=row, **keys).planned_count(1) == 80


def test_a_dense_run_answers_as_a_pruned_one_of_nothing(make_model, make_pruner, train):
    """It counts zeros that are there by themselves, and touches none."""
    model, twin = make_model(), make_model()
    dense = Dense(model)
    assert dense.after_step(7) is None
    assert (dense.planned_count(9), dense.pruned(), dense.is_final(0)) == (0, 0, True)
    assert (dense.mean_density(9), dense.mask_hash(), dense.state_dict()) == (1.0, Masks({}).hash(), {})
    dense.verify(9)
    optimizers = adamw(model), adamw(twin)
    train(model, optimizers[0], dense, 1, 2)
    train(twin, optimizers[1], make_pruner(twin, optimizers[1]), 1, 2)  # its window has not begun
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), twin.parameters(), strict=True))
    expected = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    torch.testing.assert_close(dense.mask_and_norm_grads_(), expected)
    with torch.no_grad():
        model[0].weight[:4] = 0.0
    assert dense.sparsity() == pytest.approx(64 / 520)
    assert dense.layer_sparsity() == pytest.approx({"0.weight": 64 / 320, "2.weight": 0.0})


def test_a_pruner_says_what_it_is(make_model, make_pruner):
    model = make_model()
    pruner = make_pruner(model, adamw(model))
    pruner.attach(50)
    assert repr(pruner) == "Pruner(magnitude, hard, 0.9 of 520 weights, steps 5 to 50, 468 pruned)"
    assert pruner.mode is pruner._mode


def test_the_package_has_two_names_and_no_other():
    assert pruning.Dense is Dense
    assert not hasattr(pruning, "Prunner")
