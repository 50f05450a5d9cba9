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

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from adamwprune.pruning.layout import zero_pruned_
from adamwprune.pruning.sharding import local

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
        if "applied_lr" in group:  # an optimizer with a factor of its own, such as SPAM
            values["lr"] = group["applied_lr"]
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

    def age(self, parameter: Parameter) -> float | None:
        """Steps since the parameter's moments were last reset; None where the optimizer does not count.

        The group may say so (steps_since_reset); else it is the parameter's own count of steps.
        """
        step = self._group(parameter).get("steps_since_reset")
        step = self._optimizer.state.get(parameter, {}).get("step") if step is None else step
        return None if step is None else float(step)

    def reset_every(self, parameter: Parameter) -> int | None:
        """Steps from one reset of the moments to the next, where the optimizer resets them (SPAM)."""
        return self._group(parameter).get("reset_every")

    def zero_pruned_(self, parameter: Parameter, mask: Tensor) -> None:
        """Zero all state tensors of the parameter's shape, whatever their names, where mask is False."""
        for value in self._optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.ndim and value.shape == parameter.shape:
                zero_pruned_(local(value), mask)

    def _group(self, parameter: Parameter) -> dict[str, Any]:
        groups = self._optimizer.param_groups
        return next((g for g in groups if any(p is parameter for p in g["params"])), self._optimizer.defaults)
