"""FSDP2 on gloo: what DDP computes, by ranks that each keep their rows; one checkpoint for all."""

import json
import os

import numpy as np
import pytest
import torch
from torch import nn

from adamwprune.errors import ConfigError, DivergedError, Preempted
from adamwprune.models.gpt2 import GPT2
from adamwprune.models.resnet import BasicBlock, ResNet
from adamwprune.preflight import check_choices
from adamwprune.training.parallel import units
from adamwprune.training.run import train
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import (
    BUSY,
    IMAGES,
    TOKENS,
    configure,
    final_state,
    final_weights,
    rows,
    start,
    summary,
)
from tests.helpers.same_run import assert_same_run

# Micro batches accumulate; 5 validation batches leave the second rank without one. The bias of attention
# keys has a gradient of zero but for rounding, which Adam makes steps of: there would be nothing to compare.
SMALL = {
    "gpt2": (*TOKENS, "++model.bias=false", "hardware.micro_batch_size=2", "trainer.eval_samples=9"),
    "lenet5": (*IMAGES, "trainer.eval_samples=20"),
}
PRUNINGS = {
    "none": (),
    "magnitude": ("pruning=magnitude", "pruning.update_every=2"),
    "state": ("pruning=state", "pruning.update_every=2", "pruning/scope=global"),
}
COMMON = (*BUSY, "trainer.max_steps=20", "trainer.log_every=1")
TWO, FSDP = "hardware.num_devices=2", "hardware.parallel=fsdp"


def train_all(runs):
    """Train on this rank each run in turn; how each ended."""
    ends, port = [], int(os.environ.get("MASTER_PORT", 0))
    for number, (config, directory) in enumerate(runs):
        os.environ["MASTER_PORT"] = str(port + number)  # that of the run before may not be free yet
        try:
            train(config, directory)
            ends.append("finished")
        except (Preempted, DivergedError) as error:
            ends.append(type(error).__name__)
    return ends


def on_two(*runs):
    """The runs, each on two ranks."""
    first, second = run_ranks(train_all, 2, runs)
    assert first == second
    return first


# ------------------------------------------------------------------------------ what is a unit


def names(model):
    found = {id(module): name for name, module in model.named_modules()}
    return [found[id(unit)] for unit in units(model)]


def test_repeated_blocks_are_units():
    """Of a ModuleList each item; of a Sequential each item where they are of one class."""
    gpt2 = GPT2(vocab_size=9, block_size=4, n_layer=3, n_head=1, n_embd=4, dropout=0.0)
    assert names(gpt2) == [f"transformer.h.{i}" for i in range(3)]
    resnet = ResNet(
        BasicBlock, depths=(2, 1, 2, 2), num_classes=3, in_channels=1, image_size=8, stem="cifar", width=4
    )
    # A stage of one block repeats nothing, and neither does a shortcut of convolution and norm.
    assert names(resnet) == [f"layer{i}.{j}" for i in (1, 3, 4) for j in range(2)]
    perceptron = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert names(perceptron) == ["1", "3"]
    assert names(nn.Linear(2, 2)) == []


def test_a_block_that_shares_a_weight_with_the_rest_is_no_unit():
    """Else two gathers would own the weight; a weight that only the block itself uses twice is no matter."""
    model = nn.ModuleDict(
        {"blocks": nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), "head": nn.Linear(4, 4)}
    )
    assert names(model) == ["blocks.0", "blocks.1", "blocks.2"]
    model["head"].weight = model["blocks"][1].weight
    assert names(model) == ["blocks.0", "blocks.2"]
    twice = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    twice[1].weight = twice[0].weight
    assert names(nn.ModuleList([twice, nn.Linear(4, 4)])) == ["0", "1"]


# --------------------------------------------------------------------------------- what it takes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        pytest.param(
            (*IMAGES, "hardware=a10gx4", "hardware.precision=fp16", TWO),
            r"hardware\.precision=fp16: .*use bf16",
            marks=pytest.mark.slow,
        ),
        (
            (*IMAGES, "pruning=magnitude", "pruning/selection=sorting", TWO),
            r"use pruning/selection=streaming",
        ),
        pytest.param(
            (*IMAGES, "pruning=shuffled_state", TWO),
            r"use another criterion, or one process",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (*TOKENS, "pruning=magnitude", "pruning/scope=block", "hardware.num_devices=8"),
            r"pruning\.scope\.size=\d+: each process has",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_fsdp_leaves_out_is_refused_before_the_run(overrides, words):
    """Parts that need whole tensors; under DDP they are taken (control)."""
    own = ("trainer.max_steps=300", *overrides)
    with pytest.raises(ConfigError, match=words):
        check_choices(configure(*own, FSDP))
    check_choices(configure(*own))


# -------------------------------------------------------------------------------------- as DDP


@pytest.mark.slow
@pytest.mark.parametrize("model", SMALL)
def test_fsdp_computes_what_ddp_computes(tmp_path, model):
    """Losses of all steps, evaluations, test, masks and weights, dense and pruned; gradients clipped."""
    cases = {}
    for pruning, overrides in PRUNINGS.items():
        own = (*SMALL[model], *COMMON, *overrides, TWO, "trainer.grad_clip=0.3")
        cases[pruning] = (start(tmp_path / f"{pruning}-ddp", *own), start(tmp_path / pruning, *own, FSDP))
    assert set(on_two(*(run for pair in cases.values() for run in pair))) == {"finished"}
    for (_, ddp), (_, fsdp) in cases.values():
        assert_alike(fsdp, ddp)


def assert_alike(run, other, rtol=2e-5, has_equal_masks=True):
    """Rounding apart: fused kernels round the ends of a tensor differently, and rows have their own ends.

    Numbers to `rtol`, and so the difference of each weight, as a whole, to ten times as much. Where rounding
    is that of bf16, which of two nearly equal weights is pruned may differ.
    """
    ours, theirs = rows(run), rows(other)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for row, as_theirs in zip(ours, theirs, strict=True):
        for key, value in row.items():
            if key.startswith("prune/") and not has_equal_masks:
                continue
            np.testing.assert_allclose(value, as_theirs[key], rtol=rtol, err_msg=f"{row['step']} {key}")
    one, two = summary(run), summary(other)
    assert one["parameters"] == two["parameters"]
    assert one["sparsity"] == two["sparsity"]
    for key in [key for key in one["metrics"]["final"] if key.startswith(("val/", "test/"))]:
        ends = [report["metrics"]["final"][key] for report in (one, two)]
        np.testing.assert_allclose(*ends, rtol, err_msg=key)
    weights, others = final_weights(run), final_weights(other)
    assert list(weights) == list(others)
    for name in weights:
        ours, theirs = weights[name].double(), others[name].double()
        difference = (ours - theirs).norm() / theirs.norm().clamp(min=1e-3)
        assert difference < 10 * rtol, name
    state, their_state = final_state(run), final_state(other)
    hashes = [each["pruner"].get("masks", {}).get("hash") for each in (state, their_state)]
    assert hashes[0] == hashes[1] or not has_equal_masks
    assert shapes(state["optimizer"]) == shapes(their_state["optimizer"])


def shapes(optimizer):
    """Of every state of every parameter; as text, since some are numbers."""
    return {
        index: {name: str(getattr(value, "shape", value)) for name, value in values.items()}
        for index, values in optimizer["state"].items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adamwspam", "stablespam", "muon", "adamwadv"])
def test_every_optimizer_steps_as_under_ddp(tmp_path, optimizer):
    """Ours take norms and maxima of whole tensors, of which a rank has rows only."""
    pruning = () if optimizer == "adamwadv" else PRUNINGS["magnitude"]
    if optimizer == "muon":
        pruning = (*pruning, "pruning/mode=soft", "pruning.mode.grow=none")
    own = (*SMALL["gpt2"], *COMMON, *pruning, f"optimizer={optimizer}", TWO, "model.dropout=0.0")
    ddp, fsdp = start(tmp_path / "ddp", *own), start(tmp_path / "fsdp", *own, FSDP)
    assert on_two(ddp, fsdp) == ["finished", "finished"]
    if optimizer == "muon":  # which iterates in bf16
        assert_alike(fsdp[1], ddp[1], rtol=5e-3, has_equal_masks=False)
    else:
        assert_alike(fsdp[1], ddp[1], rtol=1e-4)


@pytest.mark.slow
def test_autocast_and_batch_norm(tmp_path):
    """bf16: the same casts; running means stay whole on each rank, and rank 0's are saved."""
    tokens = (*SMALL["gpt2"], *COMMON, *PRUNINGS["state"], TWO, "hardware.precision=bf16")
    images = (*SMALL["lenet5"], *COMMON, TWO, "model=resnet18", "model.width=4")
    runs = [
        (start(tmp_path / f"{n}-ddp", *own), start(tmp_path / f"{n}-fsdp", *own, FSDP))
        for n, own in enumerate((tokens, images))
    ]
    assert set(on_two(*(run for pair in runs for run in pair))) == {"finished"}
    for (_, ddp), (_, fsdp) in runs:
        assert_alike(fsdp, ddp, rtol=1e-2, has_equal_masks=False)


@pytest.mark.slow
def test_a_run_that_diverges_says_so_on_all_ranks(tmp_path):
    """Exit 7, with the first bad gradient, which a rank may have no row of; the weights are saved whole."""
    own = (*SMALL["gpt2"], TWO, FSDP, "trainer.max_steps=20", "optimizer.lr=1e30", "trainer.grad_clip=null")
    config, directory = start(tmp_path / "run", *own)
    assert on_two((config, directory)) == ["DivergedError"]
    report = summary(directory)
    assert report["exit_code"] == 7
    assert "first bad gradient in transformer." in report["error"]


def test_one_device_has_nothing_to_spread(tmp_path):
    """hardware.parallel=fsdp with one device is the plain run, to the bit."""
    own = (*SMALL["lenet5"], "trainer.max_steps=2")
    plain, fsdp = start(tmp_path / "plain", *own), start(tmp_path / "fsdp", *own, FSDP)
    assert train_all([plain, fsdp]) == ["finished", "finished"]
    weights, others = (final_weights(directory) for _, directory in (plain, fsdp))
    assert all(torch.equal(weights[name], others[name]) for name in others)
    assert json.loads((fsdp[1] / "run.json").read_text())["hardware"]["parallel"] is None


# -------------------------------------------------------------------------------- checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("pruning", ["state", "ste"])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path, pruning):
    """On as many ranks, in new processes: rows, weights, states, masks, random states."""
    keeping = (*PRUNINGS["magnitude"], "pruning/mode=ste") if pruning == "ste" else PRUNINGS[pruning]
    own = (*SMALL["gpt2"], *COMMON, *keeping, TWO, FSDP, "trainer.ema_decay=0.9")
    unbroken, (config, directory) = start(tmp_path / "unbroken", *own), start(tmp_path / "stopped", *own)
    config.trainer.stop_step = 10
    assert on_two(unbroken, (config, directory)) == ["finished", "Preempted"]
    config.trainer.stop_step = None
    assert on_two((config, directory)) == ["finished"]
    assert_same_run(directory, unbroken[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, "fsdp"), (1, "ddp")),
        ((1, "ddp"), (2, "fsdp")),
        ((2, "fsdp"), (4, "fsdp")),
        ((4, "fsdp"), (2, "ddp")),
    ],
    ids=str,
)
def test_a_checkpoint_goes_on_at_another_world_size(tmp_path, before, after):
    """By what the user allows; the curve is that of the unbroken run on one device, but for rounding."""
    own = (*SMALL["gpt2"], *COMMON, *PRUNINGS["state"], "model.dropout=0.0", "hardware.micro_batch_size=1")

    def on(ranks, parallel):
        return (*own, f"hardware.num_devices={ranks}", f"hardware.parallel={parallel}")

    (config, directory), (later, _) = (
        start(tmp_path / "run", *on(*before)),
        start(tmp_path / "x", *on(*after)),
    )
    alone = start(tmp_path / "alone", *on(1, "ddp"))
    config.trainer.stop_step = 9
    assert run_on(before[0], (config, directory)) == ["Preempted"]
    later.resume_allow = ["environment", "hardware", "trainer.grad_accum_steps"]
    assert run_on(after[0], (later, directory)) == ["finished"]
    train(*alone)
    assert_alike(directory, alone[1], rtol=1e-4)
    assert summary(directory)["exact"] is False


def run_on(ranks, *runs):
    """The runs, in turn, each on so many ranks."""
    return run_ranks(train_all, ranks, runs)[0] if ranks > 1 else train_all(runs)
