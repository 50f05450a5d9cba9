"""Encoded images to pixels, with pillow, for files that nobody has looked at.

Whatever is wrong with a file becomes a DataError with its name. Only formats that are pixels are
opened (no EPS, whose reader starts another program), and none that says it is larger than
`MAX_PIXELS`: a few kilobytes can claim to be gigabytes. Pillow releases the interpreter's lock while it
decodes and resizes, so threads decode at the same time.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from adamwprune.data.imaging.augment import Cut
from adamwprune.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
EXTENSIONS = {
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
}  # fmt: skip
# Where pillow, too, begins to warn: 256 MiB as RGB.
MAX_PIXELS = 89_478_485

MODES = {1: "L", 3: "RGB"}  # channels to pillow's name
ORIENTATION = 0x0112  # EXIF: how the camera was held; 1 is upright


@contextmanager
def _opened(content: bytes, name: str) -> "Iterator[Image]":
    """The image with its header read; errors inside are named."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{name}: says it has {image.width} x {image.height} pixels; "
                    f"at most {MAX_PIXELS:,} are decoded"
                )
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{name}: has more than 8 bits a pixel ({image.mode}); convert it to 8 bits")
            yield image
    except DataError:
        raise
    # Each of pillow's readers raises what it likes: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise DataError(f"{name}: cannot be decoded ({' '.join(str(error).split())})") from error


def decoded(content: bytes, name: str) -> np.ndarray:
    """The pixels of a grey or colour image as they are, uint8 (C, H, W).

    Raises:
        DataError: not an image that can be decoded.
    """
    with _opened(content, name) as image:
        return _planes(image if image.mode in MODES.values() else image.convert("RGB"))


def check(content: bytes, name: str) -> None:
    """Decode all of an image, JPEG at an eighth of its size, which is faster and finds the same damage.

    Raises:
        DataError: not an image that can be decoded.
    """
    with _opened(content, name) as image:
        image.draft(None, (1, 1))
        image.load()


def cut_out(content: bytes, name: str, cut: Cut, size: int, channels: int) -> np.ndarray:
    """What `cut` shows of an image, resized to uint8 (channels, size, size).

    Bilinear, over all pixels that a new pixel covers. Colours are made grey or the reverse as
    `channels` says; transparency is dropped; a photograph is turned upright.

    Raises:
        DataError: not an image that can be decoded.
    """
    from PIL import Image, ImageOps

    with _opened(content, name) as image:
        if image.getexif().get(ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        width, height = image.size
        (left, top, right, bottom), mirrored = cut(width, height)
        # JPEG can be decoded at a half, a quarter or an eighth of its size; never below what is needed.
        scale = min(right - left, bottom - top) / size
        if scale >= 2:
            image.draft(None, (int(width / scale), int(height / scale)))
        reduction = round(width / image.width)
        box = (left / reduction, top / reduction, right / reduction, bottom / reduction)
        pixels = _planes(
            _in_mode(image, MODES[channels]).resize((size, size), Image.Resampling.BILINEAR, box)
        )
    return pixels[:, :, ::-1] if mirrored else pixels


def _in_mode(image: "Image", mode: str) -> "Image":
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _planes(image: "Image") -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
