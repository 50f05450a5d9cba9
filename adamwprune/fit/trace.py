"""One training step of the real model on tensors without memory: what it would hold, and when.

torch's FakeTensorMode runs every operation on shapes alone. A dispatch mode beneath autograd sees each
new storage and each one that is freed, those of the backward pass too. From this list follow the moment
of the highest total and what was alive then. Nothing is assumed about the model, so a user's own is served.

What is not seen: memory that a kernel takes and returns within one call (workspaces of convolutions and
matrix products), and the allocator's rounding. memory.py has a figure for them.

The tensors are the CPU's, whose operations run everywhere. Where a GPU's kernels keep something else, the
GPU's way is followed (_GpuKernels): autocast's list of float32 operations, dropout's byte mask, attention
without a matrix of weights.
"""

import contextlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from adamwprune.training.evaluation import cross_entropy


@dataclass(frozen=True)
class Trace:
    """Bytes alive at the highest moment of forward and backward passes, by part, and the work done."""

    weights: int  # parameters and buffers
    gradients: int
    activations: int  # kept for the backward pass
    logits: int  # the model's output, and what the loss makes of it in forward and backward pass
    temporary: int  # of the backward pass
    flops: int  # floating-point operations of one micro batch, forward and backward
    recomputed: int  # of these, what the backward pass computes again (activation checkpointing)
    traffic: int  # bytes that the operations of one micro batch read and write

    @property
    def peak(self) -> int:
        """All of it together."""
        return self.weights + self.gradients + self.activations + self.logits + self.temporary


def trace(
    make_model: Callable[[], nn.Module],
    shape: Sequence[int],
    dtype: torch.dtype,
    *,
    autocast: torch.dtype | None,
    on_gpu: bool,
    micro_batches: int,
    smoothing: float = 0.0,
) -> Trace:
    """Run `micro_batches` forward and backward passes, as the loop accumulates them.

    Args:
        make_model: builds the model; called once.
        shape: of the inputs, the first dimension is the micro batch. Token ids (int64) are their own
            targets' shape; anything else has a label for each sample.
        dtype: of the inputs.
        autocast: the format of the forward pass; None = float32.
        on_gpu: whether to follow a GPU's kernels.
        micro_batches: 1, or 2 for any larger number: from the second on, gradients are there before.
        smoothing: of the labels.
    """
    record = _Record()
    with FakeTensorMode(allow_non_fake_inputs=True), record:
        model = make_model().train()
        held = [*model.parameters(), *model.buffers()]
        inputs = torch.zeros(tuple(shape), dtype=dtype)
        targets = torch.zeros(tuple(shape) if dtype is torch.int64 else shape[:1], dtype=torch.int64)
        kernels = _GpuKernels() if on_gpu else contextlib.nullcontext()
        for _ in range(micro_batches):
            with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
                record.traffic = 0
                with kernels, torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                    outputs = model(inputs)
                    made = record.key(outputs)
                    loss = cross_entropy(outputs, targets, smoothing=smoothing) / micro_batches
                forward = counter.get_total_flops()
                size = outputs.numel()
                del outputs
                loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        roles = {record.key(tensor): "weights" for tensor in held}
        roles |= {record.key(tensor): "gradients" for tensor in gradients}
        parts = record.highest(roles, made, size)
    flops = counter.get_total_flops()
    # The backward pass of a product is two products: one for each operand's gradient, at most.
    return Trace(**parts, flops=flops, recomputed=max(0, flops - 3 * forward), traffic=record.traffic)


# torch counts the operations of attention on GPUs alone. Its backward pass counts twice, as everywhere:
# that it computes the scores again is the kernel's affair.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda _, query, key, value, *__, **___: 2 * sdpa_flop_count(query, key, value)
    ),
}


@dataclass
class _Storage:
    """One piece of memory, as long as it is alive."""

    number: int  # in the order of their making
    bytes: int
    entries: int
    is_forward: bool


class _Record(TorchDispatchMode):
    """Every storage's beginning and end in order, and the bytes that operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic = 0
        self._storages: list[_Storage] = []
        self._events: list[int] = []  # n: storage n begins; ~n: it ends
        self._alive: dict[int, tuple[int, Any]] = {}  # id of the storage -> its number, a weak reference

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":  # questions to a tensor, such as on which device it is
            return out
        operands, results = _tensors((args, kwargs)), _tensors(out)
        sources = {self.key(tensor) for tensor in operands}
        is_view = {self.key(tensor) for tensor in results} <= sources and not func._schema.is_mutable
        if not is_view:
            self.traffic += sum(tensor.nbytes for tensor in (*operands, *results))
        return out

    def key(self, tensor: Tensor) -> int:
        """The number of a tensor's storage, which begins now if it is new."""
        storage = tensor.untyped_storage()
        known = self._alive.get(id(storage))
        if known is not None:
            return known[0]
        number, identity = len(self._storages), id(storage)
        is_forward = torch._C._current_graph_task_id() == -1
        entries = storage.nbytes() // tensor.element_size()
        self._storages.append(_Storage(number, storage.nbytes(), entries, is_forward))
        self._events.append(number)
        self._alive[identity] = number, weakref.ref(storage, lambda _: self._end(identity))
        return number

    def _end(self, identity: int) -> None:
        self._events.append(~self._alive.pop(identity)[0])

    def highest(self, roles: dict[int, str], output: int, output_entries: int) -> dict[str, int]:
        """Bytes by part at the moment of the highest total.

        Args:
            roles: of storages that have one, by number.
            output: number of the model's last output.
            output_entries: how many it has; what has as many, and is not older, belongs to the loss.
        """
        total, most, moment = 0, -1, 0
        for index, event in enumerate(self._events):
            total += self._storages[event].bytes if event >= 0 else -self._storages[~event].bytes
            if total > most:
                most, moment = total, index
        alive: set[int] = set()
        for event in self._events[: moment + 1]:
            alive.add(event) if event >= 0 else alive.discard(~event)
        parts = dict.fromkeys(("weights", "gradients", "activations", "logits", "temporary"), 0)
        for number in alive:
            storage = self._storages[number]
            is_logits = storage.entries == output_entries and number >= output
            own = "logits" if is_logits else "activations" if storage.is_forward else "temporary"
            parts[roles.get(number, own)] += storage.bytes
        return parts


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


# What autocast computes in float32 on CUDA, by the names of the functions (torch.amp, "CUDA Ops that can
# autocast to float32"); on the CPU the list is shorter.
_FLOAT32 = frozenset(
    [
        *("pow", "__pow__", "__rpow__", "rsqrt", "exp", "expm1", "log", "log10", "log1p", "log2"),
        *("norm", "prod", "sum", "cumsum", "cumprod", "softmax", "log_softmax", "softmin", "softplus"),
        *("layer_norm", "group_norm", "rms_norm", "renorm", "dist", "cdist", "cosine_similarity"),
        *("nll_loss", "cross_entropy", "mse_loss", "l1_loss", "smooth_l1_loss", "kl_div"),
        "binary_cross_entropy_with_logits",
    ]
)
_HALF = (torch.bfloat16, torch.float16)


class _GpuKernels(TorchFunctionMode):
    """Calls as a GPU's kernels would have them, as far as it matters to what is kept."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            kwargs["dropout_p"] = 0.0  # drawn within the kernel, and again in the backward pass
        if getattr(func, "__name__", "") in _FLOAT32 and torch.is_autocast_enabled("cpu"):
            args = tuple(_to_float32(argument) for argument in args)
        return func(*args, **kwargs)


def _to_float32(argument: Any) -> Any:
    is_half = isinstance(argument, Tensor) and argument.dtype in _HALF
    return argument.float() if is_half else argument


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout that keeps one byte an entry."""
    return torch.native_dropout(input, p, training)[0] if training and p else input
