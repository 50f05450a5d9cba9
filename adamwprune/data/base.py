"""What every data set is to the rest of the program: samples by index, and facts about them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from adamwprune.data.tokenizer import Tokenizer


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
    tokenizer: "Tokenizer | None" = field(default=None, repr=False)  # where the data are text
