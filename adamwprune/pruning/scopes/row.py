"""Row: each output row on its own, all with the same sparsity; what Wanda compares in (arXiv 2306.11695)."""

import math
from collections.abc import Sequence

from adamwprune.pruning.scopes.groups import Groups
from adamwprune.pruning.scopes.segments import Shape, pruned_count


def row(shapes: Sequence[Shape], sparsity: float) -> list[Groups]:
    """Groups are rows: all weights of one output unit or channel."""
    return [
        Groups((i,), shape[0], pruned_count(math.prod(shape[1:]), sparsity), size=None)
        for i, shape in enumerate(shapes)
    ]
