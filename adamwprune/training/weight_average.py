"""An exponential moving average of the weights: what is evaluated, tested and exported in their place.

    average <- d * average + (1 - d) * weights     after each step, d = min(decay, (1 + step) / (10 + step))

The ramp of d lets the average leave the initial weights behind within a few steps. Running means of
BatchNorm are averaged like weights, whole-number buffers copied. Weights that masks prune are zero in the
average too, from the update that pruned them. Training itself never sees it: 4 bytes a parameter, one
pass a step.

Source: Polyak and Juditsky, SIAM J. Control Optim. 30 (1992); the ramp is that of TensorFlow's
ExponentialMovingAverage (num_updates).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adamwprune.errors import CheckpointError
from adamwprune.pruning.sharding import local
from adamwprune.training.parallel import gathered, spread


class WeightAverage:
    """The average of one model's parameters and buffers.

    Args:
        model: whose weights; the average starts as a copy of them.
        decay: d, in [0, 1); 0 is the weights themselves.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        # named_* give a tied weight once.
        self._live = dict(model.named_parameters()) | dict(model.named_buffers())
        self._average = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after `step` completed optimizer steps into the average."""
        decay = min(self._decay, (1 + step) / (10 + step))
        pairs = [(local(self._average[name]), local(tensor)) for name, tensor in self._live.items()]
        averages, weights = zip(*(pair for pair in pairs if pair[1].is_floating_point()), strict=True)
        torch._foreach_lerp_(averages, weights, 1.0 - decay)
        for average, buffer in pairs:
            if not buffer.is_floating_point():
                average.copy_(buffer)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the average; after, its own weights again, to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, tensor in self._live.items():
            weights = local(tensor).clone()
            local(tensor).copy_(local(self._average[name]))
            local(self._average[name]).copy_(weights)

    def state_dict(self) -> dict[str, Tensor]:
        """The average by name, whole on the CPU of rank 0; every rank has to call it."""
        return {name: gathered(tensor).cpu() for name, tensor in self._average.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the average of a checkpoint.

        Raises:
            CheckpointError: it is of other weights.
        """
        if differing := self._average.keys() ^ state.keys():
            raise CheckpointError(
                f"the checkpoint's average of the weights differs in {min(differing)}; the run that saved it "
                "had another model or trainer.ema_decay=null"
            )
        self._average = {name: spread(state[name], tensor) for name, tensor in self._live.items()}
