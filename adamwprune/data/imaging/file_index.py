"""What is in the files of a folder: read once, remembered by size and time.

A folder of a million images cannot be hashed at each start, and a run record without a hash of its
data is worth little. So each file is read, checked and hashed once; the index keeps its size, its
time of change and its SHA-256, and only a file whose size or time has changed is read again, as make
does it. Whoever changes a file's content and sets both back deceives it.
"""

import hashlib
import logging
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from adamwprune.data.files.cache import disk_errors, exclusive
from adamwprune.errors import DataError

log = logging.getLogger(__name__)

# Read between two looks at the clock; an interrupted index goes on from where it was last saved.
CHUNK = 1024
SAVE_SECONDS = 60.0
REPORT_SECONDS = 10.0


@dataclass(frozen=True)
class Files:
    """Files below `root`, ascending by name (bytes, with / between folders)."""

    root: Path
    names: np.ndarray = field(repr=False)  # bytes (N,)
    sizes: np.ndarray = field(repr=False)  # int64 (N,)
    times: np.ndarray = field(repr=False)  # int64 (N,), nanoseconds

    def path(self, index: int) -> Path:
        """Of one file."""
        return self.root / os.fsdecode(self.names[index])


# Reads a file, checks what is in it, and returns its SHA-256, 32 bytes.
Inspect = Callable[[Path], bytes]


def index_files(files: Files, data_dir: Path, inspect: Inspect, threads: Executor) -> np.ndarray:
    """SHA-256 of each file, uint8 (N, 32), from the index in `data_dir` where it knows them.

    Args:
        files: to be indexed.
        data_dir: where the index of this folder is kept.
        inspect: called for each file that the index does not know.
        threads: that call it.

    Raises:
        DataError: a file cannot be read, or `inspect` refused it.
    """
    place = hashlib.sha256(os.fsencode(files.root.resolve())).hexdigest()[:16]
    index = data_dir / f"index-{place}.npz"
    with exclusive(index):
        digests, known = _recall(index, files)
        unknown = np.flatnonzero(~known)
        if unknown.size:
            log.info("%s: reading %d new or changed files once", files.root, unknown.size)
            for done in _read(files, unknown, digests, inspect, threads):
                known[done] = True
                _save(index, files, digests, known)
    return digests


def _recall(index: Path, files: Files) -> tuple[np.ndarray, np.ndarray]:
    """Digests of the files that the index has with this size and time, and which these are."""
    digests, known = np.zeros((len(files.names), 32), dtype=np.uint8), np.zeros(len(files.names), dtype=bool)
    try:
        with np.load(index, allow_pickle=False) as stored:
            old = {key: stored[key] for key in ("names", "sizes", "times", "digests")}
    except FileNotFoundError:
        return digests, known
    # Whatever is wrong with an index, it can be made again.
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s: cannot be read (%s); it is made again", index, error)
        return digests, known
    if not len(old["names"]):
        return digests, known
    at = np.searchsorted(old["names"], files.names).clip(max=len(old["names"]) - 1)
    known = (
        (old["names"][at] == files.names)
        & (old["sizes"][at] == files.sizes)
        & (old["times"][at] == files.times)
    )
    digests[known] = old["digests"][at][known]
    return digests, known


def _read(
    files: Files, unknown: np.ndarray, digests: np.ndarray, inspect: Inspect, threads: Executor
) -> Iterator[np.ndarray]:
    """Fill in unknown digests; yields the files done since the last time, now and then and at the end."""

    def read(index: int) -> None:
        path = files.path(index)
        try:
            digests[index] = np.frombuffer(inspect(path), dtype=np.uint8)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error

    saved = reported = start = time.monotonic()
    since = 0
    for end in range(CHUNK, len(unknown) + CHUNK, CHUNK):
        for _ in threads.map(read, unknown[end - CHUNK : end].tolist()):
            pass
        now = time.monotonic()
        if now - reported > REPORT_SECONDS:
            done, reported = min(end, len(unknown)), now
            log.info(
                "%d of %d files, %.0f s left",
                done,
                len(unknown),
                (now - start) / done * (len(unknown) - done),
            )
        if now - saved > SAVE_SECONDS or end >= len(unknown):
            yield unknown[since:end]
            saved, since = now, end


def _save(index: Path, files: Files, digests: np.ndarray, known: np.ndarray) -> None:
    temporary = index.with_name(f"{index.name}.tmp")
    with disk_errors(index):
        with temporary.open("wb") as stream:
            np.savez(
                stream,
                names=files.names[known],
                sizes=files.sizes[known],
                times=files.times[known],
                digests=digests[known],
            )
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(index)
