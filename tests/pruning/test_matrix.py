"""All combinations: pruned weights, gradients and state stay +0.0 and counts exact, whatever steps them.

Optimizer and implementation x clipping x accumulation, then loss scaling with overflows, compiled models, two
ranks (DDP, FSDP2) and resume in the middle of a ramp. `-m slow` runs the whole product, 1,000 steps each.
"""

import copy
import io
import itertools
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from adamwprune.pruning.criteria.movement import movement
from adamwprune.pruning.criteria.state import state
from adamwprune.pruning.modes.hard import Hard
from adamwprune.pruning.modes.soft import Soft
from adamwprune.pruning.modes.ste import StraightThrough
from adamwprune.pruning.scopes.global_ import global_
from tests.helpers.ranks import run_ranks
from tests.pruning import drive
from tests.pruning.drive import CLIPS, IMPLEMENTATIONS, with_

CELLS = [(*kind, clip, parts) for kind in drive.ALL for clip in CLIPS for parts in (1, 3)]
# Each optimizer and implementation once, each way to clip and to accumulate with many of them.
SAMPLE = [(*kind, CLIPS[i % 3], (1, 3)[i % 2]) for i, kind in enumerate(drive.ALL)]


def name_of(cell):
    return "-".join(map(str, cell)) if isinstance(cell, tuple) else str(cell)


def check_cell(cell, steps, **changed):
    """Train one cell; the invariant holds after every step."""
    name, implementation, clip, parts = cell
    model = drive.network()
    optimizer = drive.optimizer_of(model, name, implementation)
    pruner = drive.pruner_of(model, optimizer, **changed)

    def look(step):
        drive.assert_hard(pruner, optimizer, step, least_states=1 + ("amsgrad" in name))

    drive.train(model, optimizer, pruner, 1, steps, clip=clip, parts=parts, look=look)
    pruner.verify(steps)
    assert pruner.pruned() == 173 + 115
    # Nothing is frozen: what lives went on learning until the last step.
    assert all(bool((p.grad != 0).any()) for p in pruner.prunable.values())


@pytest.mark.parametrize("cell", SAMPLE, ids=name_of)
def test_hard_invariant_in_every_implementation(cell):
    """A4 in small: 100 steps, 40 of them after the last update, over two resets of our optimizers."""
    check_cell(cell, 100)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_hard_invariant_over_the_whole_product(cell):
    """A4: 1,000 steps with updates until step 800."""
    check_cell(cell, 1000, end_step=800, update_every=20)


# ------------------------------------------------------------------------------- loss scaling (A12)

# Attempts whose gradients are not finite; after the 36th an update would be due.
OVERFLOWS = (7, 36, 53, 54, 66)


def train_scaled(model, optimizer, pruner, attempts, overflows, look=lambda *_: None):
    """A user's loop with a GradScaler: t counts the steps that were not skipped."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6)
    step = 0
    for attempt in range(1, attempts + 1):
        optimizer.zero_grad()
        drive.backward(model, step + 1, scale=scaler.scale)
        if attempt in overflows:
            for parameter in pruner.prunable.values():
                parameter.grad[0, 0] = (torch.inf, torch.nan)[attempt % 2]
        scaler.unscale_(optimizer)
        pruner.mask_grads_()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if is_taken := scaler.get_scale() >= before:
            step += 1
            pruner.after_step(step)
        look(attempt, is_taken)
    return step


@pytest.mark.parametrize(
    ("mode", "implementation"),
    drive.slow_but(
        itertools.product((Hard, Soft, StraightThrough), IMPLEMENTATIONS),
        [(Hard, "foreach"), (Hard, "fused"), (Soft, "fused"), (StraightThrough, "fused")],
    ),
)
def test_a_step_that_overflows_is_no_step(mode, implementation):
    """A12: weights, state, masks and the pruner's own tensors are those of a run that never overflowed.

    Bitwise, because the scale is a power of two. The first entry of the weights, where the infinite
    gradients are, is pruned at some time: the mask does not hide them from the scaler.
    """
    results = []
    for overflows in ((), OVERFLOWS):
        model = drive.network()
        optimizer = drive.optimizer_of(model, "adamw", implementation, betas=(0.9, 0.9))
        pruner = drive.pruner_of(model, optimizer, mode=mode, criterion=state)
        seen = [None]

        def look(attempt, is_taken, results=seen, now=(model, optimizer, pruner), overflows=overflows):
            assert is_taken is (attempt not in overflows)
            after = drive.everything(*now)
            if not is_taken:
                drive.assert_same(after, results[0])
            results[0] = after

        steps = train_scaled(model, optimizer, pruner, 70 + len(overflows), overflows, look)
        assert steps == 70
        pruner.verify(steps)
        results.append(drive.everything(model, optimizer, pruner))
    drive.assert_same(*results)


@pytest.mark.parametrize("implementation", ["foreach", "fused"])
def test_sums_of_gradients_do_not_count_a_step_that_overflows(implementation):
    """A12 for `movement`: one infinite gradient would be in the sum for ever."""
    results = []
    for overflows in ((), OVERFLOWS):
        model = drive.network()
        optimizer = drive.optimizer_of(model, "adamw", implementation)
        pruner = drive.pruner_of(model, optimizer, criterion=movement)
        train_scaled(model, optimizer, pruner, 70 + len(overflows), overflows)
        results.append(drive.everything(model, optimizer, pruner))
    drive.assert_same(*results)


def test_control_counting_every_attempt_updates_masks_elsewhere():
    """The control of A12: hooks of a fused optimizer fire in an overflow too, so they may not count."""
    model = drive.network()
    optimizer = drive.optimizer_of(model, "adamw", "fused")
    pruner = drive.pruner_of(model, optimizer)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    assert train_scaled(model, optimizer, pruner, 60, OVERFLOWS) == 56
    assert len(calls) == 60


# --------------------------------------------------------------------------------------- resume (A6)

RESUMED = {
    "hard": {"criterion": state},
    "hard-global": {"criterion": state, "scope": global_},
    "hard-movement": {"criterion": movement},
    "soft": {"criterion": state, "mode": Soft},
    "soft-gradient": {"mode": with_(Soft, grow="gradient", regrow_fraction=0.3)},
    "ste": {"criterion": state, "mode": StraightThrough},
    "ste-movement": {"criterion": movement, "mode": StraightThrough},
}


@pytest.mark.parametrize(
    ("name", "implementation"),
    drive.slow_but(
        itertools.product(RESUMED, ("foreach", "fused")),
        [(name, "fused") for name in RESUMED if name != "hard"],
    ),
)
def test_resume_in_the_middle_of_a_ramp_goes_on_to_the_bit(name, implementation):
    """A6: between two updates, through torch.save, into objects made anew.

    In another order of loading too: the optimizer last.
    """

    def build():
        model = drive.network()
        optimizer = drive.optimizer_of(model, "adamw", implementation, betas=(0.9, 0.9))
        return model, optimizer, drive.pruner_of(model, optimizer, **RESUMED[name])

    unbroken = build()
    drive.train(*unbroken, 1, 42, clip="ours")
    file = io.BytesIO()
    torch.save([part.state_dict() for part in unbroken], file)
    drive.train(*unbroken, 43, 70, clip="ours")

    file.seek(0)
    model, optimizer, pruner = torch.load(file, weights_only=True)
    for order in ("optimizer first", "optimizer last"):
        resumed = build()
        resumed[0].load_state_dict(model)
        if order == "optimizer first":
            resumed[1].load_state_dict(copy.deepcopy(optimizer))
        resumed[2].load_state_dict(copy.deepcopy(pruner))
        if order == "optimizer last":
            resumed[1].load_state_dict(copy.deepcopy(optimizer))
        drive.train(*resumed, 43, 70, clip="ours")
        drive.assert_same(drive.everything(*resumed), drive.everything(*unbroken))
    unbroken[2].verify(70)


@pytest.mark.parametrize("name", ["hard-movement", "ste"])
def test_control_what_the_pruner_keeps_decides_how_a_run_goes_on(name):
    """Without sums and dense weights a resumed run differs."""

    def build():
        model = drive.network()
        optimizer = drive.optimizer_of(model, "adamw", betas=(0.9, 0.9))
        return model, optimizer, drive.pruner_of(model, optimizer, **RESUMED[name])

    unbroken = build()
    drive.train(*unbroken, 1, 42)
    forgetful = build()
    for part, source in zip(forgetful[:2], unbroken[:2], strict=True):
        part.load_state_dict(copy.deepcopy(source.state_dict()))
    drive.train(*unbroken, 43, 70)
    drive.train(*forgetful, 43, 70)
    assert not drive.same(forgetful[0][0].weight, unbroken[0][0].weight)


# ------------------------------------------------------------------------------------------ compiled


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("what", ["model", "model and step"])
@pytest.mark.parametrize("mode", [Hard, Soft, StraightThrough])
def test_compiled_models_and_steps_keep_the_invariants(mode, what):
    """Compiled kernels see masks through the weights alone; the pruner has the plain model."""
    torch.compiler.reset()
    model = drive.network()
    optimizer = drive.optimizer_of(model, "adamw", "foreach", capturable=False)
    pruner = drive.pruner_of(model, optimizer, mode=mode)
    compiled = torch.compile(model)
    step_of = torch.compile(optimizer.step) if what == "model and step" else optimizer.step
    for step in range(1, 71):
        optimizer.zero_grad()
        drive.backward(compiled, step)
        pruner.mask_grads_()
        step_of()
        pruner.after_step(step)
        if mode is Hard:
            drive.assert_hard(pruner, optimizer, step)
        for name, parameter in pruner.prunable.items():
            assert not drive.bits(parameter)[~pruner.masks[name]].any()
    pruner.verify(70)
    assert pruner.pruned() == 173 + 115


# ----------------------------------------------------------------------------------------- two ranks


class Tied(nn.Module):
    """An embedding that is the head too, and two hidden layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(12, 8)
        self.hidden = nn.Sequential(nn.Linear(8, 18), nn.Tanh(), nn.Linear(18, 8))
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.hidden(self.embedding(tokens)))


def tokens_of(step, rank, part=0):
    return torch.randint(12, (16,), generator=torch.Generator().manual_seed(1000 * step + 10 * part + rank))


def loss_of(model, tokens):
    return nn.functional.cross_entropy(model(tokens), (tokens + 1) % 12)


def ddp_rank(implementation, mode, exchanges=True):
    """A rank of DDP: data of its own, three micro batches, clipped; what masks and tied weight did.

    Without exchange each rank trains alone.
    """
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    model = Tied()
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = drive.optimizer_of(model, "adamw", implementation)
    pruner = drive.pruner_of(model, optimizer, criterion=state, mode=mode, start_step=5, end_step=45)
    plain = nn.Parameter(model.head.weight.detach().clone())
    once = torch.optim.AdamW([plain], lr=1e-2, weight_decay=0.1, **IMPLEMENTATIONS[implementation])
    hashes = []
    for step in range(1, 51):
        optimizer.zero_grad()
        for part in range(3):
            with nullcontext() if exchanges and part == 2 else parallel.no_sync():
                loss_of(parallel, tokens_of(step, dist.get_rank(), part)).backward()
        norm = pruner.mask_and_norm_grads_()
        plain.grad = model.head.weight.grad.clone()
        with drive.clipped(optimizer, float(norm), 1.0):
            optimizer.step()
        with drive.clipped(once, float(norm), 1.0):
            once.step()
        if pruner.after_step(step):
            hashes.append(pruner.mask_hash())
        if mode is Hard:
            drive.assert_hard(pruner, optimizer, step)
    pruner.verify(50)
    assert drive.same(model.embedding.weight, plain)
    assert float(optimizer.state[model.head.weight]["step"]) == 50
    return {
        "hashes": hashes,
        "weights": {name: p.detach().numpy().copy() for name, p in model.named_parameters()},
        "prunable": list(pruner.prunable),
        "pruned": pruner.pruned(),
    }


def fsdp_rank(implementation, mode, criterion, is_sharded):
    """The same data on every rank, so that sharded and whole parameters are trained alike, to the bit.

    In the middle of the ramp the pruner loads its own state: whole tensors, of which a rank takes its rows.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 17), nn.Tanh(), nn.Linear(17, 8), nn.Tanh(), nn.Linear(8, 3))
    if is_sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = drive.optimizer_of(model, "adamw", implementation, betas=(0.9, 0.9))
    pruner = drive.pruner_of(model, optimizer, criterion=criterion, mode=mode, start_step=5, end_step=45)
    hashes, norms = [], []
    for step in range(1, 51):
        optimizer.zero_grad()
        drive.backward(model, step)
        norms.append(float(pruner.mask_and_norm_grads_()))
        optimizer.step()
        if pruner.after_step(step):
            hashes.append(pruner.mask_hash())
        if step == 27:
            pruner.load_state_dict(copy.deepcopy(pruner.state_dict()))
    pruner.verify(50)
    whole = {
        name: (p.full_tensor() if is_sharded else p).detach().numpy().copy()
        for name, p in model.named_parameters()
    }
    saved = pruner.state_dict()
    for kept in (*saved["sums"].values(), *saved["mode"].values()):
        whole |= {f"{name}, kept": tensor.numpy().copy() for name, tensor in kept.items()}
    return {"hashes": hashes, "norms": norms, "weights": whole, "pruned": pruner.pruned()}


FSDP = [(Hard, state), (Hard, movement), (Soft, state), (StraightThrough, state), (StraightThrough, movement)]


def rank_of_all(ddp, fsdp):
    """Several of the above in one pair of processes, since their start takes longest."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    found = {("ddp", *case): ddp_rank(*case) for case in ddp}
    found |= {("fsdp", *case): fsdp_rank(*case, True) for case in fsdp}
    dist.destroy_process_group()
    return found


def check_two_ranks(ddp, fsdp):
    first, second = run_ranks(rank_of_all, 2, ddp, fsdp, timeout=300)
    for case in first:
        assert first[case]["hashes"] == second[case]["hashes"], case
        assert len(first[case]["hashes"]) >= 5
        for name, weight in first[case]["weights"].items():
            assert (weight == second[case]["weights"][name]).all(), (case, name)
    for case in ddp:
        assert first[("ddp", *case)]["prunable"] == ["hidden.0.weight", "hidden.2.weight"]
        assert first[("ddp", *case)]["pruned"] == 130 + 130
    for case in fsdp:
        sharded, alone = first[("fsdp", *case)], fsdp_rank(*case, False)
        assert sharded["hashes"] == alone["hashes"], case
        assert sharded["pruned"] == alone["pruned"] == 184 + 122
        # Bitwise; a fused kernel rounds the last few entries of a tensor in another way than its vectors.
        tolerance = 1e-6 if case[0] == "fused" else 0.0
        for name, weight in sharded["weights"].items():
            np.testing.assert_allclose(weight, alone["weights"][name], rtol=0, atol=tolerance)
        # Sums of squares in other chunks.
        np.testing.assert_allclose(sharded["norms"], alone["norms"], rtol=1e-5)


def test_two_ranks_hold_equal_masks_at_every_update_and_step_a_tied_weight_once():
    """A11 on gloo, each rank with its own data; and FSDP2's shards find the masks of one process."""
    check_two_ranks([("fused", Hard)], [("foreach", StraightThrough, movement)])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_in_every_implementation_and_mode():
    """The product of the test above."""
    ddp = [(kind, mode) for kind in IMPLEMENTATIONS for mode in (Hard, Soft, StraightThrough)]
    fsdp = [(kind, *case) for kind in IMPLEMENTATIONS for case in FSDP]
    check_two_ranks(ddp, fsdp)


@pytest.mark.slow
def test_control_ranks_that_exchange_no_gradients_hold_other_masks():
    first, second = run_ranks(rank_of_all, 2, [("fused", Hard, False)], [])
    assert first[("ddp", "fused", Hard, False)]["hashes"] != second[("ddp", "fused", Hard, False)]["hashes"]
