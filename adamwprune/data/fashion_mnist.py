"""Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv:1708.07747): clothes, 28 x 28 grey pixels, 10 classes.

`fashion3k` ships with the package; `fashion_mnist` is the whole of it, 60,000 + 10,000.
"""

from pathlib import Path
from typing import Literal

from adamwprune.data.base import Data
from adamwprune.data.files.packages import DebianPackage, debian_file, debian_members
from adamwprune.data.imaging import idx
from adamwprune.data.imaging.augment import CropFlip
from adamwprune.data.imaging.hub_images import HubImages
from adamwprune.data.imaging.images import Normalisation, Shape, split_image_data
from adamwprune.data.imaging.published import Parts, first_available
from adamwprune.data.imaging.shipped import shipped_images
from adamwprune.ranges import Fraction, NonNegativeInt, PositiveInt, Seed, UnitInterval

# Of the 60,000 training images; a subset is normalised like the whole.
NORMALISATION = Normalisation(mean=(0.2860,), std=(0.3530,))

IDX_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}

PACKAGE = DebianPackage(
    name="dataset-fashion-mnist", folder="usr/share/datasets/fashion-mnist", megabytes=30.9
)

HUB = HubImages(
    hub_id="zalando-datasets/fashion_mnist",
    revision="531be5e2ccc9dba0c201ad3ae567a4f3d16ecdd2",
    files={"train": "fashion_mnist/train-*.parquet", "test": "fashion_mnist/test-*.parquet"},
    image="image",
    label="label",
    size="36 MB",
)


def fashion3k(
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
    """2,500 images to train and validate on, 500 to test, from the package's own file.

    The last four keys are `CropFlip`'s.

    Raises:
        DataError: the file is damaged, or a key does not fit it.
    """
    return shipped_images(
        "fashion3k",
        Shape(num_classes, channels, image_size),
        NORMALISATION,
        val_fraction=val_fraction,
        split_seed=split_seed,
        augment=CropFlip(crop_padding, horizontal_flip, cutout, seed),
    )


def fashion_mnist(
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
    """60,000 images to train and validate on, 10,000 to test.

    Every source is held to the MD5 of the four published files, as in `mnist`.

    `source` is `package`, Debian's dataset-fashion-mnist, fetched with apt-get if `data_dir` has none
    (which needs no root); `folder`, the four published IDX files, plain or .gz; `hub`,
    zalando-datasets/fashion_mnist; or a list of them. `path` is where the package, the folder or a
    copy of the hub's files lies, of the first source; None: in `data_dir`, the folder under the name
    fashion_mnist. The last four keys are `CropFlip`'s.

    Raises:
        DataError: no source has the data, or one has other data under its name.
    """
    content, test, origin = first_available(
        "fashion_mnist",
        {"package": read_package, "folder": read_folder, "hub": read_hub},
        source=source,
        path=path,
        data_dir=data_dir,
        instead="data=fashion3k needs no download",
    )
    return split_image_data(
        name="fashion_mnist",
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
    """Fashion-MNIST from Debian's package; any release of it that has the published files."""
    file = debian_file(PACKAGE, path, data_dir)
    members = debian_members(PACKAGE, file, [f"{name}.gz" for name in idx.NAMES])
    return idx.read(members.get, IDX_MD5, f"package {PACKAGE.name}")


def read_folder(path: Path | None, data_dir: Path) -> Parts:
    """Fashion-MNIST from the four published files."""
    return idx.read_folder(path or data_dir / "fashion_mnist", IDX_MD5)


def read_hub(path: Path | None, data_dir: Path) -> Parts:
    """Fashion-MNIST from the hub, or a copy of its files."""
    return idx.read_from_hub(HUB, path, IDX_MD5)
