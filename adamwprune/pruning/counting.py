"""Sparsity counted from the weights themselves, never from what was planned."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adamwprune.pruning.prunable import find_prunable
from adamwprune.pruning.sharding import local, shards_of


class SparsityCounter:
    """Counts the zeros of a model: what dense and pruned runs have in common.

    Args:
        model: without wrappers (DDP, torch.compile), on its device.
        include, exclude: name patterns of weights, see prunable.py.
    """

    def __init__(self, model: nn.Module, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self.model = model
        self.prunable, self.excluded = find_prunable(model, include=include, exclude=exclude)
        self.shards = shards_of(self.prunable.values())

    @property
    def prunable_count(self) -> int:
        """Weights in the prunable set."""
        return sum(parameter.numel() for parameter in self.prunable.values())

    def sparsity(self) -> float:
        """Zeros / weights over the prunable set; one read from the device."""
        nonzero = sum(self._count_nonzero(self.prunable.values()))
        return 1.0 - nonzero / self.prunable_count if self.prunable else 0.0

    def layer_sparsity(self) -> dict[str, float]:
        """Zeros / weights of each prunable tensor, in the order of the model; one read."""
        nonzero = self._count_nonzero(self.prunable.values())
        counts = zip(self.prunable.items(), nonzero, strict=True)
        return {name: 1.0 - n / parameter.numel() for (name, parameter), n in counts}

    def counts(self) -> dict[str, int]:
        """Parameters: total, prunable, nonzero (of all), nonzero_prunable, pruned (by masks)."""
        parameters = list(self.model.parameters())
        return {
            "total": sum(parameter.numel() for parameter in parameters),
            "prunable": self.prunable_count,
            "nonzero": sum(self._count_nonzero(parameters)),
            "nonzero_prunable": sum(self._count_nonzero(self.prunable.values())),
            "pruned": self.pruned(),
        }

    def pruned(self) -> int:
        """Weights that masks hold at zero."""
        return 0

    def describe_weights(self) -> dict[str, Any]:
        """Prunable tensors with their sizes, and the others by the reason why they stay dense."""
        excluded: dict[str, list[str]] = {}
        for name, reason in self.excluded.items():
            excluded.setdefault(reason, []).append(name)
        sizes = {name: parameter.numel() for name, parameter in self.prunable.items()}
        return {"prunable": sizes, "excluded": excluded}

    def _count_nonzero(self, tensors: Iterable[Tensor]) -> list[int]:
        """Non-zero entries of each tensor, read from the device at once."""
        counts = [torch.count_nonzero(local(tensor)) for tensor in tensors]
        return self.shards.sum(torch.stack(counts).cpu().numpy()).tolist() if counts else []
