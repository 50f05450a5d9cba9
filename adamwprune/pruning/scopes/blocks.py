"""Square blocks of a tensor, pruned whole."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

import numpy as np
import torch
from torch import Tensor

from adamwprune.errors import ConfigError
from adamwprune.pruning.scopes.segments import Scored, Segment, select_
from adamwprune.pruning.selection.keys import Selection, keys_of, signed_keys_of
from adamwprune.pruning.sharding import Shards


@dataclass(frozen=True)
class Blocks:
    """Square blocks of one tensor, seen as (rows, everything else); the `count` lowest means go.

    Args:
        tensors: the one tensor.
        count: pruned blocks.
        size: rows and columns of a block.
        rows: of the whole tensor.
    """

    tensors: tuple[int, ...]
    count: int
    size: int
    rows: int

    @property
    def planned(self) -> int:
        """Weights in the pruned blocks."""
        return self.count * self.size**2

    def prune_(self, scores: Sequence[Scored], select: Selection, shards: Shards) -> SupportsFloat:
        """Rank one mean a block, then prune whole blocks."""
        require_whole_blocks([self], shards)
        return select_([_BlockMeans(scores[self.tensors[0]], self.size)], self.count, select, shards)


def require_whole_blocks(segments: Sequence[Segment], shards: Shards) -> None:
    """Raise ConfigError where a block would be spread over processes: these exchange no scores."""
    for segment in segments:
        if not isinstance(segment, Blocks):
            continue
        share = -(-segment.rows // shards.world_size)
        if share % segment.size:
            raise ConfigError(
                f"pruning.scope.size={segment.size}: each process has {share} of the {segment.rows} rows of "
                f"prunable tensor {segment.tensors[0]}, and blocks must not be spread over processes; choose "
                "a size that divides it, or pruning/scope=layerwise"
            )


class _BlockMeans:
    """The blocks of a tensor as entries that can be ranked, by the means of their scores."""

    def __init__(self, tensor: Scored, side: int) -> None:
        self._tensor, self._side = tensor, side
        self._columns = math.prod(tensor.shape[1:]) // side
        self.size, self.device = tensor.size // side**2, tensor.device

    def parts(self) -> Iterator[slice]:
        """Slices of blocks, whole rows of them."""
        area = self._side**2
        return (slice(p.start // area, p.stop // area) for p in self._tensor.row_parts(self._side))

    def keys(self, part: slice) -> np.ndarray:
        """uint32 keys."""
        means = self._means(torch.from_numpy(self._tensor.read(self._weights(part))).to(self.device), part)
        return keys_of(means.cpu().numpy(), self._kept(part).cpu().numpy())

    def sample(self, stride: int) -> np.ndarray:
        """uint32 keys of about every `stride`-th block; all weights are read for it."""
        return np.concatenate([self.keys(part)[::stride] for part in self.parts()])

    def signed_keys(self, part: slice) -> Tensor:
        """int32 keys."""
        return signed_keys_of(self._means(self._tensor.scores(self._weights(part)), part), self._kept(part))

    def keep_(self, part: slice, kept: Tensor) -> None:
        """Give every weight the mask of its block."""
        spread = kept.view(-1, 1, self._columns, 1).expand(-1, self._side, -1, self._side)
        self._tensor.keep_(self._weights(part), spread.reshape(-1))

    def prune_(self, places: Tensor) -> None:
        """Prune all weights of some blocks."""
        along = torch.arange(self._side, device=self.device)
        rows = (places // self._columns * self._side).view(-1, 1, 1) + along.view(1, -1, 1)
        columns = (places % self._columns * self._side).view(-1, 1, 1) + along
        self._tensor.prune_((rows * (self._columns * self._side) + columns).reshape(-1))

    def _weights(self, part: slice) -> slice:
        return slice(part.start * self._side**2, part.stop * self._side**2)

    def _blocks(self, weights: Tensor) -> Tensor:
        """(rows of blocks, side, columns of blocks, side)."""
        return weights.view(-1, self._side, self._columns, self._side)

    def _means(self, scores: Tensor, part: slice) -> Tensor:
        live = scores.masked_fill(~self._tensor.kept(self._weights(part)), 0.0)
        return self._blocks(live).double().mean((1, 3)).float().view(-1)

    def _kept(self, part: slice) -> Tensor:
        return self._blocks(self._tensor.kept(self._weights(part))).any(3).any(1).view(-1)
