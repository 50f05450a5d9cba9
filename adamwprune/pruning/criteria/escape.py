"""Escape: Adam steps of constant direction that would bring the weight to zero, in units of 1 / lr.

Adam moves a weight by about lr * m / sqrt(v) a step. Unsigned: a weight that moves away counts as one
that approaches. It is what the ancestor's bitter5 meant to be. Whether it helps is open.
"""

import torch
from torch import Tensor

from adamwprune.pruning.rounding import sqrt


def escape(weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> Tensor:
    """|w| * (sqrt(v) / |m|); infinite where m is 0, but 0 for a weight that is at zero already."""
    distance = weight.abs()
    return torch.where(distance == 0.0, distance, distance * (sqrt(exp_avg_sq) / exp_avg.abs()))
