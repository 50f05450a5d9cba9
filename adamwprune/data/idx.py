"""IDX, the file format of MNIST and Fashion-MNIST, and the proof that a copy is the original.

Bytes: 0, 0, 8 (unsigned byte), number of dimensions; each size as big-endian uint32; the data.
Source: http://yann.lecun.com/exdb/mnist, "The IDX file format".
"""

import gzip
import hashlib
import struct
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from adamwprune.data.cache import NotThere
from adamwprune.errors import DataError

UNSIGNED_BYTE = 8


def encode(array: np.ndarray) -> bytes:
    """A uint8 array of any shape as the content of an IDX file."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, UNSIGNED_BYTE, array.ndim, *array.shape)
    return header + array.tobytes()


def decode(content: bytes, name: str) -> np.ndarray:
    """The uint8 array in the content of an IDX file called `name`.

    Raises:
        DataError: not IDX, or shorter or longer than its header says.
    """
    if len(content) < 4 or content[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise DataError(f"{name}: not an IDX file of bytes (it begins with {content[:4].hex(' ')})")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{name}: ends within its header")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != prod(shape):
        raise DataError(f"{name}: {len(content) - start} bytes of data for the shape {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def read_folder(folder: Path, md5: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays of the files named in `md5`, plain or with .gz appended, by name.

    Raises:
        NotThere: a file is missing.
        DataError: a file is damaged, or not the original.
    """
    return {name: decode(_read(folder / name), name) for name in md5}


def check_original(arrays: Mapping[str, np.ndarray], md5: Mapping[str, str], source: str) -> None:
    """Arrays from any source are the published ones, to the bit, if their IDX files hash alike.

    The publishers' hashes are MD5; they identify content here and protect nothing.

    Raises:
        DataError: naming the array and both hashes.
    """
    for name, expected in md5.items():
        actual = hashlib.md5(encode(arrays[name]), usedforsecurity=False).hexdigest()
        if actual != expected:
            raise DataError(f"{source}: md5 of {name} is {actual}, of the original {expected}")


def _read(file: Path) -> bytes:
    packed = file.with_name(f"{file.name}.gz")
    try:
        return gzip.decompress(packed.read_bytes()) if packed.exists() else file.read_bytes()
    except FileNotFoundError as error:
        raise NotThere(f"{file}[.gz]: no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{packed if packed.exists() else file}: cannot be read ({error})") from error
