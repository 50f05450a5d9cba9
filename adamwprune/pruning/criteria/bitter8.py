"""bitter8: bitter3 with the bias of the mean gradient corrected.

The correction is one factor for a whole tensor. It ranks as bitter3 unless tensors that compete differ in
step, as after a reset of their state, or in beta1. Until 15 November 2025 the ancestor had |m_hat| + 1e-8
inside the root, then |w| * (v + 1e-5)^(1/4) in float16, which is magnitude. One formula here for ever:
|w| * sqrt(|m_hat|), m_hat = m / (1 - beta1^n).
"""

from torch import Tensor

from adamwprune.pruning.rounding import debiased, sqrt


def bitter8(weight: Tensor, exp_avg: Tensor, step: Tensor | float, beta1: float) -> Tensor:
    """|w| * sqrt(|m_hat|), by the steps since the tensor's state was last reset."""
    return weight.abs() * sqrt(debiased(exp_avg, beta1, step).abs())
