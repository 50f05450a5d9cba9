"""Prepared text on disk: numbered files of token ids and a manifest that vouches for them.

    train-00000.bin  train-00001.bin ...  val-00000.bin ...  manifest.json  verified.json

A .bin file is nothing but token ids, little-endian uint16, whole documents in order. The manifest
has, per part, each file's name, number of tokens and SHA-256, and the recipe that they were made by.
verified.json remembers which files were read and found right on this machine (verified.py).
"""

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adamwprune.data.files.durable import write_durably
from adamwprune.data.preparation import verified
from adamwprune.data.preparation.documents import Part
from adamwprune.data.tokens import TokenArray
from adamwprune.errors import DataError

FORMAT = "adamwprune-shards-1"
MANIFEST = "manifest.json"
PARTS: tuple[Part, ...] = ("train", "val")
BYTES_PER_TOKEN = 2


@dataclass(frozen=True)
class Shards:
    """What a folder of shards holds."""

    folder: Path
    train: list[TokenArray]
    val: list[TokenArray]
    recipe: dict[str, Any]
    documents: dict[str, int]


def write_manifest(
    folder: Path, recipe: Mapping[str, Any], documents: Mapping[str, int], shards: Mapping[str, Any]
) -> None:
    """Vouch for finished shards: per part the number of documents, and a list of file, tokens, sha256."""
    manifest = {"format": FORMAT, "recipe": recipe, "documents": documents, **shards}
    write_durably(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def read_shards(folder: Path) -> Shards:
    """Map all shards into memory; a file that is not the one verified here before is read once (1 s per GB).

    Raises:
        DataError: the manifest is missing or not ours, or a file is not as it says. Nothing is
            repaired or fetched again.
    """
    return _read(folder, verified.recall(folder))


def verify_shards(folder: Path) -> Shards:
    """As `read_shards`, but read every file: this finds a bit that the disk has lost since.

    Raises:
        DataError: as `read_shards`.
    """
    return _read(folder, {})


def _read(folder: Path, known: Mapping[str, verified.Verified]) -> Shards:
    manifest = read_manifest(folder / MANIFEST)
    found: dict[str, verified.Verified] = {}
    try:
        train, val = (
            [_read_shard(folder, entry, known, found) for entry in manifest[part]] for part in PARTS
        )
        shards = Shards(folder, train, val, dict(manifest["recipe"]), dict(manifest["documents"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / MANIFEST}: incomplete ({type(error).__name__}: {error})") from error
    if found != known:
        verified.remember(folder, found)
    return shards


def read_manifest(file: Path) -> dict[str, Any]:
    """A manifest of this format.

    Raises:
        DataError: it is missing or not ours.
    """
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({error}); a folder of prepared text has one") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise DataError(f"{file}: format is {found}, must be {FORMAT}")
    return manifest


def _read_shard(
    folder: Path,
    entry: Mapping[str, Any],
    known: Mapping[str, verified.Verified],
    found: dict[str, verified.Verified],
) -> TokenArray:
    # A manifest is data: it must not lead us out of its folder.
    file = folder / Path(entry["file"]).name
    expected_bytes = BYTES_PER_TOKEN * operator.index(entry["tokens"])
    try:
        identity = verified.identity(file)
        if identity.size != expected_bytes or not identity.size:
            raise DataError(
                f"{file}: {identity.size} bytes, must be {expected_bytes} for {entry['tokens']} tokens"
            )
        ids = np.memmap(file, dtype="<u2", mode="r")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    seen = known.get(file.name)
    if seen is None or (seen.identity, seen.sha256) != (identity, entry["sha256"]):
        seen = verified.examine(ids, identity)
    if seen.sha256 != entry["sha256"]:
        raise DataError(f"{file}: sha256 is {seen.sha256}, in the manifest {entry['sha256']}; copy it again")
    found[file.name] = seen
    return TokenArray(ids, seen.sha256, seen.max_id)
