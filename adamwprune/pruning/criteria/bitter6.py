"""bitter6: bitter3, times the signal-to-noise ratio of the gradient.

The ancestor wrote bitter3 * sqrt(m^2 / (v + 1e-8)). One formula here for ever: |w| * |m|^1.5 / sqrt(v).
"""

from torch import Tensor

from adamwprune.pruning.rounding import sqrt


def bitter6(weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> Tensor:
    """|w| * |m|^1.5 / sqrt(v), as |w| * sqrt(|m|) * (|m| / sqrt(v))."""
    drift = exp_avg.abs()
    return weight.abs() * sqrt(drift) * (drift / sqrt(exp_avg_sq))
