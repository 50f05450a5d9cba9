"""The scores of one mask update, and what a mode does with them: prune the lowest, grow the highest."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, SupportsFloat

import numpy as np
from torch import Tensor

from adamwprune.errors import RunError
from adamwprune.pruning.criteria.magnitude import magnitude
from adamwprune.pruning.masks import Masks
from adamwprune.pruning.modes.base import Mode
from adamwprune.pruning.scopes.segments import NamedShape, Scope, Segment
from adamwprune.pruning.scoring import Criterion, GrowthScores, TensorScores, needs
from adamwprune.pruning.selection.keys import ScoreError, Selection
from adamwprune.pruning.selection.on_device import on_device
from adamwprune.pruning.sharding import Shards
from adamwprune.pruning.sources import Source, Sources

# What a live weight scores whose second moment is exactly 0, so that the criterion knows nothing of it.
UNSEEN_SCORES = {"keep": math.inf, "prune": 0.0}
Unseen = Literal["keep", "prune"]


@dataclass(frozen=True)
class Ranking:
    """Everything that decides which weights go, at one step."""

    step: int
    parameters: Mapping[str, Tensor]
    masks: Masks
    mode: Mode
    criterion: Criterion
    scope: Scope
    selection: Selection
    sources: Sources
    shards: Shards
    unseen: Unseen

    def prune_(self, sparsity: float) -> list[SupportsFloat]:
        """Clear masks until `sparsity` is reached; the highest pruned score of each segment, or NaN."""
        scores = self._scores(self.criterion, TensorScores)
        self._require_scores_everywhere(scores)
        return [
            segment.prune_(scores, self.selection, self.shards)
            if remaining(segment, self.masks) > 0
            else math.nan
            for segment in self.segments(sparsity)
        ]

    def grow_(self, criterion: Criterion, sparsity: float) -> None:
        """Set masks of pruned weights with the highest scores until only `sparsity` is left."""
        scores = self._scores(criterion, GrowthScores)
        for segment in self.segments(sparsity):
            segment.prune_(scores, self.selection, self.shards)

    def by_magnitude(self, sparsity: float) -> dict[str, Tensor]:
        """The masks that plain magnitude would choose now; those of the pruner stay as they are."""
        masks = {name: self.masks[name].clone() for name in self.parameters}
        for mask in masks.values() if self.mode.restarts else ():
            mask.fill_(True)
        scores = [
            TensorScores(name, mask, magnitude, {"weight": self.mode.weight(name)})
            for name, mask in masks.items()
        ]
        for segment in self.segments(sparsity):
            if self.mode.restarts or remaining(segment, self.masks) > 0:
                segment.prune_(scores, self.selection, self.shards)
        return masks

    def count_unseen(self) -> dict[str, int]:
        """Live weights that no gradient ever reached, by tensor, of a criterion that reads v."""
        counts = [tensor.count_unseen() for tensor in self._scores(self.criterion, TensorScores)]
        return dict(zip(self.parameters, self.shards.sum(np.array(counts, np.int64)).tolist(), strict=True))

    def segments(self, sparsity: float) -> Sequence[Segment]:
        """Those of the scope."""
        return self.scope(NamedShape.of(self.parameters), sparsity)

    def _require_scores_everywhere(self, scores: Sequence[TensorScores]) -> None:
        """A ScoreError on all processes if one has a weight without a score: else they would wait for it.

        One pass more, of shards on CPUs alone; on a device the selection finds it out.
        """
        on_host = scores[0].device.type == "cpu" and self.selection is not on_device
        if self.shards.is_alone or not on_host:
            return
        problem = ""
        try:
            for tensor in scores:
                for part in tensor.parts():
                    tensor.read(part)
        except ScoreError as error:
            problem = str(error)
        if self.shards.sum(np.array([len(problem)])).any():
            raise ScoreError(problem or "the score is NaN, of a weight that another process has; it names it")

    def _scores(self, criterion: Criterion, kind: type[TensorScores]) -> list[TensorScores]:
        return [
            kind(name, self.masks[name], criterion, sources, UNSEEN_SCORES[self.unseen])
            for name, sources in self._readable(needs(criterion))
        ]

    def _readable(self, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Source]]]:
        for name in self.parameters:
            if lacking := self.sources.missing(name, wanted):
                raise RunError(
                    f"step {self.step}: the optimizer keeps no {', '.join(lacking)} for {name}, which was "
                    "never stepped (frozen, or without a gradient); leave it out with pruning.exclude"
                )
            yield name, self.sources.read(name, wanted, self.mode.weight(name), self.masks[name])


def remaining(segment: Segment, masks: Masks) -> int:
    """Weights that a segment still has to prune."""
    pruned = list(masks.pruned.values())
    return segment.planned - sum(pruned[i] for i in segment.tensors)
