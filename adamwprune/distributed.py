"""The processes (ranks) of one run and the few things that they say to each other.

One process is no special case: every method works, and costs nothing, with a world of one.
"""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Facts of this process among its peers."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    local_world_size: int = 1  # ranks of this machine

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0: the one that writes, logs and tracks."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add `tensor` up over all ranks, in place; returns it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, value: int) -> int:
        """The largest of the ranks' values; every rank learns it at the same point."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def wait_for_all(self) -> None:
        """Until all ranks are here, or one is lost."""
        with suppress(RuntimeError):
            self.largest(0)

    def share(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def share_buffers_(self, model: nn.Module) -> None:
        """Give every rank rank 0's buffers (running means of BatchNorm)."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def joined(device_type: str, timeout_seconds: float) -> Iterator[Ranks]:
    """Join the group that the environment describes (RANK, WORLD_SIZE, ...), or be alone.

    CPU tensors travel by gloo, CUDA tensors by NCCL.
    """
    rank = int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    device = torch.device(device_type, local_rank) if device_type == "cuda" else torch.device(device_type)
    if device_type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_seconds))
    try:
        yield Ranks(rank, local_rank, world_size, device, local_world_size)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """Whether torch says that another rank has ended or does not answer; Gloo's errors are plain ones."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
