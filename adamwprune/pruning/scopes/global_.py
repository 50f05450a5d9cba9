"""Global: all tensors in one ranking, so that sparsity moves to where scores are low.

Risky with magnitude in GPT-2, whose residual projections start smaller by 1/sqrt(2 * layers), and
ruinous on T5 (JaxPruner's README: loss 5.44 against 2.95 layerwise). `normalize: l2` divides each
tensor's scores by their L2 norm; `max_layer_sparsity` stops any tensor from losing more than that.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from adamwprune.errors import ConfigError
from adamwprune.pruning.scopes.segments import Capped, Pool, Shape, most_pruned, pruned_count
from adamwprune.ranges import Range


def global_(
    shapes: Sequence[Shape],
    sparsity: float,
    *,
    normalize: Literal["none", "l2"] = "none",
    max_layer_sparsity: Annotated[float, Range(above=0, most=1)] | None = None,
) -> list[Pool] | list[Capped]:
    """One pool of all tensors.

    Raises:
        ConfigError: the caps leave too few weights to prune.
    """
    sizes = [math.prod(shape) for shape in shapes]
    everyone, count = tuple(range(len(shapes))), pruned_count(sum(sizes), sparsity)
    if max_layer_sparsity is None:
        return [Pool(everyone, count, normalize == "l2")]
    caps = tuple(most_pruned(size, max_layer_sparsity) for size in sizes)
    if count > sum(caps):
        raise ConfigError(
            f"pruning.scope.max_layer_sparsity={max_layer_sparsity}: allows to prune {sum(caps):,} weights, "
            f"but a sparsity of {sparsity:g} needs {count:,}; raise it above pruning.target_sparsity"
        )
    return [Capped(everyone, count, caps, normalize == "l2")]
