"""Lookahead: magnitude after the next step of Adam, without weight decay. A control.

One step changes hardly any ranking, so it must behave like magnitude; if it does not, something else
is wrong. Adam's update: Kingma and Ba, arXiv 1412.6980, algorithm 1. The eps is the optimizer's own,
part of the step that is predicted; it decides nothing between weights of ordinary size.
"""

from torch import Tensor

from adamwprune.pruning.rounding import debiased, sqrt


def lookahead(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor | float,
    lr: float,
    eps: float,
    beta1: float,
    beta2: float,
) -> Tensor:
    """|w - lr * (m_hat / (sqrt(v_hat) + eps))| by the parameter's own step, lr, eps and betas."""
    deviation = sqrt(debiased(exp_avg_sq, beta2, step))
    return (weight - lr * (debiased(exp_avg, beta1, step) / (deviation + eps))).abs()
