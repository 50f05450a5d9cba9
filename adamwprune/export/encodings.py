"""How a tensor with zeros is written in less room: three encodings, each exact to the bit.

    bitmask   a bit for each entry, and the entries that are not zero
              ceil(N / 8) + 4 nnz bytes in float32: fewer than 4 N above 3.1 % zeros
    csr       compressed sparse rows of the 2-D view (out_features, all else), int32 indices
              4 (rows + 1) + 8 nnz bytes in float32: fewer above 50 % zeros
    2:4       of each four neighbours along in_features, or input channels, two values and their places in
              two bits each: 2.125 N bytes in float32, 53 %; only where no four hold three non-zeros

A zero is an entry without a set bit, +0.0. So -0.0 and NaN are values like others, and nothing is
rounded, in any dtype. Entries are taken in logical order, whatever the strides.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Parts = dict[str, Tensor]


class Unsuitable(Exception):
    """A tensor has no such encoding; the message says why."""


@dataclass(frozen=True)
class Encoding:
    """A way to write a tensor as `parts`, and back.

    Attributes:
        parts: names of the tensors that `encode` gives; "values" has the dtype of the whole.
        encode: raises Unsuitable.
        decode: from parts and shape to a contiguous tensor on the CPU.
    """

    name: str
    parts: tuple[str, ...]
    encode: Callable[[Tensor], Parts]
    decode: Callable[[Mapping[str, Tensor], Sequence[int]], Tensor]


# -------------------------------------------------------------------------- entries as integers

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def raw(tensor: Tensor) -> np.ndarray:
    """The bytes of the entries, in logical order; a view where possible."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _words(tensor: Tensor) -> np.ndarray:
    """(N,) unsigned integers with the bits of the entries, in logical order."""
    if tensor.element_size() not in _WORDS:
        raise Unsuitable(f"entries of {tensor.element_size()} bytes")
    return raw(tensor).view(_WORDS[tensor.element_size()])


def _tensor(entries: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The tensor with these bits; shape as that of `entries`."""
    flat = torch.from_numpy(np.ascontiguousarray(entries).reshape(-1).view(np.uint8))
    return flat.view(dtype).reshape(entries.shape)


def _zeros(values: Tensor, size: int) -> np.ndarray:
    return np.zeros(size, _WORDS[values.element_size()])


# ------------------------------------------------------------------------------------- bitmask


def _encode_bitmask(tensor: Tensor) -> Parts:
    entries = _words(tensor)
    is_value = entries != 0
    # The first entry in the highest bit, as np.packbits has it and as masks are kept in checkpoints.
    return {
        "bits": torch.from_numpy(np.packbits(is_value)),
        "values": _tensor(entries[is_value], tensor.dtype),
    }


def _decode_bitmask(parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
    values = parts["values"]
    is_value = np.unpackbits(parts["bits"].numpy(), count=math.prod(shape)).view(bool)
    entries = _zeros(values, is_value.size)
    entries[is_value] = _words(values)
    return _tensor(entries.reshape(shape), values.dtype)


# ----------------------------------------------------------------------------------------- csr


def _encode_csr(tensor: Tensor) -> Parts:
    if tensor.dim() < 2 or tensor.numel() >= 2**31:
        raise Unsuitable("no matrix that int32 counts")
    rows = _words(tensor).reshape(tensor.shape[0], -1)
    is_value = rows != 0
    ends = np.cumsum(is_value.sum(axis=1))
    return {
        "crow": torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
        "col": torch.from_numpy(np.nonzero(is_value)[1].astype(np.int32)),
        "values": _tensor(rows[is_value], tensor.dtype),
    }


def _decode_csr(parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
    values, crow = parts["values"], parts["crow"].numpy()
    row = np.repeat(np.arange(shape[0]), np.diff(crow))
    entries = _zeros(values, math.prod(shape))
    entries[row * math.prod(shape[1:]) + parts["col"].numpy()] = _words(values)
    return _tensor(entries.reshape(shape), values.dtype)


# ----------------------------------------------------------------------------------------- 2:4

# Which two of four places to write, ascending, by the 4 bits that say where values are (the first place
# in the lowest): those with a value, then the first without one. Three and four values have no row.
_PLACES = np.array(
    [sorted(sorted(range(4), key=lambda i, kept=kept: not kept >> i & 1)[:2]) for kept in range(16)]
)
# Two bits for each place in a byte, which takes the four places of two groups.
_SHIFTS = np.array([0, 2, 4, 6], np.uint8)


def _encode_two_of_four(tensor: Tensor) -> Parts:
    if tensor.dim() < 2:
        raise Unsuitable("no matrix")
    if tensor.shape[1] % 4:
        raise Unsuitable(f"{tensor.shape[1]} inputs, no multiple of 4")
    groups = _words(tensor.movedim(1, -1)).reshape(-1, 4)
    is_value = groups != 0
    if full := np.count_nonzero(is_value.sum(axis=1) > 2):
        raise Unsuitable(f"{full:,} of {len(groups):,} groups of 4 have 3 or more non-zeros")
    places = _PLACES[np.packbits(is_value, axis=1, bitorder="little")[:, 0]]  # (groups, 2)
    return {
        "places": torch.from_numpy(_pack_places(places)),
        "values": _tensor(np.take_along_axis(groups, places, axis=1), tensor.dtype),
    }


def _decode_two_of_four(parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
    values = parts["values"]
    groups = _zeros(values, math.prod(shape)).reshape(-1, 4)
    places = _unpack_places(parts["places"].numpy(), len(groups))
    np.put_along_axis(groups, places, _words(values).reshape(-1, 2), axis=1)
    moved = (shape[0], *shape[2:], shape[1])
    return _tensor(groups.reshape(moved), values.dtype).movedim(-1, 1).contiguous()


def _pack_places(places: np.ndarray) -> np.ndarray:
    """(ceil(groups / 2),) uint8 of (groups, 2) places, the first in the lowest bits."""
    padded = np.zeros((-(-len(places) // 2), 4), np.uint8)
    padded.reshape(-1, 2)[: len(places)] = places
    return (padded << _SHIFTS).sum(axis=1, dtype=np.uint8)


def _unpack_places(packed: np.ndarray, groups: int) -> np.ndarray:
    return (packed[:, None] >> _SHIFTS & 3).reshape(-1, 2)[:groups].astype(np.intp)


ENCODINGS = {
    encoding.name: encoding
    for encoding in (
        Encoding("bitmask", ("bits", "values"), _encode_bitmask, _decode_bitmask),
        Encoding("csr", ("crow", "col", "values"), _encode_csr, _decode_csr),
        Encoding("2:4", ("places", "values"), _encode_two_of_four, _decode_two_of_four),
    )
}
