"""ImageNet-1k (Russakovsky et al., arXiv:1409.0575): 1,281,167 + 50,000 photographs of 1,000 classes.

Nobody may pass it on, so it is never fetched without the user's own account: from folders as
everybody keeps them, or from the hub's parquet files. Either way it stays encoded; a photograph is
decoded when a batch has it.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from adamwprune.data.base import Data
from adamwprune.data.files import hub
from adamwprune.data.files.cache import file_sha256
from adamwprune.data.image_folder import ImageFolder, inspect
from adamwprune.data.imaging.decoded_images import (
    Part,
    Rendering,
    Views,
    decoded_image_data,
    decoding_threads,
)
from adamwprune.data.imaging.file_index import Files, index_files
from adamwprune.data.imaging.hub_images import HubImages, check_columns, hub_folder, parquet_files
from adamwprune.data.imaging.images import Normalisation, Shape, checked_split
from adamwprune.data.imaging.published import first_available
from adamwprune.errors import ConfigError, DataError, DiskError
from adamwprune.ranges import Fraction, PositiveInt, Range, Seed, UnitInterval

if TYPE_CHECKING:
    from concurrent.futures import Executor

# ILSVRC 2012 as published, table 2 of the paper.
NUM_CLASSES = 1000
PUBLISHED = {"training": 1_281_167, "validation": 50_000}
# Of the training images; PyTorch's and everybody's.
NORMALISATION = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

_OWN = "a folder of your own, or a part of ImageNet, is data=images data.path=FOLDER"

HUB = HubImages(
    hub_id="ILSVRC/imagenet-1k",
    revision="49e2ee26f3810fb5a7536bbf732a7b07389a47b5",
    files={"train": "data/train-*.parquet", "test": "data/validation-*.parquet"},
    image="image",
    label="label",
    size="150 GB, for accounts that accepted its terms: set HF_TOKEN",
)


def imagenet(
    *,
    num_classes: PositiveInt,
    channels: PositiveInt,
    image_size: PositiveInt,
    source: Literal["folder", "hub"] = "folder",
    path: str | None = None,
    data_dir: str = "~/.cache/adamwprune",
    val_fraction: Fraction = 0.01,
    split_seed: Seed = 0,
    random_resized_crop: tuple[UnitInterval, UnitInterval] | None = (0.08, 1.0),
    horizontal_flip: UnitInterval = 0.5,
    center_crop: Annotated[float, Range(above=0, most=1)] = 0.875,
    seed: Seed = 0,
) -> Data:
    """The training part, less a stratified part that validates; the published validation part is the test.

    `source` is `folder`: train/CLASS/*.JPEG and val/CLASS/*.JPEG at `path`; or `hub`: its parquet files,
    in the hub's cache or a copy at `path`. Files are read once to be checked and hashed; `data_dir`
    keeps what was found, and for `hub` the images in a form that can be read in any order.

    Raises:
        ConfigError: keys that do not fit each other or ImageNet.
        DataError: not there, not readable, or not ImageNet by the number of its images and classes.
    """
    if num_classes != NUM_CLASSES:
        raise ConfigError(f"data.num_classes={num_classes}: ImageNet has {NUM_CLASSES}; {_OWN}")
    rendering = Rendering(
        Shape(num_classes, channels, image_size),
        NORMALISATION,
        Views(random_resized_crop, horizontal_flip, center_crop, seed),
    )
    threads = decoding_threads()
    found = first_available(
        "imagenet",
        {
            "folder": lambda place, root: read_folder(place or root / "imagenet", root, num_classes, threads),
            "hub": lambda place, root: read_hub(place, root, threads),
        },
        source=source,
        path=path,
        data_dir=data_dir,
        instead="it takes data.path=FOLDER with train/CLASS and val/CLASS; data=images takes any folder of "
        "images, data=synthetic_images data.image_size=224 has the size",
    )
    split = checked_split("imagenet", found.train.labels, val_fraction, split_seed)
    train, val = (found.train.subset(chosen) for chosen in split)
    return decoded_image_data(
        name="imagenet",
        train=train,
        val=val,
        test=found.test,
        content={"sha256": found.digests},
        rendering=rendering,
        threads=threads,
        facts={"source": found.origin, "val_fraction": val_fraction, "split_seed": split_seed},
    )


@dataclass(frozen=True)
class Found:
    """What a source gives."""

    train: Part
    test: Part
    digests: np.ndarray = field(repr=False)  # SHA-256 of the files in order
    origin: str


def read_folder(root: Path, data_dir: Path, num_classes: int, threads: "Executor") -> Found:
    """Folders train and val of classes.

    Raises:
        NotThere: there are none.
    """
    folder = ImageFolder.scan(root, {"train": "train", "test": "val"}, num_classes)
    _check_counts(root, folder.parts["train"], folder.parts["test"])
    digests = index_files(folder.files, data_dir, inspect, threads)
    return Found(folder.parts["train"], folder.parts["test"], digests, f"folder {root}")


def read_hub(path: Path | None, data_dir: Path, threads: "Executor") -> Found:
    """The hub's parquet files.

    A parquet file can only be read from its beginning, a hundred images at a time, and training asks
    for single ones in any order. So `datasets` rewrites them, once, as Arrow files that are mapped.

    Raises:
        NotThere: they are not there and cannot be had.
        DataError: they have another form.
        DiskError: no room for the second copy.
    """
    folder = hub_folder(HUB, path)
    files = {part: parquet_files(HUB, folder, part) for part in ("train", "test")}
    listed = sorted(file for part in files.values() for file in part)
    stats = [file.stat() for file in listed]
    digests = index_files(
        Files(
            folder,
            np.array([str(file.relative_to(folder)).encode() for file in listed]),
            np.array([stat.st_size for stat in stats]),
            np.array([stat.st_mtime_ns for stat in stats]),
        ),
        data_dir,
        lambda file: bytes.fromhex(file_sha256(file)),
        threads,
    )
    cache = data_dir / "imagenet-arrow"
    _check_room(cache, sum(stat.st_size for stat in stats))
    tables = hub.load(
        folder,
        data_files={part: [str(file) for file in names] for part, names in files.items()},
        cache_dir=str(cache),
    )
    train, test = (_part(tables[part], part, files[part][0]) for part in ("train", "test"))
    _check_counts(folder, train, test)
    return Found(train, test, digests, HUB.origin)


def _check_counts(place: Path, train: Part, test: Part) -> None:
    """As many images as were published: a part of ImageNet, or another set, is not called by its name."""
    found = {"training": len(train.labels), "validation": len(test.labels)}
    for part, published in PUBLISHED.items():
        if found[part] != published:
            raise DataError(f"{place}: has {found[part]:,} {part} images, ImageNet {published:,}; {_OWN}")


def _check_room(cache: Path, needed: int) -> None:
    free = shutil.disk_usage(cache.parent).free
    if not cache.exists() and free < needed:
        raise DiskError(
            f"{cache}: needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free; "
            f"choose another place with data.data_dir=DIR"
        )


@dataclass(frozen=True)
class EncodedRows:
    """The column of encoded images of a mapped table."""

    column: Any = field(repr=False)  # pyarrow ChunkedArray of {bytes, path}
    part: str

    def read(self, index: int) -> tuple[bytes, str]:
        """The bytes of a row."""
        content = self.column[index]["bytes"].as_py()
        if content is None:
            raise DataError(f"{HUB.hub_id}, {self.part}, row {index}: has no image")
        return content, f"{HUB.hub_id}, {self.part}, row {index}"


def _part(table: Any, part: str, file: Path) -> Part:
    check_columns(HUB, file, table.column_names)
    labels = table.data.column(HUB.label).to_numpy().astype(np.int64)
    return Part(EncodedRows(table.data.column(HUB.image), part), np.arange(len(labels)), labels)
