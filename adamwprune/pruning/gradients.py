"""The norms of all gradients before and after masking, found while they are masked.

Clipping has to read every gradient for the norm; masking in the same pass, a chunk at a time
while it is in cache, costs 1 byte and one write a prunable weight, and no read. The norm before
masking is in that price: a NaN that a mask would hide is seen.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adamwprune.pruning.layout import (
    bits_of,
    flat,
    is_aligned,
    memory_order,
    parts,
    small_conversions,
    zero_pruned_,
)
from adamwprune.pruning.sharding import local, shards_of


class Norms(NamedTuple):
    """L2 norms of all gradients together: scalars, on their device."""

    unmasked: Tensor
    masked: Tensor


@torch.no_grad()
def mask_and_norm_(gradients: Iterable[tuple[Tensor, Tensor | None]]) -> Norms:
    """Zero gradients where their mask is False; the norms of all, before and after.

    Args:
        gradients: with the mask of each (of this process's rows), or None where nothing of it is pruned.
    """
    pairs = list(gradients)
    if not all(gradient.is_cpu for gradient, _ in pairs):
        return _mask_and_norm_by_tensor_(pairs)
    sharded = [pair for pair in pairs if _is_sharded(pair[0])]
    whole = [pair for pair in pairs if not _is_sharded(pair[0])]
    with small_conversions():
        own, shared = _sums_of_squares_(sharded), _sums_of_squares_(whole)
    squares = shards_of(gradient for gradient, _ in sharded).sum(own) + shared
    return Norms(*torch.from_numpy(np.sqrt(squares)).float())


def norm_of(gradients: list[Tensor]) -> Tensor:
    """The L2 norm of gradients together, whole or sharded: a scalar, the same on all ranks."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if _is_sharded(norm) else norm


def _sums_of_squares_(pairs: Iterable[tuple[Tensor, Tensor | None]]) -> np.ndarray:
    """(2,) float64: of all entries before and after masking.

    Sums of chunks in float32, their sum exact: the order of tensors does not matter.
    """
    chunks = [sums for gradient, mask in pairs for sums in _chunks_(local(gradient), mask)]
    return np.array([_exact_sum(sums) for sums in zip(*chunks, strict=True)] or [0.0, 0.0])


def _chunks_(gradient: Tensor, mask: Tensor | None) -> Iterator[tuple[float, float]]:
    """Mask chunk by chunk; the sum of squares of each, before and after."""
    values = flat(gradient, memory_order(gradient))
    if mask is None:
        for part in parts(values.numel()):
            squares = _square(values[part])
            yield squares, squares
    elif is_aligned(gradient, mask):
        bits, kept = bits_of(gradient, mask)
        for part in parts(values.numel()):
            unmasked = _square(values[part])
            bits[part] *= kept[part]
            yield unmasked, _square(values[part])
    else:
        unmasked = _square(values)
        zero_pruned_(gradient, mask)
        yield unmasked, _square(flat(gradient, memory_order(gradient)))


def _square(values: Tensor) -> float:
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return torch.dot(values, values).item()


def _exact_sum(values: Iterable[float]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:  # of float64 gradients
        return math.inf


def _mask_and_norm_by_tensor_(pairs: list[tuple[Tensor, Tensor | None]]) -> Norms:
    """On an accelerator: few launches, and nothing is read back."""
    gradients = [gradient for gradient, _ in pairs]
    unmasked = norm_of(gradients)
    masked = [(gradient, mask) for gradient, mask in pairs if mask is not None]
    for gradient, mask in masked:
        zero_pruned_(local(gradient), mask)
    return Norms(unmasked, norm_of(gradients) if masked else unmasked)


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")
