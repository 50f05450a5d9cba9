"""SHA-256 of files that each start names, remembered: 28 GB take half a minute, which none should wait.

A hash is remembered for a file's path, size, times of content and inode: a copy, a write, a replacement,
even one whose time was set back, differs in one of them and is read again. So a wrong guess costs time,
never the right content.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from adamwprune.data.files.cache import file_sha256
from adamwprune.errors import DataError

FORMAT = "adamwprune-hashes-1"
# What tells one state of a file from another.
Identity = list[int]


def hashes_of(files: Sequence[Path], memory: Path | None = None) -> list[str]:
    """SHA-256 of each file, 64 hex digits; about 1 s per GB of what is not known yet.

    Args:
        files: in any order; a link stands for what it leads to.
        memory: the folder in which hashes are remembered; none, or one that is not there, remembers nothing.

    Raises:
        DataError: a file cannot be read.
    """
    # Of these files together, so that processes with other files leave it alone.
    paths = [str(file.absolute()) for file in files]
    digest = hashlib.sha256(os.fsencode("\0".join(paths))).hexdigest()
    note = memory and memory / f"hashes-{digest[:16]}.json"
    known = _recall(note) if note else {}
    found = {path: _entry(path, known.get(path)) for path in paths}
    if note and found != known:
        _remember(note, found)
    return [found[path][1] for path in paths]


def _entry(path: str, known: tuple[Identity, str] | None) -> tuple[Identity, str]:
    try:
        stat = os.stat(path)
        identity = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        if known is not None and known[0] == identity:
            return known
        return identity, file_sha256(Path(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _recall(note: Path) -> dict[str, tuple[Identity, str]]:
    """What was remembered; nothing where that cannot be read: then all is read."""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return {}
        return {path: (list(identity), str(sha256)) for path, (identity, sha256) in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _remember(note: Path, found: Mapping[str, tuple[Identity, str]]) -> None:
    """For the next start; where the folder is missing or cannot be written to, that one reads all again."""
    temporary = note.with_name(f".{note.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        try:
            temporary.write_text(json.dumps({"format": FORMAT, "files": found}, indent=2), encoding="utf-8")
            temporary.replace(note)
        finally:
            temporary.unlink(missing_ok=True)
