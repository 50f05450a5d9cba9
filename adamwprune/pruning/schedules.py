"""When to prune, and how much: shapes of the ramp, its window, and the plan they make.

A schedule maps progress to the share of the way from the initial to the target sparsity.
Progress is 0 at start_step and 1 from end_step on; below 0 the window has not begun.
This module knows no torch, so a configuration is checked with it before torch is imported.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from adamwprune.errors import ConfigError

Schedule = Callable[[float], float]


def zhu_gupta(progress: float) -> float:
    """1 - (1 - p)^3: fast first, slow last (Zhu and Gupta, arXiv 1710.01878)."""
    return 1.0 - (1.0 - _inside(progress)) ** 3


def linear(progress: float) -> float:
    """p: the same number of weights at every update."""
    return _inside(progress)


def ease_in_cubic(progress: float) -> float:
    """p^3: slow first, fast last; what the ancestor called cubic."""
    return _inside(progress) ** 3


def oneshot(progress: float) -> float:
    """All at once, at start_step."""
    return float(progress >= 0.0)


def constant(progress: float) -> float:
    """The target from step 0 on, before any training."""
    return 1.0


def _inside(progress: float) -> float:
    return min(max(progress, 0.0), 1.0)


def window(
    total_steps: int,
    *,
    start_fraction: float = 0.25,
    end_fraction: float = 0.75,
    start_step: int | None = None,
    end_step: int | None = None,
) -> tuple[int, int]:
    """First and last update in optimizer steps; a step that is given wins over its fraction.

    A fraction f means step floor(f * total_steps + 1/2). Raises ConfigError where the window
    does not lie within the run.
    """
    start = start_step if start_step is not None else math.floor(start_fraction * total_steps + 0.5)
    end = end_step if end_step is not None else math.floor(end_fraction * total_steps + 0.5)
    if not 0 <= start <= end <= total_steps:
        raise ConfigError(
            f"pruning.start_step={start}, pruning.end_step={end}: must be 0 <= start_step <= end_step "
            f"<= {total_steps}, the steps of the run; set both, or start_fraction and end_fraction"
        )
    return start, end


def default_update_every(start_step: int, end_step: int) -> int:
    """Steps between updates: 100, or fewer so that the ramp has 50 updates."""
    return max(1, min(100, (end_step - start_step) // 50))


@dataclass(frozen=True)
class Plan:
    """Sparsity at every step of a run: a schedule between two sparsities within a window.

    s(t) = initial_sparsity + f * (target_sparsity - initial_sparsity), f = schedule(progress of t), at the
    updates start_step, +update_every, ..., and always end_step; sparsity holds in between. In floating
    point, too, it never falls and ends at the target: a weight pruned too many could not return.
    A sparsity that is positive before the window is reached at step 0.
    """

    schedule: Schedule
    target_sparsity: float
    initial_sparsity: float = 0.0
    start_step: int = 0
    end_step: int = 0
    update_every: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.target_sparsity < 1.0:
            raise ConfigError(
                f"pruning.target_sparsity={self.target_sparsity}: must be in [0, 1); "
                "use 0.95 to keep 5 %, 0.5 to keep half"
            )
        if not 0.0 <= self.initial_sparsity <= self.target_sparsity:
            raise ConfigError(
                f"pruning.initial_sparsity={self.initial_sparsity}: must be in [0, "
                f"{self.target_sparsity}], at most pruning.target_sparsity; use 0 to start dense"
            )
        if not 0 <= self.start_step <= self.end_step:
            raise ConfigError(
                f"pruning.start_step={self.start_step}: must be in [0, {self.end_step}], at most "
                "pruning.end_step"
            )
        if self.update_every < 1:
            raise ConfigError(f"pruning.update_every={self.update_every}: must be >= 1 optimizer steps")
        self._check_shape()

    def _check_shape(self) -> None:
        shape = [self.schedule(i / 64) for i in range(65)]
        if shape[0] < 0.0 or shape != sorted(shape) or shape[-1] != 1.0:
            raise ConfigError(
                "pruning.schedule: must rise from at least 0 to exactly 1 between progress 0 and 1, "
                "and never fall: pruned weights do not return"
            )
        length = self.end_step - self.start_step
        if self.target_sparsity and 0.0 < shape[32] < 1.0 and self.update_every >= length:
            raise ConfigError(
                f"pruning.update_every={self.update_every}: the ramp from step {self.start_step} to "
                f"{self.end_step} has no update inside; must be < {length}, with a window of 2 steps or "
                "more; or choose pruning/schedule=oneshot"
            )

    def progress(self, step: int) -> float:
        """0 at start_step, 1 from end_step on, below 0 before the window."""
        if step >= self.end_step:
            return 1.0
        return (step - self.start_step) / max(1, self.end_step - self.start_step)

    def sparsity(self, step: int) -> float:
        """s(t) of an update that follows step `step`."""
        share = self.schedule(self.progress(step))
        reached = self.initial_sparsity + share * (self.target_sparsity - self.initial_sparsity)
        return self.target_sparsity if share == 1.0 else min(reached, self.target_sparsity)

    def updates(self) -> list[int]:
        """The steps that masks are updated after; 0 is before the first optimizer step."""
        ramp = [*range(self.start_step, self.end_step, self.update_every), self.end_step]
        return [0, *ramp] if ramp[0] > 0 and self.sparsity(0) > 0.0 else ramp

    def latest_update(self, step: int) -> int | None:
        """The last update due by `step`; None before the first."""
        if step >= self.end_step:
            return self.end_step
        if step >= self.start_step:
            return step - (step - self.start_step) % self.update_every
        return 0 if self.sparsity(0) > 0.0 else None

    def sparsity_in_force(self, step: int) -> float:
        """Sparsity between updates: that of the latest one."""
        update = self.latest_update(step)
        return 0.0 if update is None else self.sparsity(update)

    def mean_density(self, total_steps: int) -> float:
        """Mean share of weights that are not pruned, over the steps 1..total_steps of a run.

        Loss follows the average parameter count, so schedules are compared at equal mean density
        (Jin et al., ICLR 2025).
        """
        if total_steps < 1:
            raise ConfigError(f"total_steps={total_steps}: must be >= 1")
        ends = [min(step, total_steps) for step in [*self.updates()[1:], total_steps]]
        starts = [min(step, total_steps) for step in self.updates()]
        held = zip(starts, ends, strict=True)
        return 1.0 - math.fsum(self.sparsity(a) * (b - a) for a, b in held if b > a) / total_steps
