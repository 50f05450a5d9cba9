"""SPAM: Adam whose spikes are clipped by its own second moment and whose moments restart.

In step i = 1, 2, ... of a tensor with gradient g, moments m and v, and n steps behind its bias
correction:

    at each multiple of reset_every:  m = v = 0;  n = 0 (reset_step)
    from clip_after steps into a cycle on:  g = sign(g) min(|g|, sqrt(theta v)),  v of the step before
    m, v = running means of g, g^2;  n += 1
    w -= f lr sqrt(1 - beta2^n) / (1 - beta1^n) m / (sqrt(v) + eps)
    w -= lr weight_decay w

f warms up again after each reset, from .01 to 1. Source: Huang et al., arXiv 2501.06842, in the
form of the authors' code (TianjinYellow/SPAM-Optimizer, dense), whose flags are ours with
reset_step=false and clip_zero_v=true:

- There n is never set back. v restarts at 0 all the same, so for a while the step is too long:
  on average 1.35 times in the first cycle after a reset, up to 1.87 in later ones. With n = 0 it is
  .85 times, all of it the warm-up's.
- There an entry with v = 0, to which no gradient came in the first clip_after steps of a cycle, has
  its gradient clipped to 0. So v stays 0, and it is frozen until the next reset.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adamwprune.optim.cohorts import (
    Cohort,
    Group,
    Tensors,
    adamw_,
    begin_step,
    cohorts,
    loss_of,
    moments,
    restart_moments_,
)
from adamwprune.ranges import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt


class AdamWSPAM(Optimizer):
    """SPAM over the parameter groups; a group's own `weight_decay` wins.

    f multiplies `lr` as it stands in each step and leaves it there; the product is in
    `group["applied_lr"]`. How many gradients the moments average is in `group["steps_since_reset"]`.

    Args:
        groups: parameter groups, or parameters.
        lr: learning rate before f.
        betas, eps: as in Adam, but eps is added to sqrt(v) as it is, before bias correction.
        weight_decay: decoupled, after the update, not scaled by f.
        theta: largest g^2 / v that is no spike; None clips nothing.
        clip_after: steps at the start, and from each reset, without clipping.
        reset_every: steps from reset to reset; None never resets.
        warmup_steps: steps that f takes to 1 after a reset.
        reset_step: whether bias correction restarts with the moments.
        clip_zero_v: whether v = 0 is a scale like any other, which clips g to 0.
    """

    def __init__(
        self,
        groups: Iterable[Group] | Iterable[Tensor],
        *,
        lr: Positive = 1e-3,
        betas: tuple[Fraction, Fraction] = (0.9, 0.999),
        eps: Positive = 1e-6,
        weight_decay: NonNegative = 0.0,
        theta: Positive | None = 5000.0,
        clip_after: NonNegativeInt = 20,
        reset_every: PositiveInt | None = 500,
        warmup_steps: NonNegativeInt = 150,
        reset_step: bool = True,
        clip_zero_v: bool = False,
    ) -> None:
        settings = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "theta": theta,
            "clip_after": clip_after,
            "reset_every": reset_every,
            "warmup_steps": warmup_steps,
            "reset_step": reset_step,
            "clip_zero_v": clip_zero_v,
        }
        super().__init__(groups, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = loss_of(closure)
        for group in self.param_groups:
            since_reset = begin_step(group)
            if since_reset == 0:
                counts = {"step": 0} if group["reset_step"] else {}
                restart_moments_(self, group, **counts)
            group["applied_lr"] = group["lr"] * warmup_factor(since_reset, group["warmup_steps"])
            cycle = group["steps"] if since_reset is None else since_reset
            for cohort in cohorts(self, group, moments):
                for piece in cohort.pieces():
                    _update_(piece, group, clips=cycle >= group["clip_after"])
        return loss


def _update_(cohort: Cohort, group: Group, *, clips: bool) -> None:
    grads: Tensors = cohort.grads
    _, beta2 = group["betas"]
    if clips and group["theta"] is not None:
        grads = clip_spikes(grads, cohort.get("exp_avg_sq"), group["theta"], clip_zero_v=group["clip_zero_v"])
    # torch adds eps to sqrt(v / (1 - beta2^n)); this one comes out as eps added to sqrt(v).
    eps = group["eps"] / math.sqrt(1 - beta2**cohort.step)
    adamw_(cohort, grads, lr=group["applied_lr"], betas=group["betas"], eps=eps, weight_decay=0.0)
    if group["weight_decay"]:
        torch._foreach_mul_(cohort.params, 1 - group["lr"] * group["weight_decay"])


def warmup_factor(since_reset: int | None, warmup_steps: int) -> float:
    """Half a cosine from .01, in the step of a reset (0), to 1; 1 before the first reset (None)."""
    if since_reset is None or since_reset >= warmup_steps:
        return 1.0
    return 1 - 0.99 * (1 + math.cos(math.pi * since_reset / (warmup_steps + 1))) / 2


def clip_spikes(grads: Tensors, exp_avg_sqs: Tensors, theta: float, *, clip_zero_v: bool) -> Tensors:
    """Copies of the gradients with |g| <= sqrt(theta v); where v = 0 as they are, unless clip_zero_v."""
    limits = torch._foreach_mul(exp_avg_sqs, theta)
    torch._foreach_sqrt_(limits)
    if not clip_zero_v:
        # Divided by the sign of v, which is 0 or 1: infinite, or the limit as it was.
        torch._foreach_add_(limits, torch.finfo(limits[0].dtype).tiny)
        torch._foreach_div_(limits, torch._foreach_sign(exp_avg_sqs))
    return clamp(grads, limits)


def clamp(grads: Tensors, limits: Tensors) -> Tensors:
    """Copies of the gradients between -limit and limit; `limits` is used up."""
    clamped = torch._foreach_minimum(grads, limits)
    torch._foreach_neg_(limits)
    torch._foreach_maximum_(clamped, limits)
    return clamped
