"""Token streams before they are cut into windows: their hash, their vocabulary."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from adamwprune.errors import DataError


@dataclass(frozen=True)
class TokenArray:
    """Token ids in a row, in memory or mapped from a file, with what is known about them."""

    ids: np.ndarray = field(repr=False)  # uint16 (n,)
    sha256: str  # of the ids as little-endian uint16
    max_id: int

    @classmethod
    def of(cls, ids: np.ndarray) -> "TokenArray":
        """Reads all ids once."""
        return cls(ids, stream_sha256(ids), int(ids.max(initial=0)))


def stream_sha256(ids: np.ndarray) -> str:
    """SHA-256 of ids as little-endian uint16, the same on every machine."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<u2")).hexdigest()


def occurring(ids: np.ndarray) -> np.ndarray:
    """The different ids, ascending: the map that `remap` renumbers by."""
    return np.flatnonzero(np.bincount(ids)).astype(np.uint16)


def remap(ids: np.ndarray, occurring_ids: np.ndarray) -> np.ndarray:
    """Ids renumbered without gaps: each becomes its place in the map.

    A small corpus uses a fraction of GPT-2's 50,257 tokens, and the rest of the vocabulary is
    most of a small model's work: 12,030 rows instead of 50,257 make its head 4.2 times cheaper.
    """
    return np.searchsorted(occurring_ids, ids).astype(np.uint16)


def check_vocab(vocab_size: int, arrays: Sequence[TokenArray], *, name: str, fix: str) -> None:
    """A vocabulary may be larger than the data needs (padding), never smaller.

    Raises:
        DataError: an id has no row in the embedding; on a device that is a late, obscure crash.
    """
    largest = max(array.max_id for array in arrays)
    if largest >= vocab_size:
        raise DataError(f"data.vocab_size={vocab_size}: {name} contains token id {largest}; use {fix}")
