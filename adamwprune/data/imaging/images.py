"""Labelled images in memory: how they are checked, split, augmented, normalised and gathered into batches."""

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamwprune.data.base import Data
from adamwprune.data.fingerprint import fingerprint
from adamwprune.data.imaging.augment import CropFlip
from adamwprune.errors import DataError


@dataclass(frozen=True)
class LabelledImages:
    """Images uint8 (N, C, H, W) and labels (N,) as read from `source`, a file or archive."""

    images: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    source: str

    def subset(self, indices: np.ndarray) -> "LabelledImages":
        """Those at `indices`, in that order."""
        return LabelledImages(self.images[indices], self.labels[indices], self.source)


@dataclass(frozen=True)
class Shape:
    """What a configuration says of images; square, labels 0 to num_classes - 1."""

    num_classes: int
    channels: int
    image_size: int


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of a channel, with pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of(self, images: Tensor) -> Tensor:
        """(pixel / 255 - mean) / std of uint8 images (N, C, H, W), in float32."""
        return images.float().sub_(_in_bytes(self.mean)).div_(_in_bytes(self.std))


@functools.cache  # each batch needs it again
def _in_bytes(values: tuple[float, ...]) -> Tensor:
    """A value a channel in units of the byte, float32 (C, 1, 1): so a batch needs no division by 255."""
    return 255 * torch.tensor(values).view(-1, 1, 1)


class ImageDataset:
    """Images kept as bytes, augmented and normalised as they are gathered.

    inputs = (pixel / 255 - mean) / std, float32 (N, C, H, W); targets int64 (N,). Without `augment`
    the epoch changes nothing. Bytes are a quarter of the memory of floats, and a batch of them is
    converted in microseconds.
    """

    def __init__(
        self, content: LabelledImages, normalisation: Normalisation, augment: CropFlip | None = None
    ) -> None:
        # Writable, or torch warns; copied only where it is not.
        self._images = torch.from_numpy(np.require(content.images, requirements=("C", "W")))
        self._labels = torch.from_numpy(content.labels.astype(np.int64))
        self._normalisation = normalisation
        self._augment = augment

    def __len__(self) -> int:
        """Number of images."""
        return len(self._labels)

    def batch(self, indices: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """Normalised images and their labels; see `Dataset.batch`."""
        chosen = torch.from_numpy(indices)
        images, labels = (tensor.index_select(0, chosen) for tensor in (self._images, self._labels))
        if self._augment is None:
            return self._normalisation.of(images), labels
        words = self._augment.words(indices, epoch)
        inputs = self._normalisation.of(torch.from_numpy(self._augment.moved(images.numpy(), words)))
        self._augment.cut_out_(inputs, words)
        return inputs, labels


def stratified_split(
    labels: np.ndarray, val_fraction: float, split_seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (ascending) of a training and a validation part with the same mix of classes.

    Of each class, the nearest whole number to `val_fraction` is drawn for validation. The draw
    depends on nothing but the arguments, in any release of numpy: it ranks raw 64-bit words, and
    those, unlike numpy's `Generator` methods, are guaranteed not to change.
    """
    words = np.random.PCG64(split_seed).random_raw(len(labels))
    in_val = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        drawn = np.argsort(words[members], kind="stable")[: round(val_fraction * len(members))]
        in_val[members[drawn]] = True
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


def checked_split(
    name: str, labels: np.ndarray, val_fraction: float, split_seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """`stratified_split` in which each class has an image in both parts.

    Raises:
        DataError: one would have none.
    """
    parts = stratified_split(labels, val_fraction, split_seed)
    for part, words in zip(parts, ("training", "validation"), strict=True):
        if missing := set(np.unique(labels).tolist()) - set(np.unique(labels[part]).tolist()):
            raise DataError(
                f"data.val_fraction={val_fraction}: leaves class {min(missing)} without a {words} image; "
                f"{name} has {np.bincount(labels).min()} images in its smallest class"
            )
    return parts


def split_image_data(
    *,
    name: str,
    content: LabelledImages,
    test: LabelledImages,
    shape: Shape,
    normalisation: Normalisation,
    val_fraction: float,
    split_seed: int,
    facts: dict[str, Any],
    augment: CropFlip | None = None,
) -> Data:
    """The `Data` of a data set that comes as a training and a test part: validation is split off.

    Raises:
        DataError: shapes or labels are not as configured, or a class gets no image in a part.
    """
    # First of all: a split by labels that are wrong would fail with a message about the split.
    check_content(content, shape)
    train, val = (
        content.subset(part) for part in checked_split(name, content.labels, val_fraction, split_seed)
    )
    return image_data(
        name=name,
        train=train,
        val=val,
        test=test,
        shape=shape,
        normalisation=normalisation,
        augment=augment,
        facts={**facts, "val_fraction": val_fraction, "split_seed": split_seed},
    )


def image_data(
    *,
    name: str,
    train: LabelledImages,
    val: LabelledImages,
    test: LabelledImages,
    shape: Shape,
    normalisation: Normalisation,
    facts: dict[str, Any],
    augment: CropFlip | None = None,
) -> Data:
    """The `Data` of three parts, the training part augmented; counts are added to the facts.

    The fingerprint is of what is stored, not of how it is augmented: the facts have that.

    Raises:
        DataError: shapes or labels are not as configured.
        ConfigError: the augmentation does not fit the size.
    """
    parts = {"train": train, "val": val, "test": test}
    for part in parts.values():
        check_content(part, shape)
    if augment is not None:
        augment.check(shape.image_size)
        augment = None if augment.is_off else augment
    arrays = {f"{key} images": part.images for key, part in parts.items()}
    labels = {f"{key} labels": part.labels.astype("<i8") for key, part in parts.items()}
    return Data(
        name=name,
        train=ImageDataset(train, normalisation, augment),
        val=ImageDataset(val, normalisation),
        test=ImageDataset(test, normalisation),
        metric="accuracy",
        unit="images",
        units_per_sample=1,
        fingerprint=fingerprint({**arrays, **labels, "normalisation": repr(normalisation)}),
        facts={
            **facts,
            "mean": list(normalisation.mean),
            "std": list(normalisation.std),
            "augmentation": augment and augment.facts(),
            **{f"{key}_images": len(part.labels) for key, part in parts.items()},
        },
    )


def check_content(content: LabelledImages, shape: Shape) -> None:
    """The configured shape is the content's, and every class has an image.

    Raises:
        DataError: naming the key, both numbers and the file.
    """
    count, channels, *sides = content.images.shape
    found = [
        ("channels", shape.channels, channels),
        *(("image_size", shape.image_size, side) for side in sides),
    ]
    for key, configured, actual in found:
        if configured != actual:
            raise DataError(
                f"data.{key}={configured}: the images of {content.source} have {actual}; use {actual}"
            )
    if not count or count != len(content.labels):
        raise DataError(f"{content.source}: {count} images with {len(content.labels)} labels")
    check_labels(content.labels.astype(np.int64), shape.num_classes, content.source)


def check_labels(labels: np.ndarray, num_classes: int, source: str) -> None:
    """Labels (int64) are 0 to num_classes - 1, and each occurs.

    Raises:
        DataError: naming the key, both numbers and the file.
    """
    classes = len(np.unique(labels))
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        raise DataError(
            f"data.num_classes={num_classes}: {source} has label {labels[outside[0]]} at index "
            f"{outside[0]}; its {classes} classes must be labelled 0 to {num_classes - 1}"
        )
    if classes != num_classes:
        missing = min(set(range(num_classes)) - set(np.unique(labels).tolist()))
        # Only without the last classes are the others 0, 1, ...: then a smaller number fits them.
        smaller = f", or use {classes} if no part has one" if missing == classes else ""
        raise DataError(
            f"data.num_classes={num_classes}: {source} has {classes} classes, and no image of class "
            f"{missing}; add images of it{smaller}"
        )
