"""The two texts that ship with the package, in GPT-2's tokens."""

import gzip
import lzma
from typing import Annotated

import numpy as np

from adamwprune.data import bpe
from adamwprune.data.base import Data
from adamwprune.data.files.assets import SHA256, read_asset
from adamwprune.data.tokenizer import Tokenizer
from adamwprune.data.tokens import TokenArray, occurring, remap, stream_sha256
from adamwprune.data.windows import token_data
from adamwprune.errors import DataError
from adamwprune.ranges import PositiveInt, Range, Seed

SHAKESPEARE_TRAIN_FRACTION = 0.9
SOTU_VAL_ADDRESSES = 14


def shakespeare(
    *,
    vocab_size: Annotated[int, Range(least=1, most=65536)],
    block_size: PositiveInt,
    seed: Seed,
    remap_vocab: bool = False,
) -> Data:
    """Nine plays, 360,244 tokens as one stream; the last tenth is for validation.

    Almost the text known as TinyShakespeare (99.8 % of its lines, in its order), but not equal to
    it byte for byte: losses are near those published, not the same.

    `seed` moves the training windows from epoch to epoch; content and split never depend on it.
    `remap_vocab` numbers the 12,030 tokens that occur from 0, see `tokens.remap`.

    Raises:
        DataError: the file is damaged, or a key does not fit it.
    """
    text = gzip.decompress(read_asset("shakespeare9.txt.gz")).decode()
    (ids,) = bpe.encode(bpe.gpt2_encoding(), [text], end_of_text=False)
    return _corpus(
        "shakespeare",
        asset="shakespeare9.txt.gz",
        ids=ids,
        train_tokens=int(SHAKESPEARE_TRAIN_FRACTION * len(ids)),
        vocab_size=vocab_size,
        block_size=block_size,
        seed=seed,
        remap_vocab=remap_vocab,
    )


def sotu(
    *,
    vocab_size: Annotated[int, Range(least=1, most=65536)],
    block_size: PositiveInt,
    seed: Seed,
    remap_vocab: bool = False,
) -> Data:
    """123 State of the Union addresses, 1900 to 2021, 1,032,638 tokens; the last 14 for validation.

    The end-of-text token 50256 follows each address.

    `seed` and `remap_vocab` as for `shakespeare`; 22,213 tokens occur.

    Raises:
        DataError: the file is damaged, or a key does not fit it.
    """
    addresses = lzma.decompress(read_asset("sotu_1900_2021.txt.xz")).decode().removesuffix("\n").split("\n")
    encoded = bpe.encode(bpe.gpt2_encoding(), addresses, end_of_text=True)
    return _corpus(
        "sotu",
        asset="sotu_1900_2021.txt.xz",
        ids=np.concatenate(encoded),
        train_tokens=sum(map(len, encoded[:-SOTU_VAL_ADDRESSES])),
        vocab_size=vocab_size,
        block_size=block_size,
        seed=seed,
        remap_vocab=remap_vocab,
    )


def _corpus(
    name: str,
    *,
    asset: str,
    ids: np.ndarray,
    train_tokens: int,
    vocab_size: int,
    block_size: int,
    seed: int,
    remap_vocab: bool,
) -> Data:
    # Of the whole text: a map of the training part alone misses tokens of the validation part.
    vocab_map = occurring(ids)
    tokenizer, map_sha256 = Tokenizer(), None
    if remap_vocab:
        # Exactly: with remapping on, a larger vocabulary is not padding but a forgotten key.
        if vocab_size != len(vocab_map):
            raise DataError(
                f"data.vocab_size={vocab_size}: with data.remap_vocab=true {name} has {len(vocab_map)} "
                f"tokens; use data.vocab_size={len(vocab_map)}"
            )
        ids, map_sha256 = remap(ids, vocab_map), stream_sha256(vocab_map)
        tokenizer = Tokenizer(vocab_map)
    return token_data(
        name=name,
        train=[TokenArray.of(ids[:train_tokens])],
        val=[TokenArray.of(ids[train_tokens:])],
        vocab_size=vocab_size,
        block_size=block_size,
        seed=seed,
        tokenizer=tokenizer,
        vocab_fix=f"data.vocab_size={bpe.VOCAB_SIZE}, or {len(vocab_map)} with data.remap_vocab=true",
        facts={
            "source": f"asset {asset}",
            "source_sha256": SHA256[asset],
            "tokens_sha256": stream_sha256(ids),
            "remap_vocab": remap_vocab,
            "vocab_map_sha256": map_sha256,
        },
    )
