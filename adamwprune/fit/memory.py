"""Memory of one device by part, and the largest micro batch that fits into it.

    weights, gradients      float32; autocast's copies of weights count as activations
    optimizer, pruning      what states.py finds
    average                 the moving average of the weights, if trainer.ema_decay asks for one
    activations, logits, temporary    at the highest moment of a step, from trace.py
    gathered                FSDP: weights and gradients that are whole on a device for a moment
    runtime                 CUDA context, kernels, libraries and their workspaces
    communication           NCCL's buffers

Under DDP gradients are views of the buckets that travel, so these add nothing, but stay between steps.
Under FSDP the first five are divided by the number of devices.

LIMIT leaves the rest to the allocator's gaps, to kernels' workspaces and to others. Eager mode decides:
a compiled step takes less.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adamwprune.config import Config, Device, Parallel, Precision
from adamwprune.errors import ConfigError
from adamwprune.explanations import first_line
from adamwprune.fit.states import optimizer_bytes, prunable_weights, pruning_bytes_per_weight
from adamwprune.fit.trace import Trace, trace
from adamwprune.optim.param_groups import param_groups
from adamwprune.targets import build
from adamwprune.training.build import choose_device, names_weights
from adamwprune.training.parallel import units
from adamwprune.training.precision import FORMATS, choose

GIB = 2**30
# Share of a device's memory that a run may take.
LIMIT = 0.85
# Assumed, not measured here: context and kernels of CUDA 12 or 13 are .4 to .6 GiB, workspaces of cuBLAS
# and cuDNN .1 to .2; NCCL has some hundred MB from two devices on.
RUNTIME, COMMUNICATION = 3 * GIB // 4, GIB // 2
# Resident in a process on the CPU that has imported torch.
CPU_RUNTIME = 2 * GIB // 5


@dataclass(frozen=True)
class Workload:
    """A model with what it reads and how, as far as memory and speed depend on it."""

    config: Config
    shape: tuple[int, ...]  # of one sample
    dtype: torch.dtype
    unit: str  # tokens or images
    units_per_sample: int
    on_gpu: bool
    precision: Precision

    def make_model(self) -> nn.Module:
        """A new model; a file of weights is not read."""
        node = self.config.model
        node = {**node, "weights": None} if names_weights(self.config) else node
        model: nn.Module = build(node, "model", self.config.allow_targets)()
        return model

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The run's optimizer of these groups."""
        optimizer: torch.optim.Optimizer = build(
            self.config.optimizer, "optimizer", self.config.allow_targets
        )(groups)
        return optimizer


def workload(config: Config) -> Workload:
    """What a configuration trains; no data are read.

    Raises:
        ConfigError: the data's options do not say what a sample is.
    """
    data, device = config.data, config.hardware.device
    on_gpu = device in (Device.cuda, Device.mps) or choose_device(device) != "cpu"
    precision = config.hardware.precision
    if precision is Precision.auto and device is Device.cuda and not torch.cuda.is_available():
        precision = Precision.bf16  # this machine is not the one that is meant: any GPU of today has it
    precision = choose(precision, choose_device(device))
    if "block_size" in data:
        length = int(data["block_size"])
        return Workload(config, (length,), torch.int64, "tokens", length, on_gpu, precision)
    if "image_size" in data and "channels" in data:
        side = int(data["image_size"])
        shape = (int(data["channels"]), side, side)
        return Workload(config, shape, torch.float32, "images", 1, on_gpu, precision)
    raise ConfigError(
        f"data._target_={data.get('_target_')}: its options have neither block_size (tokens) nor "
        "channels and image_size (images), which say how large a sample is; add them to its YAML"
    )


@dataclass(frozen=True)
class Memory:
    """Bytes of one device, by part."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        """GiB by part, the largest first, in one line."""
        largest = sorted(self.parts.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {size / GIB:.2f}" for name, size in largest if size >= 0.005 * GIB)


# What a trace depends on, of one model: micro batch, how many of them, kernels, precision.
Traces = dict[tuple[int, int, bool, Precision], Trace]


class Predictor:
    """Predicts for one workload; what does not depend on the micro batch is found once.

    Args:
        load: the workload.
        traces: those that are known of this model on other hardware; new ones are added.

    Raises:
        ConfigError: the model cannot be followed without data.
    """

    def __init__(self, load: Workload, traces: Traces | None = None) -> None:
        self.load = load
        config = load.config
        with torch.device("meta"):
            self.model = load.make_model()
        groups = param_groups(
            self.model,
            weight_decay=config.optimizer.get("weight_decay", 0.0),
            decay_embeddings=config.trainer.decay_embeddings,
        )
        self.optimizer_bytes = optimizer_bytes(groups, load.make_optimizer)
        self.prunable = prunable_weights(self.model, config.pruning.include, config.pruning.exclude)
        self.pruning_bytes = round(self._bytes_per_weight() * self.prunable)
        self.average_bytes = 0 if config.trainer.ema_decay is None else tensor_bytes(self.model)
        self._traces = {} if traces is None else traces

    def _bytes_per_weight(self) -> float:
        pruning = self.load.config.pruning
        if pruning.criterion is None:
            return 0.0
        allowed = self.load.config.allow_targets
        parts = {
            part: build(getattr(pruning, part), f"pruning.{part}", allowed)
            for part in ("criterion", "schedule", "selection", "mode")
        }
        return pruning_bytes_per_weight(self.load.make_optimizer, parts)

    def at(self, micro_batch_size: int, grad_accum_steps: int | None = None) -> Memory:
        """Memory at a micro batch size; by default with as much accumulation as the global batch leaves."""
        hardware = self.load.config.hardware
        is_spread = hardware.parallel is Parallel.fsdp and hardware.num_devices > 1
        steps = grad_accum_steps or max(1, self.share // micro_batch_size)
        traced = self.trace(micro_batch_size, grad_accum_steps=steps)
        part = hardware.num_devices if is_spread else 1
        runtime = RUNTIME if self.load.on_gpu else CPU_RUNTIME
        has_peers = hardware.num_devices > 1 and self.load.on_gpu
        parts = {
            "weights": traced.weights // part,
            "gradients": traced.gradients // part,
            "optimizer": self.optimizer_bytes // part,
            "pruning": self.pruning_bytes // part,
            "average": self.average_bytes // part,
            "activations": traced.activations,
            "logits": traced.logits,
            "temporary": traced.temporary,
            "gathered": _gathered_bytes(self.model) if is_spread else 0,
            "runtime": runtime,
            "communication": COMMUNICATION if has_peers else 0,
        }
        return Memory({name: size for name, size in parts.items() if size})

    def trace(self, micro_batch_size: int, *, grad_accum_steps: int) -> Trace:
        """The step at this micro batch; under DDP gradients are always there before."""
        micro_batches = 2 if grad_accum_steps > 1 or self.load.config.hardware.num_devices > 1 else 1
        key = (micro_batch_size, micro_batches, self.load.on_gpu, self.load.precision)
        if key not in self._traces:
            self._traces[key] = self._trace(micro_batch_size, micro_batches)
        return self._traces[key]

    def _trace(self, micro_batch_size: int, micro_batches: int) -> Trace:
        load = self.load
        try:
            return trace(
                load.make_model,
                (micro_batch_size, *load.shape),
                load.dtype,
                autocast=None if load.precision is Precision.fp32 else FORMATS[load.precision],
                on_gpu=load.on_gpu,
                micro_batches=micro_batches,
                smoothing=load.config.trainer.label_smoothing,
            )
        except Exception as error:  # a user's model may do anything
            raise ConfigError(
                f"model._target_={load.config.model.get('_target_')}: cannot be followed on tensors without "
                f"values ({type(error).__name__}: {first_line(error)}); measure its memory in a short run"
            ) from error

    @property
    def share(self) -> int:
        """Samples of the global batch for each device."""
        return self.load.config.trainer.global_batch_size // self.load.config.hardware.num_devices

    def largest(self, sizes: Sequence[int], limit: float, grad_accum_steps: int | None = None) -> int | None:
        """The largest of some micro batch sizes (ascending) that stays within `limit` bytes; None if none."""
        fits = functools.cache(lambda size: self.at(size, grad_accum_steps).total <= limit)
        low, high = 0, len(sizes)  # what is below low fits, what is from high on does not
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if fits(sizes[middle]) else (low, middle)
        return sizes[low - 1] if low else None


def divisors(number: int) -> list[int]:
    """Ascending."""
    return [size for size in range(1, number + 1) if number % size == 0]


def tensor_bytes(module: nn.Module) -> int:
    """Of parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _gathered_bytes(model: nn.Module) -> int:
    """Two blocks' weights and one's gradients at a time, and those of all that is no block."""
    blocks = [sum(parameter.nbytes for parameter in block.parameters()) for block in units(model)]
    rest = sum(parameter.nbytes for parameter in model.parameters()) - sum(blocks)
    return 3 * max(blocks, default=0) + 2 * rest


def device_bytes(config: Config) -> float | None:
    """Memory of one device: hardware.memory_gb, in units of 10^9; None where no one says."""
    memory = config.hardware.memory_gb
    return None if memory is None else memory * 1e9
