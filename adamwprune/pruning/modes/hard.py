"""Hard: what is pruned stays exactly 0 for ever, and no step passes over the weights for it.

An update sets the weight and all moments of newly pruned entries to 0; from then on their
gradients are 0 before clipping. So they stay +0.0 under every optimizer that works entry by
entry, with weight decay and AMSGrad, for-loop, foreach and fused.
"""

from torch import Tensor

from adamwprune.pruning.modes.base import Mode


class Hard(Mode):
    """Zero weights and state once, then only gradients."""

    name = "hard"

    def gradient_masks(self) -> dict[int, Tensor]:
        """Those that prune anything."""
        return self.masks.in_force()

    def apply_(self) -> None:
        """Zero weights and, since moments would move them back within a few steps, all state."""
        self.masks.zero_weights_()
        for name, parameter in self.parameters.items():
            if self.masks.pruned[name]:
                self.state.zero_pruned_(parameter, self.masks[name])
