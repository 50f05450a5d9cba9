"""Stable-SPAM: AdamW on gradients whose spikes and norms are tamed tensor by tensor.

In the k-th step of a tensor, with gradient g:

    AdaClip   M = running mean (gamma3) of max|g|;  M^ = M / (1 - gamma3^k)
              g = g / max|g| M^  where |g| > M^
    AdaGN     a, b = running means (gamma1, gamma2) of norm(g) and norm(g)^2;  a^, b^ likewise
              g = g / norm(g) a^ / (sqrt(b^) + eps)
    AdamW     with g; at each multiple of reset_every first m = v = 0, and its own count of steps 0

With decay_steps T, beta1 and gamma1 fall along half a cosine to one half of themselves at step T.
Since v is that of normalised gradients, it has no common scale in different tensors: no scope
global for scores that read it.

Source: Huang et al., arXiv 2502.17055, in the form of the authors' code (TianjinYellow/StableSPAM).
There k is AdamW's count, which a reset sets to 1: M^ is 10 times too large 100 steps later, and
AdaClip does nearly nothing. And the step of the reset still uses the old m and v, with the bias
correction of a first step. `published_reset` does both as there.
"""

import dataclasses
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
    split,
)
from adamwprune.ranges import Fraction, NonNegative, Positive, PositiveInt

# What a smaller norm counts as.
SMALLEST_NORM = 1e-30


class StableSPAM(Optimizer):
    """Stable-SPAM over the parameter groups; a group's own `weight_decay` wins.

    How many gradients the moments average is in `group["steps_since_reset"]`.

    Args:
        groups: parameter groups, or parameters.
        lr, betas, eps, weight_decay: as in AdamW; eps is AdaGN's too.
        gamma1, gamma2: decays of the running means of the norm and of its square; gamma1=None does
            without AdaGN.
        gamma3: decay of the running mean of the largest entry; None does without AdaClip.
        reset_every: steps from reset to reset; None never resets.
        decay_steps: steps over which beta1 and gamma1 fall to their halves; None keeps them.
        published_reset: reset as the published code does.
    """

    def __init__(
        self,
        groups: Iterable[Group] | Iterable[Tensor],
        *,
        lr: Positive = 1e-3,
        betas: tuple[Fraction, Fraction] = (0.9, 0.999),
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.0,
        gamma1: Fraction | None = 0.7,
        gamma2: Fraction = 0.9,
        gamma3: Fraction | None = 0.999,
        reset_every: PositiveInt | None = 1000,
        decay_steps: PositiveInt | None = None,
        published_reset: bool = False,
    ) -> None:
        settings = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "gamma1": gamma1,
            "gamma2": gamma2,
            "gamma3": gamma3,
            "reset_every": reset_every,
            "decay_steps": decay_steps,
            "published_reset": published_reset,
        }
        super().__init__(groups, settings)

    @property
    def normalizes_per_tensor(self) -> bool:
        """Whether second moments have a scale of their own in each tensor."""
        return any(group["gamma1"] is not None for group in self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = loss_of(closure)
        for group in self.param_groups:
            resets, is_published = begin_step(group) == 0, group["published_reset"]
            if resets and not is_published:
                restart_moments_(self, group, step=0)
            self._update(group, is_first_step=resets and is_published)
            if resets and is_published:
                restart_moments_(self, group, step=1, norm_step=1)
        return loss

    def _update(self, group: Group, *, is_first_step: bool) -> None:
        """Step a group's parameters; `is_first_step` corrects the bias as in a first step."""
        beta1, beta2 = group["betas"]
        decay = cosine_to_half(group["steps"], group["decay_steps"])
        for cohort in cohorts(self, group, _new_state):
            for state in cohort.states:
                state["norm_step"] += 1
            grads = _normalize(_clip(cohort.grads, cohort, group), cohort, group, decay)
            adamw_(
                dataclasses.replace(cohort, step=1) if is_first_step else cohort,
                grads,
                lr=group["lr"],
                betas=(beta1 * decay, beta2),
                eps=group["eps"],
                weight_decay=group["weight_decay"],
            )


def cosine_to_half(step: int, steps: int | None) -> float:
    """Factor on beta1 and gamma1: from 1 to a half over `steps` steps, then a half; 1 for None."""
    if steps is None:
        return 1.0
    return 0.75 + 0.25 * math.cos(math.pi * min(1.0, step / (steps + 1)))


def _new_state(parameter: Tensor) -> dict[str, Any]:
    """AdamW's state, and three running means of numbers with a count of their own."""
    means = {name: parameter.new_zeros(()) for name in ("mean_max", "mean_norm", "mean_norm_sq")}
    return {**moments(parameter), "norm_step": 0, **means}


def _clip(grads: Tensors, cohort: Cohort, group: Group) -> Tensors:
    """AdaClip: entries above the usual largest entry are scaled down to it."""
    if group["gamma3"] is None:
        return grads
    largest = _largest_entries(grads)
    limits = _running_mean(cohort, "mean_max", largest, group["gamma3"])
    shrinks = torch._foreach_div(limits, largest)
    return [_clipped(*each) for each in zip(grads, limits, shrinks, strict=True)]


def _largest_entries(grads: Tensors) -> Tensors:
    """Largest |g| of each tensor; 17 times as fast as the infinite norm on a CPU."""
    lows, highs = zip(*map(torch.aminmax, grads), strict=True)
    return torch._foreach_maximum(highs, torch._foreach_neg(lows))


def _clipped(grad: Tensor, limit: Tensor, shrink: Tensor) -> Tensor:
    clipped = torch.empty_like(grad)
    for part, out in split(grad, clipped):
        torch.where(part.abs() > limit, part * shrink, part, out=out)
    return clipped


def _normalize(grads: Tensors, cohort: Cohort, group: Group, decay: float) -> Tensors:
    """AdaGN: each tensor gets its usual norm over the root of its usual squared norm."""
    if group["gamma1"] is None:
        return grads
    norms = torch._foreach_norm(grads)
    factors = _running_mean(cohort, "mean_norm", norms, group["gamma1"] * decay)
    squares = torch._foreach_mul(norms, norms)
    roots = torch._foreach_sqrt(_running_mean(cohort, "mean_norm_sq", squares, group["gamma2"]))
    torch._foreach_add_(roots, group["eps"])
    torch._foreach_div_(factors, roots)
    # Where a tensor's gradient is 0, 0 times a finite factor.
    torch._foreach_div_(factors, torch._foreach_clamp_min(norms, SMALLEST_NORM))
    if grads is cohort.grads:
        return torch._foreach_mul(grads, factors)
    torch._foreach_mul_(grads, factors)
    return grads


def _running_mean(cohort: Cohort, name: str, values: Tensors, decay: float) -> Tensors:
    """Take the values in and return the means without the bias of their start at 0."""
    means = cohort.get(name)
    torch._foreach_lerp_(means, values, 1 - decay)
    return torch._foreach_div(means, [1 - decay ** state["norm_step"] for state in cohort.states])
