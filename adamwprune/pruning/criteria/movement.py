"""Movement: how far training has pushed a weight away from zero, signed.

S = sum over steps of -g * w (Sanh et al., arXiv 2005.07683, section 3), added up by the pruner before
each optimizer step, 4 bytes a weight. A weight that shrinks loses score and is pruned, however large
it still is. Under SGD S = (w_T^2 - w_0^2) / (2 lr) - (lr / 2) * sum of g^2: from random initial values
that ranks much as magnitude does, so this is a criterion for fine-tuning. There the paper learns S
through the mask, with the dense gradient: BERT on SQuAD with 3 % kept, F1 78.0, magnitude 59.6
(huggingface/block_movement_pruning). Mode ste is nearest to that; in mode hard masks stay.

The ancestor's "movement" was w * (w - w_0), another quantity.
"""

from torch import Tensor


def movement(movement: Tensor) -> Tensor:
    """S itself, the sum of -g * w that the pruner keeps."""
    return movement
