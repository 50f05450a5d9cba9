"""How fast training goes, without evaluations and checkpoints, and what it takes of the machine."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adamwprune.training.devices import DeviceSampler

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss


class Throughput:
    """Times the steps between two rows.

    Args:
        unit: `images` or `tokens`.
        samples_per_step: images or tokens that a step sees on all ranks.
        flops_per_step: floating-point operations of a step on one device; None = unknown.
        peak_flops: the device's peak, FLOP/s; None = unknown.
        device: where the model runs.
        sampler: of the run's devices and host, running; None on the ranks that write no rows.
    """

    def __init__(
        self,
        *,
        unit: str,
        samples_per_step: int,
        flops_per_step: float | None,
        peak_flops: float | None,
        device: torch.device,
        sampler: DeviceSampler | None = None,
    ) -> None:
        self._unit = unit
        self._samples_per_step = samples_per_step
        self._flops_per_step = flops_per_step
        self._peak_flops = peak_flops
        self._device = device
        self._sampler = sampler
        self._since = time.perf_counter()
        self._steps = 0
        # The first row's steps warm up: caches, compilation, the allocator.
        self._is_warm = False
        self._total_steps = 0
        self._total_seconds = 0.0

    def step(self) -> None:
        """Count one optimizer step."""
        self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens within."""
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        self._since += time.perf_counter() - started

    def row(self) -> dict[str, float]:
        """Step time, throughput, utilisation and memory since the last row."""
        self._wait()
        now = time.perf_counter()
        seconds, steps = now - self._since, self._steps
        self._since, self._steps = now, 0
        if self._is_warm:
            self._total_steps += steps
            self._total_seconds += seconds
        self._is_warm = True
        taken = self._sampler.row() if self._sampler else {}
        return self._rates(seconds, steps) | {"memory/peak_gib": self._peak_memory() / 2**30} | taken

    def overall(self) -> dict[str, float]:
        """Rates over all rows but the first of this process."""
        return self._rates(self._total_seconds, self._total_steps)

    def _rates(self, seconds: float, steps: int) -> dict[str, float]:
        if not steps or not seconds:
            return {}
        rates = {
            "perf/step_time_ms": 1e3 * seconds / steps,
            f"perf/{self._unit}_per_second": steps * self._samples_per_step / seconds,
        }
        if self._flops_per_step and self._peak_flops:
            rates["perf/mfu"] = steps * self._flops_per_step / seconds / self._peak_flops
        return rates

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()

    def _peak_memory(self) -> int:
        """Bytes: allocated on the CUDA device, or resident in this process."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
