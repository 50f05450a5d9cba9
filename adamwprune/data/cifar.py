"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 32 x 32 colour photographs, 50,000 + 10,000.

Published twice: as binary records of the label (CIFAR-100: coarse, then fine) and 3,072 bytes, the
planes R, G and B; and as Python pickles of the same. Both are read without running anything, from
the archive as published or from the folder it unpacks to, and nothing is unpacked to the disk.
Source: https://www.cs.toronto.edu/~kriz/cifar.html; hashes of the pickles: pytorch/vision,
torchvision/datasets/cifar.py.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from adamwprune.data.base import Data
from adamwprune.data.files import pickles
from adamwprune.data.files.cache import NotThere
from adamwprune.data.imaging import hub_images
from adamwprune.data.imaging.augment import CropFlip
from adamwprune.data.imaging.hub_images import HubImages
from adamwprune.data.imaging.images import LabelledImages, Normalisation, Shape, split_image_data
from adamwprune.data.imaging.published import Parts, first_available
from adamwprune.errors import DataError
from adamwprune.ranges import Fraction, NonNegativeInt, PositiveInt, Seed, UnitInterval

PIXELS = (3, 32, 32)
INSTEAD = "data=fashion_mnist and data=mnist come as packages, data=fashion3k needs no download"

# From the content of a file and its name for messages: images (N, 3, 32, 32) and labels.
ReadFile = Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]


def read_records(content: bytes, name: str, *, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """A binary file: records of labels, the finest last, and pixels."""
    length = label_bytes + int(np.prod(PIXELS))
    if not content or len(content) % length:
        raise DataError(f"{name}: {len(content)} bytes, must be a multiple of {length}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, length)
    return records[:, label_bytes:].reshape(-1, *PIXELS), records[:, label_bytes - 1]


def read_pickle(content: bytes, name: str, *, label: str) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dictionary of an array and a list; a pickle that names anything else is refused."""
    try:
        batch = pickles.read_arrays(content)
        images, labels = np.asarray(batch["data"], np.uint8), np.asarray(batch[label], np.uint8)
        return images.reshape(-1, *PIXELS), labels
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{name}: not a batch of CIFAR ({error})") from error


@dataclass(frozen=True)
class Form:
    """One of the forms a set is published in: an archive of one folder of files."""

    archive: str
    md5: str  # of the archive
    folder: str
    train: tuple[str, ...]
    test: str
    read: ReadFile
    file_md5: Mapping[str, str] = field(default_factory=dict)  # of the files, where published


@dataclass(frozen=True)
class Cifar:
    """All that differs between the two sets."""

    name: str
    forms: tuple[Form, ...]
    hub: HubImages
    normalisation: Normalisation
    counts: tuple[int, int] = (50_000, 10_000)  # images of the two parts


CIFAR10 = Cifar(
    name="cifar10",
    forms=(
        Form(
            archive="cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            folder="cifar-10-batches-bin",
            train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            test="test_batch.bin",
            read=partial(read_records, label_bytes=1),
        ),
        Form(
            archive="cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            folder="cifar-10-batches-py",
            train=tuple(f"data_batch_{number}" for number in range(1, 6)),
            test="test_batch",
            read=partial(read_pickle, label="labels"),
            file_md5={
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
            },
        ),
    ),
    hub=HubImages(
        hub_id="uoft-cs/cifar10",
        revision="0b2714987fa478483af9968de7c934580d0bb9a2",
        files={"train": "plain_text/train-*.parquet", "test": "plain_text/test-*.parquet"},
        image="img",
        label="label",
        size="144 MB",
        sha256={"train": "8428b53a88a11ac3", "test": "841389e6f2d64f28"},
    ),
    normalisation=Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
)

CIFAR100 = Cifar(
    name="cifar100",
    forms=(
        Form(
            archive="cifar-100-binary.tar.gz",
            md5="03b5dce01913d631647c71ecec9e9cb8",
            folder="cifar-100-binary",
            train=("train.bin",),
            test="test.bin",
            read=partial(read_records, label_bytes=2),
        ),
        Form(
            archive="cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            folder="cifar-100-python",
            train=("train",),
            test="test",
            read=partial(read_pickle, label="fine_labels"),
            file_md5={
                "train": "16019d7e3df5f24257cddd939b257f8d",
                "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            },
        ),
    ),
    hub=HubImages(
        hub_id="uoft-cs/cifar100",
        revision="aadb3af77e9048adbea6b47c21a81e47dd092ae5",
        files={"train": "cifar100/train-*.parquet", "test": "cifar100/test-*.parquet"},
        image="img",
        label="fine_label",
        size="142 MB",
        sha256={"train": "694865d6b990e234", "test": "98776c529bb146a9"},
    ),
    normalisation=Normalisation(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
)


def cifar10(
    *,
    num_classes: PositiveInt,
    channels: PositiveInt,
    image_size: PositiveInt,
    source: Literal["hub", "folder"] = "hub",
    path: str | None = None,
    data_dir: str = "~/.cache/adamwprune",
    val_fraction: Fraction = 0.1,
    split_seed: Seed = 0,
    crop_padding: NonNegativeInt = 4,
    horizontal_flip: UnitInterval = 0.5,
    cutout: NonNegativeInt = 0,
    seed: Seed = 0,
) -> Data:
    """50,000 photographs of 10 classes to train and validate on, 10,000 to test.

    `source` is `hub`, or `folder`, which has a published archive, binary or Python, or what it
    unpacks to. `path` is where that folder or archive, or a copy of the hub's files lies; None: the
    hub's cache, or in `data_dir` the folder under the name of the data set. The last four keys are
    `CropFlip`'s.

    Raises:
        DataError: the source has no such data, or other data under its name.
    """
    return _data(
        CIFAR10,
        Shape(num_classes, channels, image_size),
        source=source,
        path=path,
        data_dir=data_dir,
        val_fraction=val_fraction,
        split_seed=split_seed,
        augment=CropFlip(crop_padding, horizontal_flip, cutout, seed),
    )


def cifar100(
    *,
    num_classes: PositiveInt,
    channels: PositiveInt,
    image_size: PositiveInt,
    source: Literal["hub", "folder"] = "hub",
    path: str | None = None,
    data_dir: str = "~/.cache/adamwprune",
    val_fraction: Fraction = 0.1,
    split_seed: Seed = 0,
    crop_padding: NonNegativeInt = 4,
    horizontal_flip: UnitInterval = 0.5,
    cutout: NonNegativeInt = 0,
    seed: Seed = 0,
) -> Data:
    """50,000 photographs of 100 classes (the fine labels) to train and validate on, 10,000 to test.

    Keys and errors as for `cifar10`.
    """
    return _data(
        CIFAR100,
        Shape(num_classes, channels, image_size),
        source=source,
        path=path,
        data_dir=data_dir,
        val_fraction=val_fraction,
        split_seed=split_seed,
        augment=CropFlip(crop_padding, horizontal_flip, cutout, seed),
    )


def _data(
    cifar: Cifar,
    shape: Shape,
    *,
    source: str,
    path: str | None,
    data_dir: str,
    val_fraction: float,
    split_seed: int,
    augment: CropFlip,
) -> Data:
    content, test, origin = first_available(
        cifar.name,
        {
            "hub": lambda place, _: hub_images.read_hub(cifar.hub, place),
            "folder": lambda place, root: read_folder(cifar, place or root / cifar.name),
        },
        source=source,
        path=path,
        data_dir=data_dir,
        instead=INSTEAD,
    )
    for part, count in zip((content, test), cifar.counts, strict=True):
        if len(part.labels) != count:
            raise DataError(f"{part.source}: {len(part.labels)} images, must be {count}")
    return split_image_data(
        name=cifar.name,
        content=content,
        test=test,
        shape=shape,
        normalisation=cifar.normalisation,
        val_fraction=val_fraction,
        split_seed=split_seed,
        facts={"source": origin},
        augment=augment,
    )


def read_folder(cifar: Cifar, place: Path) -> Parts:
    """Both parts from an archive, from a folder that has one, or from what one unpacks to.

    Raises:
        NotThere: none of these.
        DataError: something that is not the published content.
    """
    archives = [place] if place.is_file() else [place / form.archive for form in cifar.forms]
    if archive := next((file for file in archives if file.is_file()), None):
        return _read_archive(cifar, archive)
    for form in cifar.forms:
        for folder in (place / form.folder, place):
            if (folder / form.train[0]).is_file():
                return _read_unpacked(form, folder)
    names = " nor ".join(form.archive for form in cifar.forms)
    raise NotThere(f"{place}: has neither {names}, nor what they unpack to; data.source=hub fetches it")


def _read_archive(cifar: Cifar, archive: Path) -> Parts:
    actual = _md5(archive.read_bytes())
    form = next((form for form in cifar.forms if form.md5 == actual), None)
    if form is None:
        published = " or ".join(form.md5 for form in cifar.forms)
        raise DataError(f"{archive}: md5 is {actual}, of the published archives {published}")
    wanted = {f"{form.folder}/{name}" for name in (*form.train, form.test)}
    files = {}
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                if member.name in wanted and member.isfile():
                    files[Path(member.name).name] = members.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: cannot be read ({error})") from error
    return _parts(form, files, f"{archive}", f"archive {form.archive}, md5 {actual}")


def _read_unpacked(form: Form, folder: Path) -> Parts:
    files = {}
    for name in (*form.train, form.test):
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"{folder / name}: cannot be read ({error.strerror})") from error
        expected = form.file_md5.get(name)
        if expected and (actual := _md5(files[name])) != expected:
            raise DataError(f"{folder / name}: md5 is {actual}, of the published file {expected}")
    words = "their md5 checked" if form.file_md5 else "for which no hash is published"
    return _parts(form, files, f"{folder}", f"files of {form.folder}, {words}")


def _parts(form: Form, files: Mapping[str, bytes], place: str, origin: str) -> Parts:
    if missing := {*form.train, form.test} - files.keys():
        raise DataError(f"{place}: has no {form.folder}/{min(missing)}")
    batches = [form.read(files[name], f"{place}, {name}") for name in form.train]
    train = LabelledImages(
        *(np.concatenate(arrays) for arrays in zip(*batches, strict=True)), f"{place}, training"
    )
    return (
        train,
        LabelledImages(*form.read(files[form.test], f"{place}, {form.test}"), f"{place}, test"),
        origin,
    )


def _md5(content: bytes) -> str:
    # What the publishers give; it identifies content here and protects nothing.
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
