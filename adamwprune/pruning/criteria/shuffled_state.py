"""Shuffled state: `state` with v dealt out anew among the live entries of each tensor. A control.

The weights and the values of v are the same, but v is that of another weight. What `state` gains over
this, v knows about single weights; what this gains over magnitude comes from elsewhere, such as from
differences between tensors in scope global.
"""

from typing import Annotated

from torch import Tensor

from adamwprune.pruning.rounding import power
from adamwprune.ranges import Range


def shuffled_state(
    weight: Tensor, shuffled_exp_avg_sq: Tensor, *, q: Annotated[float, Range(least=0, most=0.5)] = 0.25
) -> Tensor:
    """|w| * v_shuffled^q, by a permutation of v that the pruner makes; see state.py."""
    return weight.abs() * power(shuffled_exp_avg_sq, q)
