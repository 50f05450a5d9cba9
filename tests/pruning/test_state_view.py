"""The state of real optimizers under one set of names."""

import pytest
import torch
from torch.nn import Parameter

from adamwprune.pruning.criteria.magnitude import magnitude
from adamwprune.pruning.criteria.state import state
from adamwprune.pruning.scoring import needs
from adamwprune.pruning.state_view import StateView
from adamwprune.pruning.trial import missing_state


def stepped(kind, **settings):
    parameter = Parameter(torch.ones(3, 2))
    optimizer = kind([parameter], lr=1e-3, **settings)
    parameter.grad = torch.full((3, 2), 0.5)
    optimizer.step()
    return parameter, optimizer


@pytest.mark.parametrize(
    ("kind", "settings", "names"),
    [
        (torch.optim.SGD, {"momentum": 0.9}, {"exp_avg"}),
        (torch.optim.Adam, {}, {"exp_avg", "exp_avg_sq", "step", "beta1", "beta2", "eps"}),
        (torch.optim.AdamW, {"amsgrad": True}, {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"}),
        (torch.optim.RMSprop, {}, {"exp_avg_sq"}),
        (torch.optim.NAdam, {}, {"exp_avg", "exp_avg_sq"}),
    ],
)
def test_canonical_names(kind, settings, names):
    parameter, optimizer = stepped(kind, **settings)
    view = StateView(optimizer).read(parameter)
    assert {"weight", "lr", *names} <= view.keys()


def test_the_view_shares_memory_with_the_state():
    parameter, optimizer = stepped(torch.optim.SGD, momentum=0.9)
    view = StateView(optimizer).read(parameter)
    assert view["exp_avg"] is optimizer.state[parameter]["momentum_buffer"]
    assert view["weight"].data_ptr() == parameter.data_ptr()


OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1), ["exp_avg_sq"]),
    "sgd with momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), ["exp_avg_sq"]),
    "adamw": (torch.optim.AdamW, []),
    "fused adamw": (lambda p: torch.optim.AdamW(p, fused=True), []),
    "rmsprop": (torch.optim.RMSprop, []),
    "adafactor": (torch.optim.Adafactor, ["exp_avg_sq"]),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_missing_state_is_found_by_one_step(name):
    factory, missing = OPTIMIZERS[name]
    assert missing_state(needs(state), factory) == missing
    assert missing_state(needs(magnitude), factory) == []


def test_missing_state_names_what_is_missing_and_only_that():
    def criterion(weight, exp_avg, max_exp_avg_sq):
        return weight

    momentum = OPTIMIZERS["sgd with momentum"][0]
    assert missing_state(needs(criterion), OPTIMIZERS["sgd"][0]) == ["exp_avg", "max_exp_avg_sq"]
    assert missing_state(needs(criterion), momentum) == ["max_exp_avg_sq"]
    assert missing_state(needs(criterion), lambda p: torch.optim.Adam(p, amsgrad=True)) == []


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad]
)
def test_zeroing_reaches_every_tensor_of_the_parameters_shape(kind):
    settings = {"momentum": 0.9} if kind in (torch.optim.SGD, torch.optim.RMSprop) else {}
    parameter, optimizer = stepped(kind, **settings)
    mask = torch.tensor([[True, False]] * 3)
    before = {key: value.clone() for key, value in optimizer.state[parameter].items()}
    StateView(optimizer).zero_pruned_(parameter, mask)
    shaped = [key for key, value in before.items() if value.shape == parameter.shape]
    assert shaped
    for key, value in optimizer.state[parameter].items():
        if key in shaped:
            assert before[key][:, 1].all()
            assert not value[:, 1].any()
            assert torch.equal(value[:, 0], before[key][:, 0])
        else:
            assert torch.equal(value, before[key])
