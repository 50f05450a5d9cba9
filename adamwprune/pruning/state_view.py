"""One set of names for the state of any torch optimizer.

    exp_avg           m, running mean of gradients          (SGD, Muon: momentum_buffer)
    exp_avg_sq        v, running mean of squared gradients  (RMSprop: square_avg)
    max_exp_avg_sq    largest v so far                      (AMSGrad)
    step              optimizer steps of this parameter
    lr, eps, beta1, beta2   of the parameter's group
    weight            the parameter itself

Every other state tensor goes by the optimizer's own name.
"""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from adamwprune.pruning.layout import zero_pruned_
from adamwprune.pruning.scoring import Criterion, needs

CANONICAL = {"momentum_buffer": "exp_avg", "square_avg": "exp_avg_sq"}


class StateView:
    """What a criterion can read of a parameter, whichever optimizer trains it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    @property
    def optimizer_name(self) -> str:
        """Name of the optimizer's class."""
        return type(self._optimizer).__name__

    def read(self, parameter: Parameter) -> dict[str, Tensor | float]:
        """Canonical name -> tensor or number; what the optimizer does not keep (yet) is absent."""
        group = self._group(parameter)
        values: dict[str, Any] = {key: group[key] for key in ("lr", "eps") if key in group}
        values.update({f"beta{i}": beta for i, beta in enumerate(group.get("betas", ()), start=1)})
        for name, value in self._optimizer.state.get(parameter, {}).items():
            if value is not None:
                values[CANONICAL.get(name, name)] = value
        return {**values, "weight": parameter.detach()}

    def missing(self, names: Iterable[str], parameter: Parameter) -> list[str]:
        """Those of `names` that the optimizer does not keep of a parameter now."""
        available = self.read(parameter)
        return [name for name in names if name not in available]

    def has_stepped(self, parameter: Parameter) -> bool:
        """Whether the optimizer has stepped the parameter, or has loaded its state."""
        return bool(self._optimizer.state.get(parameter))

    def twin(self, parameter: Parameter) -> Callable[[list[Parameter]], Optimizer]:
        """Make optimizers of the same class, with the settings of the parameter's group."""
        kind, settings = type(self._optimizer), self._group(parameter)
        names = inspect.signature(kind).parameters.keys() & settings.keys() - {"params"}
        return partial(kind, **{name: settings[name] for name in names})

    def warm_up(self, parameter: Parameter) -> float:
        """3 / (1 - beta2): steps until the second moment averages enough gradients to rank by it."""
        betas = self._group(parameter).get("betas", (0.0, 0.0))
        return 3.0 / (1.0 - float(betas[1]))

    def zero_pruned_(self, parameter: Parameter, mask: Tensor) -> None:
        """Zero all state tensors of the parameter's shape, whatever their names, where mask is False."""
        for value in self._optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                zero_pruned_(value, mask)

    def _group(self, parameter: Parameter) -> dict[str, Any]:
        groups = self._optimizer.param_groups
        return next((g for g in groups if any(p is parameter for p in g["params"])), self._optimizer.defaults)


def missing_state(
    criterion: Criterion,
    optimizer_factory: Callable[[list[Parameter]], Optimizer],
    *,
    device: torch.device | str = "cpu",
) -> list[str]:
    """Find what a criterion needs and an optimizer does not keep, by one real step.

    The factory gets a list with one 2 x 2 parameter; the optimizer that it makes is stepped once.
    """
    trial = Parameter(torch.ones(2, 2, device=device))
    trial.grad = torch.ones_like(trial)
    optimizer = optimizer_factory([trial])
    optimizer.step()
    return StateView(optimizer).missing(needs(criterion), trial)
