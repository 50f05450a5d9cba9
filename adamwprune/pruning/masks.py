"""Masks: which weights live. Bool tensors in the layout of the weights, True = kept.

They are state of the pruner, never buffers of the model: dense and pruned models have equal
state_dict keys, DDP does not send them, and no optimizer casts them. In checkpoints they are
packed to bits.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from adamwprune.errors import CheckpointError
from adamwprune.pruning.layout import zero_pruned_


class Masks:
    """One mask for each of some parameters; all weights live at first. 1 byte a weight.

    Args:
        parameters: by name; masks sit on their devices.
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self._parameters = parameters
        self._masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()}
        self.pruned = dict.fromkeys(parameters, 0)  # entries pruned, by name

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def recount(self) -> None:
        """Bring `pruned` up to date after masks were written to; one read from the device."""
        kept = torch.stack([mask.count_nonzero() for mask in self._masks.values()]).tolist()
        sizes = zip(self._masks.items(), kept, strict=True)
        self.pruned = {name: mask.numel() - count for (name, mask), count in sizes}

    def count(self) -> dict[str, tuple[int, int]]:
        """(pruned, revived) by name: entries that masks prune, and those of them that are not 0."""
        return _count(self._parameters, self._masks)

    def zero_grads_(self) -> None:
        """Zero the gradients of pruned weights."""
        for name, parameter in self._parameters.items():
            if self.pruned[name] and parameter.grad is not None:
                zero_pruned_(parameter.grad, self._masks[name])

    def packed(self) -> dict[str, Tensor]:
        """(ceil(N / 8),) uint8 on the CPU by name: logical order, first entry in the highest bit."""
        return {name: _pack(mask) for name, mask in self._masks.items()}

    def hash(self) -> str:
        """64 bits of SHA-256 over names and masks, 16 hex digits; the same on all ranks."""
        return _hash(self.packed())

    def state_dict(self) -> dict[str, Any]:
        """Packed masks and their hash."""
        packed = self.packed()
        return {"packed": packed, "hash": _hash(packed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take masks over, or raise CheckpointError and change nothing.

        Refused: damaged masks, masks of other tensors, and masks whose pruned weights are not 0.
        """
        packed = state["packed"]
        sizes = {name: bits.numel() for name, bits in packed.items()}
        if sizes != {name: -(-mask.numel() // 8) for name, mask in self._masks.items()}:
            raise CheckpointError("masks: names or sizes are not those of the model's prunable weights")
        if _hash(packed) != state["hash"]:
            raise CheckpointError(f"masks: damaged, hash {_hash(packed)} instead of {state['hash']}")
        masks = {name: _unpack(packed[name], like=mask) for name, mask in self._masks.items()}
        counts = _count(self._parameters, masks)
        for name, (pruned, revived) in counts.items():
            if revived:
                raise CheckpointError(
                    f"masks: {revived:,} of {pruned:,} pruned weights of {name} are not 0; load the model "
                    "first, from the same checkpoint"
                )
        self._masks = masks
        self.pruned = {name: pruned for name, (pruned, _) in counts.items()}


def _hash(packed: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(packed):
        digest.update(f"{name} {packed[name].numel()}\n".encode())
        digest.update(packed[name].numpy().data)
    return digest.hexdigest()[:16]


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().contiguous().view(-1).numpy()))


def _unpack(packed: Tensor, *, like: Tensor) -> Tensor:
    bits = np.unpackbits(packed.numpy(), count=like.numel()).view(bool)
    # Copied into an empty of the same strides: the layout is part of a mask.
    return torch.empty_like(like).copy_(torch.from_numpy(bits).view(like.shape))


def _count(parameters: Mapping[str, Parameter], masks: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    counts = []
    for name, parameter in parameters.items():
        pruned = ~masks[name]
        revived = (parameter.detach() != 0) & pruned
        counts.append(torch.stack([pruned.count_nonzero(), revived.count_nonzero()]))
    # One read from the device for all.
    return dict(zip(parameters, map(tuple, torch.stack(counts).tolist()), strict=True))
