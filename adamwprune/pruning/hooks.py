"""A pruner in a loop that cannot be edited: called around every step of the optimizer by hooks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from adamwprune.pruning.modes.base import refuse_closure

if TYPE_CHECKING:
    from adamwprune.pruning.pruner import Pruner


def attach(pruner: "Pruner", optimizer: Optimizer, steps: int) -> list[RemovableHandle]:
    """Register the hooks; steps count on from `steps`, those that a GradScaler skips do not count.

    A step with a closure is refused with RunError: its gradients come after they were to be masked.
    """

    def before(_: Optimizer, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        refuse_closure("an attached pruner", arguments, keywords)
        if not _overflows(optimizer):
            _unscale_(optimizer)
            pruner.mask_grads_()

    def after(*_: Any) -> None:
        nonlocal steps
        if not _overflows(optimizer):
            steps += 1
            pruner.after_step(steps)

    return [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]


def _overflows(optimizer: Optimizer) -> bool:
    """Whether the step is one to skip, which GradScaler lets fused optimizers find out by themselves."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found.item())


def _unscale_(optimizer: Optimizer) -> None:
    """Divide gradients by the scale that a GradScaler left to a fused optimizer.

    What is added to them, or summed, is not scaled.
    """
    scale = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch._foreach_div_([p.grad for p in parameters if p.grad is not None], scale)
        optimizer.grad_scale = None  # type: ignore[attr-defined] # an attribute of GradScaler's own
