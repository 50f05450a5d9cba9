"""Exact selection of the lowest scores by counting: O(N) reads, no sort, no copy of the scores.

    key     an unsigned integer that orders as the float32 score does; 0 for a weight that is
            already pruned, so that it stays first and the k lowest keys are the k pruned weights
    guess   an interval of keys that should hold the k-th smallest, from a small sample
    census  one pass: how many keys lie below the interval, and their histogram inside it; the
            count proves or refutes the guess and narrows the interval to one of 65,536 bins
    prune   one pass: everything below the interval, and inside it the lowest keys, equal ones in
            the order (tensor, flat index)

Exactly k entries per segment for any scores, ties included; no random numbers, no clamps.
Scores exist for one chunk at a time. Beyond masks and a few chunks this needs 1 MiB.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from adamwprune.pruning.layout import CHUNK, parts

BIN_BITS = 16
KEY_BITS = 32

# Keys that are collected and sorted instead of counted once more: half a MiB with positions.
_FEW = 1 << 14
_SIGN = np.int32(-(2**31))
_MAGNITUDE = np.int32(2**31 - 1)


class Ranked(Protocol):
    """A tensor whose entries compete: its mask (flat, bool) and its scores (flat, no NaN if kept)."""

    mask: Tensor

    def read(self, part: slice) -> np.ndarray:
        """Scores of a slice of the flat tensor, float32."""


def prune_lowest_(tensors: Sequence[Ranked], count: int) -> float:
    """Clear masks until `count` entries of all tensors together are pruned; the lowest scores go.

    Returns the highest score that was pruned. Entries pruned before count, and stay pruned.
    `count` must be above their number and at most the number of all entries.
    """
    low, bits, below = _locate(tensors, count)
    if bits == 0:
        _prune_ties_(tensors, low, count - below)
        return score_of(low)
    return _prune_interval_(tensors, low, bits, count - below)


def keys_of(scores: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """uint32 keys that order as the float32 scores: -0.0 equals 0.0, what is not kept is 0."""
    bits = scores.view(np.int32)
    if bits.min() < 0:
        bits = (scores + np.float32(0.0)).view(np.int32)  # -0.0 becomes 0.0
        bits = bits ^ ((bits >> 31) & _MAGNITUDE)
    keys = bits ^ _SIGN
    keys &= -kept.view(np.int8)
    return keys.view(np.uint32)


def score_of(key: int) -> float:
    """The score that has this key."""
    bits = np.array(key, np.uint32).view(np.int32) ^ _SIGN
    return float((bits ^ ((bits >> 31) & _MAGNITUDE)).view(np.float32))


def _keys(tensor: Ranked, part: slice) -> np.ndarray:
    return keys_of(tensor.read(part), tensor.mask[part].cpu().numpy())


def _locate(tensors: Sequence[Ranked], rank: int) -> tuple[int, int, int]:
    """An interval [low, low + 2**bits) that holds the rank-th smallest key, and the count below it.

    Its keys are few enough to be sorted, or all the same (bits = 0).
    """
    low, bits = _guess(tensors, rank)
    while True:
        below, counts = _census(tensors, low, bits)
        inside = np.cumsum(counts)
        if not below < rank <= below + inside[-1]:
            low, bits = 0, KEY_BITS  # the sample misled
            continue
        chosen = int(np.searchsorted(inside, rank - below))
        below += int(inside[chosen] - counts[chosen])
        bits = max(bits - BIN_BITS, 0)
        low += chosen << bits
        if bits == 0 or counts[chosen] <= _FEW:
            return low, bits, below


def _guess(tensors: Sequence[Ranked], rank: int) -> tuple[int, int]:
    """Where the rank-th key should be: its place in a sample, four standard errors either way."""
    total = sum(tensor.mask.numel() for tensor in tensors)
    if total <= CHUNK:
        return 0, KEY_BITS
    stride = max(32, -(-total // CHUNK))
    sample = np.concatenate([_keys(tensor, slice(0, None, stride)) for tensor in tensors])
    sample.sort()
    expected = rank / total * sample.size
    margin = 4.0 * math.sqrt(expected * (1.0 - rank / total)) + 1.0
    first, last = math.floor(expected - margin), math.ceil(expected + margin)
    low = int(sample[first]) if first >= 0 else 0
    high = int(sample[last]) if last < sample.size else 2**KEY_BITS - 1
    bits = (high - low).bit_length()
    return min(low, 2**KEY_BITS - 2**bits), bits  # an interval past the last key would wrap around


def _census(tensors: Sequence[Ranked], low: int, bits: int) -> tuple[int, np.ndarray]:
    """How many keys are below `low`, and int64 counts of those in [low, low + 2**bits), in bins."""
    below, counts = 0, np.zeros(1 << BIN_BITS, np.int64)
    shift = max(bits - BIN_BITS, 0)
    for tensor in tensors:
        for part in parts(tensor.mask.numel()):
            keys = _keys(tensor, part)
            below += int(np.count_nonzero(keys < low))
            offsets = _inside(keys, low, bits)[1]
            counts += np.bincount(offsets >> shift, minlength=counts.size)
    return below, counts


def _inside(keys: np.ndarray, low: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the keys in [low, low + 2**bits), and their distance from `low`."""
    offsets = keys - np.uint32(low)  # keys below wrap around to the far end
    positions = np.flatnonzero(offsets <= np.uint32(2**bits - 1))
    return positions, offsets[positions]


def _prune_ties_(tensors: Sequence[Ranked], key: int, ties: int) -> None:
    """Prune all keys below `key`, and the first `ties` that equal it."""
    for tensor in tensors:
        for part in parts(tensor.mask.numel()):
            keys = _keys(tensor, part)
            kept = keys >= key
            equal = np.flatnonzero(keys == key)[:ties]
            kept[equal] = False
            ties -= equal.size
            tensor.mask[part] = torch.from_numpy(kept)


def _prune_interval_(tensors: Sequence[Ranked], low: int, bits: int, count: int) -> float:
    """Prune all keys below `low`, and the `count` lowest of those in [low, low + 2**bits)."""
    owners, places, offsets = [], [], []
    for owner, tensor in enumerate(tensors):
        for part in parts(tensor.mask.numel()):
            keys = _keys(tensor, part)
            tensor.mask[part] = torch.from_numpy(keys >= low)
            positions, distance = _inside(keys, low, bits)
            owners.append(np.full(positions.size, owner, np.int32))
            places.append(positions + part.start)
            offsets.append(distance)
    lowest = np.argsort(np.concatenate(offsets), kind="stable")[:count]
    owner_of, place_of = np.concatenate(owners)[lowest], np.concatenate(places)[lowest]
    for owner, tensor in enumerate(tensors):
        tensor.mask[torch.from_numpy(place_of[owner_of == owner])] = False
    return score_of(low + int(np.concatenate(offsets)[lowest[-1]]))
