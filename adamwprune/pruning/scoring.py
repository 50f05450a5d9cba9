"""Scores of one tensor, a chunk at a time: a criterion applied to slices of what it needs.

A criterion is one elementwise function. The names of its positional parameters say what it
reads (weight, exp_avg_sq, ...: state_view.py), its keyword-only parameters are its settings.
It gets float32, returns one score for each entry, and a high score is kept.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamwprune.errors import RunError
from adamwprune.pruning.layout import parts

Criterion = Callable[..., Tensor]

# Zero here means that no gradient ever reached the entry: nothing is known about it.
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")


class ScoreError(RunError):
    """A criterion gave a live weight no score, or is not elementwise."""

    exit_code = 1


def needs(criterion: Criterion) -> tuple[str, ...]:
    """What a criterion reads: the names of its positional parameters."""
    parameters = inspect.signature(criterion).parameters.values()
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def identity(function: Callable[..., Any]) -> dict[str, Any]:
    """Name and settings of a criterion, schedule or scope, read from the live object."""
    parameters = inspect.signature(function).parameters.values()
    settings = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    return {"name": name.rstrip("_"), **settings}


class TensorScores:
    """The scores of one tensor, read slice by slice; never all at once.

    Args:
        name: of the parameter, for messages.
        mask: (N,) bool view of the mask in memory order; reading sees it as it is by then.
        criterion: called with slices of the sources, in the order of its needs.
        sources: need -> (N,) tensor in memory order, or a number.
    """

    def __init__(
        self, name: str, mask: Tensor, criterion: Criterion, sources: Mapping[str, Tensor | float]
    ) -> None:
        self.name = name
        self.mask = mask
        self._criterion = criterion
        self._sources = sources
        self._key = f"pruning.criterion={identity(criterion)['name']}"

    @torch.no_grad()
    def read(self, part: slice) -> np.ndarray:
        """Scores of a slice, float32. A live entry without any score is the ScoreError that names it."""
        values = {need: _cut(source, part) for need, source in self._sources.items()}
        result = self._criterion(*values.values())
        if result.shape != self.mask[part].shape:
            raise ScoreError(
                f"{self._key}: {self.name}: {result.numel()} scores for a slice of "
                f"{self.mask[part].numel()} entries; a criterion must be elementwise"
            )
        scores = _host(result)
        if not scores.min() > 0.0:  # a zero, a negative score or NaN
            silent = ~(np.abs(scores) > 0.0) & _host(self.mask[part])
            if silent.any():
                scores = self._resolve(silent, scores, values, part)
        return scores

    def count_unseen(self) -> int:
        """Live entries whose second moment is exactly 0, of a criterion that reads it."""
        moment = next((self._sources[need] for need in SECOND_MOMENTS if need in self._sources), None)
        if not isinstance(moment, Tensor):
            return 0
        return sum(
            int(np.count_nonzero((_host(moment[part]) == 0.0) & _host(self.mask[part])))
            for part in parts(self.mask.numel())
        )

    def _resolve(
        self, silent: np.ndarray, scores: np.ndarray, values: Mapping[str, Any], part: slice
    ) -> np.ndarray:
        """Live entries with score 0 or NaN: +inf where the second moment is 0; any other NaN is an error.

        |w| * v^q would prune unused rows wholesale, and m / sqrt(v) is 0 / 0 there.
        """
        for need in values.keys() & set(SECOND_MOMENTS):
            unseen = silent & (_host(values[need]) == 0.0)
            scores = np.where(unseen, np.float32(np.inf), scores)
        undefined = silent & np.isnan(scores)
        if undefined.any():
            place = (part.start or 0) + (part.step or 1) * int(undefined.argmax())
            raise ScoreError(
                f"{self._key}: the score of {self.name} is NaN at flat index {place}; look for NaN or inf "
                "in its weights and optimizer state"
            )
        return scores


def _cut(source: Tensor | float, part: slice) -> Tensor | float:
    """A slice of a flat tensor in float32; numbers and scalars as they are."""
    return source[part].float() if isinstance(source, Tensor) and source.dim() else source


def _host(tensor: Tensor) -> np.ndarray:
    """As an array, without a copy on a CPU; reduced precision as float32."""
    return (tensor if tensor.dtype is torch.bool else tensor.float()).cpu().numpy()
