"""Fisher: what the loss is expected to rise by when a weight is removed, on a diagonal.

Removing w costs w^2 h / 2 at a minimum (optimal brain damage, LeCun et al., NeurIPS 1989). With the
empirical Fisher E[g^2] for the curvature h, and v for E[g^2], |w| * sqrt(v) has the same ranking,
and is the root mean square of the first-order change g * w too. It is `state` at q = 1/2.

Prior art: adam_fisher of google-research/jaxpruner (p^2 * nu, 2023). That v serves as a Fisher
diagonal: Li et al., arXiv 2507.18807 (Squisher).
"""

from torch import Tensor

from adamwprune.pruning.rounding import sqrt


def fisher(weight: Tensor, exp_avg_sq: Tensor) -> Tensor:
    """|w| * sqrt(v); never w^2 * v, which underflows in float32."""
    return weight.abs() * sqrt(exp_avg_sq)
