"""Stochastic gradient descent with momentum, as torch.optim.SGD computes it, fused.

    b = momentum * b + g + weight_decay * w;   w -= lr * b

Source: Sutskever et al. 2013, section 2, in torch's form (the learning rate outside b).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from adamwprune.optim.fused import fused
from adamwprune.ranges import Fraction, NonNegative, Positive


def sgd(
    groups: Iterable[dict[str, Any]],
    *,
    lr: Positive = 0.1,
    momentum: Fraction = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegative = 5e-4,
) -> torch.optim.SGD:
    """SGD over the parameter groups; a group's own `weight_decay` wins."""
    groups = list(groups)
    optimizer = torch.optim.SGD(
        groups,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        fused=fused(torch.optim.SGD, groups),
    )
    if momentum:
        optimizer.register_step_pre_hook(_start_momentum)
    return optimizer


def _start_momentum(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Let the momentum of a parameter with a first gradient start at 0, which gives b = g as well.

    Torch's fused step makes it itself, but all at once or not at all: it fails where one parameter
    gets its first gradient later than another, and leaves it uninitialised where fp16 overflows in
    the first step (torch 2.13).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and not optimizer.state.get(parameter):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
