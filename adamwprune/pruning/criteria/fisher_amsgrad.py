"""Fisher with AMSGrad's maximum: a weight is kept for the largest curvature that it ever showed.

The largest v so far never forgets an early spike. Whether that helps is open.
AMSGrad: Reddi et al., ICLR 2018, arXiv 1904.09237. The score itself: fisher.py.
"""

from torch import Tensor

from adamwprune.pruning.rounding import sqrt


def fisher_amsgrad(weight: Tensor, max_exp_avg_sq: Tensor) -> Tensor:
    """|w| * sqrt(v_max); needs an optimizer with amsgrad."""
    return weight.abs() * sqrt(max_exp_avg_sq)
