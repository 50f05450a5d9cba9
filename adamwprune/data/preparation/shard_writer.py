"""Writing shards so that a killed preparation goes on from what it had: each file, and a note of how far.

    train-00000.bin           finished: on disk, hashed, in the note
    train-00001.bin.partial   open: the note says how many of its tokens count, and their SHA-256

`state()` is the note of one part; `ShardWriter(..., state)` goes on from it.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from adamwprune.data.files.cache import disk_errors
from adamwprune.data.preparation.documents import Part
from adamwprune.data.preparation.shards import BYTES_PER_TOKEN
from adamwprune.errors import DataError

NOTHING: dict[str, Any] = {"documents": 0, "shards": [], "open": None}


class ShardWriter:
    """Writes one part, a file at a time, in documents that are never cut.

    A file gets its name by `name_finished`, after the note that it is finished is on disk: so none
    is ever written twice.
    """

    def __init__(self, folder: Path, part: Part, shard_tokens: int, state: dict[str, Any] = NOTHING) -> None:
        self._folder = folder
        self._part = part
        self._shard_tokens = shard_tokens
        self._stream: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._tokens = 0  # of the open shard
        self._unnamed: list[Path] = []
        self.documents: int = state["documents"]
        self.shards: list[dict[str, Any]] = [self._recover(entry) for entry in state["shards"]]
        self._remove_others()
        if state["open"] is not None:
            self._reopen(**state["open"])

    def close(self) -> None:
        """Whatever happened: what is open stays as it is."""
        if self._stream is not None:
            self._stream.close()

    def append(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Write documents, one after the other in `ids`; a new shard begins where one would not fit."""
        ends, first = lengths.cumsum(), 0
        while first < len(lengths):
            start = ends[first - 1] if first else 0
            last = int(np.searchsorted(ends, start + self._shard_tokens - self._tokens, side="right"))
            if last == first and not self._tokens:
                last += 1  # longer than a shard: alone in one
            if last > first:
                self._write(ids[start : ends[last - 1]], last - first)
            if last < len(lengths):
                self.finish()
            first = last

    def finish(self) -> None:
        """Complete the open shard, if there is one."""
        if self._stream is None:
            return
        self._sync()
        self._stream.close()
        name = self._name(len(self.shards))
        self.shards.append({"file": name, "tokens": self._tokens, "sha256": self._digest.hexdigest()})
        self._unnamed.append(self._folder / name)
        self._stream, self._digest, self._tokens = None, hashlib.sha256(), 0

    def state(self) -> dict[str, Any]:
        """The note of what is on disk now, and stays there."""
        self._sync()
        still_open = {"tokens": self._tokens, "sha256": self._digest.hexdigest()} if self._stream else None
        return {"documents": self.documents, "shards": self.shards, "open": still_open}

    @property
    def has_unnamed(self) -> bool:
        """Whether a file was finished since the last `name_finished`."""
        return bool(self._unnamed)

    def name_finished(self) -> None:
        """Give finished files their names, once the note of them is on disk."""
        with disk_errors(self._folder):
            for file in self._unnamed:
                _partial(file).rename(file)
        self._unnamed = []

    def _write(self, ids: np.ndarray, documents: int) -> None:
        content = np.ascontiguousarray(ids, dtype="<u2").data.cast("B")
        with disk_errors(self._folder):
            if self._stream is None:
                self._stream = _partial(self._folder / self._name(len(self.shards))).open("wb")
            self._stream.write(content)
        self._digest.update(content)
        self._tokens += len(ids)
        self.documents += documents

    def _sync(self) -> None:
        if self._stream is not None:
            with disk_errors(self._folder):
                self._stream.flush()
                os.fsync(self._stream.fileno())

    def _recover(self, entry: dict[str, Any]) -> dict[str, Any]:
        """A finished shard of an earlier process: read and hashed, and named if it died just before that."""
        file = self._folder / Path(entry["file"]).name  # a note is data: it must not lead us elsewhere
        found = file if file.exists() else _partial(file)
        with disk_errors(self._folder):
            _hash_beginning(found, entry["tokens"], entry["sha256"])
            if found != file:
                found.rename(file)
        return entry

    def _reopen(self, tokens: int, sha256: str) -> None:
        """Go on after `tokens` of the open shard; what was written after the note goes."""
        file = _partial(self._folder / self._name(len(self.shards)))
        with disk_errors(self._folder):
            self._digest = _hash_beginning(file, tokens, sha256)
            self._stream = file.open("r+b")
            self._stream.truncate(BYTES_PER_TOKEN * tokens)
            self._stream.seek(0, os.SEEK_END)
        self._tokens = tokens

    def _remove_others(self) -> None:
        """Files of this part that the note does not know; the open one is cut later."""
        known = {entry["file"] for entry in self.shards} | {f"{self._name(len(self.shards))}.partial"}
        with disk_errors(self._folder):
            for file in self._folder.glob(f"{self._part}-*.bin*"):
                if file.name not in known:
                    file.unlink()

    def _name(self, number: int) -> str:
        return f"{self._part}-{number:05d}.bin"


def _partial(file: Path) -> Path:
    return file.with_name(f"{file.name}.partial")


def _hash_beginning(file: Path, tokens: int, sha256: str) -> "hashlib._Hash":
    """The digest of a file's first `tokens`, which must be `sha256`.

    Raises:
        DataError: it is another, or the file is shorter or missing.
    """
    digest, left = hashlib.sha256(), BYTES_PER_TOKEN * tokens
    try:
        with file.open("rb") as stream:
            while piece := stream.read(min(left, 1 << 20)):
                digest.update(piece)
                left -= len(piece)
    except FileNotFoundError:
        pass
    if left or digest.hexdigest() != sha256:
        raise DataError(
            f"{file}: is not what an earlier preparation left; remove {file.parent} to begin anew"
        )
    return digest
