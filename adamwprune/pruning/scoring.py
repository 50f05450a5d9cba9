"""Scores of one tensor, a chunk at a time: a criterion applied to slices of what it reads.

A criterion is one elementwise function. The names of its positional parameters say what it
reads (sources.py), its keyword-only parameters are its settings. It gets float32, returns one
score for each entry, and a high score is kept.
"""

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamwprune.pruning.layout import CHUNK
from adamwprune.pruning.selection.keys import ScoreError, keys_of, signed_keys_of
from adamwprune.pruning.sharding import Shards
from adamwprune.pruning.sources import Source, cut, entries

Criterion = Callable[..., Tensor]

# Zero here means that no gradient ever reached the entry: nothing is known about it.
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "shuffled_exp_avg_sq")

# On an accelerator launches cost more than memory: 16 MiB of float32 at a time.
DEVICE_CHUNK = 1 << 22


def needs(criterion: Criterion) -> tuple[str, ...]:
    """What a criterion reads: the names of its positional parameters."""
    parameters = inspect.signature(criterion).parameters.values()
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def identity(function: Callable[..., Any]) -> dict[str, Any]:
    """Name and settings of a criterion, schedule, scope, ..., read from the live object."""
    parameters = inspect.signature(function).parameters.values()
    settings = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    function = function_of(function)
    name = getattr(function, "__name__", type(function).__name__)
    name = getattr(function, "__dict__", {}).get("name", name)  # a class may have a shorter one for itself
    return {"name": name.rstrip("_"), **settings}


def function_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is left without the settings that were bound to it."""
    while isinstance(function, partial):
        function = function.func
    return function


class TensorScores:
    """The scores of one tensor, read slice by slice; never all at once.

    Args:
        name: of the parameter, for messages.
        mask: of the parameter (this process's rows); reading sees it as it is by then.
        criterion: called with slices of the sources, in the order of its needs.
        sources: need -> source.
        unseen: what a weight scores whose second moment is 0, if the criterion gives it 0 or NaN.
    """

    def __init__(
        self,
        name: str,
        mask: Tensor,
        criterion: Criterion,
        sources: Mapping[str, Source],
        unseen: float = math.inf,
    ) -> None:
        self.name = name
        self._unseen = unseen
        self.shape, self.size, self.device = mask.shape, mask.numel(), mask.device
        self._mask = mask
        self._criterion = criterion
        self._sources = sources
        self._divisor = np.float32(1.0)
        self._key = f"pruning.criterion={identity(criterion)['name']}"
        self._chunk = CHUNK if mask.is_cpu else DEVICE_CHUNK

    # ---------------------------------------------------------------------------------- slices

    def parts(self) -> Iterator[slice]:
        """Slices that cover the tensor in logical order; of whole rows if memory has another order."""
        return self.row_parts(1) if not self._mask.is_contiguous() else _slices(self.size, self._chunk)

    def row_parts(self, multiple: int) -> Iterator[slice]:
        """Slices of whole rows (first dimension), in multiples of `multiple`, about a chunk each."""
        rows = max(1, self._chunk // (self._width * multiple)) * multiple
        return _slices(self.size, rows * self._width)

    @property
    def _width(self) -> int:
        return max(1, math.prod(self.shape[1:]))

    # ---------------------------------------------------------------------------------- scores

    @torch.no_grad()
    def read(self, part: slice) -> np.ndarray:
        """Scores of a slice, float32. A live entry without any score is the ScoreError that names it."""
        scores = _host(self._computed(part))
        if scores.size and not scores.min() > 0.0:  # a zero, a negative score or NaN
            silent = ~(np.abs(scores) > 0.0) & _host(self.kept(part))
            if silent.any():
                scores = _host(self._resolved(torch.from_numpy(scores).to(self.device), part))
                self._require_scores(silent & np.isnan(scores), part)
        return scores if self._divisor == 1.0 else scores / self._divisor

    @torch.no_grad()
    def scores(self, part: slice) -> Tensor:
        """The same on the tensor's device, which nobody waits for; NaN is left in place."""
        # By a tensor: a GPU divides by a number of the host in another way than a CPU does.
        divisor = torch.full((), float(self._divisor), device=self.device)
        return self._resolved(self._computed(part), part) / divisor

    def keys(self, part: slice) -> np.ndarray:
        """uint32 keys of a slice."""
        return keys_of(self.read(part), _host(self.kept(part)))

    def sample(self, stride: int) -> np.ndarray:
        """uint32 keys of every `stride`-th entry."""
        return self.keys(slice(0, None, stride))

    def signed_keys(self, part: slice) -> Tensor:
        """int32 keys of a slice, on the tensor's device."""
        return signed_keys_of(self.scores(part), self.kept(part))

    def normalised(self, shards: Shards) -> "TensorScores":
        """The same scores, divided by their L2 norm over live entries with a finite score.

        Summed by the host, row by row, and the rows exactly, so that the norm does not depend on the
        sharding.
        """
        sums = [0.0]
        for part in self.row_parts(1):
            scores = self.read(part)
            counted = _host(self.kept(part)) & np.isfinite(scores)
            squares = np.where(counted, scores, 0.0).astype(np.float64) ** 2
            sums += squares.reshape(-1, self._width).sum(axis=1).tolist()
        width = np.array([len(sums)])
        padded = np.zeros(int(shards.gather(width).max()))
        padded[: len(sums)] = sums
        norm = math.sqrt(math.fsum(shards.gather(padded).reshape(-1)))
        if norm > torch.finfo(torch.float32).max:
            raise ScoreError(
                f"{self._key}: the scores of {self.name} have a norm of {norm:.3g}, beyond float32; choose "
                "pruning.scope.normalize=none"
            )
        divided = copy.copy(self)
        divided._divisor = np.float32(norm or 1.0)
        return divided

    # ----------------------------------------------------------------------------------- masks

    def kept(self, part: slice) -> Tensor:
        """Which entries of a slice compete; the others are pruned and stay so."""
        return entries(self._mask, part)

    def count_pruned(self) -> int:
        """Entries that do not compete."""
        return self.size - int(self._mask.count_nonzero())

    def count_unseen(self) -> int:
        """Live entries whose second moment is exactly 0, of a criterion that reads it."""
        moment = next((self._sources[need] for need in SECOND_MOMENTS if need in self._sources), None)
        if not isinstance(moment, Tensor):
            return 0
        count = torch.zeros((), dtype=torch.int64, device=self.device)
        for part in self.parts():
            count += ((entries(moment, part) == 0.0) & entries(self._mask, part)).count_nonzero()
        return int(count)

    def keep_(self, part: slice, kept: Tensor) -> None:
        """Set the mask of one of the parts."""
        if self._mask.is_contiguous():
            self._mask.view(-1)[part] = kept
        else:
            rows = self._mask[part.start // self._width : part.stop // self._width]
            rows.copy_(kept.view(rows.shape))

    def prune_(self, places: Tensor) -> None:
        """Clear the mask at some flat indices."""
        self._mask[torch.unravel_index(places, self.shape)] = False

    # -------------------------------------------------------------------------------- the rule

    def _computed(self, part: slice) -> Tensor:
        """What the criterion says, float32."""
        results = [self._criterion(*(cut(s, p) for s in self._sources.values())) for p in self._pieces(part)]
        result = results[0] if len(results) == 1 else torch.cat(results)
        if result.shape != (count := len(range(*part.indices(self.size))),):
            raise ScoreError(
                f"{self._key}: {self.name}: {result.numel()} scores for a slice of {count} entries; a "
                "criterion must be elementwise"
            )
        return result.float()

    def _pieces(self, part: slice) -> list[slice]:
        """The slice; for a criterion that computes with places, 8 bytes each, in smaller pieces."""
        if "index" not in self._sources:
            return [part]
        start, stop, step = part.indices(self.size)
        width = step * self._chunk // 8
        return [slice(first, min(first + width, stop), step) for first in range(start, stop, width)] or [part]

    def _resolved(self, scores: Tensor, part: slice) -> Tensor:
        """Score 0 or NaN where the second moment is exactly 0 becomes what unseen entries score.

        |w| * v^q prunes unused rows wholesale, and m / sqrt(v) is 0 / 0 there.
        """
        for need in self._sources.keys() & set(SECOND_MOMENTS):
            unseen = ~(scores.abs() > 0.0) & (cut(self._sources[need], part) == 0.0)
            scores = torch.where(unseen, self._unseen, scores)
        return scores

    def _require_scores(self, undefined: np.ndarray, part: slice) -> None:
        if undefined.any():
            place = (part.start or 0) + (part.step or 1) * int(undefined.argmax())
            raise ScoreError(
                f"{self._key}: the score of {self.name} is NaN at flat index {place}; look for NaN or inf "
                "in its weights and optimizer state"
            )


class GrowthScores(TensorScores):
    """Pruned entries that compete to come back: live ones stay, pruned ones go by their growth score."""

    def kept(self, part: slice) -> Tensor:
        """All compete."""
        return torch.ones_like(entries(self._mask, part))

    def count_pruned(self) -> int:
        """None is out."""
        return 0

    def _computed(self, part: slice) -> Tensor:
        """Growth scores of pruned entries, finite (0 where there is none, 0 / 0); +inf for live ones."""
        growth = super()._computed(part).nan_to_num(nan=0.0)
        return growth.masked_fill(entries(self._mask, part), torch.inf)

    def _resolved(self, scores: Tensor, part: slice) -> Tensor:
        """A pruned entry that no gradient reached has nothing to come back for."""
        return scores


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _host(tensor: Tensor) -> np.ndarray:
    """As an array, without a copy on a CPU."""
    return tensor.cpu().numpy()
