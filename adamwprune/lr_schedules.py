"""Learning-rate schedules: pure functions of the step, as factors on the base learning rate.

`schedule(step, total_steps)` is the factor for the update number `step` (0, 1, ...). Warm-up is
linear and reaches 1 after `warmup_steps`, or after the share `warmup_fraction` of the run where
that is None; the first update already has a factor above 0.
"""

import math

from adamwprune.ranges import Fraction, NonNegativeInt, UnitInterval


def cosine(
    step: int,
    total_steps: int,
    *,
    warmup_steps: NonNegativeInt | None = None,
    warmup_fraction: Fraction = 0.0,
    final_ratio: UnitInterval = 0.1,
) -> float:
    """Warm-up, then half a cosine from 1 to `final_ratio` (Loshchilov and Hutter, arXiv 1608.03983)."""
    warmup = warmup_length(total_steps, warmup_steps, warmup_fraction)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total_steps - warmup)
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def constant(
    step: int,
    total_steps: int,
    *,
    warmup_steps: NonNegativeInt | None = None,
    warmup_fraction: Fraction = 0.0,
) -> float:
    """Warm-up, then 1."""
    return min(1.0, (step + 1) / (warmup_length(total_steps, warmup_steps, warmup_fraction) + 1))


def step(
    step: int,
    total_steps: int,
    *,
    warmup_steps: NonNegativeInt | None = None,
    warmup_fraction: Fraction = 0.0,
    milestones: list[Fraction] = (0.5, 0.75),
    gamma: Fraction = 0.1,
) -> float:
    """Warm-up, then `gamma` to the number of milestones (shares of the run) that have passed."""
    warmup = warmup_length(total_steps, warmup_steps, warmup_fraction)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return gamma ** sum(step >= milestone * total_steps for milestone in milestones)


def warmup_length(total_steps: int, steps: int | None, fraction: float) -> int:
    """Optimizer steps of warm-up: `steps`, or floor(fraction * total_steps + 1/2) where that is None."""
    return math.floor(fraction * total_steps + 0.5) if steps is None else steps
