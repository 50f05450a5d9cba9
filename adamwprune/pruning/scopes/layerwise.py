"""Layerwise: each tensor on its own, all with the same sparsity. Elsewhere called uniform."""

import math
from collections.abc import Sequence

from adamwprune.pruning.scopes.segments import Pool, Shape, pruned_count


def layerwise(shapes: Sequence[Shape], sparsity: float) -> list[Pool]:
    """One pool a tensor; its share is rounded to the nearest weight."""
    return [Pool((i,), pruned_count(math.prod(shape), sparsity)) for i, shape in enumerate(shapes)]
