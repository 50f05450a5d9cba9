"""How fast a run goes at most, how long it lasts at least, what its checkpoints take: nothing is timed.

A step takes at least the longer of two times:

    operations of the model / (MFU x peak of the device)     MFU is assumed
    bytes that an eager step reads and writes / the memory's bandwidth

The second is what holds convolutional networks back, whose norms and activations do little work a byte.
A real step takes longer than both: the optimizer's pass, the pruner's, the exchange of gradients between
devices, and waiting for data and evaluations are not counted, and no kernel reaches the bandwidth.
What activation checkpointing computes again counts as operations here, though not in perf/mfu.

MFU: llm.c trains GPT-2 124M at 463,000 tokens/s on each H100, as quoted by modded-nanogpt: 40 % of the
peak. Smaller models, and cards whose power limit is low for their peak (L4), reach less.
"""

from dataclasses import dataclass

from adamwprune.config import TrainerConfig
from adamwprune.errors import ConfigError
from adamwprune.fit.memory import Predictor, tensor_bytes
from adamwprune.fit.trace import Trace

MFU = 0.40


@dataclass(frozen=True)
class Speed:
    """Of all devices together, at most."""

    units_per_second: float  # tokens or images
    bound: str  # what the time is made of: arithmetic or memory
    samples_per_second: float


def expected_speed(predictor: Predictor, traced: Trace, micro_batch_size: int, mfu: float) -> Speed | None:
    """The bound on speed at a micro batch size; None where the device's peak is unknown."""
    load, hardware = predictor.load, predictor.load.config.hardware
    if hardware.peak_flops is None:
        return None
    arithmetic = operations(predictor, traced, micro_batch_size) / (mfu * hardware.peak_flops)
    memory = traced.traffic / hardware.memory_bandwidth if hardware.memory_bandwidth else 0.0
    seconds = max(arithmetic, memory)
    samples = hardware.num_devices * micro_batch_size / seconds
    bound = "memory" if memory > arithmetic else "arithmetic"
    return Speed(samples * load.units_per_sample, bound, samples)


def operations(predictor: Predictor, traced: Trace, micro_batch_size: int) -> float:
    """Floating-point operations of one micro batch: the model's own count where it has one, else torch's."""
    own = getattr(predictor.model, "flops_per_token", None)
    if own is None:
        return float(traced.flops)
    return float(own() * micro_batch_size * predictor.load.units_per_sample + traced.recomputed)


def budget_steps(trainer: TrainerConfig, units_per_sample: int, unit: str) -> int | None:
    """Optimizer steps of the run; None where they depend on the size of the data (trainer.max_epochs).

    Raises:
        ConfigError: less than one step, or a budget of tokens for images; the run would be refused, too.
    """
    if trainer.max_steps is not None:
        return trainer.max_steps
    if trainer.max_tokens is None:
        return None
    if unit != "tokens":
        raise ConfigError(
            f"trainer.max_tokens={trainer.max_tokens}: the data have no tokens; use trainer.max_epochs"
        )
    per_step = trainer.global_batch_size * units_per_sample
    if trainer.max_tokens < per_step:
        raise ConfigError(f"trainer.max_tokens={trainer.max_tokens}: less than one step, {per_step:,} tokens")
    return trainer.max_tokens // per_step


def checkpoint_bytes(predictor: Predictor) -> int:
    """One checkpoint: weights, optimizer, masks as bits, what else the pruner keeps, the average."""
    masks = predictor.prunable if predictor.pruning_bytes else 0
    packed = masks // 8 - masks if masks else 0
    states = predictor.optimizer_bytes + predictor.pruning_bytes + packed
    return tensor_bytes(predictor.model) + states + predictor.average_bytes


def checkpoints_at_a_time(keep: int) -> int:
    """Those kept, the best one, and the one that is being written."""
    return keep + 2
