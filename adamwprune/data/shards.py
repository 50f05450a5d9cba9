"""Prepared text on disk: numbered files of token ids and a manifest that vouches for them.

    train-00000.bin  train-00001.bin ...  val-00000.bin ...  manifest.json

A .bin file is nothing but token ids, little-endian uint16, whole documents in order. The manifest
has, per part, each file's name, number of tokens and SHA-256, and the recipe that they were made by.
"""

import hashlib
import json
import logging
import operator
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from adamwprune.data.cache import disk_errors
from adamwprune.data.tokens import TokenArray
from adamwprune.errors import DataError

log = logging.getLogger(__name__)

FORMAT = "adamwprune-shards-1"
MANIFEST = "manifest.json"
PARTS = ("train", "val")
BYTES_PER_TOKEN = 2


@dataclass(frozen=True)
class Shards:
    """What a folder of shards holds, verified."""

    train: list[TokenArray]
    val: list[TokenArray]
    recipe: dict[str, Any]
    documents: dict[str, int]


class ShardWriter:
    """Writes one part, a file at a time; a file has its name only once it is complete on disk.

    As a context manager it finishes the last shard, or leaves it unnamed after an error.
    """

    def __init__(self, folder: Path, part: str, shard_tokens: int) -> None:
        self._folder = folder
        self._part = part
        self._shard_tokens = shard_tokens
        self._stream: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._tokens = 0
        self.documents = 0
        self.shards: list[dict[str, Any]] = []

    def __enter__(self) -> "ShardWriter":
        """Nothing is opened before the first document."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close in any case; name the file only if all went well."""
        if kind is None:
            self._finish()
        elif self._stream is not None:
            self._stream.close()

    def append(self, document: np.ndarray) -> None:
        """Write a document's ids; it opens a new shard if the present one has no room for it."""
        if self._tokens and self._tokens + len(document) > self._shard_tokens:
            self._finish()
        content = document.astype("<u2").tobytes()
        with disk_errors(self._folder):
            if self._stream is None:
                self._stream = self._temporary.open("wb")
            self._stream.write(content)
        self._digest.update(content)
        self._tokens += len(document)
        self.documents += 1

    def _finish(self) -> None:
        if self._stream is None:
            return
        file = self._folder / self._name
        with disk_errors(file):
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._temporary.replace(file)
        self.shards.append({"file": file.name, "tokens": self._tokens, "sha256": self._digest.hexdigest()})
        log.info("%s: %d tokens", file, self._tokens)
        self._stream, self._digest, self._tokens = None, hashlib.sha256(), 0

    @property
    def _name(self) -> str:
        return f"{self._part}-{len(self.shards):05d}.bin"

    @property
    def _temporary(self) -> Path:
        return self._folder / f"{self._name}.partial"


def write_manifest(folder: Path, recipe: dict[str, Any], train: ShardWriter, val: ShardWriter) -> None:
    """Vouch for what the writers have finished."""
    manifest = {
        "format": FORMAT,
        "recipe": recipe,
        "documents": {"train": train.documents, "val": val.documents},
        "train": train.shards,
        "val": val.shards,
    }
    with disk_errors(folder), (folder / MANIFEST).open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(manifest, indent=2) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_shards(folder: Path) -> Shards:
    """Map all shards into memory after reading each once: about 1 s per GB.

    Raises:
        DataError: the manifest is missing or not ours, or a file is not as it says. Nothing is
            repaired or fetched again.
    """
    manifest = _read_manifest(folder / MANIFEST)
    try:
        train, val = ([_read_shard(folder, entry) for entry in manifest[part]] for part in PARTS)
        return Shards(train, val, dict(manifest["recipe"]), dict(manifest["documents"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / MANIFEST}: incomplete ({type(error).__name__}: {error})") from error


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); a folder of prepared text has one") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise DataError(f"{file}: format is {found}, must be {FORMAT}")
    return manifest


def _read_shard(folder: Path, entry: dict[str, Any]) -> TokenArray:
    # A manifest is data: it must not lead us out of its folder.
    file = folder / Path(entry["file"]).name
    expected_bytes = BYTES_PER_TOKEN * operator.index(entry["tokens"])
    try:
        found_bytes = file.stat().st_size
        if found_bytes != expected_bytes or not found_bytes:
            raise DataError(
                f"{file}: {found_bytes} bytes, must be {expected_bytes} for {entry['tokens']} tokens"
            )
        ids = np.memmap(file, dtype="<u2", mode="r")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    digest, max_id = hashlib.sha256(), 0
    for start in range(0, len(ids), 1 << 20):
        piece = ids[start : start + (1 << 20)]
        digest.update(piece)
        max_id = max(max_id, int(piece.max()))
    if digest.hexdigest() != entry["sha256"]:
        raise DataError(
            f"{file}: sha256 is {digest.hexdigest()}, in the manifest {entry['sha256']}; copy it again"
        )
    return TokenArray(ids, digest.hexdigest(), max_id)
