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

PARTS = ("train", "val", "test")
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
    val_fraction: Fraction = 0.1,
    split_seed: Seed = 0,
    random_resized_crop: tuple[UnitInterval, UnitInterval] | None = None,
    horizontal_flip: UnitInterval = 0.0,
    center_crop: Annotated[float, Range(above=0, most=1)] = 1.0,
    seed: Seed = 0,
) -> Data:
    """Any folder of images: a sub-folder is a class, numbered in alphabetical order.

    Either the classes lie in `path`, or it has a folder `train` of classes, and perhaps `val` and
    `test`. Without `val`, a stratified part of the training images validates. All files are read,
    decoded and hashed once; `data_dir` keeps what was found. The keys from `random_resized_crop` to
    `seed` are those of `Views`.

    Raises:
        ConfigError: no path, or keys that do not fit each other.
        DataError: no such folder, an image that cannot be decoded, or classes other than configured.
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
    folder = ImageFolder.scan(root, part_folders(root), num_classes)
    digests = index_files(folder.files, Path(data_dir).expanduser(), inspect, threads)
    train, val = folder.parts["train"], folder.parts.get("val")
    facts = {"source": f"folder {root}", "classes": list(folder.classes), "other_files": folder.other_files}
    if val is None:
        split = checked_split("images", train.labels, val_fraction, split_seed)
        train, val = (train.subset(chosen) for chosen in split)
        facts |= {"val_fraction": val_fraction, "split_seed": split_seed}
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
    if others := {folder.name for folder in _folders(root)} - set(PARTS):
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
        DataError: no image.
    """
    found, others = _walk(os.fsencode(folder))
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
