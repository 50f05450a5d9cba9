"""Magnitude: the distance that a weight moves when it is pruned.

Zhu and Gupta, arXiv 1710.01878; a baseline that is hard to beat (Gale et al., arXiv 1902.09574).
"""

from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """|w|: keeping the largest is the Euclidean projection on k non-zero weights."""
    return weight.abs()
