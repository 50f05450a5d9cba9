"""Labelled images of the Hugging Face hub: parquet files at a pinned revision, or a copy of them.

A row has a struct {bytes, path} of an encoded image, and the number of its class. The files are
fetched by `huggingface_hub` into its own cache; from there, as from a folder that a user copied,
all is read by the same code.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from adamwprune.data.files import hub
from adamwprune.data.files.cache import NotThere, file_sha256
from adamwprune.data.imaging.decode import decoded
from adamwprune.data.imaging.images import LabelledImages
from adamwprune.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubImages:
    """Where an image data set lies on the hub."""

    hub_id: str
    revision: str  # 40 hex digits: it never changes, a name may
    files: Mapping[str, str]  # pattern of the parquet files of train and test
    image: str  # column of the encoded image
    label: str  # column of the class
    size: str  # of the download, in words
    sha256: Mapping[str, str] = field(default_factory=dict)  # its first digits, where known, by part

    @property
    def origin(self) -> str:
        """For the run record."""
        return f"hub {self.hub_id}@{self.revision}"

    @property
    def fix(self) -> str:
        """How to bring the files to a machine without a network."""
        patterns = " ".join(f"--include '{pattern}'" for pattern in self.files.values())
        return (
            f"where there is a network: hf download {self.hub_id} --repo-type dataset --revision "
            f"{self.revision} {patterns} --local-dir DIR, then here data.source=hub data.path=DIR"
        )


def hub_folder(images: HubImages, path: Path | None) -> Path:
    """The folder of the hub's files: `path`, or the hub's cache, into which they are fetched.

    Raises:
        NotThere: they are in no such place and cannot be had.
    """
    hub.require_packages("pyarrow", "PIL")
    if path is not None:
        if not path.is_dir():
            raise NotThere(f"{path}: no such folder; {images.fix}")
        return path
    hub.require_packages("huggingface_hub")
    try:
        return _snapshot(images, offline=True)
    # Whatever the cache lacks or does not understand, the hub has.
    except Exception:
        log.debug("%s is not in the hub's cache", images.hub_id)
    try:
        hub.check()
        log.info("fetching %s, %s", images.hub_id, images.size)
        return _snapshot(images, offline=False)
    # Connection, missing file, HTTP status, gate: the client raises a kind of its own for each.
    except Exception as error:
        raise NotThere(
            f"{images.hub_id} ({images.size}) is not in the hub's cache, and {hub.first_line(error)}; "
            f"{images.fix}"
        ) from error


def _snapshot(images: HubImages, *, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        images.hub_id,
        repo_type="dataset",
        revision=images.revision,
        allow_patterns=list(images.files.values()),
        local_files_only=offline,
    )
    for part in images.files:
        parquet_files(images, Path(folder), part)
    return Path(folder)


def parquet_files(images: HubImages, folder: Path, part: str) -> list[Path]:
    """The files of a part, in order, all that their names say there are: train-00000-of-00003.parquet, ...

    Raises:
        NotThere: one is missing.
    """
    files = sorted(folder.glob(images.files[part]))
    numbered = [re.search(r"-of-(\d+)\.parquet$", file.name) for file in files]
    expected = max((int(match[1]) for match in numbered if match), default=1)
    if len(files) < expected:
        raise NotThere(f"{folder}: has {len(files)} of {expected} files {images.files[part]}; {images.fix}")
    return files


def check_original(images: HubImages, part: str, files: list[Path]) -> None:
    """The first file of a part has the published hash, where that is known.

    Raises:
        DataError: it has another.
    """
    expected = images.sha256.get(part)
    if expected and not (actual := file_sha256(files[0])).startswith(expected):
        raise DataError(
            f"{files[0]}: sha256 is {actual}, must begin with {expected}; remove it and fetch it again"
        )


def check_columns(images: HubImages, file: Path, names: list[str]) -> None:
    """The configured columns exist.

    Raises:
        DataError: with the names that there are.
    """
    for column in (images.image, images.label):
        if column not in names:
            raise DataError(f"{file}: no column {column}; it has {', '.join(names)}")


def read_hub(images: HubImages, path: Path | None) -> tuple[LabelledImages, LabelledImages, str]:
    """Both parts, all images decoded and of one size."""
    folder = hub_folder(images, path)
    train, test = (_read_part(images, folder, part) for part in ("train", "test"))
    return train, test, images.origin


def _read_part(images: HubImages, folder: Path, part: str) -> LabelledImages:
    from pyarrow import ArrowException, parquet

    files = parquet_files(images, folder, part)
    check_original(images, part, files)
    pixels, labels = [], []
    for file in files:
        try:
            with parquet.ParquetFile(file) as table:
                check_columns(images, file, table.schema_arrow.names)
                rows = table.read(columns=[images.image, images.label])
            encoded = rows[images.image].combine_chunks().field("bytes")
            labels.append(rows[images.label].to_numpy())
        except (ArrowException, OSError, KeyError) as error:
            raise DataError(f"{file}: cannot be read ({hub.first_line(error)})") from error
        pixels += [decoded(image.as_py(), f"{file.name}, row {row}") for row, image in enumerate(encoded)]
    if len({image.shape for image in pixels}) != 1:
        raise DataError(f"{files[0]}: its images have different sizes")
    return LabelledImages(np.stack(pixels), np.concatenate(labels), f"{files[0].parent}, {len(files)} files")
