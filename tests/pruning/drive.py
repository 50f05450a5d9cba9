"""A small network, every optimizer, and loops that train as users' loops do: for tests of combinations."""

from functools import partial

import pytest
import torch
from torch import nn

from adamwprune.optim.adamw_spam import AdamWSPAM
from adamwprune.optim.adamw_spam_ancestor import AncestorSPAM
from adamwprune.optim.stable_spam import StableSPAM
from adamwprune.pruning.criteria.magnitude import magnitude
from adamwprune.pruning.pruner import Pruner
from adamwprune.training.clipping import clipped

IMPLEMENTATIONS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
TORCH = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}),
    "nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 1e-2}),
    "adam-amsgrad": (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 1e-2, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "adamw-amsgrad": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": True}),
}
# With a reset every 40 steps: during the ramp, and after it.
OURS = {
    "spam": (AdamWSPAM, {"lr": 1e-2, "weight_decay": 0.1, "reset_every": 40, "warmup_steps": 20}),
    "spam-published": (
        AdamWSPAM,
        {"lr": 1e-2, "weight_decay": 0.1, "reset_every": 40, "reset_step": False, "clip_zero_v": True},
    ),
    "ancestor": (AncestorSPAM, {"lr": 1e-2, "weight_decay": 0.1, "reset_every": 40}),
    "stable": (StableSPAM, {"lr": 1e-2, "weight_decay": 0.1, "reset_every": 40}),
    "stable-published": (
        StableSPAM,
        {"lr": 1e-2, "weight_decay": 0.1, "reset_every": 40, "published_reset": True},
    ),
}
# (optimizer, implementation): ours have one.
ALL = [(name, kind) for name in TORCH for kind in IMPLEMENTATIONS] + [(name, None) for name in OURS]
# How a loop clips: not at all, torch's two passes after mask_grads_, or ours.
CLIPS = (None, "torch", "ours")


def network():
    """Equal networks: two prunable tensors (192 and 128 weights), a head, biases."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))


def optimizer_of(model, name, implementation=None, **changed):
    """One of ALL."""
    kind, settings = {**TORCH, **OURS}[name]
    return kind(model.parameters(), **{**settings, **IMPLEMENTATIONS.get(implementation, {}), **changed})


def pruner_of(model, optimizer, **changed):
    """90 % by magnitude between steps 20 and 60, every 5 steps; keywords replace that."""
    plan = {"target_sparsity": 0.9, "start_step": 20, "end_step": 60, "update_every": 5}
    return Pruner(model, optimizer, **{"criterion": magnitude, **plan, **changed})


def backward(model, step, parts=1, scale=lambda loss: loss):
    """Gradients of step `step` in `parts` micro batches, on data that depend on the step alone."""
    generator = torch.Generator().manual_seed(step)
    inputs, targets = torch.randn(6, 12, generator=generator), torch.arange(6) % 3
    for part in range(parts):
        loss = nn.functional.cross_entropy(model(inputs[part::parts]), targets[part::parts])
        scale(loss / parts).backward()


def train(model, optimizer, pruner, first, last, *, clip=None, parts=1, largest=0.3, look=lambda step: None):
    """Steps first..last; calls `look` after each."""
    for step in range(first, last + 1):
        optimizer.zero_grad()
        backward(model, step, parts)
        if clip == "ours":
            with clipped(optimizer, float(pruner.mask_and_norm_grads_()), largest):
                optimizer.step()
        else:
            pruner.mask_grads_()
            if clip == "torch":
                nn.utils.clip_grad_norm_(model.parameters(), largest)
            optimizer.step()
        pruner.after_step(step)
        look(step)


def bits(tensor):
    """The entries as integers: 0 for +0.0 alone."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.element_size()])


def same(first, second):
    """Whether two tensors are equal to the bit, the sign of zeros included."""
    return first.shape == second.shape and torch.equal(bits(first), bits(second))


def shaped_state(optimizer, parameter):
    """State tensors with one entry for each of the parameter's, by name."""
    state = optimizer.state[parameter]
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and v.shape == parameter.shape}


def assert_hard(pruner, optimizer, step, least_states=1):
    """Hard mode's invariant after `step`: exact counts; weight and state +0.0, every bit; gradient 0."""
    assert pruner.pruned() == pruner.planned_count(step)
    for name, parameter in pruner.prunable.items():
        pruned = ~pruner.masks[name]
        assert int(pruned.sum()) == pruner.masks.pruned[name]
        states = shaped_state(optimizer, parameter)
        assert len(states) >= least_states
        for tensor in (parameter, *states.values()):
            assert not bits(tensor)[pruned].any()
        if pruner.plan.latest_update(step) != step:  # an update leaves the gradients of its step
            assert not parameter.grad[pruned].any()


def everything(model, optimizer, pruner):
    """Copies of weights, state tensors, masks and what the pruner keeps, by name."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter.detach().clone()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = torch.as_tensor(value).clone()
    for name in pruner.prunable:
        tensors[f"{name}.mask"] = pruner.masks[name].to(torch.int32)
    saved = pruner.state_dict()
    for kind in ("sums", "mode"):
        for key, values in saved[kind].items():
            tensors |= {f"{kind}.{key}.{name}": value.clone() for name, value in values.items()}
    return tensors


def assert_same(first, second):
    """Two results of `everything` are equal to the bit."""
    assert first.keys() == second.keys()
    assert [name for name in first if not same(first[name], second[name])] == []


def with_(kind, **settings):
    """A mode with settings, as a configuration builds it."""
    return partial(kind, **settings)


def slow_but(cells, fast):
    """Cells as parameters, all but the `fast` ones marked slow: those are a sample of every kind."""
    return [cell if cell in fast else pytest.param(*cell, marks=pytest.mark.slow) for cell in cells]
