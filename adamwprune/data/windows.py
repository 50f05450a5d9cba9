"""Token streams as samples: windows of `block_size` inputs and, one further, their targets."""

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamwprune.data.base import Data, Dataset
from adamwprune.data.fingerprint import fingerprint
from adamwprune.data.tokenizer import Tokenizer
from adamwprune.data.tokens import TokenArray, check_vocab
from adamwprune.errors import DataError

log = logging.getLogger(__name__)

# Less than this part of the tokens in windows, because of many files, is told.
LEAST_USED = 0.99


class TokenWindows:
    """Windows over arrays of tokens, one after the other; none crosses from an array into the next.

    Within an array, window i starts at token `offset + i * block_size` and reads block_size + 1 tokens:
    inputs (N, T) and targets (N, T) int64, where targets[:, t] follows inputs[:, t]. Within an epoch no
    token is a target twice.

    With a seed, each epoch has its own offset in [0, block_size): a token is not always seen at
    the same position, with the same context. The number of windows stays the same, since one of each
    array is kept in reserve for the largest offset. Without a seed the windows never move.
    """

    def __init__(self, arrays: Sequence[np.ndarray], block_size: int, *, seed: int | None = None) -> None:
        # Plain views: numpy would make a memmap object of every window.
        self._arrays = [np.asarray(ids) for ids in arrays]
        self._block_size = block_size
        self._seed = seed
        counts = [max((len(ids) - 1) // block_size - (seed is not None), 0) for ids in arrays]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._begins = self._ends - counts

    def __len__(self) -> int:
        """Windows per epoch; 0 where all arrays are too short."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def batch(self, indices: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64 (N, block_size) each; see `Dataset.batch`."""
        # numpy would take a negative index from the end.
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"indices {indices.min()} to {indices.max()} of {len(self)} windows")
        owners = np.searchsorted(self._ends, indices, side="right")
        starts = self._offset(epoch) + (indices - self._begins[owners]) * self._block_size
        windows = np.empty((len(indices), self._block_size + 1), dtype=np.int64)
        for window, owner, start in zip(windows, owners.tolist(), starts.tolist(), strict=True):
            window[:] = self._arrays[owner][start : start + self._block_size + 1]
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
    tokenizer: Tokenizer | None,
    vocab_fix: str,
    facts: dict[str, Any],
) -> Data:
    """The `Data` of token arrays: moving windows to train on, fixed ones to validate on.

    `tokenizer` is what turned text into these ids, None where they never were text; its hash is part
    of the fingerprint. `vocab_fix` is the way out that the message about a vocabulary too small offers.
    To `facts`, of the source, counts and hashes are added.

    Raises:
        DataError: the vocabulary is too small, or a part is shorter than a window.
    """
    check_vocab(vocab_size, [*train, *val], name=name, fix=vocab_fix)
    train_windows = _windows(train, block_size, seed, f"{name}'s training part")
    val_windows = _windows(val, block_size, None, f"{name}'s validation part")
    tokenizer_sha256 = "none" if tokenizer is None else tokenizer.sha256
    return Data(
        name=name,
        train=train_windows,
        val=val_windows,
        test=None,
        metric="perplexity",
        unit="tokens",
        units_per_sample=block_size,
        fingerprint=fingerprint(
            {
                "train": " ".join(array.sha256 for array in train),
                "val": " ".join(array.sha256 for array in val),
                "tokenizer": tokenizer_sha256,
            }
        ),
        facts={
            **facts,
            "tokenizer_sha256": tokenizer_sha256,
            "train_tokens": sum(len(array.ids) for array in train),
            "val_tokens": sum(len(array.ids) for array in val),
            # What an epoch has: a window never crosses from a file into the next.
            "train_tokens_used": len(train_windows) * block_size,
            "val_tokens_used": len(val_windows) * block_size,
        },
        tokenizer=tokenizer,
    )


def _windows(arrays: Sequence[TokenArray], block_size: int, seed: int | None, what: str) -> Dataset:
    windows = TokenWindows([array.ids for array in arrays], block_size, seed=seed)
    if not len(windows):
        longest = max((len(array.ids) for array in arrays), default=0)
        most = (longest - 1) // (1 if seed is None else 2)
        raise DataError(f"data.block_size={block_size}: {what} has {longest} tokens; use at most {most}")
    tokens, used = sum(len(array.ids) for array in arrays), len(windows) * block_size
    # Each file loses its last, incomplete window, and one to its moving start: small ones lose most.
    if len(arrays) > 1 and used < LEAST_USED * tokens:
        log.warning(
            "%s: an epoch has %s of its %s tokens, since no window of data.block_size=%d crosses from one of "
            "its %d files into the next; a larger data.shard_tokens makes fewer files",
            *(what, f"{used:,}", f"{tokens:,}", block_size, len(arrays)),
        )
    return windows
