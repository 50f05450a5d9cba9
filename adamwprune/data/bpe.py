"""GPT-2's byte-pair encoding, from the table that ships with the package.

The table is tiktoken's r50k_base (Radford et al., 2019, "Language Models are Unsupervised
Multitask Learners"): 50,256 byte sequences with their ranks, and one special token. tiktoken
would fetch it over the network and keep it in a cache folder; read from the asset, neither happens.
"""

import base64
import gzip
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from adamwprune.data.files.assets import read_asset
from adamwprune.errors import DataError

END_OF_TEXT = 50256
VOCAB_SIZE = 50257
# Of the decompressed table: names the tokenizer in fingerprints and run records.
SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"


def gpt2_encoding() -> tiktoken.Encoding:
    """GPT-2's tokenizer; takes about 0.1 s to build.

    Raises:
        DataError: the table is damaged.
    """
    table = gzip.decompress(read_asset("gpt2.tiktoken.gz"))
    if (actual := hashlib.sha256(table).hexdigest()) != SHA256:
        raise DataError(f"gpt2.tiktoken.gz: the table's sha256 is {actual}, GPT-2's is {SHA256}")
    pairs = (line.split() for line in table.splitlines())
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks={base64.b64decode(sequence): int(rank) for sequence, rank in pairs},
        special_tokens={"<|endoftext|>": END_OF_TEXT},
        explicit_n_vocab=VOCAB_SIZE,
    )


def encode_one(encoding: tiktoken.Encoding, text: str) -> np.ndarray:
    """The tokens of a document, uint32 (n,), as `tiktoken.Encoding.encode_ordinary` gives them.

    A document that spells out "<|endoftext|>" gets seven ordinary tokens for it: only a real
    end of a document yields 50256.
    """
    try:
        return encoding.encode_to_numpy(text, disallowed_special=())
    except UnicodeEncodeError:
        return encoding.encode_to_numpy(whole_characters(text), disallowed_special=())


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair (JSON can have them), as tiktoken does."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def encode(encoding: tiktoken.Encoding, documents: Sequence[str], *, end_of_text: bool) -> list[np.ndarray]:
    """The tokens of each document as uint16 (n,); `end_of_text` appends 50256 to each."""
    tail = np.array([END_OF_TEXT] if end_of_text else [], dtype=np.uint16)
    # tiktoken works outside Python's lock, so threads scale with the cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        encoded = pool.map(partial(encode_one, encoding), documents)
        return [np.concatenate([tokens.astype(np.uint16), tail]) for tokens in encoded]
