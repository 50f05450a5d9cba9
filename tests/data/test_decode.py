"""Decoding: right pixels, the right part, whatever the format; what is no image is named and refused."""

import io
import struct
import sys
import threading
import zlib

import numpy as np
import pytest

from adamwprune.data.imaging.decode import check, cut_out, decoded
from adamwprune.errors import DataError
from tests.helpers.image_sets import encoded

Image = pytest.importorskip("PIL.Image")


def picture(width=64, height=48, channels=3):
    """Smooth, so that resampling and JPEG change little."""
    across = np.linspace(0, 200, width)[None, None]
    down = np.linspace(0, 50, height)[None, :, None]
    return np.clip(across + down + 20 * np.arange(channels)[:, None, None], 0, 255).round().astype(np.uint8)


def whole(width, height):
    """The cut that shows everything."""
    return (0, 0, width, height), False


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_pixels_are_exact_in_formats_without_loss(format, channels):
    """At the image's own size nothing is resampled."""
    if format == "WEBP" and channels == 1:
        pytest.skip("WebP has no grey")
    image = picture(32, 32, channels)
    options = {"lossless": True} if format == "WEBP" else {}
    content = encoded(image, format, **options)
    assert np.array_equal(decoded(content, "file"), image)
    assert np.array_equal(cut_out(content, "file", whole, 32, channels), image)


def test_colours_and_grey_are_converted_as_asked():
    """Grey to three equal planes; colour to ITU-R 601 luma, pillow's, to within its rounding."""
    grey = picture(32, 32, 1)
    assert np.array_equal(cut_out(encoded(grey), "file", whole, 32, 3), np.repeat(grey, 3, axis=0))
    colour = picture(32, 32, 3)
    luma = np.tensordot([0.299, 0.587, 0.114], colour.astype(float), 1)
    assert np.abs(cut_out(encoded(colour), "file", whole, 32, 1)[0] - luma).max() <= 1


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "1", "CMYK"])
def test_other_modes_are_converted(mode):
    """Palette, transparency, one bit, print: three planes come out."""
    stream = io.BytesIO()
    Image.fromarray(picture(16, 16).transpose(1, 2, 0)).convert(mode).save(
        stream, "TIFF" if mode == "CMYK" else "PNG"
    )
    assert cut_out(stream.getvalue(), "file", whole, 16, 3).shape == (3, 16, 16)


def test_cut_is_what_is_shown_and_mirrored_where_asked():
    """A box of whole pixels without resizing is a slice; mirrored, it is that slice backwards."""
    image = picture()
    shown = image[:, 10:30, 20:40]
    box = (20, 10, 40, 30)
    assert np.array_equal(cut_out(encoded(image), "file", lambda w, h: (box, False), 20, 3), shown)
    assert np.array_equal(cut_out(encoded(image), "file", lambda w, h: (box, True), 20, 3), shown[:, :, ::-1])


@pytest.mark.parametrize("size", [(640, 480), (637, 481), (2000, 1100)])
def test_jpeg_at_reduced_size_shows_the_same_part(size):
    """Decoded at a half or less, against all pixels: within 3 of 255, for boxes that are not round."""
    image = picture(*size)
    content = encoded(image, "JPEG", quality=95)
    box = (size[0] * 0.21, size[1] * 0.13, size[0] * 0.83, size[1] * 0.91)
    reduced = cut_out(content, "file", lambda w, h: (box, False), 32, 3)
    with Image.open(io.BytesIO(content)) as opened:
        full = np.asarray(opened.resize((32, 32), Image.Resampling.BILINEAR, box)).transpose(2, 0, 1)
    assert np.abs(reduced.astype(int) - full).max() <= 3


def test_photograph_is_turned_upright():
    """EXIF orientation 6: held upright, stored lying."""
    image = picture(64, 64)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(np.rot90(image, 1, axes=(1, 2)), "JPEG", quality=95, exif=exif)
    assert np.abs(cut_out(content, "file", whole, 64, 3).astype(int) - image).max() <= 6


def bomb(width, height):
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def sixteen_bits():
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(stream, "PNG")
    return stream.getvalue()


JPEG = encoded(picture(), "JPEG")
PNG = encoded(picture())
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (JPEG[: len(JPEG) // 2], "cannot be decoded"),
        (PNG[: len(PNG) // 2], "cannot be decoded"),
        (PNG[:40] + b"\xff" * 40 + PNG[80:], "cannot be decoded"),
        (b"", "cannot be decoded"),
        (b"hello", "cannot be decoded"),
        (POSTSCRIPT, "cannot be decoded"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be decoded"),
        (bomb(30_000, 4_000), "says it has 30000 x 4000 pixels"),
        (bomb(60_000, 60_000), "cannot be decoded|says it has"),
        (sixteen_bits(), "more than 8 bits a pixel"),
    ],
    ids=["jpeg", "png", "damaged", "empty", "text", "postscript", "svg", "large", "bomb", "16 bits"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "read",
    [
        lambda content: check(content, "some/file.jpg"),
        lambda content: decoded(content, "some/file.jpg"),
        lambda content: cut_out(content, "some/file.jpg", whole, 8, 3),
    ],
    ids=["check", "decoded", "cut_out"],
)
def test_what_is_no_image_is_named_and_refused(content, words, read):
    """In one line with the file, whichever way it is read; the controls are all tests above."""
    with pytest.raises(DataError, match=f"some/file.jpg: .*({words})") as caught:
        read(content)
    assert "\n" not in str(caught.value)


def test_check_accepts_whole_images():
    """Of each format; otherwise the test above would prove nothing about it."""
    for format in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"):
        check(encoded(picture(), format), "file")


def is_interruptible(work):
    """Whether another thread of Python ran while `work` did; seen in one of 20 tries is enough."""
    kept = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)  # from now on only who gives the interpreter's lock away loses it
    try:
        for _ in range(20):
            started, done = threading.Event(), threading.Event()

            def run(started=started, done=done):
                started.set()
                work()
                done.set()

            worker = threading.Thread(target=run)
            worker.start()
            started.wait()
            seen = not done.is_set()
            worker.join()
            if seen:
                return True
        return False
    finally:
        sys.setswitchinterval(kept)


def test_threads_decode_at_the_same_time():
    """Decoding gives the interpreter's lock away; sorting, the control, does not."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 600, 600), dtype=np.uint8)
    content = encoded(noise, "JPEG")
    assert is_interruptible(lambda: cut_out(content, "file", lambda w, h: ((0, 0, w, h), False), 224, 3))
    numbers = np.random.default_rng(0).random(30_000).tolist()
    assert not is_interruptible(lambda: sorted(numbers))
