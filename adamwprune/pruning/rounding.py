"""Arithmetic that gives the same float on every machine, so that masks are the same.

torch's sqrt on a CPU may come from a vector library that is off by one unit in the last place
(16 % of entries on one EPYC) and 7 times slower where many entries are zero. pow is rounded
differently everywhere.
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
    """values**exponent; multiples of 1/8 up to 1/2 by correctly rounded roots, which pow is not."""
    if exponent == 0.5:
        return sqrt(values)
    if exponent == 0.25:
        return sqrt(sqrt(values))
    if exponent == 0.125:
        return sqrt(sqrt(sqrt(values)))
    if exponent == 0.375:
        root = sqrt(sqrt(values))
        return root * sqrt(root)
    return values.pow(exponent)


def debiased(mean: Tensor, beta: float, step: Tensor | float) -> Tensor:
    """Adam's bias correction of a running mean after `step` updates of it: mean / (1 - beta^step).

    The factor is computed in float64 and rounded once: 1 - beta2 loses four digits in float32. It is
    multiplied because a GPU divides by a number of the host in another way than a CPU does.
    """
    steps = torch.as_tensor(step, dtype=torch.float64)
    return mean * (1.0 / (1.0 - beta**steps))
