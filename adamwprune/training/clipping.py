"""Clipping by norm without a pass of its own: the scaling rides in the optimizer's kernel.

torch's clip_grad_norm_ reads all gradients for the norm and multiplies them all, also by 1. Here
gradients that need no clipping are left alone, and a fused optimizer divides by the scale while it
reads them anyway, by the means that it has for fp16's loss scale.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim import Optimizer

# torch's clip_grad_norm_ has it too: a norm of 0 is no division by 0.
_EPS = 1e-6


@contextmanager
def clipped(optimizer: Optimizer, norm: float, largest: float | None) -> Iterator[None]:
    """While it lasts, a step of the optimizer sees gradients whose L2 norm is at most `largest`.

    Args:
        optimizer: all of whose gradients have the norm together.
        norm: finite.
        largest: None where nothing is clipped.
    """
    if largest is None or norm <= largest:
        yield
    elif getattr(optimizer, "_step_supports_amp_scaling", False):
        device = optimizer.param_groups[0]["params"][0].device
        # The kernels take float32, whatever the default or the parameters are.
        optimizer.grad_scale = torch.tensor((norm + _EPS) / largest, dtype=torch.float32, device=device)
        try:
            yield
        finally:
            del optimizer.grad_scale
    else:
        clip_(optimizer, norm, largest)
        yield


def clip_(optimizer: Optimizer, norm: float, largest: float | None) -> None:
    """Scale the gradients of the optimizer's parameters, whose norm is `norm`, down to `largest`."""
    if largest is not None and norm > largest:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, largest / (norm + _EPS))
