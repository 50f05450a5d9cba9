"""Exact selection on an accelerator: keys are counted, and the host waits for nothing.

search  8 passes find the k-th smallest of the 32-bit keys, four bits each: keys below each of 15
        thresholds are counted, and the digit is the number of thresholds with fewer than k below
prune   one pass: everything below that key, and of those that equal it the first, in the order
        (tensor, flat index), by a running count

Thresholds and counts stay on the device; what is read back is the caller's count of its masks, and the
threshold if it is asked for. No histogram: bincount waits for the device, histc adds floats in any
order. Of shards only counts travel: 8 times 15, and two numbers a tensor. All of it is torch,
so that a CPU can check it. Scores exist for one chunk at a time (scoring.DEVICE_CHUNK), and the 15
comparisons, 15 bytes an entry of it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adamwprune.pruning.selection.keys import KEY_BITS, LOWEST, Ranked, Threshold
from adamwprune.pruning.sharding import ALONE, Shards

DIGIT_BITS = 4


def on_device(tensors: Sequence[Ranked], count: int, shards: Shards = ALONE) -> Threshold:
    """Set masks so that the `count` entries with the lowest keys, of all tensors together, are pruned.

    Returns the highest score that was pruned; float() of it waits for the device, and raises ScoreError
    if a live entry had no score. `count` as for streaming.
    """
    key, below = _search(tensors, count, shards)
    earlier, highest = _census(tensors, key, shards)
    for tensor, ties_before in zip(tensors, earlier.unbind(), strict=True):
        _prune_(tensor, key, count - below - ties_before)
    return Threshold(key, highest, tensors)


def _search(tensors: Sequence[Ranked], rank: int, shards: Shards) -> tuple[Tensor, Tensor]:
    """(the rank-th smallest key, the number of keys below it), int64."""
    device = tensors[0].device
    low = torch.full((), LOWEST, dtype=torch.int64, device=device)
    below = torch.zeros((), dtype=torch.int64, device=device)
    digits = torch.arange(1, 1 << DIGIT_BITS, device=device)
    for shift in range(KEY_BITS - DIGIT_BITS, -1, -DIGIT_BITS):
        thresholds = (low + (digits << shift)).to(torch.int32).unsqueeze(1)
        counts = torch.zeros_like(digits)
        for tensor in tensors:
            for part in tensor.parts():
                counts += (tensor.signed_keys(part) < thresholds).sum(1)
        is_passed = shards.add(counts) < rank
        low = low + (is_passed.sum() << shift)
        below = torch.maximum(below, torch.where(is_passed, counts, 0).max())
    return low, below


def _census(tensors: Sequence[Ranked], key: Tensor, shards: Shards) -> tuple[Tensor, Tensor]:
    """(for each tensor, the keys that equal `key` before this process's part of it; the highest key)."""
    facts = torch.stack([torch.zeros_like(key), torch.full_like(key, LOWEST)]).repeat(len(tensors), 1)
    for tensor, (ties, highest) in zip(tensors, facts, strict=True):
        for part in tensor.parts():
            keys = tensor.signed_keys(part)
            ties += (keys == key).sum()
            highest.clamp_(min=keys.amax())
    everyone = shards.stack(facts)  # (processes, tensors, 2)
    counts = everyone[..., 0].T  # (tensors, processes), in the order of the entries
    earlier = counts.reshape(-1).cumsum(0).view(counts.shape) - counts
    return earlier[:, shards.rank], everyone[..., 1].max()


def _prune_(tensor: Ranked, key: Tensor, ties: Tensor) -> None:
    """Prune all keys of a tensor below `key`, and the first `ties` that equal it."""
    for part in tensor.parts():
        keys = tensor.signed_keys(part)
        places = (keys == key).cumsum(0)
        tensor.keep_(part, (keys > key) | ((keys == key) & (places > ties)))
        ties = ties - places[-1]
