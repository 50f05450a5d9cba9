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
from adamwprune.pruning.sharding import ALONE, Shards, local, local_rows, whole


class Masks:
    """One mask for each of some parameters; all weights live at first. 1 byte a weight.

    Args:
        parameters: by name; masks sit on their devices, each process has those of its own rows.
        shards: over which processes the parameters are spread.
    """

    def __init__(self, parameters: Mapping[str, Parameter], shards: Shards = ALONE) -> None:
        self._parameters, self._shards = parameters, shards
        self._masks = {name: torch.ones_like(local(p), dtype=torch.bool) for name, p in parameters.items()}
        self.pruned = dict.fromkeys(parameters, 0)  # entries pruned in the whole tensor, by name

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def take_(self, other: "Masks") -> None:
        """Have the same masks as `other` has."""
        self._masks, self.pruned = other._masks, other.pruned

    def revive_(self) -> None:
        """Let all weights live."""
        for mask in self._masks.values():
            mask.fill_(True)
        self.pruned = dict.fromkeys(self._parameters, 0)

    def recount(self) -> None:
        """Bring `pruned` up to date after masks were written to; one read from the device."""
        kept = torch.stack([mask.count_nonzero() for mask in self._masks.values()]).cpu().numpy()
        sizes = zip(self._parameters.items(), self._shards.sum(kept).tolist(), strict=True)
        self.pruned = {name: parameter.numel() - count for (name, parameter), count in sizes}

    def count(self) -> dict[str, tuple[int, int]]:
        """(pruned, revived) by name: entries that masks prune, and those of them that are not 0."""
        return _count(self._parameters, self._masks, self._shards)

    def in_force(self) -> dict[int, Tensor]:
        """Masks that prune anything, by the id of their parameter."""
        return {id(p): self._masks[name] for name, p in self._parameters.items() if self.pruned[name]}

    def zero_weights_(self) -> None:
        """Set pruned weights to +0.0."""
        for name, parameter in self._parameters.items():
            if self.pruned[name]:
                zero_pruned_(local(parameter), self._masks[name])

    def packed(self) -> dict[str, Tensor]:
        """(ceil(N / 8),) uint8 on the CPU by name: logical order, first entry in the highest bit.

        Of whole tensors, however they are spread; every process has to call it.
        """
        return {name: pack(self._whole(name)) for name in self._masks}

    def hash(self) -> str:
        """64 bits of SHA-256 over names and masks, 16 hex digits; the same on all ranks."""
        return hash_of(self.packed())

    def state_dict(self) -> dict[str, Any]:
        """Packed masks and their hash."""
        packed = self.packed()
        return {"packed": packed, "hash": hash_of(packed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take masks over, or raise CheckpointError and change nothing.

        Refused: damaged masks, masks of other tensors, and masks whose pruned weights are not 0.
        """
        packed = state["packed"]
        sizes = {name: bits.numel() for name, bits in packed.items()}
        if sizes != {name: -(-parameter.numel() // 8) for name, parameter in self._parameters.items()}:
            raise CheckpointError("masks: names or sizes are not those of the model's prunable weights")
        if hash_of(packed) != state["hash"]:
            raise CheckpointError(f"masks: damaged, hash {hash_of(packed)} instead of {state['hash']}")
        masks = {name: self._own_rows(name, packed[name]) for name in self._masks}
        counts = _count(self._parameters, masks, self._shards)
        for name, (pruned, revived) in counts.items():
            if revived:
                raise CheckpointError(
                    f"masks: {revived:,} of {pruned:,} pruned weights of {name} are not 0; load the model "
                    "first, from the same checkpoint"
                )
        self._masks = masks
        self.pruned = {name: pruned for name, (pruned, _) in counts.items()}

    def _whole(self, name: str) -> Tensor:
        # Bytes, since not every backend sends bools.
        return whole(self._masks[name].view(torch.uint8), self._parameters[name]).bool()

    def _own_rows(self, name: str, packed: Tensor) -> Tensor:
        parameter, like = self._parameters[name], self._masks[name]
        mask = unpack(packed, parameter.shape)[local_rows(parameter.shape[0], self._shards)]
        # Copied into an empty of the same strides: the layout is part of a mask.
        return torch.empty_like(like).copy_(mask)


def pack(mask: Tensor) -> Tensor:
    """(ceil(N / 8),) uint8 on the CPU, in logical order."""
    return torch.from_numpy(np.packbits(mask.cpu().contiguous().view(-1).numpy()))


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """The bool mask that was packed, on the CPU."""
    bits = np.unpackbits(packed.numpy(), count=shape.numel()).view(bool)
    return torch.from_numpy(bits).view(shape)


def hash_of(packed: Mapping[str, Tensor]) -> str:
    """64 bits of SHA-256 over names and packed masks, 16 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(packed):
        digest.update(f"{name} {packed[name].numel()}\n".encode())
        digest.update(packed[name].numpy().data)
    return digest.hexdigest()[:16]


def _count(
    parameters: Mapping[str, Parameter], masks: Mapping[str, Tensor], shards: Shards
) -> dict[str, tuple[int, int]]:
    counts = []
    for name, parameter in parameters.items():
        pruned = ~masks[name]
        revived = (local(parameter) != 0) & pruned
        counts.append(torch.stack([pruned.count_nonzero(), revived.count_nonzero()]))
    # One read from the device for all.
    totals = shards.sum(torch.stack(counts).cpu().numpy())
    return dict(zip(parameters, map(tuple, totals.tolist()), strict=True))
