"""Sparsity counted from the weights themselves, never from what was planned."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adamwprune.pruning.layout import flat, memory_order, parts
from adamwprune.pruning.prunable import find_prunable
from adamwprune.pruning.sharding import shards_of, share


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
        shares = [share(tensor, self.shards) for tensor in tensors]
        if not shares:
            return []
        if all(tensor.is_cpu for tensor in shares):
            counts = np.array([_count_on_cpu(tensor) for tensor in shares])
        else:
            counts = torch.stack([torch.count_nonzero(tensor) for tensor in shares]).cpu().numpy()
        return [int(count) for count in self.shards.sum(counts)]


def _count_on_cpu(tensor: Tensor) -> int:
    """In NumPy, a chunk at a time: 20 times as fast as torch.count_nonzero there."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return int(torch.count_nonzero(tensor))
    values = flat(tensor, memory_order(tensor)).numpy()
    return sum(int(np.count_nonzero(values[part] != 0.0)) for part in parts(values.size))
