"""Parameters that are spread over processes (FSDP2: DTensor, Shard(0)), and the counts that these exchange.

A process sees its own rows of each tensor. Scores and masks stay where they are; only counts are
added up, so that all processes know the same threshold. One process alone is no special case.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from adamwprune.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Shards:
    """The processes over which the tensors are spread, and this one's place among them."""

    rank: int = 0
    world_size: int = 1
    group: Any = None  # torch.distributed.ProcessGroup
    device: torch.device | str = "cpu"  # where its messages must lie: NCCL takes CUDA tensors only

    @property
    def is_alone(self) -> bool:
        """Whether every tensor is whole in this process."""
        return self.world_size == 1

    def sum(self, counts: np.ndarray) -> np.ndarray:
        """The array added up over the processes, the same on each."""
        return self.add(torch.tensor(counts, device=self.device)).cpu().numpy()

    def gather(self, values: np.ndarray) -> np.ndarray:
        """(world_size, ...) the arrays of all processes, of equal shape, in the order of the shards."""
        return self.stack(torch.tensor(values, device=self.device)).cpu().numpy()

    def add(self, counts: Tensor) -> Tensor:
        """The sum over the processes, written into `counts`; no process waits for its device."""
        if not self.is_alone:
            dist.all_reduce(counts, group=self.group)
        return counts

    def stack(self, own: Tensor) -> Tensor:
        """(world_size, ...) the tensors of all processes, of equal shape, in the order of the shards."""
        if self.is_alone:
            return own.unsqueeze(0)
        everyone = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(everyone, own, group=self.group)
        return torch.stack(everyone)


ALONE = Shards()


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether it is a DTensor; asked without importing that module, which takes its time."""
    return hasattr(tensor, "placements")


def shards_of(parameters: Iterable[Tensor]) -> Shards:
    """How the parameters are spread: the same way all of them, or not at all.

    Raises:
        ConfigError: another sharding than by rows, Shard(0), over one mesh of one dimension.
    """
    layouts = {(p.device_mesh, p.placements) if is_sharded(p) else None for p in parameters}
    if layouts <= {None}:
        return ALONE
    layout = layouts.pop()
    if layouts or layout is None or layout[0].ndim != 1 or not layout[1][0].is_shard(dim=0):
        raise ConfigError(
            "pruning: parameters must all be sharded alike, by rows (FSDP2's Shard(0) on one mesh), or not "
            "at all; call fully_shard with one mesh and the default placement"
        )
    mesh = layout[0]
    device = (
        "cpu" if mesh.device_type == "cpu" else torch.device(mesh.device_type, torch.cuda.current_device())
    )
    return Shards(mesh.get_local_rank(), mesh.size(), mesh.get_group(), device)


def local(tensor: Tensor) -> Tensor:
    """This process's rows of a tensor, sharing its memory; the tensor itself where it is whole."""
    values = tensor.detach()
    return values.to_local() if is_sharded(values) else values


def share(tensor: Tensor, shards: Shards) -> Tensor:
    """This process's part of a sum over all: its rows; the first process has tensors that are not spread."""
    return local(tensor) if is_sharded(tensor) or shards.rank == 0 else local(tensor)[:0]


def local_rows(rows: int, shards: Shards) -> slice:
    """Which rows of a tensor this process has: torch's chunks, the last of which may be short or empty."""
    size = -(-rows // shards.world_size)
    start = min(shards.rank * size, rows)
    return slice(start, min(start + size, rows))


def whole(rows: Tensor, like: Tensor) -> Tensor:
    """The whole tensor from every process's rows; `like` is the parameter that they belong to."""
    if not is_sharded(like):
        return rows
    from torch.distributed.tensor import DTensor

    sharded = DTensor.from_local(
        rows, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return sharded.full_tensor()


def own_rows(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's rows of a whole tensor: the inverse of `whole`."""
    return tensor[local_rows(like.shape[0], shards_of([like]))]
