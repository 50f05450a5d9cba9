"""Manuals and standards of a Debian archive: text that any Debian or Ubuntu machine can have."""

from pathlib import Path
from typing import Annotated, Any, Literal

from adamwprune.corpora.build import make_corpus, read_manifest
from adamwprune.corpora.collections import COLLECTIONS, Collection
from adamwprune.data.base import Data
from adamwprune.data.preparation.documents import Documents
from adamwprune.data.preparation.prepare import Recipe
from adamwprune.data.preparation.prepared import Windows, prepared_text
from adamwprune.data.text_files import text_documents
from adamwprune.ranges import Fraction, PositiveInt, Range, Seed


def debian_docs(
    *,
    vocab_size: Annotated[int, Range(least=1, most=65536)],
    block_size: PositiveInt,
    seed: Seed,
    collection: Literal["debian_docs", "rfc"] = "debian_docs",
    remap_vocab: bool = False,
    data_dir: str = "~/.cache/adamwprune",
    max_tokens: PositiveInt | None = None,
    val_fraction: Fraction = 0.02,
    shard_tokens: PositiveInt = 100_000_000,
    num_processes: PositiveInt | None = None,
) -> Data:
    """Prose of 32 packages of documentation, or the RFCs; fetched with apt and prepared at first use.

    Each release of Debian has its own versions of these packages, and so another text: losses can be
    compared where the fingerprint is the same. The record names package, version and hash of each.

    Args:
        vocab_size: tokens that the model knows.
        block_size: tokens a sample.
        seed: moves the training windows from epoch to epoch; content and split never depend on it.
        collection: which packages, see `corpora.collections`.
        remap_vocab: number the tokens that occur from 0, see `tokens.remap`.
        data_dir: where packages, text and prepared tokens are kept.
        max_tokens: taken from the beginning, for training and validation together; null: all.
        val_fraction: part of the documents that validates, chosen by a hash of their text.
        shard_tokens: tokens a file.
        num_processes: that read and encode; null: one for each core. The result does not depend on it.

    Raises:
        DataError: this is no Debian system, or its archive cannot be reached or has too little.
        DiskError: too little space.
    """
    place = Path(data_dir).expanduser()
    return prepared_text(
        corpus_documents(COLLECTIONS[collection], place, num_processes),
        name=collection,
        data_dir=place,
        recipe=Recipe(max_tokens, val_fraction, shard_tokens),
        windows=Windows(vocab_size, block_size, seed, remap_vocab),
        num_processes=num_processes,
    )


def corpus_documents(collection: Collection, data_dir: Path, num_processes: int | None) -> Documents:
    """The documents of a collection; it is made when they are asked for."""

    def proof() -> dict[str, Any]:
        return {"packages": read_manifest(make_corpus(collection, data_dir, num_processes))["packages"]}

    return Documents(
        lambda: {"collection": collection.name, "rules": collection.rules},
        lambda: text_documents([make_corpus(collection, data_dir, num_processes)]).files(),
        collection.tokens,
        proof,
    )
