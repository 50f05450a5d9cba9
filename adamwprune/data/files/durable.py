"""Files that survive a power cut, or are not there."""

import os
from pathlib import Path

from adamwprune.data.files.cache import disk_errors


def write_durably(file: Path, text: str) -> None:
    """Replace `file` by `text`: whoever looks, also after a crash, finds the old one or the new.

    Raises:
        DiskError: the file system refuses.
    """
    temporary = file.with_name(f"{file.name}.tmp")
    with disk_errors(file):
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
        sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` durable.

    Raises:
        OSError: the file system refuses.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
