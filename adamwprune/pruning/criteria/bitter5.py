"""bitter5: the direction of Adam's next step, plus a tenth of the magnitude. For the record only.

Its comment says that weights on their way to zero go first. The sign is the reverse: Adam moves a weight
along -m, so sign(w) * m > 0 means that it shrinks, and such weights score high and are kept. `escape`
is what it meant to be. The ancestor had sqrt(v) + 1e-8; one formula here for ever:
sign(w) * m / sqrt(v) + 0.1 * |w|, sign included. It is negative where a weight grows.
"""

from torch import Tensor

from adamwprune.pruning.rounding import sqrt


def bitter5(weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> Tensor:
    """sign(w) * m / sqrt(v) + 0.1 * |w|, signed."""
    return weight.sign() * (exp_avg / sqrt(exp_avg_sq)) + 0.1 * weight.abs()
