"""How long a run is: optimizer steps, from whichever budget the configuration gives."""

import math
from typing import TYPE_CHECKING

from adamwprune.config import TrainerConfig
from adamwprune.errors import ConfigError, DataError

if TYPE_CHECKING:  # the check before a run imports this module before torch
    from adamwprune.data.base import Data


def total_steps(trainer: TrainerConfig, steps_per_epoch: int, data: "Data") -> int:
    """Optimizer steps of the whole run, from whichever budget is given.

    Raises:
        DataError: the training set is smaller than one global batch.
        ConfigError: the budget is smaller than one step.
    """
    if steps_per_epoch < 1:
        raise DataError(
            f"trainer.global_batch_size={trainer.global_batch_size}: larger than the {len(data.train)} "
            f"training samples of {data.name}; choose at most that"
        )
    if trainer.max_steps is not None:
        return trainer.max_steps
    if trainer.max_epochs is not None:
        # 0.57 x 100 is 56.99... in binary: a whole number of steps is meant.
        steps = math.floor(trainer.max_epochs * steps_per_epoch + 1e-6)
        budget = f"trainer.max_epochs={trainer.max_epochs}"
    else:
        if data.unit != "tokens":
            raise ConfigError(
                f"trainer.max_tokens={trainer.max_tokens}: {data.name} has no tokens; use trainer.max_epochs"
            )
        tokens_per_step = trainer.global_batch_size * data.units_per_sample
        steps, budget = (
            (trainer.max_tokens or 0) // tokens_per_step,
            f"trainer.max_tokens={trainer.max_tokens}",
        )
    if steps < 1:
        raise ConfigError(f"{budget}: less than one step; an epoch has {steps_per_epoch} steps")
    return steps
