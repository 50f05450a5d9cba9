"""Exact selection of the lowest scores by counting: O(N) reads, no sort, no copy of the scores.

    guess   an interval of keys that should hold the k-th smallest, from a small sample
    census  one pass: how many keys lie below the interval, and their histogram inside it; the
            count proves or refutes the guess and narrows the interval to one of 65,536 bins
    prune   one pass: everything below the interval, and inside it the lowest keys, equal ones in
            the order (tensor, flat index)

Exactly k entries for any scores, ties included; no random numbers, no clamps. Scores exist for
one chunk at a time. Beyond masks and a few chunks this needs 1 MiB. Of shards on several
processes only counts travel: two histograms of 512 KiB and one number a tensor. Tensors on an
accelerator are counted there: on_device.py.
"""

import math
from collections.abc import Sequence
from typing import SupportsFloat

import numpy as np
import torch

from adamwprune.pruning.layout import CHUNK
from adamwprune.pruning.selection.keys import KEY_BITS, Ranked, score_of
from adamwprune.pruning.selection.on_device import on_device
from adamwprune.pruning.sharding import ALONE, Shards

BIN_BITS = 16

# Keys that are collected and sorted instead of counted once more: half a MiB with positions.
_FEW = 1 << 14


def streaming(tensors: Sequence[Ranked], count: int, shards: Shards = ALONE) -> SupportsFloat:
    """Set masks so that the `count` entries with the lowest keys, of all tensors together, are pruned.

    Returns the highest score that was pruned. `count` must be at least 1, at least the number of entries
    that are pruned already, and at most that of all.
    """
    if tensors[0].device.type != "cpu":
        return on_device(tensors, count, shards)
    low, bits, below = locate(tensors, count, shards)
    if bits == 0:
        _prune_ties_(tensors, low, count - below, shards)
        return score_of(low)
    return _prune_interval_(tensors, low, bits, count - below)


def locate(tensors: Sequence[Ranked], rank: int, shards: Shards = ALONE) -> tuple[int, int, int]:
    """An interval [low, low + 2**bits) that holds the rank-th smallest key, and the count below it.

    Its keys are all the same (bits = 0), or so few that one process may sort them.
    """
    low, bits = _guess(tensors, rank) if shards.is_alone else (0, KEY_BITS)
    while True:
        below, counts = _census(tensors, low, bits, shards)
        inside = np.cumsum(counts)
        if not below < rank <= below + inside[-1]:
            low, bits = 0, KEY_BITS  # the sample misled
            continue
        chosen = int(np.searchsorted(inside, rank - below))
        below += int(inside[chosen] - counts[chosen])
        bits = max(bits - BIN_BITS, 0)
        low += chosen << bits
        if bits == 0 or (shards.is_alone and counts[chosen] <= _FEW):
            return low, bits, below


def _guess(tensors: Sequence[Ranked], rank: int) -> tuple[int, int]:
    """Where the rank-th key should be: its place in a sample, four standard errors either way."""
    total = sum(tensor.size for tensor in tensors)
    if total <= CHUNK:
        return 0, KEY_BITS
    stride = max(32, -(-total // CHUNK))
    sample = np.concatenate([tensor.sample(stride) for tensor in tensors])
    sample.sort()
    expected = rank / total * sample.size
    margin = 4.0 * math.sqrt(expected * (1.0 - rank / total)) + 1.0
    first, last = math.floor(expected - margin), math.ceil(expected + margin)
    low = int(sample[first]) if first >= 0 else 0
    high = int(sample[last]) if last < sample.size else 2**KEY_BITS - 1
    bits = (high - low).bit_length()
    return min(low, 2**KEY_BITS - 2**bits), bits  # an interval past the last key would wrap around


def _census(tensors: Sequence[Ranked], low: int, bits: int, shards: Shards) -> tuple[int, np.ndarray]:
    """How many keys are below `low`, and int64 counts of those in [low, low + 2**bits), in bins."""
    counts = np.zeros((1 << BIN_BITS) + 1, np.int64)  # the last one: below
    shift = max(bits - BIN_BITS, 0)
    for tensor in tensors:
        for part in tensor.parts():
            keys = tensor.keys(part)
            counts[-1] += np.count_nonzero(keys < low)
            offsets = _inside(keys, low, bits)[1]
            counts[:-1] += np.bincount(offsets >> shift, minlength=1 << BIN_BITS)
    counts = shards.sum(counts)
    return int(counts[-1]), counts[:-1]


def _inside(keys: np.ndarray, low: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the keys in [low, low + 2**bits), and their distance from `low`."""
    offsets = keys - np.uint32(low)  # keys below wrap around to the far end
    positions = np.flatnonzero(offsets <= np.uint32(2**bits - 1))
    return positions, offsets[positions]


def _prune_ties_(tensors: Sequence[Ranked], key: int, ties: int, shards: Shards) -> None:
    """Prune all keys below `key`, and the first `ties` that equal it."""
    for tensor, quota in zip(tensors, tie_quotas(tensors, key, ties, shards), strict=True):
        for part in tensor.parts():
            keys = tensor.keys(part)
            kept = keys >= key
            equal = np.flatnonzero(keys == key)[:quota]
            kept[equal] = False
            quota -= equal.size
            tensor.keep_(part, torch.from_numpy(kept))


def tie_quotas(tensors: Sequence[Ranked], key: int, ties: int, shards: Shards) -> list[int]:
    """How many of the first `ties` keys that equal `key` lie in this process's part of each tensor."""
    if shards.is_alone and len(tensors) == 1:
        return [ties]
    own = [sum(int(np.count_nonzero(t.keys(part) == key)) for part in t.parts()) for t in tensors]
    counts = shards.gather(np.array(own))  # (processes, tensors)
    in_order = counts.T.reshape(-1)  # shards follow each other within a tensor
    earlier = np.cumsum(in_order) - in_order
    quotas = np.clip(ties - earlier, 0, in_order).reshape(len(tensors), -1)
    return [int(quota) for quota in quotas[:, shards.rank]]


def _prune_interval_(tensors: Sequence[Ranked], low: int, bits: int, count: int) -> float:
    """Prune all keys below `low`, and the `count` lowest of those in [low, low + 2**bits)."""
    owners, places, offsets = [], [], []
    for owner, tensor in enumerate(tensors):
        for part in tensor.parts():
            keys = tensor.keys(part)
            tensor.keep_(part, torch.from_numpy(keys >= low))
            positions, distance = _inside(keys, low, bits)
            owners.append(np.full(positions.size, owner, np.int32))
            places.append(positions + part.start)
            offsets.append(distance)
    lowest = np.argsort(np.concatenate(offsets), kind="stable")[:count]
    owner_of, place_of = np.concatenate(owners)[lowest], np.concatenate(places)[lowest]
    for owner, tensor in enumerate(tensors):
        tensor.prune_(torch.from_numpy(place_of[owner_of == owner]))
    return score_of(low + int(np.concatenate(offsets)[lowest[-1]]))
