"""What an optimizer does to a weight, found out by letting it step a small one.

No list of optimizers could be complete: a user's own is tried in the same way as torch's. The trial
is of an optimizer made for it, and draws none of the run's random numbers.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from adamwprune.pruning.layout import zero_pruned_
from adamwprune.pruning.state_view import StateView

Factory = Callable[[list[Parameter]], Optimizer]


def missing_state(
    names: Iterable[str], make_optimizer: Factory, *, device: torch.device | str = "cpu"
) -> list[str]:
    """Those of `names` that the optimizer does not keep of a parameter after a step."""
    trial = Parameter(torch.ones(2, 2, device=device))
    with _own_random_numbers(device):
        optimizer = make_optimizer([trial])
        _step(optimizer, trial, torch.ones_like(trial))
    return StateView(optimizer).missing(names, trial)


def revives_pruned(make_optimizer: Factory, *, device: torch.device | str = "cpu") -> bool:
    """Whether weights leave 0 although they, their gradients and their state are 0: entries are mixed."""
    trial = Parameter(torch.linspace(-1.0, 1.0, 16, device=device).reshape(4, 4))
    mask = torch.arange(16, device=device).reshape(4, 4) % 3 != 0
    gradient = torch.linspace(2.0, -1.0, 16, device=device).reshape(4, 4).square()
    with _own_random_numbers(device):
        optimizer = make_optimizer([trial])
        _step(optimizer, trial, gradient)
        zero_pruned_(trial, mask)
        StateView(optimizer).zero_pruned_(trial, mask)
        for _ in range(3):
            _step(optimizer, trial, gradient.masked_fill(~mask, 0.0))
    return bool((trial[~mask] != 0.0).any())


def _step(optimizer: Optimizer, parameter: Parameter, gradient: torch.Tensor) -> None:
    parameter.grad = gradient.clone()
    optimizer.step()


def _own_random_numbers(device: torch.device | str) -> AbstractContextManager[None]:
    """An optimizer that adds noise must not move the run's generators on."""
    device = torch.device(device)
    accelerators = [] if device.type == "cpu" else [device]
    return torch.random.fork_rng(accelerators, device_type=device.type)
