"""Everything that is predicted of one configuration."""

from dataclasses import dataclass
from typing import Any

from adamwprune.config import Config
from adamwprune.fit.memory import GIB, LIMIT, Memory, Predictor, Traces, device_bytes, divisors, workload
from adamwprune.fit.speed import (
    Speed,
    budget_steps,
    checkpoint_bytes,
    checkpoints_at_a_time,
    expected_speed,
)


@dataclass(frozen=True)
class Forecast:
    """Memory, micro batch, speed and length of one run."""

    config: Config
    unit: str
    units_per_sample: int
    precision: str
    parameters: int
    prunable: int
    micro_batch_size: int  # that memory and speed are of
    memory: Memory
    device: float | None  # bytes
    largest: int | None  # the largest micro batch that fits; None where none does, or the device is unknown
    speed: Speed | None
    mfu: float  # assumed
    steps: int | None
    checkpoint: int  # bytes of one

    @property
    def limit(self) -> float | None:
        """Bytes that the run may take of the device."""
        return None if self.device is None else LIMIT * self.device

    @property
    def fits(self) -> bool:
        """Whether the configuration does, as far as is known."""
        return self.limit is None or self.memory.total <= self.limit

    @property
    def grad_accum_steps(self) -> int:
        """Micro batches that each device accumulates per step."""
        trainer, hardware = self.config.trainer, self.config.hardware
        return trainer.global_batch_size // (hardware.num_devices * self.micro_batch_size)

    @property
    def units(self) -> int | None:
        """Tokens or images of the whole run."""
        per_step = self.config.trainer.global_batch_size * self.units_per_sample
        return None if self.steps is None else self.steps * per_step

    @property
    def hours(self) -> float | None:
        """Of the whole run at least, for `speed` is a bound."""
        if self.units is None or self.speed is None:
            return None
        return self.units / self.speed.units_per_second / 3600

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for --json."""
        trainer, hardware = self.config.trainer, self.config.hardware
        return {
            "parameters": self.parameters,
            "prunable": self.prunable,
            "precision": self.precision,
            "global_batch_size": trainer.global_batch_size,
            "num_devices": hardware.num_devices,
            "micro_batch_size": self.micro_batch_size,
            "grad_accum_steps": self.grad_accum_steps,
            "memory_gib": {name: size / GIB for name, size in self.memory.parts.items()},
            "memory_total_gib": self.memory.total / GIB,
            "device_gib": None if self.device is None else self.device / GIB,
            "limit": LIMIT,
            "fits": self.fits,
            "largest_micro_batch_size": self.largest,
            f"{self.unit}_per_second": None if self.speed is None else self.speed.units_per_second,
            "assumed_mfu": self.mfu,
            "bound": None if self.speed is None else self.speed.bound,
            "steps": self.steps,
            self.unit: self.units,
            "hours": self.hours,
            "checkpoint_gb": self.checkpoint / 1e9,
            "checkpoints_gb": self.checkpoint * checkpoints_at_a_time(self.config.checkpoint.keep) / 1e9,
        }


def forecast(config: Config, mfu: float) -> Forecast:
    """Predict a run as it is configured.

    Raises:
        ConfigError: the model cannot be followed without data, or the budget is less than a step.
    """
    return _forecast(Predictor(workload(config)), config.hardware.micro_batch_size, mfu)


def largest_forecast(config: Config, mfu: float, traces: Traces) -> Forecast:
    """Predict a run at the largest micro batch that fits, at 1 where none does; `traces` as for Predictor."""
    predictor = Predictor(workload(config), traces)
    return _forecast(predictor, _largest(predictor) or 1, mfu)


def _largest(predictor: Predictor) -> int | None:
    device = device_bytes(predictor.load.config)
    return None if device is None else predictor.largest(divisors(predictor.share), LIMIT * device)


def _forecast(predictor: Predictor, size: int, mfu: float) -> Forecast:
    load, config = predictor.load, predictor.load.config
    total_steps = budget_steps(config.trainer, load.units_per_sample, load.unit)
    steps = max(1, predictor.share // size)
    traced = predictor.trace(size, grad_accum_steps=steps)
    return Forecast(
        config=config,
        unit=load.unit,
        units_per_sample=load.units_per_sample,
        precision=load.precision.name,
        parameters=sum(parameter.numel() for parameter in predictor.model.parameters()),
        prunable=predictor.prunable,
        micro_batch_size=size,
        memory=predictor.at(size, steps),
        device=device_bytes(config),
        largest=_largest(predictor),
        speed=expected_speed(predictor, traced, size, mfu),
        mfu=mfu,
        steps=total_steps,
        checkpoint=checkpoint_bytes(predictor),
    )
