"""Modes soft and ste against explicit references, hooks, and what fits what."""

import copy
import gc
import inspect
import itertools
import math
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from adamwprune.errors import CheckpointError, ConfigError, RunError
from adamwprune.optim.muon import Muon
from adamwprune.pruning.criteria.movement import movement
from adamwprune.pruning.criteria.state import state
from adamwprune.pruning.modes.hard import Hard
from adamwprune.pruning.modes.soft import Soft
from adamwprune.pruning.modes.ste import StraightThrough
from adamwprune.pruning.schedules import constant, oneshot
from adamwprune.pruning.scopes.block import block
from adamwprune.pruning.scopes.erk import erk
from adamwprune.pruning.scopes.global_ import global_
from adamwprune.pruning.scopes.nm import nm
from adamwprune.pruning.scopes.segments import pruned_count
from adamwprune.pruning.trial import revives_pruned
from tests.pruning import drive
from tests.pruning.drive import with_


def adamw(model, **settings):
    return drive.optimizer_of(model, "adamw", "fused", **{"betas": (0.9, 0.9), **settings})


def zero_where_pruned(pruner):
    """Weights of pruned entries, every bit."""
    return all(not drive.bits(p)[~pruner.masks[name]].any() for name, p in pruner.prunable.items())


def copies(pruner):
    """Masks and weights by name."""
    return (
        {name: pruner.masks[name].clone() for name in pruner.prunable},
        {name: parameter.detach().clone() for name, parameter in pruner.prunable.items()},
    )


# ------------------------------------------------------------------------------------ soft: the oracle


def lowest(scores, count, among):
    """Flat places of the `count` lowest float32 scores among some, equal ones by place."""
    order = np.argsort(scores.astype(np.float32), kind="stable")
    return order[among[order]][:count]


def exchanged(weight, growth, kept, count, further):
    """RigL's exchange of one tensor: `further` weights are pruned, then all but `count` grow back."""
    kept = kept.copy()
    kept[lowest(np.abs(weight), further - int((~kept).sum()), kept)] = False
    stays = lowest(growth, count, ~kept)
    kept[:] = True
    kept[stays] = False
    return kept


def growth_of(grow, optimizer, parameter):
    """|m| / sqrt(v) or |g|, in float32."""
    if grow == "gradient":
        return parameter.grad.abs().flatten().numpy()
    moments = optimizer.state[parameter]
    first, second = (moments[name].flatten().numpy() for name in ("exp_avg", "exp_avg_sq"))
    return np.divide(np.abs(first), np.sqrt(second), out=np.zeros_like(first), where=first != 0)


@pytest.mark.parametrize("grow", ["momentum", "gradient"])
@pytest.mark.parametrize("fraction", [pytest.param(0.1, marks=pytest.mark.slow), 0.4])
def test_an_exchange_is_that_of_the_oracle(grow, fraction):
    """Counts exact after each; those that come back are the top of all pruned, and start at exactly 0.

    Between updates no mask changes, and pruned weights are 0 after every step.
    """
    model = drive.network()
    optimizer = adamw(model)
    mode = with_(Soft, grow=grow, regrow_fraction=fraction)
    pruner = drive.pruner_of(model, optimizer, mode=mode)
    regrown = 0
    for step in range(1, 71):
        optimizer.zero_grad()
        drive.backward(model, step)
        pruner.mask_grads_()
        optimizer.step()
        pruner.after_step(step - 1)  # only sets the moved weights to 0 again
        before, weights = copies(pruner)
        update = pruner.after_step(step)
        assert zero_where_pruned(pruner)
        assert pruner.pruned() == pruner.planned_count(step)
        sparsity, progress = pruner.plan.sparsity(step), min(1.0, (step - 20) / 40)
        has_pruned = not all(bool(mask.all()) for mask in before.values())
        share = has_pruned * fraction * (1 + math.cos(math.pi * progress)) / 2
        for name, parameter in pruner.prunable.items():
            kept, size = before[name].flatten().numpy(), parameter.numel()
            if update is not None:
                count = pruned_count(size, sparsity)
                further = pruned_count(size, sparsity + share * (1 - sparsity))
                growth = growth_of(grow, optimizer, parameter)
                kept = exchanged(weights[name].flatten().numpy(), growth, kept, count, further)
            np.testing.assert_array_equal(pruner.masks[name].flatten().numpy(), kept)
            came_back = pruner.masks[name] & ~before[name]
            assert not drive.bits(parameter)[came_back].any()
            regrown += int(came_back.sum())
    assert regrown > 10
    assert update is None
    pruner.verify(70)


def test_the_share_that_is_exchanged_falls_to_0():
    """f (1 + cos(pi p)) / 2 of the live weights by churn, with a constant sparsity; none at the end."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(
        model,
        optimizer,
        mode=with_(Soft, grow="gradient", regrow_fraction=0.5),
        schedule=constant,
        target_sparsity=0.5,
    )
    pruner.after_step(0)
    updates = []
    drive.train(model, optimizer, pruner, 1, 19)
    for step in range(20, 61):
        drive.train(model, optimizer, WithoutUpdates(pruner), step, step)
        if update := pruner.after_step(step):
            updates.append(update)
    assert [update.step for update in updates] == list(range(20, 61, 5))
    assert all(update.pruned == 160 for update in updates)
    assert all(update.newly_pruned == update.regrown for update in updates)
    most = [0.5 * (1 + math.cos(math.pi * (update.step - 20) / 40)) / 2 * 160 for update in updates]
    # Of the share some come back at once; rounded per tensor.
    assert all(update.regrown <= bound + 1 for update, bound in zip(updates, most, strict=True))
    assert updates[0].regrown > 20
    assert updates[-1].regrown == updates[-1].churn == 0


class WithoutUpdates:
    """A pruner in whose loop the caller makes the updates."""

    def __init__(self, pruner):
        self._pruner = pruner

    def mask_grads_(self):
        self._pruner.mask_grads_()

    def after_step(self, step):
        pass


@pytest.mark.parametrize("grow", ["momentum", "none"])
def test_gradients_and_state_of_pruned_weights_live(grow):
    """What makes coming back possible; hard mode has them at 0. Dead units have no gradient at all."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer, mode=with_(Soft, grow=grow))
    drive.train(model, optimizer, pruner, 1, 70)
    for name, parameter in pruner.prunable.items():
        for tensor in (parameter.grad, *drive.shaped_state(optimizer, parameter).values()):
            assert (tensor[~pruner.masks[name]] != 0).float().mean() > 0.5


def test_nothing_grows_if_nothing_is_to_grow():
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer, mode=with_(Soft, grow="none"))
    masks = [copies(pruner)[0]]
    drive.train(model, optimizer, pruner, 1, 70, look=lambda step: masks.append(copies(pruner)[0]))
    for earlier, later in itertools.pairwise(masks):
        assert not any((later[name] & ~earlier[name]).any() for name in later)
    pruner.verify(70)


SCOPES = {
    "global": global_,
    "global-l2": with_(global_, normalize="l2"),
    "global-capped": with_(global_, max_layer_sparsity=0.97),
    "erk": erk,
    "block": with_(block, size=4),
}


@pytest.mark.parametrize("name", SCOPES)
def test_an_exchange_is_exact_in_every_scope(name):
    model = drive.network()
    optimizer = adamw(model)
    mode = with_(Soft, grow="gradient", regrow_fraction=0.3)
    pruner = drive.pruner_of(model, optimizer, scope=SCOPES[name], mode=mode, target_sparsity=0.8)
    drive.train(model, optimizer, pruner, 1, 70, look=pruner.verify)
    assert pruner.pruned() == 256


@pytest.mark.timeout(20)
def test_a_tensor_too_small_to_be_pruned_yet_hinders_no_exchange():
    """20 weights at 2 %: none is to be pruned, of others some are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 20), nn.Linear(20, 1), nn.Linear(1, 3), nn.Linear(3, 2))
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer, mode=Soft, end_step=1000, exclude=["2.weight"])
    for step in range(1, 60):
        optimizer.zero_grad()
        inputs = torch.randn(6, 16, generator=torch.Generator().manual_seed(step))
        model(inputs).square().sum().backward()
        pruner.mask_grads_()
        optimizer.step()
        pruner.after_step(step)
        pruner.verify(step)


def test_a_pruned_weight_with_an_infinite_growth_score_displaces_no_live_one():
    """v may underflow where m does not: m / sqrt(v) is infinite, as live weights count."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer, mode=with_(Soft, regrow_fraction=0.05))
    drive.train(model, optimizer, pruner, 1, 42)
    for parameter in pruner.prunable.values():
        optimizer.state[parameter]["exp_avg_sq"].zero_()
    before, weights = copies(pruner)
    pruner.after_step(45)
    sparsity = pruner.plan.sparsity(45)
    for name in pruner.prunable:
        kept, weight = before[name].flatten().numpy(), weights[name].flatten().numpy()
        most = pruned_count(kept.size, sparsity + 0.05 * (1 - sparsity)) - int((~kept).sum())
        lost = np.flatnonzero(kept & ~pruner.masks[name].flatten().numpy())
        assert set(lost) <= set(lowest(np.abs(weight), most, kept))


def test_a_plan_that_starts_sparse_grows_from_its_second_update():
    """RigL's own plan: sparse from the beginning. The first update has nothing that could come back."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer, mode=Soft, schedule=constant)
    assert pruner.after_step(0).pruned == 173 + 115
    drive.train(model, optimizer, pruner, 1, 70, look=pruner.verify)


def test_growing_by_a_gradient_that_is_not_there_is_an_error_that_names_it():
    """A loop that clears gradients before after_step, or a layer that took no part."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer, mode=with_(Soft, grow="gradient"))
    drive.train(model, optimizer, pruner, 1, 35)
    optimizer.zero_grad()
    with pytest.raises(RunError, match=r"step 40.*grad.*0\.weight"):
        pruner.after_step(40)


# --------------------------------------------------------------------------- optimizers that mix entries


@pytest.mark.parametrize("mode", [with_(Soft, grow="gradient"), with_(Soft, grow="none"), StraightThrough])
def test_muon_is_pruned_by_modes_that_set_zeros(mode):
    """0 after every step, though Muon moves every entry of a matrix."""
    model = drive.network()
    optimizer = Muon(model.parameters(), lr=1e-2)
    pruner = drive.pruner_of(model, optimizer, mode=mode)

    def look(step):
        assert zero_where_pruned(pruner)
        assert pruner.pruned() == pruner.planned_count(step)

    drive.train(model, optimizer, pruner, 1, 70, look=look)
    assert pruner.pruned() == 173 + 115


def test_muon_is_refused_in_mode_hard_and_told_what_works():
    model = drive.network()
    optimizer = Muon(model.parameters())
    with pytest.raises(ConfigError, match=r"mode=hard: Muon mixes .*/mode=soft pruning\.mode\.grow=gradient"):
        drive.pruner_of(model, optimizer)
    with pytest.raises(ConfigError, match=r"mode: needs exp_avg_sq, which Muon does .*grow=gradient"):
        drive.pruner_of(model, optimizer, mode=Soft)


class Lion(torch.optim.Optimizer):
    """A user's optimizer that works entry by entry."""

    def __init__(self, params, lr=1e-3, weight_decay=0.1):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                mean = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(mean.lerp(parameter.grad, 0.1).sign_(), alpha=group["lr"])
                mean.lerp_(parameter.grad, 0.01)


class Rotating(Lion):
    """A user's optimizer that steps in a basis of its own, as SOAP and Shampoo do."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                basis = torch.linalg.eigh(parameter.grad @ parameter.grad.T)[1]
                parameter.grad = basis @ (basis.T @ parameter.grad).sign()
        super().step()


class Noisy(Lion):
    """Langevin dynamics: noise on every entry, from the global generator."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(torch.randn_like(parameter), alpha=group["lr"])


KEEP_ZEROS = [
    *(kind for kind, _ in {**drive.TORCH, **drive.OURS}.values()),
    *(getattr(torch.optim, name) for name in ("Adadelta", "Adafactor", "Adagrad", "Adamax", "ASGD")),
    *(getattr(torch.optim, name) for name in ("NAdam", "RAdam", "RMSprop", "Rprop")),
    Lion,
]


@pytest.mark.parametrize("kind", dict.fromkeys(KEEP_ZEROS))
def test_an_optimizer_that_works_entry_by_entry_keeps_zeros(kind):
    """All elementwise ones of torch, ours, and a user's; with AMSGrad and Nesterov where there are."""
    assert not revives_pruned(kind)
    names = inspect.signature(kind).parameters
    extra = {"amsgrad": True, "nesterov": True, "momentum": 0.9, "weight_decay": 0.1}
    assert not revives_pruned(partial(kind, lr=0.01, **{k: v for k, v in extra.items() if k in names}))


@pytest.mark.parametrize("kind", [torch.optim.Muon, Muon, Rotating, Noisy])
def test_an_optimizer_that_mixes_entries_or_adds_noise_is_found_out(kind):
    assert revives_pruned(kind)
    model = drive.network()
    with pytest.raises(ConfigError, match=f"{kind.__name__} mixes"):
        drive.pruner_of(model, kind([model[0].weight, model[2].weight]))


def test_a_trial_leaves_the_optimizer_and_the_random_numbers_alone():
    """What is tried is a twin: state, settings and hooks of the user's own stay, and so does the seed."""
    model = drive.network()
    optimizer = Noisy(model.parameters())
    drive.backward(model, 1)
    optimizer.step()
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    before, weights = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in model.parameters()]
    seed = torch.get_rng_state()
    drive.pruner_of(model, optimizer, mode=with_(Soft, grow="none"))
    with pytest.raises(ConfigError):
        drive.pruner_of(model, optimizer)
    with pytest.raises(ConfigError):
        drive.pruner_of(model, optimizer, criterion=state)
    assert torch.equal(torch.get_rng_state(), seed)
    assert calls == []
    assert str(optimizer.state_dict()) == str(before)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, AssertionError])
def test_an_optimizer_that_cannot_be_tried_is_taken_as_it_is(error):
    """A class that needs more than its settings, whatever it raises; verify() would tell of drift."""

    class Particular(Lion):
        def __init__(self, params):
            params = list(params)
            if len(params) < 2:
                raise error("needs the whole model")
            super().__init__(params)

    model = drive.network()
    optimizer = Particular(model.parameters())
    pruner = drive.pruner_of(model, optimizer)
    drive.train(model, optimizer, pruner, 1, 70, look=pruner.verify)


def test_control_muon_revives_what_is_pruned(monkeypatch):
    """Without the weight pass, within a step."""
    model = drive.network()
    optimizer = Muon(model.parameters(), lr=1e-2)
    pruner = drive.pruner_of(model, optimizer, mode=with_(Soft, grow="none"))
    drive.train(model, optimizer, pruner, 1, 65)
    monkeypatch.setattr(Soft, "after_step", lambda _: None)
    drive.train(model, optimizer, pruner, 66, 66)
    assert not zero_where_pruned(pruner)


# ----------------------------------------------------------------------------------- ste: the reference


class Masked(torch.autograd.Function):
    """w * M with the gradient of SR-STE: that of the product for all weights, plus decay * (1 - M) * w."""

    @staticmethod
    def forward(ctx, weight, mask, decay):
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return weight.masked_fill(~mask, 0.0)

    @staticmethod
    def backward(ctx, gradient):
        weight, mask = ctx.saved_tensors
        return gradient + ctx.decay * (weight * ~mask), None, None


class Reference(nn.Module):
    """A parametrization: the layer computes with w * M, the optimizer has w."""

    def __init__(self, decay):
        super().__init__()
        self.decay, self.mask = decay, None

    def forward(self, weight):
        return weight if self.mask is None else Masked.apply(weight, self.mask, self.decay)


def masks_by(scores, sparsity, is_nm):
    """Stable sort of all scores, pruned ones too."""
    flat = scores.detach().flatten().numpy()
    kept = np.ones(flat.size, bool)
    if is_nm:
        table = np.argsort(flat.reshape(-1, 4), axis=1, kind="stable")[:, :2]
        np.put_along_axis(kept.reshape(-1, 4), table, False, axis=1)
    else:
        kept[np.argsort(flat, kind="stable")[: pruned_count(flat.size, sparsity)]] = False
    return torch.from_numpy(kept).view_as(scores)


NM = {"scope": with_(nm, n=2, m=4), "schedule": oneshot, "target_sparsity": 0.5}


@pytest.mark.parametrize(
    ("plan", "decay", "implementation"),
    drive.slow_but(
        itertools.product(("layerwise", "nm", "movement"), (0.0, 2e-2), drive.IMPLEMENTATIONS),
        [("layerwise", 0.0, "fused"), ("nm", 2e-2, "fused"), ("movement", 0.0, "foreach")],
    ),
)
def test_ste_is_what_a_parametrization_of_dense_weights_computes(plan, decay, implementation):
    """Weights in the forward pass, dense weights and masks, bitwise without decay.

    With it masks are equal and weights within 1e-6: the decay is rounded at another place.
    """
    changed = {"nm": NM, "movement": {"criterion": movement}, "layerwise": {}}[plan]
    model = drive.network()
    optimizer = drive.optimizer_of(model, "adamw", implementation, betas=(0.9, 0.9))
    pruner = drive.pruner_of(model, optimizer, mode=with_(StraightThrough, decay=decay), **changed)

    other = drive.network()
    references = {0: Reference(decay), 2: Reference(decay)}
    for place, reference in references.items():
        parametrize.register_parametrization(other[place], "weight", reference)
    dense = {place: other[place].parametrizations.weight.original for place in references}
    its_optimizer = torch.optim.AdamW(
        [
            parameter
            for place in (0, 2, 4)
            for parameter in (dense.get(place, other[place].weight), other[place].bias)
        ],
        lr=1e-2,
        betas=(0.9, 0.9),
        weight_decay=0.1,
        **drive.IMPLEMENTATIONS[implementation],
    )
    sums = {place: torch.zeros_like(weight) for place, weight in dense.items()}
    tolerance = {"rtol": 0, "atol": 0} if decay == 0.0 else {"rtol": 1e-5, "atol": 1e-6}
    for step in range(1, 71):
        drive.train(model, optimizer, pruner, step, step)
        its_optimizer.zero_grad()
        drive.backward(other, step)
        for place, total in sums.items():
            mask = references[place].mask
            plain = dense[place].grad - (0 if mask is None else decay * (dense[place] * ~mask))
            total.addcmul_(dense[place].detach(), plain.detach(), value=-1.0)
        its_optimizer.step()
        due = pruner.plan.latest_update(step)
        if due == step and (sparsity := pruner.plan.sparsity(step)):
            for place, weight in dense.items():
                scores = sums[place] if plan == "movement" else weight.abs()
                references[place].mask = masks_by(scores, sparsity, plan == "nm")
        for place, weight in dense.items():
            name = f"{place}.weight"
            if references[place].mask is not None:
                assert torch.equal(pruner.masks[name], references[place].mask), step
                assert zero_where_pruned(pruner)
            torch.testing.assert_close(model[place].weight, other[place].weight, **tolerance)
            torch.testing.assert_close(pruner._mode.weight(name), weight.detach(), **tolerance)
    pruner.verify(70)
    assert pruner.pruned() == (160 if plan == "nm" else 173 + 115)


def test_ste_may_start_sparse():
    """Masks before the first step, whose gradients reach all dense weights."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer, mode=StraightThrough, schedule=constant)
    before = model[0].weight.detach().clone()
    assert pruner.after_step(0).pruned == 173 + 115
    assert torch.equal(pruner._mode.weight("0.weight"), before)
    drive.train(model, optimizer, pruner, 1, 30, look=pruner.verify)
    assert (pruner._mode.weight("0.weight") != before).float().mean() > 0.5


def test_ste_lets_weights_come_back():
    """All compete at every update: with movement, and a target that is reached early, some return."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer, mode=StraightThrough, target_sparsity=0.5)
    regrown = []
    for step in range(1, 61):
        drive.train(model, optimizer, WithoutUpdates(pruner), step, step)
        if update := pruner.after_step(step):
            regrown.append(update.regrown)
    assert sum(regrown) > 5


def test_what_is_evaluated_and_saved_is_masked(tmp_path):
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer, mode=StraightThrough)
    drive.train(model, optimizer, pruner, 1, 70)
    assert model.state_dict().keys() == drive.network().state_dict().keys()
    assert sum(int((model.state_dict()[name] == 0).sum()) for name in pruner.prunable) == 173 + 115
    assert pruner.sparsity() == 0.9
    for name in pruner.prunable:  # the dense weights are elsewhere, and not 0
        assert (pruner._mode.weight(name) != 0).all()


def test_masked_forward_decides_the_gradient():
    """The control of the reference test: gradients at dense weights are others."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer, mode=StraightThrough)
    drive.train(model, optimizer, pruner, 1, 70)
    gradients = []
    for reveal in (False, True):
        if reveal:
            pruner._mode._reveal_(optimizer, (), {})
        optimizer.zero_grad()
        drive.backward(model, 71)
        gradients.append(model[0].weight.grad.clone())
    assert not torch.allclose(*gradients, rtol=0.1)


def test_hooks_survive_a_loaded_optimizer():
    """load_state_dict replaces state and groups, not the hooks that reveal and conceal."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer, mode=StraightThrough)
    drive.train(model, optimizer, pruner, 1, 40)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    dense = pruner._mode.weight("0.weight").clone()
    drive.train(model, optimizer, pruner, 41, 70)
    assert zero_where_pruned(pruner)
    assert not torch.equal(pruner._mode.weight("0.weight"), dense)
    pruner.verify(70)


def test_a_pruner_that_is_gone_leaves_no_hook_and_no_memory():
    """The optimizer outlives it, as in a notebook, and steps as one that never had a pruner."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer, mode=StraightThrough)
    drive.train(model, optimizer, pruner, 1, 40)
    dense = weakref.ref(pruner._mode.weight("0.weight"))
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    del pruner
    gc.collect()
    assert dense() is None
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    drive.backward(model, 41)
    optimizer.step()
    assert (model[0].weight != 0).all()


def test_two_pruners_share_an_optimizer():
    """Each its own layer, one hard and one straight-through, as one of both layers would not differ."""
    model = drive.network()
    optimizer = adamw(model)
    first = drive.pruner_of(model, optimizer, include=["0.weight"], exclude=["2.weight"])
    second = drive.pruner_of(model, optimizer, exclude=["0.weight"], mode=StraightThrough)
    for step in range(1, 71):
        optimizer.zero_grad()
        drive.backward(model, step)
        first.mask_grads_()
        second.mask_grads_()
        optimizer.step()
        first.after_step(step)
        second.after_step(step)
        first.verify(step)
        second.verify(step)
    assert (first.pruned(), second.pruned()) == (173, 115)


@pytest.mark.parametrize("keyword", [True, False])
def test_a_closure_is_refused_once_there_are_masks(keyword):
    """It would compute the loss with dense weights."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer, mode=StraightThrough)

    def closure():
        drive.backward(model, 1)
        return 0.0

    optimizer.step(closure)
    drive.train(model, optimizer, pruner, 1, 40)
    with pytest.raises(RunError, match=r"mode=ste: step\(closure\)"):
        optimizer.step(**{"closure": closure}) if keyword else optimizer.step(closure)


def test_frozen_weights_and_weights_without_gradient_go_along():
    """They are masked by what they are; the optimizer leaves them, and so do the hooks."""
    model = drive.network()
    model[2].weight.requires_grad_(False)
    before = model[2].weight.detach().clone()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer, mode=StraightThrough)
    drive.train(model, optimizer, pruner, 1, 70)
    pruner.verify(70)
    assert torch.equal(pruner._mode.weight("2.weight"), before)
    assert int((model[2].weight == 0).sum()) == 115


def test_dense_weights_of_other_tensors_are_refused():
    """And nothing is changed by that."""
    model = drive.network()
    pruner = drive.pruner_of(model, adamw(model), mode=StraightThrough)
    mode = pruner._mode
    for wrong in ({}, {"dense": {"0.weight": torch.zeros(3)}}):
        with pytest.raises(CheckpointError, match="no dense weights of these tensors"):
            mode.load_state_dict(wrong)
    with pytest.raises(CheckpointError, match="another mode"):
        Hard(pruner.prunable, pruner.masks, adamw(model)).load_state_dict({"dense": {}})


# ------------------------------------------------------------------------------------------- attached

MODES = {
    "hard": {},
    "hard-movement": {"criterion": movement},
    "soft": {"criterion": state, "mode": Soft},
    "ste": {"mode": with_(StraightThrough, decay=0.05)},
    "ste-movement": {"criterion": movement, "mode": with_(StraightThrough, decay=0.05)},
}


@pytest.mark.parametrize(
    ("name", "implementation"),
    drive.slow_but(
        itertools.product(MODES, ("foreach", "fused")),
        [("hard", "foreach"), ("soft", "fused"), ("ste-movement", "fused")],
    ),
)
def test_hooks_equal_the_explicit_loop_to_the_bit(name, implementation):
    """Without clipping, which the explicit loop puts after masking."""
    results = []
    for attached in (False, True):
        model = drive.network()
        optimizer = drive.optimizer_of(model, "adamw", implementation, betas=(0.9, 0.9))
        pruner = drive.pruner_of(model, optimizer, **MODES[name])
        if attached:
            pruner.attach()
            for step in range(1, 71):
                optimizer.zero_grad()
                drive.backward(model, step)
                optimizer.step()
        else:
            drive.train(model, optimizer, pruner, 1, 70)
        pruner.verify(70)
        results.append(drive.everything(model, optimizer, pruner))
    drive.assert_same(*results)


@pytest.mark.parametrize(
    ("name", "unscaled", "implementation"),
    drive.slow_but(
        itertools.product(MODES, (False, True), ("foreach", "fused")),
        [("hard", True, "foreach"), ("hard", False, "fused"), ("ste-movement", False, "fused")],
    ),
)
def test_attached_hooks_do_not_count_a_step_that_overflows(name, unscaled, implementation):
    """A12 without a word in the loop: hooks of fused optimizers fire all the same.

    With and without scaler.unscale_ before.
    """
    results = []
    for overflows in ((), (7, 36, 37, 50)):
        model = drive.network()
        optimizer = drive.optimizer_of(model, "adamw", implementation, betas=(0.9, 0.9))
        pruner = drive.pruner_of(model, optimizer, **MODES[name])
        pruner.attach()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=10**6)
        step = 0
        for attempt in range(1, 71 + len(overflows)):
            optimizer.zero_grad()
            drive.backward(model, step + 1, scale=scaler.scale)
            step += attempt not in overflows
            if attempt in overflows:
                model[0].weight.grad[0, 0] = torch.inf
            if unscaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        pruner.verify(70)
        results.append(drive.everything(model, optimizer, pruner))
    drive.assert_same(*results)


def test_removed_handles_detach():
    """From then on a step is the optimizer's own."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer)
    handles = pruner.attach()
    for step in range(1, 66):
        optimizer.zero_grad()
        drive.backward(model, step)
        optimizer.step()
    assert zero_where_pruned(pruner)
    for handle in handles:
        handle.remove()
    optimizer.zero_grad()
    drive.backward(model, 66)
    assert model[0].weight.grad[~pruner.masks["0.weight"]].any()
    optimizer.step()
    assert not zero_where_pruned(pruner)


def test_attached_pruners_refuse_a_closure():
    """It computes gradients after they were to be masked."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = drive.pruner_of(model, optimizer)
    pruner.attach()
    with pytest.raises(RunError, match="closure"):
        optimizer.step(lambda: 0.0)
