"""IDX, the file format of MNIST and Fashion-MNIST, and the proof that a copy is the original.

Bytes: 0, 0, 8 (unsigned byte), number of dimensions; each size as big-endian uint32; the data.
Source: http://yann.lecun.com/exdb/mnist, "The IDX file format".
"""

import gzip
import hashlib
import io
import struct
import zlib
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import numpy as np

from adamwprune.data.files.cache import NotThere
from adamwprune.data.imaging.hub_images import HubImages, read_hub
from adamwprune.data.imaging.images import LabelledImages
from adamwprune.data.imaging.published import Parts
from adamwprune.errors import DataError

UNSIGNED_BYTE = 8
# Of one file, unpacked; the largest that is published has 47 MB. A few kilobytes can unpack to gigabytes.
MOST_BYTES = 1 << 28

# The four published files: images and labels to train on, then to test on.
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


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


def read(read_file: Callable[[str], bytes | None], md5: Mapping[str, str], origin: str) -> Parts:
    """Both parts of a data set of four IDX files, from any place that gives files by their names.

    Args:
        read_file: the content of NAME or NAME.gz; None where there is no such file.
        md5: of each file, unpacked.
        origin: what the place is.

    Raises:
        NotThere: a file is missing.
        DataError: a file is damaged, or not the original.
    """
    arrays = {}
    for name in NAMES:
        if (content := read_file(f"{name}.gz")) is not None:
            content = _unpacked(content, f"{origin}, {name}.gz")
        elif (content := read_file(name)) is None:
            raise NotThere(f"{origin}: has no {name}[.gz]")
        arrays[name] = decode(content, f"{origin}, {name}")
    return proven(arrays, md5, origin)


def read_folder(folder: Path, md5: Mapping[str, str]) -> Parts:
    """Both parts from the published files in a folder, plain or with .gz appended."""

    def read_file(name: str) -> bytes | None:
        try:
            return (folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{folder / name}: cannot be read ({error.strerror})") from error

    return read(read_file, md5, f"folder {folder}")


def read_from_hub(images: HubImages, path: Path | None, md5: Mapping[str, str]) -> Parts:
    """Both parts from the hub's parquet, which has the same images in the same order."""
    train, test, origin = read_hub(images, path)
    arrays = (train.images[:, 0], train.labels, test.images[:, 0], test.labels)
    return proven(
        {name: array.astype(np.uint8) for name, array in zip(NAMES, arrays, strict=True)}, md5, origin
    )


def proven(arrays: Mapping[str, np.ndarray], md5: Mapping[str, str], origin: str) -> Parts:
    """Both parts of four arrays (N, H, W) and (N,), by name, if their IDX files are the published ones.

    The publishers' hashes are MD5; they identify content here and protect nothing.

    Raises:
        DataError: naming the file and both hashes.
    """
    for name in NAMES:
        actual = hashlib.md5(encode(arrays[name]), usedforsecurity=False).hexdigest()
        if actual != md5[name]:
            raise DataError(f"{origin}: md5 of {name} is {actual}, of the original {md5[name]}")
    images, labels, test_images, test_labels = (arrays[name] for name in NAMES)
    return (
        LabelledImages(images[:, None], labels, "the training files"),
        LabelledImages(test_images[:, None], test_labels, "the test files"),
        origin,
    )


def _unpacked(content: bytes, name: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            unpacked = stream.read(MOST_BYTES + 1)
        if len(unpacked) > MOST_BYTES:
            raise DataError(f"{name}: unpacks to more than {MOST_BYTES:,} bytes, which no file of these has")
        return unpacked
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: cannot be read ({error})") from error
