"""The pitfalls of this trade, each as a test by its number, with the control that falls into it where it can.

Most have been fallen into: by the ancestor, by published code, or by torch's own utilities.
"""

import copy
import logging
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.optim.swa_utils import AveragedModel

from adamwprune.config import Precision
from adamwprune.errors import ConfigError, SparsityError
from adamwprune.optim.adamw_spam import AdamWSPAM
from adamwprune.optim.muon import Muon
from adamwprune.optim.param_groups import group_table, param_groups
from adamwprune.optim.stable_spam import StableSPAM
from adamwprune.pruning.criteria.magnitude import magnitude
from adamwprune.pruning.criteria.movement import movement
from adamwprune.pruning.criteria.state import state
from adamwprune.pruning.dense import Dense
from adamwprune.pruning.layout import zero_pruned_
from adamwprune.pruning.modes.soft import Soft
from adamwprune.pruning.prunable import find_prunable
from adamwprune.pruning.schedules import oneshot
from adamwprune.pruning.scopes.global_ import global_
from adamwprune.pruning.scopes.layerwise import layerwise
from adamwprune.pruning.state_view import StateView
from adamwprune.targets import build
from adamwprune.training.precision import Autocast
from tests.helpers.runs import configure
from tests.pruning import drive
from tests.pruning.drive import bits, same, with_


def adamw(model, **settings):
    return drive.optimizer_of(model, "adamw", "fused", **{"betas": (0.9, 0.9), **settings})


def pruned_once(model, optimizer, criterion=magnitude, step=20, **changed):
    """A pruner whose one update prunes half of the weights, after `step`."""
    plan = {
        "schedule": oneshot,
        "start_step": step,
        "end_step": step,
        "update_every": 1,
        "target_sparsity": 0.5,
    }
    return drive.pruner_of(model, optimizer, criterion=criterion, **{**plan, **changed})


def trained(pruner=drive.pruner_of, last=65, **changed):
    """A network that has been pruned; its optimizer and pruner."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = pruner(model, optimizer, **changed)
    drive.train(model, optimizer, pruner, 1, last)
    return model, optimizer, pruner


def test_pitfall_01_no_additive_eps():
    """Gradients as small as clipping makes them at GPT-2's size: v decides all the same.

    Control: the ancestor's (v + 1e-8)^.25, which then ranks as magnitude does.
    """

    def with_eps(weight, exp_avg_sq):
        return weight.abs() * (exp_avg_sq + 1e-8) ** 0.25

    hashes = {}
    for criterion in (state, with_eps, magnitude):
        for scale in (1.0, 2.0**-26):
            model = drive.network()
            optimizer = adamw(model)
            pruner = pruned_once(model, optimizer, criterion, step=30)
            drive.train(model, optimizer, pruner, 1, 29)
            for moments in optimizer.state.values():
                moments["exp_avg"] *= scale
                moments["exp_avg_sq"] *= scale**2
            assert pruner.after_step(30).pruned == 160
            hashes[criterion, scale] = pruner.mask_hash()
    assert hashes[state, 1.0] == hashes[state, 2.0**-26] != hashes[magnitude, 1.0]
    assert hashes[with_eps, 2.0**-26] == hashes[magnitude, 1.0]


def test_pitfall_02_moments_are_zeroed_with_the_weight(monkeypatch):
    """Control: without, momentum moves pruned weights away from 0 within a step."""
    model, optimizer, pruner = trained(pruned_once, last=20)
    drive.train(model, optimizer, pruner, 21, 21)
    pruner.verify(21)
    for parameter in pruner.prunable.values():
        assert int((optimizer.state[parameter]["exp_avg"] == 0).sum()) >= parameter.numel() / 2
    monkeypatch.setattr(StateView, "zero_pruned_", lambda *_: None)
    model = drive.network()
    optimizer = adamw(model)
    monkeypatch.setattr("adamwprune.pruning.compatibility.check_mode", lambda *_: None)
    pruner = pruned_once(model, optimizer)
    drive.train(model, optimizer, pruner, 1, 21)
    with pytest.raises(SparsityError, match="not 0"):
        pruner.verify(21)


def test_pitfall_03_no_multiplication_by_a_mask():
    """Control: w * mask is -0.0 for a negative weight, and NaN for an infinite gradient."""
    values = torch.tensor([-1.0, torch.inf, torch.nan, -0.0, 2.0])
    mask = torch.tensor([False, False, False, False, True])
    product = values * mask
    zero_pruned_(values, mask)
    assert bits(values)[:4].tolist() == [0, 0, 0, 0]
    assert values[4] == 2.0
    assert (bits(product)[:4] != 0).all()


def test_pitfall_04_pruned_gradients_do_not_eat_the_norm():
    """Masked, then clipped: the live gradients have the whole norm. Control: the other way round."""
    results = {}
    for order in ("mask, clip", "clip, mask"):
        model, _, pruner = trained()
        drive.backward(model, 66)
        if order == "mask, clip":
            pruner.mask_grads_()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        pruner.mask_grads_()
        results[order] = float(nn.utils.get_total_norm([p.grad for p in model.parameters()]))
    assert results["mask, clip"] == pytest.approx(0.01, rel=1e-3)
    assert results["clip, mask"] < 0.0099


def test_pitfall_05_a_skipped_step_is_not_counted_though_its_hooks_fire():
    """The pruner counts steps that were taken. Control: a counter in a hook of a fused optimizer."""
    model = drive.network()
    optimizer = adamw(model)
    pruner = pruned_once(model, optimizer, step=3)
    fired = []
    optimizer.register_step_post_hook(lambda *_: fired.append(1))
    pruner.attach()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for attempt in range(1, 4):
        optimizer.zero_grad()
        drive.backward(model, attempt, scale=scaler.scale)
        if attempt == 2:
            model[0].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    assert len(fired) == 3
    assert pruner.pruned() == 0
    drive.backward(model, 4, scale=scaler.scale)
    scaler.step(optimizer)
    assert pruner.pruned() == 160


def test_pitfall_06_no_score_of_a_scaled_gradient():
    """Sums of gradients under a loss scale that grows equal those without one. Control: before unscaling."""
    sums = {}
    for kind in ("plain", "unscaled", "scaled"):
        model = drive.network()
        optimizer = adamw(model)
        pruner = drive.pruner_of(model, optimizer, criterion=movement)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=5, enabled=kind != "plain")
        for step in range(1, 41):
            optimizer.zero_grad()
            drive.backward(model, step, scale=scaler.scale)
            if kind != "scaled":
                scaler.unscale_(optimizer)
            pruner.mask_grads_()
            scaler.step(optimizer)
            scaler.update()
            pruner.after_step(step)
        sums[kind] = pruner.state_dict()["sums"]["movement"]["0.weight"], pruner.mask_hash()
    assert same(sums["plain"][0], sums["unscaled"][0])
    assert sums["plain"][1] == sums["unscaled"][1] != sums["scaled"][1]


def test_pitfall_07_an_update_waits_for_moments_after_a_reset():
    """Due at step 40, as the reset is; done when 20 gradients are averaged. Magnitude does not wait."""
    found = {}
    for criterion in (state, magnitude):
        model = drive.network()
        optimizer = AdamWSPAM(model.parameters(), lr=1e-2, betas=(0.9, 0.9), reset_every=40)
        pruner = pruned_once(model, optimizer, criterion, step=40)
        pruned = [0]
        drive.train(model, optimizer, pruner, 1, 70, look=lambda _, n=pruned, p=pruner: n.append(p.pruned()))
        found[criterion] = pruned.index(160)
    assert found == {state: 59, magnitude: 40}


def test_pitfall_08_a_cold_second_moment_is_told(caplog):
    """Before 3 / (1 - beta2) steps, and only where v is read."""
    model = drive.network()
    for beta2, criterion, told in [(0.999, state, True), (0.9, state, False), (0.999, magnitude, False)]:
        caplog.clear()
        pruned_once(model, adamw(model, betas=(0.9, beta2)), criterion, step=31)
        assert ("averages too few gradients" in caplog.text) is told


def test_pitfall_09_selection_draws_no_random_numbers():
    """Ranks whose generators differ choose the same; the ancestor's 2 % sample did not."""
    hashes = set()
    for seed in (1, 2):
        _, _, pruner = trained(pruned_once, last=29, criterion=state, step=30)
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        assert pruner.after_step(30).pruned == 160
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
        hashes.add(pruner.mask_hash())
    assert len(hashes) == 1


def test_pitfall_10_a_tied_head_is_found_by_identity():
    """Whatever its module is called. Control: the same network, untied, whose last Linear is another."""
    for is_tied in (True, False):
        model = nn.ModuleDict({"a": nn.Linear(4, 9), "z": nn.Embedding(9, 4), "b": nn.Linear(4, 4)})
        model["last"] = nn.Linear(4, 4)
        if is_tied:
            model["a"].weight = model["z"].weight
        prunable, excluded = find_prunable(model)
        assert list(prunable) == ["b.weight"] if is_tied else ["a.weight", "b.weight"]
        assert excluded["a.weight" if is_tied else "z.weight"] == "embedding, or tied to one"


def test_pitfall_11_layerwise_spares_what_was_initialised_small():
    """A residual projection of a deep GPT-2 starts 5 times smaller. Control: global takes nearly all."""
    shares = {}
    for scope in (layerwise, global_):
        model = drive.network()
        with torch.no_grad():
            model[2].weight *= 0.2
        pruner = pruned_once(model, adamw(model), scope=scope, step=1)
        pruner.after_step(1)
        shares[scope] = pruner.layer_sparsity()["2.weight"]
    assert shares[layerwise] == 0.5
    assert shares[global_] > 0.85


def test_pitfall_12_muon_needs_a_weight_pass():
    """Hard mode refuses it; soft sets zeros after every step."""
    model = drive.network()
    with pytest.raises(ConfigError, match="Muon mixes"):
        pruned_once(model, Muon(model.parameters()))
    optimizer = Muon(model.parameters(), lr=1e-2)
    pruner = pruned_once(model, optimizer, mode=with_(Soft, grow="none"))
    drive.train(model, optimizer, pruner, 1, 30, look=pruner.verify)
    assert pruner.pruned() == 160


def test_pitfall_13_averages_begin_after_the_masks_freeze():
    """Then the average has the same zeros. Control: an average over the ramp is denser than the model."""
    counts = {}
    for first in (20, 60):
        model = drive.network()
        optimizer = adamw(model)
        pruner = drive.pruner_of(model, optimizer)
        average = AveragedModel(model)

        def look(step, first=first, pair=(average, model), pruner=pruner):
            if step >= first:
                assert pruner.is_final(step) or first == 20
                pair[0].update_parameters(pair[1])

        drive.train(model, optimizer, pruner, 1, 70, look=look)
        counts[first] = Dense(average.module).counts()["nonzero_prunable"]
    assert counts[60] == 32
    assert counts[20] > 100


def test_pitfall_14_moments_of_normalised_gradients_are_not_compared_across_tensors():
    """Stable-SPAM with scope global; within tensors, after normalising, or by weights alone it may."""
    model = drive.network()
    optimizer = StableSPAM(model.parameters(), betas=(0.9, 0.9))
    with pytest.raises(ConfigError, match="StableSPAM normalises gradients tensor by tensor"):
        pruned_once(model, optimizer, state, scope=global_)
    for fine in ({"scope": layerwise}, {"scope": with_(global_, normalize="l2")}):
        pruned_once(model, optimizer, state, **fine)
    pruned_once(model, optimizer, magnitude, scope=global_)


def test_pitfall_15_second_moments_are_float32():
    """bfloat16 runs keep float32 weights and state. Control: a bfloat16 v at .999 never learns of 1.5 v."""
    model = drive.network()
    optimizer = adamw(model, betas=(0.9, 0.999))
    with Autocast(Precision.bf16, "cpu")():
        loss = model(torch.randn(6, 12)).square().sum()
    loss.backward()
    optimizer.step()
    assert {t.dtype for p in model.parameters() for t in drive.shaped_state(optimizer, p).values()} == {
        torch.float32
    }
    for dtype, moves in ((torch.bfloat16, False), (torch.float32, True)):
        second = torch.ones(3, dtype=dtype)
        for _ in range(1000):
            second.mul_(0.999).add_(torch.full((3,), 1.5, dtype=dtype), alpha=0.001)
        assert bool((second > 1.25).all()) is moves


def test_pitfall_15_a_second_moment_that_cannot_average_is_told(caplog):
    """Half-precision weights whose state is of the same format: 1 - beta2 below its resolution."""
    for dtype, beta2, told in [
        (torch.bfloat16, 0.999, True),
        (torch.bfloat16, 0.9, False),
        (torch.float32, 0.999, False),
    ]:
        caplog.clear()
        model = drive.network().to(dtype)
        pruned_once(model, adamw(model, betas=(0.9, beta2)), state, step=4000)
        assert ("cannot average" in caplog.text) is told, (dtype, beta2)


def test_pitfall_16_one_sparsity_counted_from_the_weights():
    """Zeros / weights of the prunable set, alike for dense and pruned; never what was planned."""
    model, _, pruner = trained()
    assert pruner.sparsity() == Dense(model).sparsity() == 288 / 320
    assert pruner.layer_sparsity() == {"0.weight": 173 / 192, "2.weight": 115 / 128}
    with torch.no_grad():
        model[0].weight.zero_()  # zero by itself: counted, and no fault of the masks
    assert pruner.sparsity() == Dense(model).sparsity() == (192 + 115) / 320
    assert pruner.counts()["pruned"] == 288


def test_pitfall_17_a_target_that_was_missed_ends_in_an_error():
    """By one weight; or because no update was ever made, which the ancestor called success six times."""
    model, _, pruner = trained()
    pruner.verify(65)
    with torch.no_grad():
        model[2].weight[~pruner.masks["2.weight"]] = torch.tensor([1e-30] + 114 * [0.0])
    with pytest.raises(SparsityError, match=r"2\.weight .* 1 of these are not 0"):
        pruner.verify(65)
    with pytest.raises(SparsityError, match="the masks prune 0"):
        drive.pruner_of(model, adamw(model)).verify(65)


def test_pitfall_18_masks_are_no_buffers():
    """Nothing that DDP would send or lose, and no new key. Control: torch's own pruning adds both."""
    model, _, _ = trained()
    assert list(model.buffers()) == []
    assert model.state_dict().keys() == drive.network().state_dict().keys()
    nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    assert "0.weight_mask" in model.state_dict()


def test_pitfall_19_reads_from_the_device_do_not_grow_with_depth(monkeypatch):
    """Counting and verifying wait for the device once, not once a layer; a step without update never."""
    reads = []

    def counted(real):
        def read(tensor, *arguments):
            reads.append(1)
            return real(tensor, *arguments)

        return read

    for name in ("item", "cpu", "tolist", "__float__", "__int__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    counts = []
    for depth in (3, 12):
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth)))
        pruner = pruned_once(model, adamw(model), step=1)
        pruner.after_step(1)
        for look in (pruner.sparsity, pruner.layer_sparsity, pruner.counts, partial(pruner.verify, 1)):
            reads.clear()
            look()
            counts.append(len(reads))
        reads.clear()
        pruner.mask_grads_()
        pruner.after_step(2)
        assert reads == []
    assert counts[:4] == counts[4:]
    assert max(counts) <= 4


def test_pitfall_20_a_resumed_run_has_its_masks():
    """Pruned weights stay 0 from the first step. Control: without the pruner's state they are revived."""
    model, optimizer, pruner = trained()
    zeros = {}
    for has_state in (True, False):
        resumed = copy.deepcopy(model)
        its_optimizer = adamw(resumed)
        its_optimizer.load_state_dict(optimizer.state_dict())
        its_pruner = drive.pruner_of(resumed, its_optimizer)
        if has_state:
            its_pruner.load_state_dict(pruner.state_dict())
        optimizer_step_only(resumed, its_optimizer, its_pruner)
        zeros[has_state] = int((resumed[0].weight == 0).sum() + (resumed[2].weight == 0).sum())
    assert zeros[True] == 288
    assert zeros[False] < 200


def optimizer_step_only(model, optimizer, pruner):
    optimizer.zero_grad()
    drive.backward(model, 66)
    pruner.mask_grads_()
    optimizer.step()


def test_pitfall_21_weights_that_no_gradient_reached_are_kept_and_told(caplog):
    """7 of 12 inputs never occur: v is 0 for 58 % of the weights, and a threshold on |w| v^q takes them all.

    Control: that threshold prunes 58 % where half was asked for.
    """
    caplog.set_level(logging.INFO)
    model = drive.network()
    optimizer = adamw(model)
    pruner = pruned_once(model, optimizer, state, target_sparsity=0.25, step=1)
    inputs = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    inputs[:, :7] = 0.0
    model(inputs).square().sum().backward()
    optimizer.step()
    scores = model[0].weight.abs() * optimizer.state[model[0].weight]["exp_avg_sq"] ** 0.25
    threshold = scores.flatten().kthvalue(48).values
    assert int((scores <= threshold).sum()) == 7 * 16
    update = pruner.after_step(1)
    assert pruner.masks["0.weight"][:, :7].all()
    assert pruner.masks.pruned["0.weight"] == 48
    assert update.unseen == 7 * 16
    assert f"no gradient ever reached {7 * 16} of the {9 * 16} live weights" in caplog.text


def test_pitfall_22_an_alias_changes_nothing_but_what_it_says():
    """optimizer=adamwprune is optimizer=adamw pruning=state: betas, decay and groups as written out."""
    tables = []
    for overrides in (("optimizer=adamwprune",), ("optimizer=adamw", "pruning=state")):
        config = configure(*overrides)
        model = drive.network()
        groups = param_groups(model, weight_decay=config.optimizer["weight_decay"], decay_embeddings=False)
        optimizer = build(config.optimizer, "optimizer")(groups)
        settings = [{k: v for k, v in g.items() if k not in ("params",)} for g in optimizer.param_groups]
        tables.append((group_table(optimizer.param_groups), settings, config.pruning, config.trainer))
    assert tables[0] == tables[1]


def test_pitfall_23_labels_and_hashes_are_of_what_ran():
    """The ancestor's rows said "state" where movement ran."""
    _, _, pruner = trained(criterion=movement)
    assert pruner.describe()["criterion"] == {"name": "movement"}
    assert pruner.describe()["mode"]["name"] == "hard"
    before = pruner.mask_hash()
    assert pruner.state_dict()["masks"]["hash"] == before
    pruner.masks["0.weight"][0, 0] ^= True
    assert pruner.mask_hash() != before


def test_pitfall_24_a_weight_that_shrinks_loses_movement_score():
    """Signs: descent towards 0 gives a negative sum, away from 0 a positive one, for both signs of w."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 1))
    weight = model[0].weight
    with torch.no_grad():
        weight.copy_(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = pruned_once(model, optimizer, movement, step=5)
    direction = torch.tensor([[1.0, 1.0, -1.0, -1.0]]) * weight.detach().sign()  # the first two shrink
    for step in range(1, 6):
        optimizer.zero_grad()
        (weight * direction).sum().backward()
        pruner.mask_grads_()
        optimizer.step()
        pruner.after_step(step)
    scores = pruner.state_dict()["sums"]["movement"]["0.weight"]
    assert (scores[0, :2] < 0).all()
    assert (scores[0, 2:] > 0).all()
    assert pruner.masks["0.weight"].tolist() == [[False, False, True, True]]
