"""Taylor: the first-order change of the loss when a weight is removed, by the mean gradient.

Molchanov et al., arXiv 1611.06440, with Adam's running mean m in place of one gradient: signs cancel
before the absolute value is taken. Of one gradient at initialisation it is SNIP (Lee et al., arXiv
1810.02340). In a pilot it was below magnitude.
"""

from torch import Tensor


def taylor_ema(weight: Tensor, exp_avg: Tensor) -> Tensor:
    """|w * m|; any optimizer that keeps a running mean of gradients."""
    return (weight * exp_avg).abs()
