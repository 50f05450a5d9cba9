"""From a Config to the live objects of one run: data, model, optimizer, schedule, pruner."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adamwprune.config import Config, Device, Unseen, update_steps
from adamwprune.cores import usable_cores
from adamwprune.data.base import Data
from adamwprune.distributed import Ranks
from adamwprune.optim.param_groups import group_table, param_groups
from adamwprune.pruning import Dense, Pruner
from adamwprune.targets import build
from adamwprune.training.batches import TrainingBatches
from adamwprune.training.budget import total_steps
from adamwprune.training.checkpoint import steps_on_disk
from adamwprune.training.choices import chosen
from adamwprune.training.parallel import class_of, gradient_sync, place, wrap
from adamwprune.training.precision import Autocast, choose
from adamwprune.training.weight_average import WeightAverage


@dataclass(frozen=True)
class Training:
    """Everything that the loop works on."""

    config: Config
    ranks: Ranks
    data: Data
    model: nn.Module  # unwrapped: what is pruned, evaluated and saved
    forward: nn.Module  # the same, compiled and wrapped for several ranks: what is trained
    optimizer: torch.optim.Optimizer
    base_lrs: tuple[float, ...]  # one a parameter group
    lr_factor: Callable[[int, int], float]
    pruner: Pruner | Dense
    average: WeightAverage | None  # where trainer.ema_decay asks for one
    autocast: Autocast
    batches: TrainingBatches
    total_steps: int

    def set_lr(self, step: int) -> None:
        """Apply the learning rate of update number `step` to every group."""
        factor = self.lr_factor(step, self.total_steps)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor

    @property
    def applied_lr(self) -> float:
        """What the first group was stepped with: an optimizer with a factor of its own (SPAM) says so."""
        group = self.optimizer.param_groups[0]
        return float(group.get("applied_lr", group["lr"]))

    def gradient_sync(self, is_last: bool) -> AbstractContextManager[None]:
        """The context of one of a step's micro batches, in which gradients travel between ranks or do not."""
        return gradient_sync(self.forward, is_last=is_last)

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that are evaluated: their average, where there is one."""
        return self.average.in_place() if self.average else nullcontext()


def build_training(config: Config, ranks: Ranks) -> Training:
    """Build all objects of a run; every rank gets equal weights.

    Raises:
        ConfigError, DataError: where the parts do not fit each other.
    """
    hardware, trainer = config.hardware, config.trainer
    torch.set_num_threads(hardware.threads or max(1, usable_cores() // ranks.local_world_size))

    data: Data = build(config.data, "data", config.allow_targets)()
    batches = TrainingBatches(
        data.train,
        seed=config.seed,
        global_batch_size=trainer.global_batch_size,
        micro_batch_size=hardware.micro_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    steps = total_steps(trainer, batches.steps_per_epoch, data)

    model = place(build(model_node(config), "model", config.allow_targets)(), hardware, ranks)
    groups = param_groups(
        model,
        weight_decay=config.optimizer.get("weight_decay", 0.0),
        decay_embeddings=trainer.decay_embeddings,
    )
    optimizer = build(config.optimizer, "optimizer", config.allow_targets)(groups)
    return Training(
        config=config,
        ranks=ranks,
        data=data,
        model=model,
        forward=wrap(model, hardware, ranks),
        optimizer=optimizer,
        base_lrs=tuple(group["lr"] for group in optimizer.param_groups),
        lr_factor=build(config.lr_schedule, "lr_schedule", config.allow_targets),
        pruner=build_pruner(config, model, optimizer, steps),
        average=None if trainer.ema_decay is None else WeightAverage(model, trainer.ema_decay),
        autocast=Autocast(choose(hardware.precision, ranks.device.type), ranks.device.type),
        batches=batches,
        total_steps=steps,
    )


def model_node(config: Config) -> Mapping[str, Any]:
    """The `model` node of what is built: a run that goes on takes its weights from its checkpoint alone."""
    if not names_weights(config) or config.resume is None:
        return config.model
    is_begun = steps_on_disk(Path(config.resume).expanduser() / "checkpoints")
    return {**config.model, "weights": None} if is_begun else config.model


def names_weights(config: Config) -> bool:
    """Whether `model.weights` is a file of initial weights; in a user's own model it may mean anything."""
    return config.model["_target_"] not in config.allow_targets and bool(config.model.get("weights"))


def build_pruner(
    config: Config, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int
) -> Pruner | Dense:
    """The pruner that the configuration describes; `Dense` where it describes none."""
    pruning = config.pruning
    if pruning.criterion is None:
        return Dense(model, include=pruning.include, exclude=pruning.exclude)
    parts = {
        part: build(getattr(pruning, part), f"pruning.{part}", config.allow_targets)
        for part in ("criterion", "schedule", "scope", "selection", "mode")
    }
    return Pruner(
        model,
        optimizer,
        **parts,
        target_sparsity=pruning.target_sparsity,
        initial_sparsity=pruning.initial_sparsity,
        **update_steps(pruning, steps),
        unseen=(pruning.unseen or Unseen.keep).value,
        include=pruning.include,
        exclude=pruning.exclude,
    )


def choose_device(device: Device) -> str:
    """Name of the device for torch; `auto` is the first of cuda, mps and cpu that this machine has."""
    if device is not Device.auto:
        return device.value
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_name(device: torch.device) -> str:
    """As its vendor calls it, where torch knows."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def describe(training: Training) -> dict[str, Any]:
    """What the live objects are, for run.json: labels come from here, never from keys."""
    ranks, optimizer = training.ranks, training.optimizer
    # What a continued run began with stays in its record.
    weights_file = getattr(training.model, "weights_file", None)
    first = {
        key: value
        for key, value in optimizer.defaults.items()
        if isinstance(value, bool | int | float | tuple)
    }
    return {
        "total_steps": training.total_steps,
        "steps_per_epoch": training.batches.steps_per_epoch,
        "model": class_of(training.model).__qualname__,
        **({"initial_weights": weights_file} if weights_file else {}),
        "optimizer": {"class": type(optimizer).__qualname__, **first, "lr": training.base_lrs[0]},
        "param_groups": group_table(optimizer.param_groups),
        "pruning": training.pruner.describe(),
        "data": {"name": training.data.name, "fingerprint": training.data.fingerprint, **training.data.facts},
        "hardware": {
            "torch": str(torch.__version__),  # with the build: +cpu, +cu130, ...
            "device": device_name(ranks.device),
            "chosen": chosen(training.config.hardware, ranks.device, training.autocast.precision),
            "world_size": ranks.world_size,
            "parallel": training.config.hardware.parallel.name if ranks.world_size > 1 else None,
            "threads": torch.get_num_threads(),
            "precision": training.autocast.precision.name,
            "compile": training.config.hardware.compile,
        },
    }
