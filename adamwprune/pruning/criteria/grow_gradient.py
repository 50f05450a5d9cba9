"""Growing by the gradient: which pruned weights would lower the loss fastest. For mode soft.

RigL: Evci et al., arXiv 1911.11134, section 3; there of one batch, at every update.
"""

from torch import Tensor


def grow_gradient(grad: Tensor) -> Tensor:
    """|g| of the accumulated, unscaled gradient, before it is masked."""
    return grad.abs()
