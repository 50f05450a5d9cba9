"""Documents to tokens in as many processes as there are cores; what comes out does not depend on how many."""

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np

from adamwprune.cores import usable_cores
from adamwprune.data import bpe
from adamwprune.data.preparation.documents import Batch, Position
from adamwprune.data.preparation.processes import map_in_processes


@dataclass(frozen=True)
class Encoded:
    """The tokens of some documents in their order, an end-of-text token after each."""

    ids: np.ndarray  # <u2 (sum of lengths,)
    lengths: np.ndarray  # int64 (documents,)
    held_out: np.ndarray  # bool (documents,)
    end: Position  # of the document after the last

    def up_to(self, tokens: int) -> "Encoded":
        """Whole documents from the beginning, until the next would make it more than `tokens`."""
        ends = self.lengths.cumsum()
        count = int(np.searchsorted(ends, tokens, side="right"))
        return replace(
            self,
            ids=self.ids[: ends[count - 1] if count else 0],
            lengths=self.lengths[:count],
            held_out=self.held_out[:count],
        )

    def part(self, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
        """Ids and lengths of the documents of one side, in their order."""
        chosen = self.held_out == held_out
        return self.ids[np.repeat(chosen, self.lengths)], self.lengths[chosen]


def is_validation(document: str, val_fraction: float) -> bool:
    """Whether a document is held out: a hash of its text decides.

    So its side depends on no order and no seed, and copies of a document, which a crawl has, are
    never on both.
    """
    digest = hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < val_fraction * 2**64


def encode_batch(batch: Batch, val_fraction: float) -> Encoded:
    """The tokens of a batch; its documents are held out by its part, or by `is_validation`."""
    encoding = _encoding()
    documents = [bpe.encode_one(encoding, text) for text in batch.texts]
    lengths = np.array([len(tokens) + 1 for tokens in documents], dtype=np.int64)
    ids = np.full(lengths.sum(), bpe.END_OF_TEXT, dtype="<u2")
    for tokens, end in zip(documents, lengths.cumsum(), strict=True):
        ids[end - 1 - len(tokens) : end - 1] = tokens
    if batch.part is None:
        held_out = np.array([is_validation(text, val_fraction) for text in batch.texts])
    else:
        held_out = np.full(len(documents), batch.part == "val")
    return Encoded(ids, lengths, held_out, batch.end)


def encode_all(batches: Iterable[Batch], val_fraction: float, num_processes: int | None) -> Iterator[Encoded]:
    """Each batch encoded, in order; null processes: one for each core we may use.

    Close it if not all is taken. A single batch is encoded here, since starting a process takes longer.

    Raises:
        RunError: a process died.
    """
    iterator = iter(batches)
    first = list(islice(iterator, 2))
    processes = 1 if len(first) < 2 else num_processes or usable_cores()
    encode = functools.partial(encode_batch, val_fraction=val_fraction)
    return map_in_processes(encode, chain(first, iterator), processes)


@functools.cache  # once a process
def _encoding() -> "bpe.tiktoken.Encoding":
    return bpe.gpt2_encoding()
