"""What is kept of a step whose gradients are not finite, so that it can be looked at and repeated.

    diverged/step_00000124_rank0.json          loss, norm, learning rate, layer, samples
             step_00000124_rank0.safetensors   inputs and targets of that step's micro batches

The weights are those before the step, bit for bit: nothing of it has reached them.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from adamwprune.callbacks.base import Alert
from adamwprune.errors import DiskError, DivergedError
from adamwprune.run_directory import shown_path, write_json
from adamwprune.training.build import Training
from adamwprune.training.evaluation import evaluating
from adamwprune.training.loop_state import LoopState
from adamwprune.training.parallel import is_spread

FOLDER = "diverged"
# Rule of the alert of a step that was passed over.
SKIPPED = "skipped_step"
# Sample indices that a message names; the record has all.
SHOWN = 4


def diverged(
    training: Training, state: LoopState, loss: Tensor, norm: float, directory: Path
) -> DivergedError:
    """Keep the step's batch and numbers below the run's `directory`; the error that names them.

    Every rank calls it, and keeps its own part.
    """
    facts = describe(training, state, loss, norm)
    try:
        kept = f"kept in {shown_path(keep(training, state, facts, directory))}"
    except (OSError, DiskError, SafetensorError) as error:  # which must not hide what has happened
        kept = f"not kept: {error}"
    return DivergedError(
        f"step {facts['step']}: loss {loss.item():g}, gradient norm {norm:g}, lr {training.applied_lr:g}, "
        f"first bad layer {facts['layer']}, samples {shown(facts['samples'])} ({kept}); "
        f"the weights are those of step {state.step}; lower optimizer.lr, raise lr_schedule.warmup_steps, or "
        "let trainer.max_skipped_steps such steps be passed over"
    )


def skipped_step(training: Training, state: LoopState, loss: Tensor, norm: float) -> Alert:
    """The alert of a step that is passed over."""
    facts = describe(training, state, loss, norm)
    most = training.config.trainer.max_skipped_steps
    return Alert(
        SKIPPED,
        "warn",
        f"step {facts['step']} passed over, {state.not_finite} of {most}",
        f"loss {loss.item():g}, gradient norm {norm:g}, first bad layer {facts['layer']}, "
        f"samples {shown(facts['samples'])}",
    )


def describe(training: Training, state: LoopState, loss: Tensor, norm: float) -> dict[str, Any]:
    """Facts of this rank's part of the step."""
    micro_batches = training.batches.micro_batches(state.step + state.skipped)
    return {
        "step": state.step + 1,
        "rank": training.ranks.rank,
        "loss": str(loss.item()),  # JSON has no NaN
        "gradient_norm": str(norm),
        "lr": training.applied_lr,
        "layer": first_bad_layer(training, micro_batches, state.step + state.skipped),
        "parameters": bad_gradients(training.model),
        "samples": [int(index) for part in micro_batches for index in part],
    }


def keep(training: Training, state: LoopState, facts: dict[str, Any], directory: Path) -> Path:
    """Write facts and batch; the file of the facts."""
    folder = directory / FOLDER
    folder.mkdir(exist_ok=True)
    file = folder / f"step_{facts['step']:08d}_rank{training.ranks.rank}.json"
    number = state.step + state.skipped
    batches = [training.batches.load(number, part) for part in training.batches.micro_batches(number)]
    save_file(
        {
            f"{name}_{part}": tensor.contiguous()
            for part, batch in enumerate(batches)
            for name, tensor in zip(("inputs", "targets"), batch, strict=True)
        },
        file.with_suffix(".safetensors"),
    )
    write_json(file, facts)
    return file


class RunningStatistics:
    """What a forward pass writes into the model (BatchNorm's means), to be put back after a bad step."""

    def __init__(self, model: nn.Module) -> None:
        # Means and variances, and the count of batches; no tables, which nothing writes.
        self._live = [b for b in model.buffers() if b.is_floating_point() or b.ndim == 0]
        self._before = [buffer.clone() for buffer in self._live]

    def put_back_(self) -> None:
        """As they were when this was made."""
        for buffer, before in zip(self._live, self._before, strict=True):
            buffer.copy_(before)


def bad_gradients(model: nn.Module) -> list[str]:
    """Parameters, in the model's order, whose gradients are not finite."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]


@torch.no_grad()
def first_bad_layer(training: Training, micro_batches: list[np.ndarray], number: int) -> str:
    """The module whose output is not finite while its input is, or the loss, or the first bad gradient.

    Found by a forward pass without dropout; weights that are spread over ranks are not asked.
    """
    model, found = training.model, []
    if any(map(is_spread, model.parameters())):
        return (bad_gradients(model) or ["unknown"])[0]

    def look(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and not is_finite(output):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with evaluating(model), training.autocast():
            for part in micro_batches:
                inputs, _ = training.batches.load(number, part)
                model(inputs.to(training.ranks.device))
    finally:
        for handle in handles:
            handle.remove()
    return (found or bad_gradients(model) or ["loss"])[0]


def is_finite(tensor: Tensor) -> bool:
    """Whether all entries are."""
    return math.isfinite(float(tensor.float().abs().max())) if tensor.numel() else True


def shown(samples: list[int]) -> str:
    """The first sample indices, and how many more there are."""
    more = f" and {len(samples) - SHOWN} more" if len(samples) > SHOWN else ""
    return ", ".join(map(str, samples[:SHOWN])) + more
