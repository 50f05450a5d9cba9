"""N:M: of every M weights along the inputs N are kept; 2:4 is what sparse tensor cores take.

Source: Mishra et al., arXiv 2104.08378, section 3; Zhou et al., arXiv 2102.04010, for training with it.
"""

import math
from collections.abc import Sequence

from adamwprune.errors import ConfigError
from adamwprune.pruning.scopes.groups import Groups
from adamwprune.pruning.scopes.segments import Shape, pruned_count, require_divisible
from adamwprune.ranges import PositiveInt


def nm(shapes: Sequence[Shape], sparsity: float, *, n: PositiveInt = 2, m: PositiveInt = 4) -> list[Groups]:
    """Groups of `m` along dimension 1 (in_features, or input channels); at most m - n of each are pruned.

    On the way to the target a ramp prunes floor(s * m + 1/2) of each.

    Raises:
        ConfigError: more than m - n of m would be pruned, or m does not divide the inputs of a tensor.
    """
    if n >= m:
        raise ConfigError(f"pruning.scope.n={n}: must be below pruning.scope.m={m}, of which n are kept")
    count = pruned_count(m, sparsity)
    if count > m - n:
        raise ConfigError(
            f"pruning.target_sparsity={sparsity:g}: pruning.scope keeps {n} of {m}; "
            f"set pruning.target_sparsity={(m - n) / m:.6g}, or choose pruning/scope=layerwise"
        )
    for i, shape in enumerate(shapes):
        require_divisible("nm", shape, i, shape[1], m, "dimension 1")
    return [Groups((i,), math.prod(shape) // m, count, size=m) for i, shape in enumerate(shapes)]
