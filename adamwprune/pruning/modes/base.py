"""What a mode is: how masks are chosen at an update, and what they do at every step.

The pruner calls it in this order:

    edit_grads_(), gradient_masks()   before each optimizer step
    after_step()                      after each one
    choose_(...), apply_()            at a mask update
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, SupportsFloat

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from adamwprune.errors import CheckpointError, RunError
from adamwprune.pruning.masks import Masks
from adamwprune.pruning.scoring import Criterion
from adamwprune.pruning.sharding import local
from adamwprune.pruning.state_view import StateView


class Ranking(Protocol):
    """The scores of one mask update."""

    def prune_(self, sparsity: float) -> Sequence[SupportsFloat]:
        """Prune the lowest scores until `sparsity` is reached; the highest pruned score of each segment."""

    def grow_(self, criterion: Criterion, sparsity: float) -> None:
        """Let the highest of the pruned come back, by another criterion, until `sparsity` is left."""


class Mode:
    """Masks that are chosen once and do nothing; modes override what they do.

    Args:
        parameters: the prunable ones, by name.
        masks: theirs.
        optimizer: whose state follows the masks.
    """

    # Whether pruned weights may come back, and whether all weights compete anew at every update.
    revives = False
    restarts = False
    # Whether pruned weights are set to 0 after every step, whatever the optimizer did to them.
    sets_zeros = False
    # What the mode itself reads of the optimizer's state.
    reads: tuple[str, ...] = ()

    def __init__(self, parameters: Mapping[str, Parameter], masks: Masks, optimizer: Optimizer) -> None:
        self.parameters, self.masks, self.state = parameters, masks, StateView(optimizer)

    def weight(self, name: str) -> Tensor:
        """The values that a criterion scores: this process's rows."""
        return local(self.parameters[name])

    def gradient_masks(self) -> dict[int, Tensor]:
        """Masks that the pruner applies to gradients, by the id of the parameter."""
        return {}

    def edit_grads_(self) -> None:
        """What has to happen to the gradients before they are masked and clipped."""

    def after_step(self) -> None:
        """What has to happen to the weights after each optimizer step."""

    def choose_(self, ranking: Ranking, sparsity: float, progress: float) -> Sequence[SupportsFloat]:
        """New masks for `sparsity`, at `progress` of the window; the segments' thresholds."""
        return ranking.prune_(sparsity)

    def sparsities(self, sparsity: float) -> list[float]:
        """Sparsities that `choose_` may ask a scope for."""
        return [sparsity]

    def apply_(self) -> None:
        """Bring weights and state in line with new masks."""

    def state_dict(self) -> dict[str, Any]:
        """What the mode itself has to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it over. Raises CheckpointError where there is something that the mode does not keep."""
        if state:
            raise CheckpointError("pruning: the checkpoint is that of another mode")


def refuse_closure(who: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """Raise RunError where a step, whose hook got these arguments, was called with a closure."""
    closure = keywords.get("closure", arguments[1] if len(arguments) > 1 else None)
    if closure is not None:
        raise RunError(
            f"{who}: step(closure) computes loss and gradients within the step, where no mask is in force; "
            "compute them before, and call step()"
        )
