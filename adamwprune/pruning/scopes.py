"""Scopes: within which sets of weights scores compete, and how many of each set are pruned."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Scope = Callable[[Sequence[Sequence[int]], float], list["Segment"]]


@dataclass(frozen=True)
class Segment:
    """Tensors whose scores are ranked together; the `count` lowest of all are pruned."""

    tensors: tuple[int, ...]  # positions in the list of prunable tensors
    count: int


def layerwise(shapes: Sequence[Sequence[int]], sparsity: float) -> list[Segment]:
    """Each tensor on its own, all with the same sparsity."""
    return [Segment((i,), pruned_count(math.prod(shape), sparsity)) for i, shape in enumerate(shapes)]


def global_(shapes: Sequence[Sequence[int]], sparsity: float) -> list[Segment]:
    """All tensors in one ranking, so sparsity moves to where scores are low.

    Risky with magnitude in GPT-2, whose residual projections start smaller by 1/sqrt(2 * layers).
    """
    return [Segment(tuple(range(len(shapes))), pruned_count(sum(map(math.prod, shapes)), sparsity))]


def pruned_count(size: int, sparsity: float) -> int:
    """floor(s * N + 1/2), the pruned weights of a segment with N weights."""
    return math.floor(sparsity * size + 0.5)
