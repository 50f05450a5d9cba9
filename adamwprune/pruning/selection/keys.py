"""Integer keys that order as scores do, and what a selection needs to know of a tensor.

key     orders as the float32 score; the lowest of all for an entry that is already pruned, so that it
        stays first and the k lowest keys are the k pruned entries
ties    equal keys go in the order (tensor, flat index)

NumPy has them as uint32 from 0 on, torch, which cannot compare those, as int32 from -2^31 on.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, SupportsFloat

import numpy as np
import torch
from torch import Tensor

from adamwprune.errors import RunError
from adamwprune.pruning.sharding import Shards

KEY_BITS = 32
LOWEST = -(2**31)  # as int32
INFINITY = 0x7F800000  # int32 key of +inf: what lies above is NaN

_SIGN = np.int32(LOWEST)
_MAGNITUDE = np.int32(2**31 - 1)


class ScoreError(RunError):
    """A criterion gave a live weight no score, or is not elementwise."""

    exit_code = 1


class Ranked(Protocol):
    """A tensor whose entries compete, in logical order."""

    size: int
    device: torch.device

    def parts(self) -> Iterator[slice]:
        """Slices that cover it in order, about a chunk each."""

    def keys(self, part: slice) -> np.ndarray:
        """uint32 keys of one of the parts."""

    def sample(self, stride: int) -> np.ndarray:
        """uint32 keys of about every `stride`-th entry."""

    def signed_keys(self, part: slice) -> Tensor:
        """int32 keys of one of the parts, on its device; above INFINITY where a live entry has no score."""

    def keep_(self, part: slice, kept: Tensor) -> None:
        """Set the mask of one of the parts."""

    def prune_(self, places: Tensor) -> None:
        """Clear the mask at some flat indices."""


# (tensors, count, shards): sets masks so that the `count` entries with the lowest keys are pruned, and
# tells the highest score among them, which may lie on a device until it is asked for.
Selection = Callable[[Sequence[Ranked], int, Shards], SupportsFloat]


def keys_of(scores: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """uint32 keys that order as the float32 scores: -0.0 equals 0.0, what is not kept is 0."""
    bits = scores.view(np.int32)
    if bits.size and bits.min() < 0:
        bits = (scores + np.float32(0.0)).view(np.int32)  # -0.0 becomes 0.0
        bits = bits ^ ((bits >> 31) & _MAGNITUDE)
    keys = bits ^ _SIGN
    keys &= -kept.view(np.int8)
    return keys.view(np.uint32)


def signed_keys_of(scores: Tensor, kept: Tensor) -> Tensor:
    """The same as int32, without a branch that would wait for the device; NaN lies above INFINITY."""
    bits = torch.where(scores.isnan(), torch.nan, scores + 0.0).view(torch.int32)
    return torch.where(kept, bits ^ ((bits >> 31) & int(_MAGNITUDE)), LOWEST)


def score_of(key: int) -> float:
    """The score that has this uint32 key."""
    bits = np.array(key, np.uint32).view(np.int32) ^ _SIGN
    return float((bits ^ ((bits >> 31) & _MAGNITUDE)).view(np.float32))


class Threshold:
    """The highest pruned score, on its device until float() asks for it.

    float() raises ScoreError if a live entry had no score; only then does the host read scores, to find it.

    Args:
        key: int64, of the highest pruned score, in all processes.
        highest: int64, of the highest score, in all processes.
        tensors: that were ranked.
    """

    def __init__(self, key: Tensor, highest: Tensor, tensors: Sequence[Ranked]) -> None:
        self._keys, self._tensors = torch.stack([key, highest]), tensors

    def __float__(self) -> float:
        key, highest = self._keys.tolist()
        if highest > INFINITY:
            for tensor in self._tensors:
                for part in tensor.parts():
                    tensor.keys(part)
            raise ScoreError("pruning.criterion: a score is NaN, of a weight that another process has")
        return score_of(key - LOWEST)
