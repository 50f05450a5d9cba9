"""How several devices share one model: DDP holds it on each, FSDP2 spreads it over them.

Under FSDP each rank keeps its own rows of every parameter, gradient and optimizer state (torch's
DTensor, Shard(0)). What is gathered together is a unit: a block that the network repeats. Its
weights are whole from the unit's forward to its end, and again in its backward; the rest of the
network is one more unit, with all that is tied.

Weights travel, and gradients are added up, in fp32 whatever the autocast: so FSDP computes what
DDP computes, in another order of the same sums. Bfloat16 would save half of the gather's bytes and
round norms, too. Gradients are exchanged with each micro batch, where DDP waits for the last: they
would have to be held whole until then.

Source: Zhao et al., arXiv 2304.11277; torch.distributed.fsdp.fully_shard.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adamwprune.config import HardwareConfig, Parallel
from adamwprune.distributed import Ranks
from adamwprune.pruning.sharding import own_rows


def place(model: nn.Module, hardware: HardwareConfig, ranks: Ranks) -> nn.Module:
    """Bring the model to this rank's device; under FSDP unit by unit, and only this rank's rows of it.

    Every rank must have built equal weights. One rank alone has nothing to spread.
    """
    if hardware.parallel is Parallel.ddp or ranks.world_size == 1:
        return model.to(ranks.device)
    # Imported here, and below: they take more than half a second.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    for unit in (*units(model), model):
        fully_shard(unit, mesh=mesh)
    model.register_forward_hook(_spread_again)
    return model


def wrap(model: nn.Module, hardware: HardwareConfig, ranks: Ranks) -> nn.Module:
    """What is trained: the model compiled, if that is wanted, and under DDP wrapped."""
    forward = torch.compile(model) if hardware.compile else model
    if ranks.world_size == 1 or _is_sharded(model):
        return forward
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(forward, device_ids=devices, gradient_as_bucket_view=True)


def gradient_sync(forward: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """The context of one micro batch: DDP's gradients travel with the last one of a step only."""
    if is_last or not isinstance(forward, DistributedDataParallel):
        return nullcontext()
    return forward.no_sync()


def class_of(model: nn.Module) -> type[nn.Module]:
    """The class that the user chose: fully_shard puts one of its own in front."""
    if not _is_sharded(model):
        return type(model)
    from torch.distributed.fsdp import FSDPModule

    return next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))


def units(model: nn.Module) -> list[nn.Module]:
    """The blocks that a network repeats: the outermost of them, from the input on.

    These are the items of each ModuleList, and of each Sequential whose items with parameters are all
    of one class (a ResNet's stages). A block that shares a parameter with the rest of the network is
    none: the rest gathers it.
    """
    uses = Counter(id(parameter) for parameter in _parameters(model))
    return [
        block
        for block in _repeated(model)
        if all(uses[key] == n for key, n in Counter(map(id, _parameters(block))).items())
    ]


def _repeated(module: nn.Module) -> Iterator[nn.Module]:
    blocks = [child for child in module.children() if any(True for _ in child.parameters())]
    is_alike = len(blocks) > 1 and len(set(map(type, blocks))) == 1
    if isinstance(module, nn.ModuleList) or (isinstance(module, nn.Sequential) and is_alike):
        yield from blocks
        return
    for child in blocks:
        yield from _repeated(child)


def _parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Each parameter as often as it is used."""
    return (parameter for _, parameter in module.named_parameters(remove_duplicate=False))


def _spread_again(model: Any, _: Any, __: Any) -> None:
    """After a pass without gradients no backward spreads the last unit's weights again."""
    if not torch.is_grad_enabled():
        model.reshard()


# ------------------------------------------------------------------------- whole and spread values


def gathered(value: Any) -> Any:
    """A nest of values with each spread tensor whole on the CPU of rank 0, and empty on the others.

    Tensor by tensor, so that no device has to hold more than one; every rank has to call it.
    """
    if isinstance(value, dict):
        return {key: gathered(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(gathered, value))
    if is_spread(value):
        whole = value.detach().full_tensor()
        return whole.cpu() if value.device_mesh.get_local_rank() == 0 else torch.empty(0)
    return value


def spread(whole: Tensor, like: Tensor) -> Tensor:
    """A copy, on the device of `like`, of this rank's part of `whole`; of all of it where `like` is whole."""
    if not is_spread(like):
        return whole.to(like.device, copy=True)
    from torch.distributed.tensor import DTensor

    rows = own_rows(whole, like).to(like.device, copy=True)
    return DTensor.from_local(
        rows, like.device_mesh, like.placements, shape=like.shape, stride=like.stride(), run_check=False
    )


def is_spread(value: Any) -> bool:
    """Whether it is a tensor of which each rank has its own rows."""
    return isinstance(value, Tensor) and hasattr(value, "placements")


def _is_sharded(model: nn.Module) -> bool:
    return any(map(is_spread, model.parameters()))
