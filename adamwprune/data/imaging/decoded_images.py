"""Labelled images that stay encoded, in files or in a table, and are decoded when they are asked for."""

import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from adamwprune.cores import usable_cores
from adamwprune.data.base import Data
from adamwprune.data.fingerprint import fingerprint
from adamwprune.data.imaging import decode
from adamwprune.data.imaging.augment import CentreCrop, RandomFlip, RandomResizedCrop, View
from adamwprune.data.imaging.images import Normalisation, Shape, check_labels
from adamwprune.errors import ConfigError


class Encoded(Protocol):
    """Encoded images by number, from several threads at once."""

    def read(self, index: int) -> tuple[bytes, str]:
        """The content of one, and its name for messages."""
        ...


@dataclass(frozen=True)
class Part:
    """Some of the encoded images, with their labels (int64, (N,))."""

    encoded: Encoded
    indices: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)

    def subset(self, chosen: np.ndarray) -> "Part":
        """Those at `chosen`, in that order."""
        return Part(self.encoded, self.indices[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Views:
    """What is shown of images of any size.

    Args:
        random_resized_crop: smallest and largest share of the area that a training image shows;
            None: as at evaluation.
        horizontal_flip: probability that a training image is mirrored.
        center_crop: side of the central square that evaluation sees, as a share of the shorter side.
        seed: the training seed.

    Raises:
        ConfigError: the shares are no range.
    """

    random_resized_crop: Sequence[float] | None
    horizontal_flip: float
    center_crop: float
    seed: int

    def __post_init__(self) -> None:
        scale = self.random_resized_crop
        if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError(
                f"data.random_resized_crop={list(scale)}: must be null, or [least, most] "
                f"with 0 < least <= most <= 1"
            )

    @property
    def evaluation(self) -> View:
        """Always the same part."""
        return CentreCrop(self.center_crop)

    @property
    def training(self) -> View:
        """Drawn anew in each epoch."""
        view: View = self.evaluation
        if self.random_resized_crop is not None:
            view = RandomResizedCrop(tuple(self.random_resized_crop), self.seed)
        return RandomFlip(view, self.horizontal_flip, self.seed) if self.horizontal_flip else view

    def facts(self) -> dict[str, Any] | None:
        """How training images are changed, for the run record; None: not at all."""
        if self.random_resized_crop is None and not self.horizontal_flip:
            return None
        scale = None if self.random_resized_crop is None else list(self.random_resized_crop)
        return {"random_resized_crop": scale, "horizontal_flip": self.horizontal_flip, "seed": self.seed}


@dataclass(frozen=True)
class Rendering:
    """How encoded images become tensors.

    Raises:
        ConfigError: the keys do not fit each other.
    """

    shape: Shape
    normalisation: Normalisation
    views: Views

    def __post_init__(self) -> None:
        channels = self.shape.channels
        if channels not in decode.MODES:
            raise ConfigError(f"data.channels={channels}: must be 1 (grey) or 3 (RGB)")
        for key in ("mean", "std"):
            values = getattr(self.normalisation, key)
            if len(values) != channels:
                raise ConfigError(
                    f"data.{key}={list(values)}: must have {channels}, one for each of data.channels"
                )


class DecodedImages:
    """The `Dataset` of a part: inputs float32 (N, C, S, S), normalised; targets int64 (N,).

    The images of one batch are decoded by several threads, so that also whoever waits for a single
    batch, such as an evaluation, waits for a fraction of the work.
    """

    def __init__(self, part: Part, view: View, rendering: Rendering, threads: Executor) -> None:
        self._part = part
        self._view = view
        self._rendering = rendering
        self._threads = threads

    def __len__(self) -> int:
        """Number of images."""
        return len(self._part.labels)

    def batch(self, indices: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """Decoded, cut, normalised images and their labels; see `Dataset.batch`.

        Raises:
            DataError: an image cannot be read or decoded.
        """
        part, shape = self._part, self._rendering.shape
        size, channels = shape.image_size, shape.channels
        cuts = self._view.cuts(indices, epoch)
        pixels = np.empty((len(indices), channels, size, size), dtype=np.uint8)

        def fill(place: int) -> None:
            content, name = part.encoded.read(int(part.indices[indices[place]]))
            pixels[place] = decode.cut_out(content, name, cuts[place], size, channels)

        deque(self._threads.map(fill, range(len(indices))), maxlen=0)
        return self._rendering.normalisation.of(torch.from_numpy(pixels)), torch.from_numpy(
            part.labels[indices]
        )


def decoding_threads() -> ThreadPoolExecutor:
    """As many as this process's share of the machine has cores; none is started before it is used."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return ThreadPoolExecutor(max(1, usable_cores() // ranks), thread_name_prefix="decode")


def decoded_image_data(
    *,
    name: str,
    train: Part,
    val: Part,
    test: Part | None,
    content: Mapping[str, np.ndarray | str],
    rendering: Rendering,
    threads: Executor,
    facts: dict[str, Any],
) -> Data:
    """The `Data` of encoded images, which `threads` decode.

    `content` says that two data sets have the same images, such as hashes of the files. What
    evaluation sees of them is part of the fingerprint too; how training images are changed is not.

    Raises:
        DataError: labels are not as configured.
    """
    views, parts = rendering.views, {"train": train, "val": val, "test": test}
    present = {key: part for key, part in parts.items() if part is not None}
    for key, part in present.items():
        check_labels(part.labels, rendering.shape.num_classes, f"the {key} part of {name}")
    shown = {key: views.training if key == "train" else views.evaluation for key in parts}
    datasets = {key: DecodedImages(part, shown[key], rendering, threads) for key, part in present.items()}
    arrays = {f"{key} images": part.indices.astype("<i8") for key, part in present.items()}
    labels = {f"{key} labels": part.labels.astype("<i8") for key, part in present.items()}
    settings = (rendering.shape, rendering.normalisation, views.center_crop)
    return Data(
        name=name,
        **{"test": None, **datasets},
        metric="accuracy",
        unit="images",
        units_per_sample=1,
        fingerprint=fingerprint({**content, **arrays, **labels, "rendering": repr(settings)}),
        facts={
            **facts,
            "mean": list(rendering.normalisation.mean),
            "std": list(rendering.normalisation.std),
            "center_crop": views.center_crop,
            "augmentation": views.facts(),
            **{f"{key}_images": len(part.labels) for key, part in present.items()},
        },
    )
