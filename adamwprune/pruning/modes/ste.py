"""Straight-through: the model computes with masked weights, all weights go on learning.

    forward    w * M, the parameter between steps
    gradient   dL/d(w * M) for every weight, pruned ones too, plus decay * (1 - M) * w
    update     on the dense weights, which the pruner keeps from the first mask on: 4 bytes a weight

Masks are chosen anew at every update. What is evaluated, saved and exported is w * M.

Sources: straight-through pruning, Bengio et al., arXiv 1308.3432, section 4; SR-STE and its decay, Zhou
et al., arXiv 2102.04010, section 4.2; with criterion `movement`, Sanh et al., arXiv 2005.07683.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from adamwprune.errors import CheckpointError
from adamwprune.pruning.masks import Masks
from adamwprune.pruning.modes.base import Mode, Ranking, refuse_closure
from adamwprune.pruning.sharding import local, own_rows, whole
from adamwprune.ranges import NonNegative


class StraightThrough(Mode):
    """Swap the dense weights in while the optimizer steps.

    Args:
        parameters, masks, optimizer: see Mode.
        decay: pulls masked weights to 0 (lambda_W of SR-STE; 2e-4 there); 0 is the plain estimator.
    """

    name = "ste"
    revives = True
    restarts = True
    sets_zeros = True

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        masks: Masks,
        optimizer: Optimizer,
        *,
        decay: NonNegative = 2e-4,
    ) -> None:
        super().__init__(parameters, masks, optimizer)
        self._decay = decay
        self._dense: dict[str, Tensor] = {}
        self._surround_steps_of(optimizer)

    def weight(self, name: str) -> Tensor:
        """The dense weight."""
        return self._dense[name] if self._dense else super().weight(name)

    @torch.no_grad()
    def edit_grads_(self) -> None:
        """Add the decay of masked weights, decay * (1 - M) * w."""
        for name, dense in self._dense.items() if self._decay else ():
            gradient = self.parameters[name].grad
            if gradient is not None:
                local(gradient).addcmul_(dense, ~self.masks[name], value=self._decay)

    def choose_(self, ranking: Ranking, sparsity: float, progress: float) -> Sequence[SupportsFloat]:
        """All weights compete again."""
        self.masks.revive_()
        return ranking.prune_(sparsity)

    @torch.no_grad()
    def apply_(self) -> None:
        """Give the model the masked weights."""
        if not self._dense:
            self._dense = {name: local(p).clone() for name, p in self.parameters.items()}
        for name, dense in self._dense.items():
            local(self.parameters[name]).copy_(dense)
        self.masks.zero_weights_()

    def _surround_steps_of(self, optimizer: Optimizer) -> None:
        """Dense weights in before each step, masked ones after it.

        Around the step itself, not in edit_grads_ and after_step: a step that is skipped (fp16 overflow)
        must leave the masked weights in place. The optimizer does not keep a pruner that is gone.
        """
        this = weakref.proxy(self)
        handles = [
            optimizer.register_step_pre_hook(lambda *call: this._reveal_(*call)),
            optimizer.register_step_post_hook(lambda *_: this._conceal_()),
        ]
        for handle in handles:
            weakref.finalize(self, handle.remove)

    @torch.no_grad()
    def _reveal_(self, _: Optimizer, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        if self._dense:
            refuse_closure("pruning.mode=ste", arguments, keywords)
        for name, dense in self._dense.items():
            local(self.parameters[name]).copy_(dense)

    @torch.no_grad()
    def _conceal_(self) -> None:
        for name, dense in self._dense.items():
            dense.copy_(local(self.parameters[name]))
        self.masks.zero_weights_()

    def state_dict(self) -> dict[str, Any]:
        """The dense weights, on the CPU. Of whole tensors; every process has to call it."""
        dense = {name: whole(tensor, self.parameters[name]).cpu() for name, tensor in self._dense.items()}
        return {"dense": dense}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the dense weights over. Raises CheckpointError where they are of other tensors."""
        dense = state.get("dense")
        shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        if dense is None or (dense and {name: t.shape for name, t in dense.items()} != shapes):
            raise CheckpointError("pruning: the checkpoint has no dense weights of these tensors (mode ste)")
        self._dense = {
            name: torch.empty_like(local(self.parameters[name])).copy_(own_rows(t, self.parameters[name]))
            for name, t in dense.items()
        }
