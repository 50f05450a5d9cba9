"""Text to the token ids of a data set and back, for prompts and for what a model answers."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import tiktoken

from adamwprune.data import bpe
from adamwprune.data.tokens import stream_sha256
from adamwprune.errors import ConfigError

UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()  # what an id without a token reads as


@dataclass(frozen=True)
class Tokenizer:
    """GPT-2's tokenizer, renumbered where the data set's ids are.

    Attributes:
        vocab_map: GPT-2's id of each id of the data set, ascending, as `tokens.occurring` gives it; None
            where the ids are GPT-2's own.
    """

    vocab_map: np.ndarray | None = field(default=None, repr=False)

    @property
    def sha256(self) -> str:
        """What names it in fingerprints: the hash of GPT-2's table, and that of the map."""
        if self.vocab_map is None:
            return bpe.SHA256
        return f"{bpe.SHA256} remapped by {stream_sha256(self.vocab_map)}"

    def encode(self, text: str) -> list[int]:
        """The ids of a text; 50256 ends no text here.

        Raises:
            ConfigError: the text needs a token that the data set does not have.
        """
        ids = bpe.encode_one(_gpt2(), text).astype(np.int64)
        if self.vocab_map is None:
            return ids.tolist()
        places = np.searchsorted(self.vocab_map, ids).clip(max=len(self.vocab_map) - 1)
        if (missing := ids[self.vocab_map[places] != ids]).size:
            token = _gpt2().decode([int(missing[0])])
            raise ConfigError(f"the token {token!r} does not occur in the data, so no id stands for it")
        return places.tolist()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; bytes that are no UTF-8, and padding of the vocabulary, read as U+FFFD."""
        return b"".join(self._bytes(int(i)) for i in ids).decode("utf-8", errors="replace")

    def _bytes(self, i: int) -> bytes:
        size = bpe.VOCAB_SIZE if self.vocab_map is None else len(self.vocab_map)
        if not 0 <= i < size:
            return UNKNOWN
        return _gpt2().decode_single_token_bytes(i if self.vocab_map is None else int(self.vocab_map[i]))


@functools.cache  # 0.1 s to build
def _gpt2() -> tiktoken.Encoding:
    return bpe.gpt2_encoding()
