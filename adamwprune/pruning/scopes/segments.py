"""Segments: weights that compete, and how many of them are pruned.

A scope maps the shapes of the prunable tensors and a sparsity to segments. A segment knows how
many weights it will have pruned (`planned`), and clears the masks of the lowest scores.

    Pool     the entries of one or more tensors in one ranking, exact to the entry
    Capped   a pool of which no tensor may lose more than its cap
    Groups   small groups within a tensor, each with the same number pruned: rows, N of M (groups.py)
    Blocks   square blocks within a tensor, ranked by their mean score (blocks.py)
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, SupportsFloat

import numpy as np
import torch
from torch import Tensor

from adamwprune.errors import ConfigError
from adamwprune.pruning.selection.keys import Ranked, Selection
from adamwprune.pruning.sharding import Shards

Shape = Sequence[int]


class Scored(Ranked, Protocol):
    """A ranked tensor of which more is known than its keys."""

    shape: torch.Size

    def row_parts(self, multiple: int) -> Iterator[slice]:
        """Parts of whole rows (first dimension), in multiples of `multiple`."""

    def read(self, part: slice) -> np.ndarray:
        """Scores of a part, all of them defined."""

    def scores(self, part: slice) -> Tensor:
        """Scores of a part on the tensor's device; NaN where a live entry has none."""

    def kept(self, part: slice) -> Tensor:
        """Which entries of a part compete."""

    def count_pruned(self) -> int:
        """Entries that do not compete."""

    def normalised(self, shards: Shards) -> "Scored":
        """The same tensor with its scores divided by their L2 norm."""


class Segment(Protocol):
    """Weights that compete."""

    @property
    def tensors(self) -> tuple[int, ...]:
        """Positions in the list of prunable tensors."""

    @property
    def planned(self) -> int:
        """Weights that are pruned when the segment has been pruned."""

    def prune_(self, scores: Sequence[Scored], select: Selection, shards: Shards) -> SupportsFloat:
        """Set masks so that `planned` weights are pruned; return the highest pruned score."""


# (shapes, sparsity) -> segments
Scope = Callable[[Sequence[Shape], float], Sequence[Segment]]


def pruned_count(size: int, sparsity: float) -> int:
    """floor(s * N + 1/2), the pruned weights of a segment with N weights."""
    return math.floor(sparsity * size + 0.5)


def most_pruned(size: int, max_sparsity: float) -> int:
    """The most of N weights that make a share of at most `max_sparsity`, a decimal as it is written."""
    return math.floor(Fraction(str(max_sparsity)) * size)


class NamedShape(tuple[int, ...]):
    """A shape that knows whose it is, for messages."""

    name: str

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> "list[NamedShape]":
        """The shapes of some parameters."""
        shapes = [cls(parameter.shape) for parameter in parameters.values()]
        for shape, name in zip(shapes, parameters, strict=True):
            shape.name = name
        return shapes


def name_of(shape: Shape, index: int) -> str:
    """Whose shape it is: a name, or a place in the list."""
    return getattr(shape, "name", f"prunable tensor {index}")


def require_divisible(scope: str, shape: Shape, index: int, length: int, divisor: int, what: str) -> None:
    """Raise ConfigError unless `divisor` divides the length along which a scope makes groups."""
    if length % divisor:
        raise ConfigError(
            f"pruning.scope={scope}: {what} of {name_of(shape, index)}, {tuple(shape)}, is not a multiple of "
            f"{divisor}; leave that tensor out with pruning.exclude, or choose pruning/scope=layerwise"
        )


@dataclass(frozen=True)
class Pool:
    """Tensors whose scores are ranked together; the `count` lowest of all are pruned.

    With `is_normalised` each tensor's scores are divided by their L2 norm first.
    """

    tensors: tuple[int, ...]
    count: int
    is_normalised: bool = False

    @property
    def planned(self) -> int:
        """The count."""
        return self.count

    def prune_(self, scores: Sequence[Scored], select: Selection, shards: Shards) -> SupportsFloat:
        """Leave it to the selection."""
        chosen = [scores[i].normalised(shards) if self.is_normalised else scores[i] for i in self.tensors]
        return select_(chosen, self.count, select, shards)


def select_(tensors: Sequence[Ranked], count: int, select: Selection, shards: Shards) -> SupportsFloat:
    """Have the selection prune; where nothing is to be pruned, let all live: growth may end there."""
    if count > 0:
        return select(tensors, count, shards)
    for tensor in tensors:
        for part in tensor.parts():
            tensor.keep_(part, torch.ones(part.stop - part.start, dtype=torch.bool, device=tensor.device))
    return math.nan


@dataclass(frozen=True)
class Capped:
    """A pool in which tensor i keeps all but at most caps[i] weights.

    Where the common threshold would take more of a tensor, the tensor stops at its cap and the
    others are ranked again for the rest.
    """

    tensors: tuple[int, ...]
    count: int
    caps: tuple[int, ...]
    is_normalised: bool = False

    @property
    def planned(self) -> int:
        """The count."""
        return self.count

    def prune_(self, scores: Sequence[Scored], select: Selection, shards: Shards) -> float:
        """Take tensors out at their caps until all that are left stay below theirs."""
        if self.is_normalised:
            scores = [tensor.normalised(shards) for tensor in scores]
        rest, count, pools = dict(zip(self.tensors, self.caps, strict=True)), self.count, []
        while over := _over([scores[i] for i in rest], rest, count, select, shards):
            pools += [Pool((i,), rest.pop(i)) for i in over]
            count = self.count - sum(pool.count for pool in pools)
        thresholds = [
            float(pool.prune_(scores, select, shards))
            for pool in [*pools, Pool(tuple(rest), count)]
            if pool.count == 0 or pool.count > sum(_pruned([scores[i] for i in pool.tensors], shards))
        ]
        return max((t for t in thresholds if not math.isnan(t)), default=math.nan)


def _over(
    tensors: Sequence[Scored], caps: dict[int, int], count: int, select: Selection, shards: Shards
) -> list[int]:
    """Tensors of which a common threshold would take more than their caps."""
    if count <= sum(_pruned(tensors, shards)):
        return []
    tallies = [_Tally(tensor) for tensor in tensors]
    select(tallies, count, shards)
    shares = shards.sum(np.array([tally.pruned for tally in tallies]))
    return [i for (i, cap), share in zip(caps.items(), shares, strict=True) if share > cap]


class _Tally:
    """A tensor whose mask stays as it is: how much of it would be pruned is counted instead."""

    def __init__(self, tensor: Ranked) -> None:
        self._tensor, self.pruned = tensor, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)

    def keep_(self, part: slice, kept: Tensor) -> None:
        self.pruned += kept.numel() - int(kept.count_nonzero())

    def prune_(self, places: Tensor) -> None:
        self.pruned += places.numel()


def _pruned(tensors: Sequence[Scored], shards: Shards) -> list[int]:
    counts = np.array([tensor.count_pruned() for tensor in tensors], np.int64)
    return [int(count) for count in shards.sum(counts)]
