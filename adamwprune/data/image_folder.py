"""Folders of images, one sub-folder a class: how they are listed, and the user's own as a data set."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np

from adamwprune.data.base import Data
from adamwprune.data.files.cache import NotThere
from adamwprune.data.files.hub import require_packages
from adamwprune.data.imaging import decode
from adamwprune.data.imaging.decoded_images import (
    Part,
    Rendering,
    Views,
    decoded_image_data,
    decoding_threads,
)
from adamwprune.data.imaging.file_index import Files, index_files
from adamwprune.data.imaging.images import Normalisation, Shape, checked_split
from adamwprune.errors import ConfigError, DataError
from adamwprune.ranges import Fraction, Positive, PositiveInt, Range, Seed, UnitInterval

log = logging.getLogger(__name__)

# Folders of a data set, and what their images are called.
PARTS = {"train": "training", "val": "validation", "test": "test"}
# Where nothing is said, and nothing but the training images is there.
VAL_FRACTION = 0.1
EXTENSIONS = frozenset(extension.encode() for extension in decode.EXTENSIONS)


def images(
    *,
    num_classes: PositiveInt,
    channels: PositiveInt,
    image_size: PositiveInt,
    mean: list[UnitInterval],
    std: list[Positive],
    path: str | None = None,
    data_dir: str = "~/.cache/adamwprune",
    val_fraction: Fraction | None = None,
    split_seed: Seed | None = None,
    random_resized_crop: tuple[UnitInterval, UnitInterval] | None = None,
    horizontal_flip: UnitInterval = 0.0,
    center_crop: Annotated[float, Range(above=0, most=1)] = 1.0,
    seed: Seed = 0,
) -> Data:
    """Any folder of images: a sub-folder is a class, numbered in alphabetical order.

    Either the classes lie in `path`, or it has a folder `train` of classes, and perhaps `val` and
    `test`. Without `val`, a stratified part of the training images validates: `val_fraction` of them (null:
    0.1), drawn by `split_seed` (null: 0), copies of an image all on one side. All files are read, decoded
    and hashed once; `data_dir` keeps what was found. The keys from `random_resized_crop` to `seed` are those
    of `Views`.

    Raises:
        ConfigError: no path, or keys that do not fit each other.
        DataError: no such folder, an image that cannot be decoded or is in two parts, or classes other than
            configured.
    """
    if path is None:
        raise ConfigError(
            "data.path=null: data=images needs data.path=FOLDER, with a sub-folder for each class"
        )
    rendering = Rendering(
        Shape(num_classes, channels, image_size),
        Normalisation(tuple(mean), tuple(std)),
        Views(random_resized_crop, horizontal_flip, center_crop, seed),
    )
    root, threads = Path(path).expanduser(), decoding_threads()
    if not root.is_dir():
        raise DataError(f"data.path={path}: no such folder; give one with a sub-folder for each class")
    folders = part_folders(root)
    if "val" in folders:
        _check_not_given(root, val_fraction=val_fraction, split_seed=split_seed)
    folder = ImageFolder.scan(root, folders, num_classes)
    digests = index_files(folder.files, Path(data_dir).expanduser(), inspect, threads)
    contents = _contents(digests)
    _check_apart(folder, contents)
    train, val = folder.parts["train"], folder.parts.get("val")
    facts = {"source": f"folder {root}", "classes": list(folder.classes), "other_files": folder.other_files}
    if val is None:
        keys = {"val_fraction": VAL_FRACTION if val_fraction is None else val_fraction}
        keys |= {"split_seed": split_seed or 0}
        split = _split(train.labels, contents[train.indices], **keys)
        train, val = (train.subset(chosen) for chosen in split)
        facts |= keys
    return decoded_image_data(
        name="images",
        train=train,
        val=val,
        test=folder.parts.get("test"),
        content={"names": folder.files.names, "sha256": digests},
        rendering=rendering,
        threads=threads,
        facts=facts,
    )


def _check_not_given(root: Path, **keys: float | None) -> None:
    for key, value in keys.items():
        if value is not None:
            raise ConfigError(
                f"data.{key}={value}: {root} has a folder val, which validates; leave out one of them"
            )


def _contents(digests: np.ndarray) -> np.ndarray:
    """The content of each file as a number, in the order in which contents occur; copies have one number."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(bytes(digest), len(numbers)) for digest in digests])


def _check_apart(folder: "ImageFolder", contents: np.ndarray) -> None:
    """No image is in two parts: it would be known before it is asked for.

    Refused, and not told in a warning: which of the two should go is the user's to say, and what is
    measured on images that were trained on is no result.
    """
    seen: dict[int, int] = {}
    for name, part in folder.parts.items():
        if copies := [index for index in part.indices if contents[index] in seen]:
            twin = seen[contents[copies[0]]]
            of = next(words for other, words in PARTS.items() if twin in folder.parts[other].indices)
            raise DataError(
                f"{folder.files.path(copies[0])}: is the {of} image {folder.files.path(twin)}; leave one out "
                f"({len(copies)} of {len(part.indices)} images of {name} are in another part)"
            )
        seen |= {contents[index]: index for index in part.indices}


def _split(
    labels: np.ndarray, contents: np.ndarray, val_fraction: float, split_seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """`checked_split`, but of contents: copies of an image go where the first one goes."""
    _, first, content = np.unique(contents, return_index=True, return_inverse=True)
    if len(first) < len(contents):
        copies = len(contents) - len(first)
        log.warning("%d of %d images are copies; all of one image are in one part", copies, len(contents))
    _, chosen = checked_split("images", labels[first], val_fraction, split_seed)
    in_val = np.isin(content, chosen)
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


def inspect(file: Path) -> bytes:
    """Decode a file; its SHA-256.

    Raises:
        DataError: it cannot be decoded.
    """
    content = file.read_bytes()
    decode.check(content, str(file))
    return hashlib.sha256(content).digest()


def part_folders(root: Path) -> Mapping[str, str]:
    """The folder of each part that the user's folder has, relative to it.

    Raises:
        DataError: a folder `train` beside folders that could be classes.
    """
    if not (root / "train").is_dir():
        return {"train": ""}
    if others := {folder.name for folder in _folders(root)} - PARTS.keys():
        raise DataError(
            f"data.path={root}: has train and {min(others)}; beside a folder train only val and test may lie"
        )
    return {part: part for part in PARTS if (root / part).is_dir()}


@dataclass(frozen=True)
class ImageFolder:
    """The image files below a folder, by part and class; what is in them is not yet known."""

    files: Files
    classes: tuple[str, ...]
    parts: Mapping[str, Part] = field(repr=False)
    other_files: int  # that are no images by their name

    @classmethod
    def scan(cls, root: Path, folders: Mapping[str, str], num_classes: int) -> "ImageFolder":
        """List the files of parts that lie in `folders` (by part, relative to root).

        Raises:
            NotThere: a folder is missing, or pillow is.
            DataError: other classes than configured, or a class without images.
        """
        require_packages("PIL")
        for folder in folders.values():
            if not (root / folder).is_dir():
                raise NotThere(f"{root / folder}: no such folder")
        classes = _classes(root / folders["train"], num_classes)
        rows, other_files = [], 0
        for number, folder in enumerate(folders.values()):
            for label, place in _labelled(root / folder, classes):
                found, others = _images_below(place)
                below = os.fsencode(place.relative_to(root)) + b"/"
                rows += [(below + name, size, time, label, number) for name, size, time in found]
                other_files += others
        if other_files:
            log.warning("%s: %d files are no images by their names and are left out", root, other_files)
        names, *numbers = zip(*sorted(rows), strict=True)
        sizes, times, labels, owners = (np.array(column, dtype=np.int64) for column in numbers)
        parts: dict[str, Part] = {}
        self = cls(Files(root, np.array(names), sizes, times), classes, parts, other_files)
        for number, part in enumerate(folders):
            indices = np.flatnonzero(owners == number)
            parts[part] = Part(self, indices, labels[indices])
        return self

    def read(self, index: int) -> tuple[bytes, str]:
        """The content of a file and its path.

        Raises:
            DataError: it cannot be read any more.
        """
        path = self.files.path(index)
        try:
            return path.read_bytes(), str(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _classes(root: Path, num_classes: int) -> tuple[str, ...]:
    classes = tuple(folder.name for folder in _folders(root))
    if not classes:
        raise DataError(f"{root}: must have a sub-folder of images for each class; it has no folder")
    if len(classes) != num_classes:
        raise DataError(
            f"data.num_classes={num_classes}: {root} has {len(classes)} sub-folders, each a class; "
            f"use {len(classes)}"
        )
    return classes


def _labelled(root: Path, classes: Sequence[str]) -> Iterator[tuple[int, Path]]:
    """The folder of each class with its label."""
    labels = {name: label for label, name in enumerate(classes)}
    folders = _folders(root)
    if not folders:
        raise DataError(f"{root}: must have the sub-folders of train, each a class; it has no folder")
    for folder in folders:
        if folder.name not in labels:
            raise DataError(f"{folder}: the training part has no such class")
        yield labels[folder.name], folder


def _images_below(folder: Path) -> tuple[list[tuple[bytes, int, int]], int]:
    """Name, size and time of change of each image in a folder or below; and how many files are none.

    Raises:
        DataError: no image, or one that cannot be read, such as a link that leads nowhere.
    """
    try:
        found, others = _walk(os.fsencode(folder))
    except OSError as error:
        raise DataError(f"{os.fsdecode(error.filename)}: cannot be read ({error.strerror})") from error
    if not found:
        raise DataError(f"{folder}: has no image ({', '.join(sorted(decode.EXTENSIONS))})")
    return found, others


def _walk(folder: bytes) -> tuple[list[tuple[bytes, int, int]], int]:
    # Bytes, and no Path of each: a start with a million files waits for this loop.
    found, others = [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b"."):
                continue
            if name[name.rfind(b".") :].lower() in EXTENSIONS:
                stat = entry.stat()
                found.append((name, stat.st_size, stat.st_mtime_ns))
            elif entry.is_dir(follow_symlinks=False):  # else a loop would never end
                below, more = _walk(entry.path)
                found += [(name + b"/" + inner, size, time) for inner, size, time in below]
                others += more
            else:
                others += 1
    return found, others
