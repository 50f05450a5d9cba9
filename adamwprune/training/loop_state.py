"""What a run knows beside its weights, and how a checkpoint holds it: with it, resume is exact."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamwprune.errors import CheckpointError
from adamwprune.training import random_state
from adamwprune.training.build import Training
from adamwprune.training.checkpoint import Checkpoint, load_weights_, model_weights
from adamwprune.training.parallel import gathered, spread


@dataclass
class LoopState:
    """Progress of the loop; everything here is saved and restored."""

    loss_sum: Tensor  # of the steps since the last row, on the device
    loss_count: int = 0
    step: int = 0  # optimizer steps done
    pruned_steps: int = 0  # pruned weights, added up over the steps
    skipped: int = 0  # batches passed over, whose gradients were not finite
    not_finite: int = 0  # of these, the ones that were no overflow of fp16
    seconds: float = 0.0  # of wall time in all sessions
    latest: dict[str, float] = field(default_factory=dict)  # scores of the last evaluation
    best: dict[str, dict[str, float]] = field(default_factory=dict)  # name -> value, step
    row: dict[str, Any] | None = None  # of a step whose end is under way

    @classmethod
    def new(cls, training: Training) -> "LoopState":
        """The state before the first step."""
        return cls(loss_sum=torch.zeros((), device=training.ranks.device))


def environment(training: Training, revision: str | None) -> dict[str, Any]:
    """What else must be equal for a continued run to repeat itself to the bit."""
    return {
        "world_size": training.ranks.world_size,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,  # whose permutations are the order of the data
        "device": training.ranks.device.type,
        "precision": training.autocast.precision.name,
        "revision": revision,
        "data": training.data.fingerprint,
    }


def capture(
    training: Training, state: LoopState, revision: str | None, records: Mapping[str, int]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and state for a checkpoint, which rank 0 writes; every rank has to call it.

    `records` are the bytes so far of each file of rows.

    However the model is spread, they are whole: a checkpoint does not know how many ranks wrote it.
    """
    return model_weights(training.model), {
        "step": state.step,
        "pruned_steps": state.pruned_steps,
        "skipped": state.skipped,
        "not_finite": state.not_finite,
        "seconds": state.seconds,
        "row": state.row,
        "records": dict(records),
        "latest": state.latest,
        "best": state.best,
        "loss_sum": training.ranks.gather(state.loss_sum.cpu()),
        "loss_count": state.loss_count,
        "optimizer": gathered(training.optimizer.state_dict()),
        "pruner": training.pruner.state_dict(),
        "average": training.average.state_dict() if training.average else {},
        "scaler": training.autocast.scaler.state_dict(),
        "random": training.ranks.gather(random_state.capture()),
        "environment": environment(training, revision),
    }


def restore(training: Training, checkpoint: Checkpoint) -> LoopState:
    """Put weights, optimizer, masks, scaler and random generators where the checkpoint left them.

    Raises:
        CheckpointError: the checkpoint is of another model, optimizer or pruning.
    """
    saved, rank = checkpoint.state, training.ranks.rank
    load_weights_(training.model, checkpoint.weights)
    _check_optimizer_shapes(training.optimizer, saved["optimizer"])
    training.optimizer.load_state_dict(_own_states(training.optimizer, saved["optimizer"]))
    training.pruner.load_state_dict(saved["pruner"])
    if training.average:
        training.average.load_state_dict(saved["average"])
    training.autocast.scaler.load_state_dict(saved["scaler"])
    # Last: everything above may draw random numbers. Without as many ranks, each keeps its seed.
    if rank < len(saved["random"]):
        random_state.restore(saved["random"][rank])
    sums = torch.stack(saved["loss_sum"])
    own_sum = sums[rank] if len(sums) == training.ranks.world_size else sums.mean()
    return LoopState(
        loss_sum=own_sum.to(training.ranks.device, copy=True),
        loss_count=saved["loss_count"],
        step=saved["step"],
        pruned_steps=saved["pruned_steps"],
        skipped=saved["skipped"],
        not_finite=saved["not_finite"],
        row=saved["row"],
        seconds=saved["seconds"],
        latest=saved["latest"],
        best=saved["best"],
    )


def check_agreed(training: Training, step: int) -> None:
    """All ranks begin at one step: each has read the checkpoint itself, on whatever machine it runs."""
    steps = training.ranks.gather(step)
    if len(set(steps)) > 1:
        raise CheckpointError(
            f"the ranks found checkpoints of different steps, {', '.join(map(str, steps))}; keep the run's "
            "folder on a file system that all machines share"
        )


def check_environment(training: Training, checkpoint: Checkpoint, revision: str | None) -> None:
    """Raise CheckpointError where something differs without which a run does not repeat itself to the bit."""
    before, now = checkpoint.state.get("environment", {}), environment(training, revision)
    changed = [f"{key}: {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
    if changed:
        raise CheckpointError(
            f"cannot continue to the bit, {', '.join(changed)}; restore that, "
            "or add 'resume_allow=[environment]' to go on all the same"
        )


def _own_states(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """A copy of the saved states, of which this rank has its rows where the parameters are spread."""
    own = {
        index: {
            name: spread(value, parameter if value.shape == parameter.shape else value)
            if isinstance(value, Tensor)
            else value
            for name, value in saved["state"].get(index, {}).items()
        }
        for index, parameter in enumerate(_parameters(optimizer))
    }
    return {**saved, "state": {index: values for index, values in own.items() if values}}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All of them, in the order in which the optimizer's state_dict numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _check_optimizer_shapes(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Torch takes states of any shape; a wrong one would fail, or not, many steps later."""
    parameters = _parameters(optimizer)
    groups = [len(group["params"]) for group in saved["param_groups"]]
    if groups != [len(group["params"]) for group in optimizer.param_groups]:
        raise CheckpointError(
            f"the checkpoint's optimizer has groups of {groups} parameters; this one differs"
        )
    for index, values in saved["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameters[index].shape:
                raise CheckpointError(
                    f"the checkpoint's {name} of parameter {index} is {tuple(value.shape)}, "
                    f"the parameter is {tuple(parameters[index].shape)}"
                )
