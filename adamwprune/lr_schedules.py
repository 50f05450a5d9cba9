"""Learning-rate schedules: pure functions of the step, as factors on the base learning rate.

`schedule(step, total_steps)` is the factor for the update number `step` (0, 1, ...). Warm-up is
linear and reaches 1 at step `warmup_steps`; the first update already has a factor above 0.
"""

import math

from adamwprune.ranges import Fraction, NonNegativeInt, UnitInterval


def cosine(
    step: int, total_steps: int, *, warmup_steps: NonNegativeInt = 0, final_ratio: UnitInterval = 0.1
) -> float:
    """Warm-up, then half a cosine from 1 to `final_ratio` (Loshchilov and Hutter, arXiv 1608.03983)."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def constant(step: int, total_steps: int, *, warmup_steps: NonNegativeInt = 0) -> float:
    """Warm-up, then 1."""
    return min(1.0, (step + 1) / (warmup_steps + 1))


def step(
    step: int,
    total_steps: int,
    *,
    warmup_steps: NonNegativeInt = 0,
    milestones: list[Fraction] = (0.5, 0.75),
    gamma: Fraction = 0.1,
) -> float:
    """Warm-up, then `gamma` to the number of milestones (shares of the run) that have passed."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return gamma ** sum(step >= milestone * total_steps for milestone in milestones)
