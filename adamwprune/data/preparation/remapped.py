"""Shards with ids renumbered without gaps, made from shards of a small corpus; see `tokens.remap`.

They lie beside the original in NAME-remapped, with the map in vocab_map.bin (little-endian uint16: GPT-2's
id of each id, ascending), and their manifest has its size and hash.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from adamwprune.data.files.cache import disk_errors, exclusive
from adamwprune.data.files.durable import sync_folder
from adamwprune.data.preparation.shards import (
    MANIFEST,
    PARTS,
    Shards,
    read_manifest,
    read_shards,
    write_manifest,
)
from adamwprune.data.tokens import stream_sha256
from adamwprune.errors import DataError

VOCAB_MAP = "vocab_map.bin"


def remapped(folder: Path) -> Path:
    """The folder of remapped shards, `folder` itself if it is one; made if it is not there, by one process.

    The map is of the whole corpus: one of the training part alone misses tokens of the validation part.

    Raises:
        DataError: the original is damaged.
        DiskError: the file system refuses.
    """
    if is_remapped(read_manifest(folder / MANIFEST).get("recipe")):
        return folder
    target = folder.with_name(f"{folder.name}-remapped")
    if target.exists():
        return target
    with exclusive(target):
        if not target.exists():
            _make(read_shards(folder), target)
    return target


def is_remapped(recipe: object) -> bool:
    """Whether shards of this recipe are."""
    return isinstance(recipe, dict) and "vocab_map_sha256" in recipe


def read_vocab_map(shards: Shards) -> np.ndarray:
    """GPT-2's id of each id of remapped shards, uint16 (n,): what turns them into text again.

    Raises:
        DataError: it is missing or not the one that the manifest names.
    """
    file = shards.folder / VOCAB_MAP
    try:
        vocab_map = np.fromfile(file, dtype="<u2")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    if stream_sha256(vocab_map) != shards.recipe.get("vocab_map_sha256"):
        raise DataError(f"{file}: is not the map of these shards; remove {shards.folder} to make it anew")
    return vocab_map


def _make(shards: Shards, target: Path) -> None:
    occurs = np.zeros(1 << 16, dtype=bool)
    for array in (*shards.train, *shards.val):
        occurs[array.ids] = True
    vocab_map = np.flatnonzero(occurs).astype("<u2")
    new_ids = np.zeros(1 << 16, dtype="<u2")
    new_ids[vocab_map] = np.arange(len(vocab_map))
    partial = target.with_name(f"{target.name}.partial")
    with disk_errors(target):
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: a matter of seconds
        partial.mkdir()
        _write(partial / VOCAB_MAP, vocab_map)
        parts = {
            part: [
                _write(partial / f"{part}-{number:05d}.bin", new_ids[array.ids])
                for number, array in enumerate(arrays)
            ]
            for part, arrays in zip(PARTS, (shards.train, shards.val), strict=True)
        }
    recipe = {
        **shards.recipe,
        "vocab_map_tokens": len(vocab_map),
        "vocab_map_sha256": stream_sha256(vocab_map),
    }
    write_manifest(partial, recipe, shards.documents, parts)
    with disk_errors(target):
        partial.rename(target)
        sync_folder(target.parent)


def _write(file: Path, ids: np.ndarray) -> dict[str, Any]:
    with file.open("wb") as stream:
        stream.write(ids.data)
        stream.flush()
        os.fsync(stream.fileno())
    return {"file": file.name, "tokens": len(ids), "sha256": hashlib.sha256(ids.data).hexdigest()}
