"""Groups within a tensor, each with the same number pruned: rows, N of M."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsFloat

import torch
from torch import Tensor

from adamwprune.pruning.scopes.segments import Scored
from adamwprune.pruning.selection.keys import LOWEST, Selection, Threshold
from adamwprune.pruning.sharding import Shards


@dataclass(frozen=True)
class Groups:
    """Groups of one tensor, each with its `count` lowest pruned; equal scores go by position.

    Args:
        tensors: the one tensor.
        groups: number of groups in the whole tensor.
        count: pruned of each group.
        size: members of a group, which follow each other along dimension 1; None: all of a row.
    """

    tensors: tuple[int, ...]
    groups: int
    count: int
    size: int | None

    @property
    def planned(self) -> int:
        """The count of all groups together."""
        return self.groups * self.count

    def prune_(self, scores: Sequence[Scored], select: Selection, shards: Shards) -> SupportsFloat:
        """Sort each group, on its device: exact, and few comparisons in groups this small."""
        tensor = scores[self.tensors[0]]
        highest = torch.full((2,), LOWEST, dtype=torch.int64, device=tensor.device)  # pruned, of all
        for part in tensor.row_parts(1):
            keys = tensor.signed_keys(part).view(-1, *tensor.shape[1:])
            kept = self._kept(keys)
            pruned = keys.masked_fill(kept, LOWEST)
            highest = torch.maximum(highest, torch.stack([pruned.amax(), keys.amax()]))
            tensor.keep_(part, kept.reshape(-1))
        of_pruned, of_all = shards.stack(highest).amax(0).unbind()
        threshold = Threshold(of_pruned, of_all, [tensor])
        return float(threshold) if tensor.device.type == "cpu" else threshold

    def _kept(self, keys: Tensor) -> Tensor:
        """Which of some rows stay."""
        grouped = keys.flatten(1) if self.size is None else keys.movedim(1, -1)
        table = grouped.reshape(-1, self.size or math.prod(keys.shape[1:]))
        lowest = table.argsort(dim=1, stable=True)[:, : self.count]
        kept = torch.ones_like(table, dtype=torch.bool).scatter_(1, lowest, False).view(grouped.shape)
        return kept.view(keys.shape) if self.size is None else kept.movedim(-1, 1)
