"""Roots that are the same float on every machine, so that masks are.

torch's sqrt on a CPU may come from a vector library that is off by one unit in the last place
(16 % of entries on one EPYC) and 7 times slower where many entries are zero.
"""

import numpy as np
import torch
from torch import Tensor


def sqrt(values: Tensor) -> Tensor:
    """Square root, correctly rounded."""
    if values.is_cpu:
        return torch.from_numpy(np.sqrt(values.detach().numpy()))
    return values.sqrt()


def power(values: Tensor, exponent: float) -> Tensor:
    """values**exponent; 1/2 and 1/4 by correctly rounded roots, which pow is not."""
    if exponent == 0.25:
        return sqrt(sqrt(values))
    if exponent == 0.5:
        return sqrt(values)
    return values.pow(exponent)
