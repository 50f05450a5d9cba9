"""From documents to shards: tokenise, divide into training and validation, write.

The result is a function of the documents and the recipe. It appears under its name in one step,
when it is complete; a run that is killed leaves a folder NAME.partial and no other trace.
"""

import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adamwprune.data import bpe
from adamwprune.data.cache import disk_errors, exclusive
from adamwprune.data.shards import PARTS, ShardWriter, write_manifest
from adamwprune.errors import DataError

log = logging.getLogger(__name__)

# Documents that are tokenised together: a few MB of text.
BATCH_DOCUMENTS = 1024


def prepare(
    documents: Iterable[str],
    folder: Path,
    *,
    recipe: dict[str, Any],
    max_tokens: int,
    val_fraction: float,
    shard_tokens: int,
) -> None:
    """Make `folder` out of `documents`, unless it exists; one process works, others wait.

    Whole documents are taken, an end-of-text token after each, until the next would exceed
    `max_tokens`.

    Raises:
        DataError: a part would be empty.
        DiskError: the file system refuses.
    """
    with exclusive(folder):
        if folder.exists():
            return
        log.info("preparing %s, up to %.0f M tokens", folder, max_tokens / 1e6)
        partial = folder.with_name(f"{folder.name}.partial")
        _clear(partial)
        with (
            ShardWriter(partial, "train", shard_tokens) as train,
            ShardWriter(partial, "val", shard_tokens) as val,
        ):
            _write(documents, train, val, max_tokens, val_fraction)
        if not (train.documents and val.documents):
            raise DataError(
                f"data.val_fraction={val_fraction}, data.max_tokens={max_tokens}: leave {train.documents} "
                f"documents to train and {val.documents} to validate on; use larger values"
            )
        write_manifest(partial, recipe, train, val)
        with disk_errors(folder):
            partial.rename(folder)


def is_validation(document: str, val_fraction: float) -> bool:
    """Whether a document is held out: a hash of its text decides.

    So its side depends on no order and no seed, and copies of a document, which a crawl has, are
    never on both.
    """
    digest = hashlib.sha256(document.encode()).digest()
    return int.from_bytes(digest[:8], "big") < val_fraction * 2**64


def _write(
    documents: Iterable[str], train: ShardWriter, val: ShardWriter, max_tokens: int, val_fraction: float
) -> None:
    total = 0
    for text, tokens in _encoded(documents):
        total += len(tokens)
        if total > max_tokens:
            break
        (val if is_validation(text, val_fraction) else train).append(tokens)


def _encoded(documents: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    encoding, iterator = bpe.gpt2_encoding(), iter(documents)
    while batch := list(itertools.islice(iterator, BATCH_DOCUMENTS)):
        yield from zip(batch, bpe.encode(encoding, batch, end_of_text=True), strict=True)


def _clear(partial: Path) -> None:
    """An empty folder: what a killed run left is removed, file by file and only what it wrote."""
    with disk_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            for file in partial.glob(f"{part}-*.bin*"):
                file.unlink()
