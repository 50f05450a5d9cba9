"""AdamW's state and step for the optimizers of our own, by torch's fused kernel.

A cohort is those tensors of a group that have taken equally many steps since their moments were
last restarted. They share the bias correction, so one kernel call steps them all, and the steps
are plain numbers: nothing is read back from the device.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

Group = dict[str, Any]
# What torch's foreach functions take and give.
Tensors = list[Tensor] | tuple[Tensor, ...]


# Elements that a step's temporaries have at a time: 1 MiB of float32 stays in a CPU's cache, where
# whole tensors took three times as long; elsewhere, enough to keep the device busy.
CPU_PIECE, DEVICE_PIECE = 1 << 18, 1 << 26


@dataclass(frozen=True)
class Cohort:
    """Parameters, their gradients and states in the same order, and the steps that each has taken.

    The gradients belong to the caller: nothing here writes to them.
    """

    step: int
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)

    def add(self, parameter: Tensor, grad: Tensor, state: dict[str, Any]) -> None:
        """Append one parameter."""
        self.params.append(parameter)
        self.grads.append(grad)
        self.states.append(state)

    def get(self, name: str) -> list[Tensor]:
        """One state tensor of each parameter; none if the optimizer does not keep it."""
        return [state[name] for state in self.states if name in state]

    def pieces(self) -> Iterator["Cohort"]:
        """The same elements in turn: parts of large tensors as views, small tensors together."""
        piece, elements = Cohort(self.step), 0
        for parameter, grad, state in zip(self.params, self.grads, self.states, strict=True):
            alike = {name: value for name, value in state.items() if is_like(value, parameter)}
            for part, part_of_grad, *parts in split(parameter, grad, *alike.values()):
                piece.add(part, part_of_grad, dict(zip(alike, parts, strict=True)))
                elements += part.numel()
                if elements >= piece_size(parameter.device):
                    yield piece
                    piece, elements = Cohort(self.step), 0
        if piece.params:
            yield piece


def is_like(value: Any, parameter: Tensor) -> bool:
    """Whether it is a tensor with one entry for each of the parameter's."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def piece_size(device: torch.device) -> int:
    """How many elements make a piece."""
    return CPU_PIECE if device.type == "cpu" else DEVICE_PIECE


def split(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape in parallel pieces, as flat views; whole if they are small or not contiguous."""
    size = piece_size(tensors[0].device)
    is_plain = all(type(t) in (Tensor, Parameter) and t.is_contiguous() for t in tensors)
    if tensors[0].numel() <= size or not is_plain:
        return iter([tensors])
    return zip(*(torch.split(tensor.view(-1), size) for tensor in tensors), strict=True)


def cohorts(
    optimizer: Optimizer, group: Group, new_state: Callable[[Tensor], dict[str, Any]]
) -> list[Cohort]:
    """Count a step of every parameter that has a gradient, and return them by equal counts."""
    found: dict[tuple[int, torch.device, torch.dtype], Cohort] = {}
    for parameter in group["params"]:
        if parameter.grad is None:
            continue
        state = optimizer.state[parameter]
        if not state:
            state.update(new_state(parameter))
        state["step"] += 1
        key = (state["step"], parameter.device, parameter.dtype)
        found.setdefault(key, Cohort(state["step"])).add(parameter, parameter.grad, state)
    return list(found.values())


def moments(parameter: Tensor) -> dict[str, Any]:
    """The state of a parameter before its first step, by torch's names."""
    return {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


def moments_and_maximum(parameter: Tensor) -> dict[str, Any]:
    """The same for AMSGrad."""
    return {**moments(parameter), "max_exp_avg_sq": torch.zeros_like(parameter)}


def adamw_(
    cohort: Cohort,
    grads: Tensors,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One step as torch.optim.AdamW(fused=True) takes it; AMSGrad where the states keep the maximum."""
    maxima = cohort.get("max_exp_avg_sq")
    # Filled on the device: a tensor made from a number on the host would wait for it.
    step = torch.full((), cohort.step, dtype=torch.float32, device=cohort.params[0].device)
    torch._fused_adamw_(
        cohort.params,
        grads,
        cohort.get("exp_avg"),
        cohort.get("exp_avg_sq"),
        maxima,
        [step] * len(cohort.params),
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=bool(maxima),
        maximize=False,
    )


def begin_step(group: Group) -> int | None:
    """Count a step of the whole group; return the steps since its last reset, None before the first.

    0 is the step of the reset itself. The counts are kept in the group, so that a checkpoint holds
    them: `steps`, and `steps_since_reset`, the number of gradients that the moments average after
    this step.
    """
    group["steps"] = step = group.get("steps", 0) + 1
    every = group["reset_every"]
    since = step % every if every is not None and step >= every else None
    group["steps_since_reset"] = step if since is None else since + 1
    return since


def restart_moments_(optimizer: Optimizer, group: Group, **counts: int) -> None:
    """Set both moments of the whole group to 0, and the counts that are named, such as step=0."""
    states = [state for parameter in group["params"] if (state := optimizer.state.get(parameter))]
    for name in ("exp_avg", "exp_avg_sq") if states else ():
        torch._foreach_zero_([state[name] for state in states])
    for state in states:
        state.update(counts)


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """The loss that a step returns, as torch's optimizers do."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
