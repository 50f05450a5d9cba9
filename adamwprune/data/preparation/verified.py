"""Which files of a folder were read and hashed before: 20 GB take 20 s, which no start should repeat.

A file counts as the same while size, times of content and inode are: a copy, a write, even one whose
time was set back, differs in one of them. What the disk itself loses differs in none; only reading
all again finds that (`python -m adamwprune.prepare ... --verify`).
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILE = "verified.json"
FORMAT = "adamwprune-verified-1"


class Identity(NamedTuple):
    """What changes when a file is written, replaced or copied."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class Verified(NamedTuple):
    """What reading a file of token ids has shown."""

    identity: Identity
    sha256: str
    max_id: int


def identity(file: Path) -> Identity:
    """The file's identity now.

    Raises:
        OSError: there is none.
    """
    stat = file.stat()
    return Identity(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def examine(ids: np.ndarray, identity: Identity) -> Verified:
    """Read all ids (<u2) once; about 1 s per GB."""
    digest, max_id = hashlib.sha256(), 0
    for start in range(0, len(ids), 1 << 20):
        piece = ids[start : start + (1 << 20)]
        digest.update(piece)
        max_id = max(max_id, int(piece.max()))
    return Verified(identity, digest.hexdigest(), max_id)


def recall(folder: Path) -> dict[str, Verified]:
    """What was remembered, by name; nothing where that cannot be read: then all is examined."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return {}
        return {
            name: Verified(Identity(*map(int, identity)), str(sha256), int(max_id))
            for name, (identity, sha256, max_id) in content["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def remember(folder: Path, files: Mapping[str, Verified]) -> None:
    """For the next start; where the folder cannot be written to, that one examines all again."""
    temporary = folder / f".{FILE}.{os.getpid()}"
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps({"format": FORMAT, "files": files}, indent=2), encoding="utf-8")
        temporary.replace(folder / FILE)
