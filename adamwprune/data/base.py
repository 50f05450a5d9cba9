"""What every data set is to the rest of the program: samples by index, and facts about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor


class Dataset(Protocol):
    """Samples 0 to len - 1, read in batches."""

    def __len__(self) -> int:
        """Number of samples, the same in every epoch."""
        ...

    def batch(self, indices: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """The inputs and targets of the samples `indices` (int64, (N,)) in `epoch`, on the CPU.

        A pure function of its arguments: whoever asks, in which order and how often, gets the
        same bits. The tensors are new, so the caller may change or pin them.
        """
        ...


@dataclass(frozen=True)
class Data:
    """A data set with its split. `test` is read once, at the end of a run."""

    name: str
    train: Dataset = field(repr=False)
    val: Dataset = field(repr=False)
    test: Dataset | None = field(repr=False)  # None: nothing is held out beyond `val`
    metric: Literal["accuracy", "perplexity"]
    unit: Literal["images", "tokens"]
    units_per_sample: int  # 1 image, or block_size tokens
    fingerprint: str  # SHA-256 of content, order, split, tokenizer: equal only for equal data
    facts: dict[str, Any] = field(repr=False)  # plain values for the run record


class JoinedDataset:
    """Several data sets one after the other, as one."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        """Number of samples of all parts together."""
        return int(self._ends[-1])

    def batch(self, indices: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """As `Dataset.batch`; one gather per part that the batch touches."""
        owners = np.searchsorted(self._ends, indices, side="right")
        if owners.max(initial=0) == len(self._parts):
            raise IndexError(f"index {indices.max()} of {len(self)} samples")
        order = np.argsort(owners, kind="stable")
        pieces = []
        for owner in np.unique(owners):
            start = self._ends[owner] - len(self._parts[owner])
            pieces.append(self._parts[owner].batch(indices[owners == owner] - start, epoch))
        # The pieces hold the batch grouped by part: `back` puts each sample where it was asked for.
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        inputs, targets = (torch.cat(tensors).index_select(0, back) for tensors in zip(*pieces, strict=True))
        return inputs, targets
