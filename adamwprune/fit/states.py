"""What the optimizer and the pruner keep of each weight, asked of themselves.

The optimizer steps twins: parameters of the same number of dimensions, whose sizes are small and all
different (2, 3, 5, ...). A size in the shape of a state says to which of the parameter's dimensions it
belongs, so that moments, momenta, factors by row and column, and Shampoo's squares are all counted alike.
The pruner prunes a network of two layers, once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from adamwprune.pruning import Pruner
from adamwprune.pruning.prunable import find_prunable

_SIZES = (2, 3, 5, 7, 11, 13)  # of a twin's dimensions
_WIDTH = 64  # of the layers that the pruner prunes


def optimizer_bytes(
    groups: Sequence[Mapping[str, Any]], make_optimizer: Callable[[list[dict[str, Any]]], Optimizer]
) -> int:
    """Bytes of all states after the first step.

    Args:
        groups: those of param_groups.py, of the real model; their parameters are only looked at.
        make_optimizer: the optimizer of such groups.
    """
    twins = [{**group, "params": [_twin(parameter) for parameter in group["params"]]} for group in groups]
    originals = {
        twin: parameter
        for group, small in zip(groups, twins, strict=True)
        for twin, parameter in zip(small["params"], group["params"], strict=True)
    }
    optimizer = make_optimizer(twins)
    optimizer.step()
    return sum(
        _full_bytes(value, originals[twin])
        for twin, state in optimizer.state.items()
        for value in state.values()
        if isinstance(value, Tensor)
    )


def _twin(parameter: Tensor) -> Parameter:
    """A small parameter with a gradient; a dimension of size 1 stays one."""
    shape = [1 if size == 1 else small for size, small in zip(parameter.shape, _SIZES, strict=False)]
    twin = Parameter(torch.full(shape, 0.5))
    twin.grad = torch.full(shape, 0.5)
    return twin


def _full_bytes(state: Tensor, parameter: Tensor) -> int:
    """Bytes that a twin's state has where the parameter is of full size."""
    full = dict(zip(_SIZES, parameter.shape, strict=False))
    return math.prod(full.get(size, size) for size in state.shape) * state.element_size()


def pruning_bytes_per_weight(
    make_optimizer: Callable[[list[dict[str, Any]]], Optimizer], parts: Mapping[str, Any]
) -> float:
    """Bytes for each prunable weight once masks are in force: masks, sums of scores, dense copies.

    Args:
        make_optimizer: the run's.
        parts: criterion, schedule, selection and mode; the scope keeps nothing.
    """
    model = nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH))
    optimizer = make_optimizer([{"params": list(model.parameters()), "name": "all", "weight_decay": 0.0}])
    # So long a run that no moment is too young to prune by.
    pruner = Pruner.over(10**6, model, optimizer, **parts, target_sparsity=0.5, include=["*"])
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    for state in optimizer.state.values():  # a pruner waits for moments that average enough gradients
        state.update({key: value + 10**6 for key, value in state.items() if key == "step"})
    pruner.after_step(pruner.plan.end_step)
    own = _storages(pruner, stop=(model, optimizer, *model.parameters()))
    return sum(storage.nbytes() for storage in own) / pruner.prunable_count


def _storages(root: Any, stop: Sequence[Any]) -> list[torch.UntypedStorage]:
    """The storages of all tensors that an object of ours holds, but those of what is in `stop`."""
    known = {id(item) for item in stop}
    found: dict[int, torch.UntypedStorage] = {}
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if id(item) in known:
            continue
        known.add(id(item))
        if isinstance(item, Tensor):
            found[item.untyped_storage().data_ptr()] = item.untyped_storage()
        elif isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, list | tuple | set):
            waiting += item
        elif type(item).__module__.startswith("adamwprune."):
            waiting += vars(item).values() if hasattr(item, "__dict__") else ()
    return list(found.values())


def prunable_weights(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> int:
    """How many weights a pruning has masks for."""
    prunable, _ = find_prunable(model, include=include, exclude=exclude)
    return sum(parameter.numel() for parameter in prunable.values())
