"""ERK: sparsity by shape; a tensor's density follows (sum of its dimensions) / (product of them).

Large matrices lose more than small ones. Source: Erdos-Renyi kernels, Evci et al., RigL (arXiv
1911.11134, section 3); Mocanu et al. 2018 for two dimensions.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated

from adamwprune.errors import ConfigError
from adamwprune.pruning.scopes.segments import Pool, Shape, most_pruned, pruned_count
from adamwprune.ranges import Range


def erk(
    shapes: Sequence[Shape],
    sparsity: float,
    *,
    max_layer_sparsity: Annotated[float, Range(above=0, most=1)] | None = None,
) -> list[Pool]:
    """One pool a tensor; the counts add up to floor(s * N + 1/2), and none falls as the sparsity rises.

    Densities above 1 become 1 and those below 1 - max_layer_sparsity become that; the rest is solved again.

    Raises:
        ConfigError: the caps leave too few weights to prune.
    """
    sizes = [math.prod(shape) for shape in shapes]
    total = sum(sizes) - pruned_count(sum(sizes), sparsity)
    caps = sizes if max_layer_sparsity is None else [most_pruned(size, max_layer_sparsity) for size in sizes]
    floors = [size - cap for size, cap in zip(sizes, caps, strict=True)]
    if sum(floors) > total:
        raise ConfigError(
            f"pruning.scope.max_layer_sparsity={max_layer_sparsity}: keeps {sum(floors):,} weights, but a "
            f"sparsity of {sparsity:g} only {total:,}; raise it above pruning.target_sparsity"
        )
    kept = _kept([sum(shape) for shape in shapes], floors, sizes, total)
    return [Pool((i,), size - count) for i, (size, count) in enumerate(zip(sizes, kept, strict=True))]


def _kept(weights: Sequence[int], floors: Sequence[int], sizes: Sequence[int], total: int) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to `weights` but within [floors, sizes].

    All are rounded to the nearest at one common scale (Sainte-Lague). Largest remainders would also add
    up, but can take from one tensor when the total grows, and a pruned weight cannot be given back.
    """

    def at(scale: float) -> list[int]:
        nearest = (math.floor(scale * weight + 0.5) for weight in weights)
        return [min(max(n, low), high) for n, low, high in zip(nearest, floors, sizes, strict=True)]

    low, high = 0.0, 1.0 + max(size / weight for size, weight in zip(sizes, weights, strict=True))
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (middle, high) if sum(at(middle)) <= total else (low, middle)
    kept = at(low)
    while sum(kept) < total:  # some would be rounded up at the same scale: the first of them are
        free = [i for i, count in enumerate(kept) if count < sizes[i]]
        kept[min(free, key=lambda i: Fraction(2 * kept[i] + 1, weights[i]))] += 1
    return kept
