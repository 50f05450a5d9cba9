"""Signal to noise: magnitude, weighed by how surely the weight is going somewhere.

|m| / sqrt(v) is near 1 where all gradients agree and near 0 where they cancel. Dettmers and
Zettlemoyer, arXiv 1907.04840, grow weights by momentum; their code has m / (sqrt(v) + 1e-8).
"""

from torch import Tensor

from adamwprune.pruning.rounding import sqrt


def snr(weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> Tensor:
    """|w| * (|m| / sqrt(v)); the ratio first, for it has no unit."""
    return weight.abs() * (exp_avg.abs() / sqrt(exp_avg_sq))
