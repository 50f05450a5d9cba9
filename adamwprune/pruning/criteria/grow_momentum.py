"""Growing by momentum: which pruned weights have had gradients that agree. For mode soft.

RigL's rule with the noise averaged out, and without a unit, so that tensors compare. Dettmers and
Zettlemoyer, arXiv 1907.04840 (sparse momentum); their code has m / (sqrt(v) + 1e-8). Result open.
"""

import torch
from torch import Tensor

from adamwprune.pruning.rounding import sqrt


def grow_momentum(exp_avg: Tensor, exp_avg_sq: Tensor) -> Tensor:
    """|m| / sqrt(v); 0 where m is 0, also where v is: no gradient, no reason to grow."""
    drift = exp_avg.abs()
    return torch.where(drift == 0.0, drift, drift / sqrt(exp_avg_sq))
