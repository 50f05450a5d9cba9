"""What a criterion can read, by the names of its positional parameters.

    weight, grad        the parameter and its gradient
    exp_avg, exp_avg_sq, max_exp_avg_sq, step, lr, eps, beta1, beta2
                        of the optimizer, whichever it is (state_view.py), and any other state of its own
    index               int64 position of each entry in the whole tensor
    salt                a number made of the parameter's name
    movement            sum of -g * w over all steps so far, kept by the pruner
    shuffled_exp_avg_sq exp_avg_sq, dealt anew among the live entries of its tensor: a control

Criteria get slices of the tensors in logical order, whatever their order in memory, so a source is a
tensor of the parameter's shape, a number, or a function of a slice.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from adamwprune.errors import CheckpointError, ConfigError
from adamwprune.pruning.sharding import Shards, local, local_rows, own_rows, whole
from adamwprune.pruning.state_view import StateView

Source = Tensor | float | Callable[[slice], Tensor]

# Kept by the pruner, one float32 tensor a weight: name -> what a step adds, from weight and gradient.
ACCUMULATED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    # Sanh et al., arXiv 2005.07683, equation 5: grows as the weight leaves 0.
    "movement": lambda total, weight, grad: total.addcmul_(weight, grad, value=-1.0),
}


class Sources:
    """The readable values of some parameters.

    Args:
        wanted: names that will be read.
        parameters: by name.
        state: of their optimizer.
        shards: over which processes they are spread.
    """

    def __init__(
        self, wanted: Sequence[str], parameters: Mapping[str, Parameter], state: StateView, shards: Shards
    ) -> None:
        if "shuffled_exp_avg_sq" in wanted and not shards.is_alone:
            raise ConfigError(
                "pruning.criterion: shuffles exp_avg_sq within whole tensors, but these are sharded; "
                "use another criterion, or one process"
            )
        self._parameters, self._state, self._shards = parameters, state, shards
        self._accumulated = {
            total: {name: torch.zeros_like(local(p), dtype=torch.float32) for name, p in parameters.items()}
            for total in ACCUMULATED
            if total in wanted
        }

    @torch.no_grad()
    def accumulate_(self, weights: Callable[[str], Tensor], stepped: Iterable[Tensor] = ()) -> None:
        """Add what a step contributes; call it once a step, with that step's gradients.

        A step whose gradients are not all finite adds nothing: a GradScaler skips it.

        Args:
            weights: the values of a parameter, by its name.
            stepped: all that the optimizer steps, if there is more than the parameters.
        """
        if not self._accumulated or not self._are_finite(stepped or self._parameters.values()):
            return
        for total, tensors in self._accumulated.items():
            for name, parameter in self._parameters.items():
                if parameter.grad is not None:
                    ACCUMULATED[total](tensors[name], weights(name).float(), local(parameter.grad).float())

    def _are_finite(self, parameters: Iterable[Tensor]) -> bool:
        """Whether all gradients are, on all processes; one read from the device."""
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        highest = [torch.linalg.vector_norm(g, torch.inf).float() for g in gradients if g.numel()]
        unbounded = int((~torch.stack(highest).isfinite()).count_nonzero()) if highest else 0
        return not self._shards.sum(np.array([unbounded]))[0]

    def missing(self, name: str, wanted: Iterable[str]) -> list[str]:
        """The wanted names that a parameter does not have now."""
        parameter, wanted = self._parameters[name], list(wanted)
        without_gradient = ["grad"] if "grad" in wanted and parameter.grad is None else []
        return without_gradient + self._state.missing(of_optimizer(wanted), parameter)

    def read(self, name: str, wanted: Sequence[str], weight: Tensor, mask: Tensor) -> dict[str, Source]:
        """Sources of one parameter, in the order wanted.

        Args:
            name: of the parameter.
            wanted: which sources.
            weight: this process's rows, as the mode has them.
            mask: of the same rows; it says what lives.
        """
        parameter = self._parameters[name]
        values = self._state.read(parameter)
        if parameter.grad is not None:
            values["grad"] = parameter.grad
        sources: dict[str, Source] = {key: _local(value, parameter.shape) for key, value in values.items()}
        sources |= {total: tensors[name] for total, tensors in self._accumulated.items()}
        sources |= {"weight": weight.detach(), "salt": zlib.crc32(name.encode())}
        first_row = local_rows(parameter.shape[0], self._shards).start
        offset = first_row * math.prod(parameter.shape[1:])
        sources["index"] = lambda part: _index(part, mask) + offset
        if "shuffled_exp_avg_sq" in wanted:
            moments = sources["exp_avg_sq"]
            assert isinstance(moments, Tensor)
            sources["shuffled_exp_avg_sq"] = _shuffled(moments, mask)
        return {want: sources[want] for want in wanted}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The sums that are kept, on the CPU. Of whole tensors; every process has to call it."""
        return {
            total: {name: whole(tensor, self._parameters[name]).cpu() for name, tensor in tensors.items()}
            for total, tensors in self._accumulated.items()
        }

    def check(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Raise CheckpointError where sums are of other criteria or shapes."""
        found = {total: {name: t.shape for name, t in tensors.items()} for total, tensors in state.items()}
        shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        if found != dict.fromkeys(self._accumulated, shapes):
            raise CheckpointError("pruning: the checkpoint keeps other sums, or of other shapes")

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take sums over that have been checked: this process's rows of them."""
        for total, tensors in state.items():
            for name, tensor in tensors.items():
                self._accumulated[total][name].copy_(own_rows(tensor, self._parameters[name]))


def of_optimizer(wanted: Iterable[str]) -> list[str]:
    """What an optimizer has to keep for the wanted sources."""
    ours = {"index", "salt", "grad", *ACCUMULATED}
    return [want.removeprefix("shuffled_") for want in wanted if want not in ours]


def cut(source: Source, part: slice) -> Tensor | float:
    """What a criterion gets of a slice: tensors in float32, numbers and scalars (step) as they are."""
    if isinstance(source, Tensor):
        return entries(source, part).float() if source.dim() else source
    return source(part) if callable(source) else source


def entries(tensor: Tensor, part: slice) -> Tensor:
    """A slice of the tensor's entries in logical order: a view if they follow each other in memory.

    Else a copy of no more than the rows that it touches, so that channels_last weights, too, are read
    a chunk at a time.
    """
    if tensor.is_contiguous():
        return tensor.view(-1)[part]
    start, stop, step = part.indices(tensor.numel())
    if step != 1:
        places = torch.arange(start, stop, step, device=tensor.device)
        return tensor[torch.unravel_index(places, tensor.shape)]
    width = math.prod(tensor.shape[1:])
    first = start // width
    rows = tensor[first : -(-stop // width)].reshape(-1)
    return rows[start - first * width : stop - first * width]


def _local(value: Tensor | float, shape: torch.Size) -> Tensor | float:
    """This process's rows of a state tensor of the weight's shape; anything else as it is."""
    if isinstance(value, Tensor) and value.ndim and value.shape == shape:
        return local(value)
    return value


def _index(part: slice, mask: Tensor) -> Tensor:
    """Positions of the entries of a slice."""
    return torch.arange(*part.indices(mask.numel()), device=mask.device)


def _shuffled(values: Tensor, mask: Tensor) -> Tensor:
    """The values of live entries dealt anew among them, in an order that depends on their places alone."""
    live = mask.reshape(-1).nonzero().squeeze(1)
    # A fixed bijection of 32-bit numbers (an odd multiplier and a shift) in place of a random generator.
    scattered = (live * 2654435761) % 2**32
    scattered = ((scattered ^ (scattered >> 15)) * 2246822519) % 2**32
    dealt = values.detach().float().flatten().clone()
    dealt[live] = dealt[live[torch.argsort(scattered, stable=True)]]
    return dealt.view(values.shape)
