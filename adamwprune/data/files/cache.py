"""Where downloaded and prepared data lie, and how several processes share them."""

import fcntl
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adamwprune.errors import DataError, DiskError


class NotThere(DataError):
    """A source does not have the data; another source may. A damaged copy is a plain DataError."""


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Only one process at a time is inside for this `target`; the others wait.

    The lock dies with its process. Whoever gets in looks again whether `target` exists by now.
    The file beside it stays: removing it would let two processes lock two different files.
    """
    lock_file = target.with_name(f"{target.name}.lock")
    with disk_errors(lock_file):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_file.open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{target}: another process prepares it; waiting", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the file system refuses becomes one line, with the way out."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{path}: {error.strerror or error}; choose another place with data.data_dir=DIR"
        ) from error


def file_sha256(file: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
