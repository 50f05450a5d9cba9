"""Whether torch's one-kernel step runs: one pass over weights, gradients and moments.

torch says so only in the first step, and then by an error; here a real step of one number asks
beforehand, so that a device or number format without such a kernel gets torch's own choice.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

Params = Iterable[dict[str, Any]] | Iterable[Tensor]
Kind = Callable[..., Optimizer]  # a class of optimizers that has fused=


def fused(optimizer: Kind, params: list[dict[str, Any]] | list[Tensor]) -> Literal[True] | None:
    """What to give as `fused=`: True where the kernel takes all parameters, None where it does not."""
    kinds = {(p.device, p.dtype, getattr(p, "device_mesh", None)) for p in parameters(params)}
    return True if all(_has_kernel(optimizer, *kind) for kind in kinds) else None


def parameters(params: Params) -> list[Tensor]:
    """The parameters of groups, or the list that they are already."""
    return [
        parameter for item in params for parameter in (item["params"] if isinstance(item, dict) else [item])
    ]


@functools.cache
def _has_kernel(optimizer: Kind, device: torch.device, dtype: torch.dtype, mesh: Any) -> bool:
    number = torch.zeros(1, device=device, dtype=dtype)
    if mesh is not None:  # FSDP's rows: torch has no such kernel of SGD
        from torch.distributed.tensor import DTensor, Shard

        number = DTensor.from_local(number, mesh, [Shard(0)], run_check=False)
    trial = Parameter(number)
    trial.grad = torch.zeros_like(trial)
    try:
        optimizer([trial], fused=True).step()
    except RuntimeError:
        return False
    return True
