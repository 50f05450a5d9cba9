"""The files of conf/optimizer against what they build."""

import functools
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from adamwprune import targets
from adamwprune.composition import complete, compose, to_config
from adamwprune.optim.param_groups import param_groups

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
OPTIONS = sorted(file.stem for file in CONF.glob("*.yaml"))


@functools.cache
def composed(option, *overrides):
    return to_config(compose(complete([f"optimizer={option}", *overrides])))


def built(option, *overrides):
    """The optimizer that an option describes, over a small network, and its configuration."""
    config = composed(option, *overrides)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    groups = param_groups(model, weight_decay=config.optimizer["weight_decay"], decay_embeddings=False)
    optimizer = targets.build(config.optimizer, "optimizer")(groups)
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    return optimizer, config


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_builds_and_its_values_arrive(option):
    """Each key is in the optimizer's groups, under its own name unless torch has another."""
    optimizer, config = built(option)
    theirs = {"adjust_lr": "adjust_lr_fn", "adam_lr": "lr"}
    groups = optimizer.param_groups
    for key, value in config.optimizer.items():
        if key not in ("_target_", "weight_decay"):
            value = tuple(value) if isinstance(value, list) else value
            assert any(group.get(theirs.get(key, key)) == value for group in groups), key
    decays = {group["weight_decay"] for group in groups}
    assert decays == {config.optimizer["weight_decay"], 0.0}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_sets_every_key(option):
    """So that the record of a run holds all of them, and defaults in the code decide nothing."""
    node = composed(option).optimizer
    assert targets.problems(node, "optimizer") == []
    assert node.keys() - {"_target_"} == targets.read_parameters(node["_target_"]).keys()


@pytest.mark.parametrize("option", OPTIONS)
def test_every_key_is_explained(option):
    """A comment stands above each key, or above the first of several that belong together."""
    lines = [line.strip() for line in (CONF / f"{option}.yaml").read_text().splitlines()]
    assert lines[0].startswith("# ")
    for above, line in pairwise(lines):
        if (
            line
            and line[0] not in "#-"
            and not line.startswith(("_target_", "defaults", "optimizer:", "trainer:", "gamma2"))
        ):
            assert above.startswith("#"), line


@pytest.mark.parametrize(
    ("option", "kind", "expected"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": False, "fused": True}),
        ("adam", torch.optim.Adam, {"amsgrad": False, "fused": True, "decoupled_weight_decay": False}),
        ("adamw", torch.optim.AdamW, {"amsgrad": False, "fused": True, "decoupled_weight_decay": True}),
        ("adamwprune", torch.optim.AdamW, {"amsgrad": False, "fused": True}),
        ("adamwadv", torch.optim.AdamW, {"amsgrad": True, "betas": (0.9, 0.999), "fused": True}),
    ],
)
def test_torch_s_own_optimizers_are_used_as_they_are(option, kind, expected):
    """Fused; adamwadv is a composition, no class."""
    optimizer, _ = built(option)
    assert type(optimizer) is kind
    assert {key: optimizer.param_groups[0][key] for key in expected} == expected


@pytest.mark.parametrize(
    ("overrides", "grad_clip"),
    [
        (["adamwadv"], 1.0),
        (["adamw", "trainer.grad_clip=null"], None),
        (["adamwadv", "trainer.grad_clip=0.5"], 0.5),
        (["adamwspam_ancestor"], None),
        (["adamwspam_ancestor", "trainer.grad_clip=2"], 2.0),
    ],
)
def test_options_choose_the_clipping_and_the_command_line_wins(overrides, grad_clip):
    """The ancestor's SPAM clips by itself."""
    assert composed(*overrides).trainer.grad_clip == grad_clip


@pytest.mark.parametrize("lr", [2e-3, 1e-4])
@pytest.mark.parametrize("option", ["adamwadv", "adamwspam_ancestor"])
def test_options_of_the_ancestor_end_at_a_rate_of_1e_6(option, lr):
    """Whatever the peak; another schedule on the command line wins."""
    config = composed(option, f"optimizer.lr={lr}")
    last = targets.build(config.lr_schedule, "lr_schedule")(999_999, 1_000_000)
    assert last * config.optimizer["lr"] == pytest.approx(1e-6, rel=1e-3)
    assert composed(option, "lr_schedule=constant").lr_schedule["_target_"].endswith(".constant")


def test_named_variants_of_spam_differ_in_what_they_say():
    """The published one in two flags alone."""
    ours, published = composed("adamwspam").optimizer, composed("adamwspam_published").optimizer
    assert {key for key in ours if ours[key] != published[key]} == {"reset_step", "clip_zero_v"}
    assert (published["reset_step"], published["clip_zero_v"]) == (False, True)
    assert (ours["reset_step"], ours["clip_zero_v"]) == (True, False)


@pytest.mark.parametrize("option", ["adamwadv", "adamwspam", "adamwspam_ancestor", "stablespam", "muon"])
def test_pruning_is_chosen_beside_any_optimizer(option):
    """And no optimizer brings one of its own."""
    assert composed(option).pruning.criterion is None
    assert composed(option, "pruning=magnitude").pruning.criterion is not None
