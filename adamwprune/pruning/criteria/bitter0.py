"""bitter0, the ancestor's first score: w^2 weighed by the signal-to-noise ratio of the gradient.

The ancestor's code had sqrt(v) + 1e-8 below the line; its README and its page on GPT-2 give two other
formulas. One formula here for ever, without eps: w^2 * |m| / sqrt(v). Published: 51.51 perplexity
on GPT-2 124M at 50 % against 42.82 of SPAM with magnitude, one seed, under other betas and weight decay.
"""

from torch import Tensor

from adamwprune.pruning.rounding import sqrt


def bitter0(weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> Tensor:
    """w^2 * |m| / sqrt(v); the ratio first, and |w| twice, so that nothing underflows early."""
    distance = weight.abs()
    return distance * (exp_avg.abs() / sqrt(exp_avg_sq)) * distance
