"""Stochastic gradient descent with momentum, as torch.optim.SGD computes it.

    b = momentum * b + g + weight_decay * w;   w -= lr * b

Source: Sutskever et al. 2013, section 2, in torch's form (the learning rate outside b).
"""

from collections.abc import Iterable
from typing import Any

import torch

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
    return torch.optim.SGD(
        groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True
    )
