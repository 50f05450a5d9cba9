"""bitter9: bitter3 plus a tenth of the direction of Adam's next step. For the record only.

The sign is as wrong as in bitter5. The two terms scale differently with the gradient, so that another loss
scale or clip gives other masks: not for comparisons. The ancestor's last code has bitter8, compiled, under
this name. One formula here for ever: |w| * sqrt(|m|) + 0.1 * sign(w) * m / sqrt(v).
"""

from torch import Tensor

from adamwprune.pruning.rounding import sqrt


def bitter9(weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> Tensor:
    """|w| * sqrt(|m|) + 0.1 * sign(w) * m / sqrt(v), signed."""
    direction = weight.sign() * (exp_avg / sqrt(exp_avg_sq))
    return weight.abs() * sqrt(exp_avg.abs()) + 0.1 * direction
