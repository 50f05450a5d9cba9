"""Token streams as samples: windows of `block_size` inputs and, one further, their targets."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamwprune.data.base import Data, Dataset, JoinedDataset
from adamwprune.data.fingerprint import fingerprint
from adamwprune.data.tokens import TokenArray, check_vocab
from adamwprune.errors import DataError


class TokenWindows:
    """Windows over one array of tokens.

    Window i starts at token `offset + i * block_size` and reads block_size + 1 tokens: inputs
    (N, T) and targets (N, T) int64, where targets[:, t] follows inputs[:, t]. Within an epoch no
    token is a target twice.

    With a seed, each epoch has its own offset in [0, block_size): a token is not always seen at
    the same position, with the same context. The number of windows stays the same, since one is
    kept in reserve for the largest offset. Without a seed the windows never move.
    """

    def __init__(self, ids: np.ndarray, block_size: int, *, seed: int | None = None) -> None:
        # A plain view: numpy would make a memmap object of every batch.
        self._ids = np.asarray(ids)
        self._block_size = block_size
        self._seed = seed
        self._count = (len(ids) - 1) // block_size - (seed is not None)
        self._reach = np.arange(block_size + 1)

    def __len__(self) -> int:
        """Windows per epoch; 0 where the array is too short."""
        return max(self._count, 0)

    def batch(self, indices: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64 (N, block_size) each; see `Dataset.batch`."""
        # numpy would take a negative index from the end, and one too large from the reserve.
        if indices.size and not (indices.min() >= 0 and indices.max() < self._count):
            raise IndexError(f"indices {indices.min()} to {indices.max()} of {self._count} windows")
        starts = self._offset(epoch) + indices * self._block_size
        windows = np.take(self._ids, starts[:, None] + self._reach).astype(np.int64)
        return torch.from_numpy(windows[:, :-1].copy()), torch.from_numpy(windows[:, 1:].copy())

    def _offset(self, epoch: int) -> int:
        if self._seed is None:
            return 0
        # A hash, for numpy's generators may yield other numbers in its next release.
        digest = hashlib.sha256(f"window offset {self._seed} {epoch}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % self._block_size


def token_data(
    *,
    name: str,
    train: Sequence[TokenArray],
    val: Sequence[TokenArray],
    vocab_size: int,
    block_size: int,
    seed: int,
    tokenizer: str,
    vocab_fix: str,
    facts: dict[str, Any],
) -> Data:
    """The `Data` of token arrays: moving windows to train on, fixed ones to validate on.

    `tokenizer` names what turned text into these ids (a hash) and is part of the fingerprint;
    `vocab_fix` is the way out that the message about a vocabulary too small offers; to `facts`,
    of the source, counts and hashes are added.

    Raises:
        DataError: the vocabulary is too small, or a part is shorter than a window.
    """
    check_vocab(vocab_size, [*train, *val], name=name, fix=vocab_fix)
    return Data(
        name=name,
        train=_windows(train, block_size, seed, f"{name}'s training part"),
        val=_windows(val, block_size, None, f"{name}'s validation part"),
        test=None,
        metric="perplexity",
        unit="tokens",
        units_per_sample=block_size,
        fingerprint=fingerprint(
            {
                "train": " ".join(array.sha256 for array in train),
                "val": " ".join(array.sha256 for array in val),
                "tokenizer": tokenizer,
            }
        ),
        facts={
            **facts,
            "tokenizer_sha256": tokenizer,
            "train_tokens": sum(len(array.ids) for array in train),
            "val_tokens": sum(len(array.ids) for array in val),
        },
    )


def _windows(arrays: Sequence[TokenArray], block_size: int, seed: int | None, what: str) -> Dataset:
    """Windows do not cross from one array into the next: at most two per array are lost by that."""
    parts = [TokenWindows(array.ids, block_size, seed=seed) for array in arrays]
    parts = [part for part in parts if len(part)]
    if not parts:
        longest = max((len(array.ids) for array in arrays), default=0)
        most = (longest - 1) // (1 if seed is None else 2)
        raise DataError(f"data.block_size={block_size}: {what} has {longest} tokens; use at most {most}")
    return parts[0] if len(parts) == 1 else JoinedDataset(parts)
