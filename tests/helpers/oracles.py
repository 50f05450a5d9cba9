"""Mask selection once more, in NumPy by one stable sort, written from the definitions.

Arrays come in their logical shape; `kept` says what is live before. Nothing of adamwprune is used.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

Arrays = Sequence[np.ndarray]


def order_of(scores: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Flat positions from the first to go: what is pruned, then by score, equal scores by position."""
    flat = scores.reshape(-1).astype(np.float64) + 0.0
    return np.lexsort((np.arange(flat.size), np.where(kept.reshape(-1), flat, 0.0), kept.reshape(-1)))


def prune(scores: Arrays, kept: Arrays, count: int, caps: Sequence[int] | None = None) -> list[np.ndarray]:
    """Masks in which the `count` lowest of all tensors together are pruned, no tensor beyond its cap.

    Going through all entries in order, each goes unless its tensor is at its cap.
    """
    sizes = [array.size for array in scores]
    every_score = np.concatenate([array.reshape(-1) for array in scores])
    order = order_of(every_score, np.concatenate([array.reshape(-1) for array in kept]))
    owner = np.repeat(np.arange(len(sizes)), sizes)[order]
    is_allowed = np.zeros(order.size, bool)
    for i, size in enumerate(sizes):
        is_allowed[np.flatnonzero(owner == i)[: size if caps is None else caps[i]]] = True
    result = np.ones(order.size, bool)
    result[order[is_allowed][:count]] = False
    parts = np.split(result, np.cumsum(sizes)[:-1])
    return [part.reshape(array.shape) for part, array in zip(parts, scores, strict=True)]


def nearest(size: int, sparsity: float) -> int:
    """floor(s * N + 1/2)."""
    return int(np.floor(np.float64(sparsity) * size + 0.5))


def layerwise(scores: Arrays, kept: Arrays, sparsity: float) -> list[np.ndarray]:
    """Each tensor on its own."""
    return [
        prune([s], [k], nearest(s.size, sparsity))[0] for s, k in zip(scores, kept, strict=True)
    ]  # fmt: skip


def global_(
    scores: Arrays,
    kept: Arrays,
    sparsity: float,
    normalize: str = "none",
    max_layer_sparsity: float | None = None,
) -> list[np.ndarray]:
    """All together; scores divided by their norm over finite live ones, and caps."""
    if normalize == "l2":
        scores = [s / norm(s, k) for s, k in zip(scores, kept, strict=True)]
    sizes = [s.size for s in scores]
    cap = None if max_layer_sparsity is None else Fraction(str(max_layer_sparsity))
    caps = None if cap is None else [int(cap * size) for size in sizes]
    return prune(scores, kept, nearest(sum(sizes), sparsity), caps)


def norm(scores: np.ndarray, kept: np.ndarray) -> np.float32:
    """L2 norm of the finite scores of live entries, rounded once."""
    values = [Fraction(float(v)) ** 2 for v in scores[kept & np.isfinite(scores)].reshape(-1)]
    return np.float32(float(sum(values, Fraction())) ** 0.5 or 1.0)


def row(scores: Arrays, kept: Arrays, sparsity: float) -> list[np.ndarray]:
    """Each row on its own."""
    return [
        _by_group(s, k, nearest(s[0].size, sparsity), s.shape[0]) for s, k in zip(scores, kept, strict=True)
    ]


def nm(scores: Arrays, kept: Arrays, sparsity: float, m: int) -> list[np.ndarray]:
    """Each m entries along dimension 1."""
    masks = []
    for s, k in zip(scores, kept, strict=True):
        last = np.moveaxis(s, 1, -1)
        mask = _by_group(last, np.moveaxis(k, 1, -1), nearest(m, sparsity), s.size // m)
        masks.append(np.moveaxis(mask, -1, 1))
    return masks


def _by_group(scores: np.ndarray, kept: np.ndarray, count: int, groups: int) -> np.ndarray:
    pairs = zip(np.split(scores.reshape(-1), groups), np.split(kept.reshape(-1), groups), strict=True)
    return np.concatenate([prune([s], [k], count)[0] for s, k in pairs]).reshape(scores.shape)


def block(scores: Arrays, kept: Arrays, sparsity: float, size: int) -> list[np.ndarray]:
    """Squares of `size` x `size` in (rows, all else), by their mean score."""
    masks = []
    for s, k in zip(scores, kept, strict=True):
        grid = (s.shape[0] // size, size, -1, size)
        means = s.reshape(grid).astype(np.float64).mean(axis=(1, 3)).astype(np.float32)
        lives = k.reshape(grid).any(axis=(1, 3))
        mask = prune([means], [lives], nearest(means.size, sparsity))[0]
        masks.append(np.kron(mask, np.ones((size, size), bool)).reshape(s.shape))
    return masks


def erk_counts(shapes: Sequence[Sequence[int]], sparsity: float, most: float = 1.0) -> list[int]:
    """Pruned weights by tensor: kept ones in proportion to the sum of dimensions, by Sainte-Lague.

    From the least that each must keep, seats are given one after the other to the tensor with the least
    (kept + 1/2) / (sum of dimensions).
    """
    sizes = [int(np.prod(shape)) for shape in shapes]
    kept = [size - int(Fraction(str(most)) * size) for size in sizes]
    seats = sum(sizes) - nearest(sum(sizes), sparsity) - sum(kept)
    for _ in range(seats):
        free = [i for i in range(len(sizes)) if kept[i] < sizes[i]]
        kept[min(free, key=lambda i: Fraction(2 * kept[i] + 1, 2 * sum(shapes[i])))] += 1
    return [size - k for size, k in zip(sizes, kept, strict=True)]


def erk(scores: Arrays, kept: Arrays, sparsity: float, max_layer_sparsity: float = 1.0) -> list[np.ndarray]:
    """Each tensor on its own, with its own count."""
    counts = erk_counts([s.shape for s in scores], sparsity, max_layer_sparsity)
    return [prune([s], [k], count)[0] for s, k, count in zip(scores, kept, counts, strict=True)]


Oracle = Callable[..., list[np.ndarray]]


def magnitude(weight: np.ndarray, **_: Any) -> np.ndarray:
    """|w| in float32."""
    return np.abs(weight.astype(np.float32))


def state(weight: np.ndarray, exp_avg_sq: np.ndarray, **_: Any) -> np.ndarray:
    """|w| * sqrt(sqrt(v)); +inf where it is 0 and no gradient was ever seen."""
    scores = np.abs(weight.astype(np.float32)) * np.sqrt(np.sqrt(exp_avg_sq.astype(np.float32)))
    return np.where((scores == 0.0) & (exp_avg_sq.astype(np.float32) == 0.0), np.float32(np.inf), scores)
