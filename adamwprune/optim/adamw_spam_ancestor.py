"""What mcgrof/AdamWPrune called AdamWSPAM in 2025, kept to reproduce its runs: no SPAM by the paper.

AdamW with AMSGrad. In step i = 1, 2, ..., before its update:

    g = sign(g) min(|g|, sqrt(theta (v + 1e-12))),  from a tensor's second step on
    if the norm of all g lies more than spike_z deviations above the mean of the 99 before it:
        m = m / 2,  v = .9 v
    g scaled down to norm grad_clip
    at each multiple of reset_every:  m = v = 0

The bias correction and the largest v, which alone divides the update, are never set back. After
the first reset the learning rate is a sawtooth for ever, j steps after a reset
max(.001, (1 - cos(pi j / reset_every)) / 2), on average .499. Its configuration said a reset every
1,000 steps and a warm-up of 1,000; two calls a step counted both twice as fast.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from adamwprune.optim.adamw_spam import clamp
from adamwprune.optim.cohorts import (
    Cohort,
    Group,
    Tensors,
    adamw_,
    begin_step,
    cohorts,
    loss_of,
    moments_and_maximum,
    restart_moments_,
)
from adamwprune.ranges import Fraction, NonNegative, Positive, PositiveInt

# Norms that a spike is judged by, the newest included, and as many as there must be.
HISTORY, LEAST_HISTORY = 100, 10


class AncestorSPAM(Optimizer):
    """The ancestor's AdamWSPAM over the parameter groups; a group's own `weight_decay` wins.

    `group["applied_lr"]` and `group["steps_since_reset"]` are as in AdamWSPAM. The norm clipping is
    in here, because spikes are looked for before it: train without any of the loop's.

    Args:
        groups: parameter groups, or parameters.
        lr: learning rate before the sawtooth.
        betas, eps, weight_decay: as in AdamW; the sawtooth scales the decay too.
        theta: largest g^2 / v that is no spike; None clips nothing.
        spike_z: deviations above the mean that make a norm a spike; None looks for none.
        grad_clip: largest norm of all gradients; None does not scale them.
        reset_every: steps from reset to reset; None never resets, and has no sawtooth.
    """

    def __init__(
        self,
        groups: Iterable[Group] | Iterable[Tensor],
        *,
        lr: Positive = 1e-3,
        betas: tuple[Fraction, Fraction] = (0.9, 0.999),
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.0,
        theta: Positive | None = 50.0,
        spike_z: Positive | None = 2.0,
        grad_clip: Positive | None = 1.0,
        reset_every: PositiveInt | None = 500,
    ) -> None:
        settings = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "theta": theta,
            "spike_z": spike_z,
            "grad_clip": grad_clip,
            "reset_every": reset_every,
        }
        super().__init__(groups, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = loss_of(closure)
        since_reset = [begin_step(group) for group in self.param_groups]
        updates = [
            (group, piece, _clip_spikes(piece, group["theta"]))
            for group in self.param_groups
            for cohort in cohorts(self, group, moments_and_maximum)
            for piece in cohort.pieces()
        ]
        norm = get_total_norm([grad for _, _, grads in updates for grad in grads])
        self._soften_after_spike(norm)
        for group, since in zip(self.param_groups, since_reset, strict=True):
            if since == 0:
                restart_moments_(self, group)
            group["applied_lr"] = group["lr"] * sawtooth(since, group["reset_every"])
        for group, piece, grads in updates:
            if group["grad_clip"] is not None:
                grads = torch._foreach_mul(grads, (group["grad_clip"] / (norm + 1e-6)).clamp(max=1.0))
            adamw_(
                piece,
                grads,
                lr=group["applied_lr"],
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
            )
        return loss

    def _soften_after_spike(self, norm: Tensor) -> None:
        """Shrink all moments where the norm is a spike, decided on the device; remember the norm."""
        group = self.param_groups[0]  # of all groups, and kept in one so that a checkpoint holds it
        past = group.get("norms", norm.new_empty(0)).to(norm)
        group["norms"] = torch.cat([past, norm.view(1)])[1 - HISTORY :]
        if group["spike_z"] is None or len(past) < LEAST_HISTORY - 1:
            return
        deviation = past.std(correction=0)
        is_spike = (norm - past.mean() > group["spike_z"] * deviation) & (deviation > 0)
        for name, factor in (("exp_avg", 0.5), ("exp_avg_sq", 0.9)):
            tensors = [state[name] for state in self.state.values()]
            torch._foreach_mul_(tensors, torch.where(is_spike, factor, 1.0).to(norm))


def sawtooth(since_reset: int | None, reset_every: int) -> float:
    """Factor on the learning rate in the step of a reset (0) and after; 1 before the first (None)."""
    if since_reset is None:
        return 1.0
    return max(1e-3, (1 - math.cos(math.pi * since_reset / reset_every)) / 2)


def _clip_spikes(cohort: Cohort, theta: float | None) -> Tensors:
    """Copies of the gradients with |g| <= sqrt(theta (v + 1e-12)); in a tensor's first step, as they are."""
    if theta is None or cohort.step == 1:
        return cohort.grads
    limits = torch._foreach_add(cohort.get("exp_avg_sq"), 1e-12)
    torch._foreach_mul_(limits, theta)
    torch._foreach_sqrt_(limits)
    return clamp(cohort.grads, limits)
