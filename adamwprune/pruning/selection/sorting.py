"""Exact selection by one stable sort of all keys: the plain reference, with 20 bytes a weight to spare."""

from collections.abc import Sequence

import numpy as np
import torch

from adamwprune.errors import ConfigError
from adamwprune.pruning.selection.keys import Ranked, score_of
from adamwprune.pruning.sharding import ALONE, Shards


def sorting(tensors: Sequence[Ranked], count: int, shards: Shards = ALONE) -> float:
    """Set masks so that the `count` entries with the lowest keys, of all tensors together, are pruned.

    Raises:
        ConfigError: the tensors are spread over processes; sorting would have to gather them.
    """
    if not shards.is_alone:
        raise ConfigError(
            "pruning.selection=sorting: the weights are sharded; use pruning/selection=streaming"
        )
    keys = np.concatenate([tensor.keys(part) for tensor in tensors for part in tensor.parts()])
    order = np.argsort(keys, kind="stable")
    kept = torch.ones(keys.size, dtype=torch.bool)
    kept[torch.from_numpy(order[:count])] = False
    for tensor, whole in zip(tensors, torch.split(kept, [tensor.size for tensor in tensors]), strict=True):
        for part in tensor.parts():
            tensor.keep_(part, whole[part])
    return score_of(int(keys[order[count - 1]]))
