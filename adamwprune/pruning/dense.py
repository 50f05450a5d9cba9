"""A run without pruning, behind the interface of one that prunes: the control arm of every comparison."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adamwprune.errors import CheckpointError
from adamwprune.pruning.counting import SparsityCounter
from adamwprune.pruning.gradients import mask_and_norm_
from adamwprune.pruning.mask_update import MaskUpdate
from adamwprune.pruning.masks import Masks


class Dense(SparsityCounter):
    """The interface of Pruner without pruning: counts zeros over the same weights, touches nothing."""

    def mask_grads_(self) -> None:
        """Leave the gradients as they are."""

    def mask_and_norm_grads_(self) -> Tensor:
        """The L2 norm of all the model's gradients, found as Pruner finds it."""
        return mask_and_norm_((p.grad, None) for p in self.model.parameters() if p.grad is not None)

    def after_step(self, step: int) -> MaskUpdate | None:
        """No update is ever due."""
        return None

    def planned_count(self, step: int) -> int:
        """Nothing is to be pruned after any step."""
        return 0

    def is_final(self, step: int) -> bool:
        """Nothing is left to reach."""
        return True

    def verify(self, step: int) -> None:
        """There is no plan to disagree with."""

    def mean_density(self, total_steps: int) -> float:
        """All weights live at every step."""
        return 1.0

    def mask_hash(self) -> str:
        """Hash no masks."""
        return Masks({}).hash()

    def describe(self) -> dict[str, Any]:
        """Facts for the run record."""
        return {"criterion": {"name": "none"}, "target_sparsity": 0.0, **self.describe_weights()}

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError for the state of a run that pruned."""
        if state:
            raise CheckpointError(
                "pruning=none: the checkpoint is that of a pruned run; resume with its own pruning"
            )
