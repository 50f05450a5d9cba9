"""Soft: pruned weights are set to 0 after each step, while gradients and state live, so they may come back.

At an update a share of the live weights, the lowest, is exchanged for as many pruned ones: those
with the highest |m| / sqrt(v), the denoised form of RigL's gradient, or the highest |g|, those
that were dropped just now among them. The share decays by a cosine to 0 at the end of the window.
Weights come back at 0.

Source: RigL, Evci et al., arXiv 1911.11134, section 3. The weight pass also makes this the mode
for optimizers that mix entries (Muon, SOAP, Shampoo), which would revive hard-pruned weights.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, SupportsFloat

from torch.nn import Parameter
from torch.optim import Optimizer

from adamwprune.pruning.criteria.grow_gradient import grow_gradient
from adamwprune.pruning.criteria.grow_momentum import grow_momentum
from adamwprune.pruning.masks import Masks
from adamwprune.pruning.modes.base import Mode, Ranking
from adamwprune.pruning.scoring import Criterion, needs
from adamwprune.ranges import Fraction

GROWTH: dict[str, Criterion] = {"momentum": grow_momentum, "gradient": grow_gradient}


class Soft(Mode):
    """Zero weights after each step; drop and grow at updates.

    Args:
        parameters, masks, optimizer: see Mode.
        grow: what comes back: by `momentum`, by `gradient`, or `none` if nothing does.
        regrow_fraction: share of the live weights that the first update exchanges.
    """

    name = "soft"
    revives = True
    sets_zeros = True

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        masks: Masks,
        optimizer: Optimizer,
        *,
        grow: Literal["momentum", "gradient", "none"] = "momentum",
        regrow_fraction: Fraction = 0.1,
    ) -> None:
        super().__init__(parameters, masks, optimizer)
        self._growth = GROWTH.get(grow)
        self._regrow_fraction = regrow_fraction if self._growth else 0.0
        self.reads = needs(self._growth) if self._growth else ()

    def after_step(self) -> None:
        """The optimizer moved pruned weights: set them to 0 again."""
        self.masks.zero_weights_()

    def choose_(self, ranking: Ranking, sparsity: float, progress: float) -> Sequence[SupportsFloat]:
        """Prune further than asked for by the share that is exchanged, then grow back."""
        share = 0.5 * self._regrow_fraction * (1.0 + math.cos(math.pi * max(progress, 0.0)))
        if self._growth is None or share == 0.0 or not any(self.masks.pruned.values()):
            return ranking.prune_(sparsity)  # the first update has nothing that could come back
        thresholds = ranking.prune_(sparsity + share * (1.0 - sparsity))
        self.masks.recount()
        self.masks.zero_weights_()  # before any of them comes back
        ranking.grow_(self._growth, sparsity)
        return thresholds

    def sparsities(self, sparsity: float) -> list[float]:
        """The one asked for, and the most that is pruned before growing."""
        return [sparsity, sparsity + self._regrow_fraction * (1.0 - sparsity)]

    def apply_(self) -> None:
        """Zero the weights."""
        self.masks.zero_weights_()
