"""A small model whose weights, gradients and optimizer state are given, whole or spread by FSDP2.

Nothing is trained: what decides about masks is the same, bit for bit, on any number of ranks.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adamwprune.pruning.pruner import Pruner
from adamwprune.pruning.schedules import linear

# Rows of the prunable tensors: none is a multiple of 4 but the first, and one of them is a single row.
UNEVEN = [(8, 12), (10, 8), (7, 10), (1, 7), (9, 1)]
# Rows of which each of 2 or 4 ranks has a multiple of 4; inputs in multiples of 4.
EVEN = [(16, 12), (32, 16), (16, 32)]


class Layers(nn.Module):
    """Linear layers of given shapes, a convolution between them, and a head that stays dense."""

    def __init__(self, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        layers = [nn.Linear(columns, rows) for rows, columns in shapes]
        layers.insert(1, nn.Conv2d(4, shapes[0][0], 3))
        self.layers = nn.ModuleList([nn.Conv2d(1, 4, 3), *layers, nn.Linear(shapes[-1][0], 3)])


FILLS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda t: t,
    "half zeros": lambda t: t * (torch.rand(t.shape) < 0.5),
    "all equal": lambda t: torch.full_like(t, 0.25),
    "few values": lambda t: (2 * t).round(),
}


def build(
    shapes: list[tuple[int, int]],
    fill: str,
    seed: int,
    dtype: torch.dtype = torch.float32,
    spread_as: str = "all",
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model and an AdamW that has a state; spread over the ranks, if there are any.

    Moments of a tenth of the weights are zero: no gradient ever reached them. `spread_as` says what is
    spread: all, prunable (the layers without the head), some (not all of what is prunable), or none.
    """
    torch.manual_seed(seed)
    model = Layers(shapes).to(dtype)
    whole = {
        name: [
            FILLS[fill](torch.randn(p.shape)).to(dtype),
            *(FILLS[fill](torch.rand(p.shape)).abs() * (torch.rand(p.shape) < 0.9) for _ in range(2)),
        ]
        for name, p in model.named_parameters()
    }
    if dist.is_initialized():
        from torch.distributed.fsdp import fully_shard

        layers = {"all": model.layers, "prunable": model.layers[1:-1], "some": model.layers[2:-1], "none": []}
        for layer in layers[spread_as]:
            fully_shard(layer)
        if spread_as == "all":
            fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.0))
    for name, parameter in model.named_parameters():
        weight, exp_avg, exp_avg_sq = (spread(tensor, parameter) for tensor in whole[name])
        with torch.no_grad():
            parameter.copy_(weight)
        optimizer.state[parameter] = {"step": torch.tensor(9.0), "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    return model, optimizer


def on_ranks(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function(*arguments)` as a member of the process group; for run_ranks."""
    dist.init_process_group("gloo")
    try:
        return function(*arguments)
    finally:
        dist.destroy_process_group()


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor as FSDP2 spreads `like`: torch.chunk along the rows; as it is where that is whole."""
    if not hasattr(like, "placements"):
        return tensor
    from torch.distributed.tensor import DTensor

    chunks = tensor.chunk(dist.get_world_size())
    own = chunks[dist.get_rank()] if dist.get_rank() < len(chunks) else tensor[:0]
    return DTensor.from_local(
        own.clone(), like.device_mesh, like.placements, shape=tensor.shape, stride=tensor.stride()
    )


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor."""
    return tensor.detach().full_tensor() if hasattr(tensor, "placements") else tensor.detach()


STEPS = range(6)


@dataclass(frozen=True)
class Case:
    """What is pruned, and how."""

    shapes: list[tuple[int, int]]
    fill: str
    parts: dict[str, Any]  # of the pruner
    target: float = 0.9
    initial: float = 0.0
    dtype: torch.dtype = torch.float32
    seed: int = 3

    def pruner(self, **layout: str) -> Pruner:
        """A pruner of a new model; updates follow steps 3, 4 and 5, and 0 if it starts sparse."""
        model, optimizer = build(self.shapes, self.fill, self.seed, self.dtype, **layout)
        return Pruner(
            model,
            optimizer,
            schedule=linear,
            initial_sparsity=self.initial,
            target_sparsity=self.target,
            start_step=3,
            end_step=5,
            update_every=1,
            **self.parts,
        )

    def go(self, pruner: Pruner, steps: Iterable[int] = STEPS) -> list[str]:
        """Steps in which weights and gradients change; the records of the mask updates."""
        records = []
        for step in steps:
            generator = torch.Generator().manual_seed(100 * self.seed + step)
            for parameter in pruner.model.parameters():
                grad = torch.randn(parameter.shape, generator=generator).to(self.dtype)
                parameter.grad = spread(grad, parameter)
                with torch.no_grad():
                    parameter.mul_(1.0 + parameter.grad.abs())
            if step:
                pruner.mask_grads_()
            if (update := pruner.after_step(step)) is not None:
                pruner.verify(step)
                event = {key: value for key, value in update.event().items() if not key.startswith("perf/")}
                records.append(repr(event))  # NaN equals itself there
        return records

    def facts(self) -> dict[str, Any]:
        """What must not depend on the number of ranks, after all steps."""
        pruner = self.pruner()
        return facts(pruner, self.go(pruner))

    def stopped(self) -> tuple[bytes, bytes]:
        """(weights, state of the pruner) before the last step, as files; every rank has to call it."""
        pruner = self.pruner()
        self.go(pruner, STEPS[:-1])
        weights = {name: gathered(p) for name, p in pruner.model.named_parameters()}
        return _saved(weights), _saved(pruner.state_dict())

    def resumed(self, weights: bytes, state: bytes) -> dict[str, Any]:
        """The same facts from what `stopped` gave, whatever number of ranks that was on."""
        pruner = self.pruner()
        whole = torch.load(io.BytesIO(weights))
        with torch.no_grad():
            for name, parameter in pruner.model.named_parameters():
                parameter.copy_(spread(whole[name], parameter))
        pruner.load_state_dict(torch.load(io.BytesIO(state)))
        return facts(pruner, self.go(pruner, STEPS[-1:]))


def _saved(values: Any) -> bytes:
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


def facts(pruner: Pruner, records: list[str]) -> dict[str, Any]:
    """Whatever must not depend on the number of ranks."""
    state = pruner.state_dict()
    weights = hashlib.sha256()
    for parameter in pruner.model.parameters():
        weights.update(gathered(parameter).float().numpy().tobytes())
    return {
        "records": records,
        "hash": pruner.mask_hash(),
        "masks": {name: bits.numpy().tobytes() for name, bits in state["masks"]["packed"].items()},
        "pruned": dict(pruner.masks.pruned),
        "sparsity": pruner.sparsity(),
        "layer sparsity": pruner.layer_sparsity(),
        "counts": pruner.counts(),
        "weights": weights.hexdigest(),
        "sums": {total: {n: t.numpy().tobytes() for n, t in s.items()} for total, s in state["sums"].items()},
    }


class Messages(TorchDispatchMode):
    """Notes the bytes that each collective gets, whichever way it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace in ("c10d", "_c10d_functional"):
            self.bytes.append(max(t.numel() * t.element_size() for t in _tensors(args)))
        return function(*args, **(kwargs or {}))


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


@contextlib.contextmanager
def small_chunks(chunk: int) -> Iterator[None]:
    """Makes small tensors take the paths of large ones."""
    from unittest.mock import patch

    from adamwprune.pruning import scoring
    from adamwprune.pruning.selection import streaming

    with patch.object(scoring, "CHUNK", chunk), patch.object(streaming, "CHUNK", chunk):
        yield
