"""The norm of all gradients, found while they are masked.

Clipping has to read every gradient for the norm; masking in the same pass, a chunk at a time
while it is in cache, costs 1 byte and one write a prunable weight, and no read.

Entries are multiplied by 0 or 1 as floats, so a NaN or inf under a mask becomes NaN and shows in
the norm; a pruned gradient is 0 of either sign, which leaves weight and state at +0.0 all the same.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from adamwprune.pruning.layout import (
    CHUNK,
    flat,
    is_aligned,
    memory_order,
    parts,
    small_conversions,
    zero_pruned_,
)
from adamwprune.pruning.sharding import is_sharded, local, shards_of

Pair = tuple[Tensor, Tensor | None]


def mask_(gradients: Iterable[Pair]) -> None:
    """Set gradients to exactly +0.0 where their mask is False, whatever they are."""
    for gradient, mask in gradients:
        if mask is not None:
            zero_pruned_(local(gradient), mask)


@torch.no_grad()
def mask_and_norm_(gradients: Iterable[Pair]) -> Tensor:
    """Zero gradients where their mask is False; the L2 norm of all, NaN if one was not finite.

    Args:
        gradients: with the mask of each (of this process's rows), or None where nothing of it is pruned.

    Returns:
        A float32 scalar, on the gradients' device; the same on all ranks.
    """
    pairs = list(gradients)
    if not all(gradient.is_cpu for gradient, _ in pairs):
        return _mask_and_norm_by_tensor_(pairs)
    sharded = [pair for pair in pairs if is_sharded(pair[0])]
    whole = [pair for pair in pairs if not is_sharded(pair[0])]
    with small_conversions(), np.errstate(invalid="ignore"):  # 0 * inf is meant
        own, shared = _sum_of_squares_(sharded), _sum_of_squares_(whole)
    total = shards_of(gradient for gradient, _ in sharded).sum(np.array([own]))[0] + shared
    return torch.tensor(math.sqrt(total), dtype=torch.float32)


def norm_of(gradients: list[Tensor]) -> Tensor:
    """The L2 norm of gradients together, whole or sharded: a scalar, the same on all ranks."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if is_sharded(norm) else norm


def _sum_of_squares_(pairs: Iterable[Pair]) -> float:
    """Mask; large tensors are summed chunk by chunk in the same pass, small ones all in one call."""
    squares: list[float] = []
    small: list[Tensor] = []
    for gradient, mask in pairs:
        gradient = local(gradient)
        if gradient.numel() <= CHUNK:
            _multiply_(gradient, mask)
            small.append(gradient)
        else:
            squares += _chunks_(gradient, mask)
    if small:
        norms = torch._foreach_norm(small, dtype=torch.float64)  # that of half formats overflows in theirs
        squares.append(torch.stack(norms).square().sum().item())
    return _exact_sum(squares)


def _multiply_(gradient: Tensor, mask: Tensor | None) -> None:
    if mask is None:
        return
    if walked := _walked(gradient, mask):
        values, kept = walked
        values *= kept
    else:
        gradient.mul_(mask)


def _chunks_(gradient: Tensor, mask: Tensor | None) -> Iterator[float]:
    """Sums of squares of one tensor, each taken of a chunk that has just been masked."""
    walked = None if mask is None else _walked(gradient, mask)
    if walked is None:
        _multiply_(gradient, mask)
    values = flat(gradient, memory_order(gradient))
    for part in parts(values.numel()):
        if walked is not None:
            walked[0][part] *= walked[1][part]
        chunk = values[part].to(torch.promote_types(values.dtype, torch.float32)).contiguous()
        yield torch.dot(chunk, chunk).item()


def _walked(gradient: Tensor, mask: Tensor) -> tuple[np.ndarray, np.ndarray] | None:
    """Flat views in memory order, float32 entries and int8 0 or 1; None where that takes a copy."""
    if gradient.dtype is not torch.float32 or gradient.shape != mask.shape:
        return None
    if gradient.is_contiguous() and mask.is_contiguous():  # nearly always, and small models notice the rest
        return gradient.view(-1).numpy(), mask.view(torch.int8).view(-1).numpy()
    if not is_aligned(gradient, mask):
        return None
    order = memory_order(mask)
    return flat(gradient, order).numpy(), flat(mask, order).view(torch.int8).numpy()


def _exact_sum(values: Iterable[float]) -> float:
    """Of chunks in float32: exact, so that the order of tensors does not matter."""
    try:
        return math.fsum(values)
    except OverflowError:  # of float64 gradients
        return math.inf


def _mask_and_norm_by_tensor_(pairs: list[Pair]) -> Tensor:
    """On an accelerator: few launches, and nothing is read back."""
    for gradient, mask in pairs:
        if mask is not None:
            local(gradient).mul_(mask)
    return norm_of([gradient for gradient, _ in pairs])
