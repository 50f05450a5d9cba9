"""Block: whole b x b blocks of each tensor, ranked by the mean score of their weights.

Source: Gray et al. 2017 (block-sparse kernels), Narang et al., arXiv 1711.02782.
"""

import math
from collections.abc import Sequence

from adamwprune.pruning.scopes.blocks import Blocks
from adamwprune.pruning.scopes.segments import Shape, pruned_count, require_divisible
from adamwprune.ranges import PositiveInt


def block(shapes: Sequence[Shape], sparsity: float, *, size: PositiveInt = 4) -> list[Blocks]:
    """Blocks of `size` x `size` in (rows, all else); a tensor's sparsity is rounded to whole blocks.

    Raises:
        ConfigError: `size` does not divide a tensor.
    """
    for i, shape in enumerate(shapes):
        require_divisible("block", shape, i, shape[0], size, "the number of rows")
        require_divisible("block", shape, i, math.prod(shape[1:]), size, "the length of a row")
    return [
        Blocks((i,), pruned_count(math.prod(shape) // size**2, sparsity), size, shape[0])
        for i, shape in enumerate(shapes)
    ]
