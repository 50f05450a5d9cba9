"""What lies in a Debian package: its members are read, none is ever written under its own name."""

import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from adamwprune.corpora.prose import MOST_BYTES
from adamwprune.errors import DataError


def pages(deb: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each regular file whose whole name fits the regular expression, in their order.

    Raises:
        DataError: it is no such package, or damaged.
    """
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as reader:
        try:
            with tarfile.open(fileobj=reader.stdout, mode="r|") as archive:
                for member in archive:
                    # Links are not followed: they may lead anywhere.
                    if member.isreg() and member.size <= MOST_BYTES and re.fullmatch(pattern, member.name):
                        yield member.name.removeprefix("./"), archive.extractfile(member).read()
        except tarfile.TarError as error:
            raise DataError(f"{deb}: cannot be read ({error}); remove it, and it is fetched again") from error
        finally:
            reader.kill()
