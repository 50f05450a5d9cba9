"""Random changes of training images, drawn from (seed, epoch, index of the image) and nothing else.

So an image looks the same whoever loads it, in whichever batch, thread or rank, before and after a
resume; and neither a global generator nor a position has to be kept. The draws come from
Philox4x32-10, a hash of a counter (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), computed here for a whole batch at once: the methods of numpy's generators may change
between releases, and one generator an image would cost more than the change itself.

Sources: crop with padding and flip, He et al. arXiv:1512.03385; cutout, DeVries and Taylor
arXiv:1708.04552; crops of a random area, Szegedy et al. arXiv:1409.4842.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from adamwprune.errors import ConfigError

LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10

# What words are for: crops and flips of one image share none.
CROP, FLIP = 0, 1

# Aspect ratios of a random crop lie between these, and so many crops are tried before the centre is taken.
RATIOS = 3 / 4, 4 / 3
ATTEMPTS = 10

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Cut = Callable[[int, int], tuple[Box, bool]]  # (width, height) to what is shown, and whether mirrored


def philox(counter: tuple[np.ndarray, ...], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Philox4x32-10 of four counters (uint64 arrays of 32-bit values) under a key of two 32-bit values."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        a, b = MULTIPLIERS[0] * x0, MULTIPLIERS[1] * x2
        x0, x1, x2, x3 = (b >> HALF) ^ x1 ^ np.uint64(k0), b & LOW, (a >> HALF) ^ x3 ^ np.uint64(k1), a & LOW
        k0, k1 = (k0 + KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + KEY_STEPS[1]) & 0xFFFFFFFF
    return x0, x1, x2, x3


def random_words(seed: int, epoch: int, indices: np.ndarray, count: int, purpose: int) -> np.ndarray:
    """`count` 32-bit words for each index, uint64 (N, count)."""
    index = indices.astype(np.uint64)[:, None]
    block = np.arange(-(-count // 4), dtype=np.uint64)[None]
    counter = np.broadcast_arrays(index & LOW, index >> HALF, block, np.uint64(purpose))
    words = philox(tuple(counter), (seed, epoch))
    return np.stack(words, axis=-1).reshape(len(indices), -1)[:, :count]


def below(words: np.ndarray, limit: int) -> np.ndarray:
    """Words as integers 0 to limit - 1; uneven by less than limit / 2^32."""
    return ((words * np.uint64(limit)) >> HALF).astype(np.int64)


def as_fraction(words: np.ndarray) -> np.ndarray:
    """Words as float64 in [0, 1)."""
    return words / 2.0**32


@dataclass(frozen=True)
class CropFlip:
    """For small images kept in memory: a shift, a mirror image, and a square cut out.

    Args:
        crop_padding: black pixels added on each side, from which a window of the old size is cut.
        horizontal_flip: probability that left and right are swapped.
        cutout: side of the square that is replaced by the mean colour. Its centre lies anywhere in
            the image, so it may be cut by the border.
        seed: the training seed.
    """

    crop_padding: int
    horizontal_flip: float
    cutout: int
    seed: int

    @property
    def is_off(self) -> bool:
        """Whether no image would change."""
        return not (self.crop_padding or self.horizontal_flip or self.cutout)

    def check(self, image_size: int) -> None:
        """What is added or removed must leave something of the image.

        Raises:
            ConfigError: naming the key.
        """
        for key, pixels in ("crop_padding", self.crop_padding), ("cutout", self.cutout):
            if pixels >= image_size:
                raise ConfigError(f"data.{key}={pixels}: must be below data.image_size={image_size}")

    def facts(self) -> dict[str, Any] | None:
        """The settings, for the run record; None where nothing is changed."""
        return None if self.is_off else asdict(self)

    def words(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        """Five for each image: two for the crop, one for the flip, two for the cutout."""
        return random_words(self.seed, epoch, indices, 5, CROP)

    def moved(self, images: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Crop and flip uint8 images (N, C, H, W); `images` may be overwritten."""
        if self.crop_padding:
            corners = below(words[:, :2], 2 * self.crop_padding + 1)
            images = _shifted(images, corners, self.crop_padding)
        if self.horizontal_flip:
            mirrored = as_fraction(words[:, 2]) < self.horizontal_flip
            images[mirrored] = images[mirrored, ..., ::-1]
        return images

    def cut_out_(self, inputs: Tensor, words: np.ndarray) -> None:
        """Set a square of each normalised image (N, C, H, W) to 0, the mean colour, in place."""
        if not self.cutout:
            return
        size = inputs.shape[-1]
        start = below(words[:, 3:5], size) - self.cutout // 2
        pixel = np.arange(size)
        inside = (pixel >= start[..., None]) & (pixel < start[..., None] + self.cutout)  # (N, 2, size)
        keep = ~(inside[:, 0, :, None] & inside[:, 1, None, :])
        inputs.mul_(torch.from_numpy(keep).unsqueeze(1))


def _shifted(images: np.ndarray, corners: np.ndarray, padding: int) -> np.ndarray:
    """The window at each corner (N, 2: top, left) of the images with a black frame of `padding` pixels."""
    count, channels, height, width = images.shape
    framed = np.zeros((count, channels, height + 2 * padding, width + 2 * padding), dtype=np.uint8)
    framed[:, :, padding:-padding, padding:-padding] = images
    # A view of all windows, of which one an image is copied.
    windows = sliding_window_view(framed, (height, width), axis=(2, 3))
    return windows[np.arange(count), :, corners[:, 0], corners[:, 1]]


class View(Protocol):
    """What is shown of images whose size is known only when they are opened."""

    def cuts(self, indices: np.ndarray, epoch: int) -> list[Cut]:
        """One function an image."""
        ...


@dataclass(frozen=True)
class CentreCrop:
    """The square in the middle whose side is `fraction` of the image's shorter side."""

    fraction: float

    def cuts(self, indices: np.ndarray, epoch: int) -> list[Cut]:
        """The same for every image."""
        return [self._cut] * len(indices)

    def _cut(self, width: int, height: int) -> tuple[Box, bool]:
        side = self.fraction * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side), False


@dataclass(frozen=True)
class RandomResizedCrop:
    """A rectangle of random area, shape and place.

    Args:
        scale: smallest and largest share of the image's area.
        seed: the training seed.
    """

    scale: tuple[float, float]
    seed: int

    def cuts(self, indices: np.ndarray, epoch: int) -> list[Cut]:
        """Two words an attempt for area and shape, two for the place."""
        words = random_words(self.seed, epoch, indices, 2 * ATTEMPTS + 2, CROP)
        return [partial(self._cut, draws) for draws in as_fraction(words).tolist()]

    def _cut(self, draws: list[float], width: int, height: int) -> tuple[Box, bool]:
        least, most = self.scale
        *shapes, across, down = draws
        for first, second in zip(shapes[::2], shapes[1::2], strict=True):
            area = (least + (most - least) * first) * width * height
            ratio = RATIOS[0] * (RATIOS[1] / RATIOS[0]) ** second  # uniform in its logarithm
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                left, top = int(across * (width - wide + 1)), int(down * (height - high + 1))
                return (left, top, left + wide, top + high), False
        return self._centre(width, height)

    def _centre(self, width: int, height: int) -> tuple[Box, bool]:
        """As much of the image as has an allowed shape."""
        wide = min(width, round(height * RATIOS[1]))
        high = min(height, round(width / RATIOS[0]))
        left, top = (width - wide) // 2, (height - high) // 2
        return (left, top, left + wide, top + high), False


@dataclass(frozen=True)
class RandomFlip:
    """What another view shows, with left and right swapped at a probability."""

    view: View
    horizontal_flip: float
    seed: int

    def cuts(self, indices: np.ndarray, epoch: int) -> list[Cut]:
        """One word an image."""
        draws = as_fraction(random_words(self.seed, epoch, indices, 1, FLIP)[:, 0])
        mirrored = (draws < self.horizontal_flip).tolist()
        cuts = self.view.cuts(indices, epoch)
        return [_mirrored(cut) if flip else cut for cut, flip in zip(cuts, mirrored, strict=True)]


def _mirrored(cut: Cut) -> Cut:
    return lambda width, height: (cut(width, height)[0], True)
