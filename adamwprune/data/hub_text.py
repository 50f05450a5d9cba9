"""Text data sets of the Hugging Face hub: streamed once, kept as tokens, mapped into memory.

Each is an option of conf/data that names its repository; there is nothing of any one of them here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from adamwprune.data.files import hub
from adamwprune.data.files.cache import NotThere
from adamwprune.data.files.known_hashes import hashes_of
from adamwprune.data.preparation.documents import Documents, Part
from adamwprune.data.preparation.prepare import Recipe
from adamwprune.data.preparation.prepared import Windows, carried_text, prepared_text
from adamwprune.errors import ConfigError, DataError
from adamwprune.ranges import Fraction, Positive, PositiveInt, Range, Seed, shown

if TYPE_CHECKING:
    from adamwprune.data.base import Data

# Rows that are taken out of Arrow's memory together.
ROWS = 256


@dataclass(frozen=True)
class Repository:
    """Parquet files with a column of text, on the hub or in a folder with the same layout."""

    location: str | Path
    revision: str | None  # None for a folder: datasets would ignore it without a word
    column: str
    patterns: dict[Part | None, str]  # the files of each part; under None those that hold both

    def files(self) -> list["Rows"]:
        """Its files, part by part, in the order of their names."""
        return [file for part, pattern in self.patterns.items() for file in self._open(part, pattern)]

    def _open(self, part: Part | None, pattern: str) -> list["Rows"]:
        rows = hub.load(
            self.location,
            revision=self.revision,
            # Files, not the configuration's name: that would need every file of every other one.
            data_files=pattern,
            split="train",
            streaming=True,
            columns=[self.column],
        )
        count = rows.num_shards
        return [Rows(rows.shard(count, i), self.column, str(self.location), part) for i in range(count)]


@dataclass(frozen=True)
class Rows:
    """One parquet file, through `datasets`."""

    rows: Any  # datasets.IterableDataset
    column: str
    where: str
    part: Part | None

    def documents(self, start: int) -> Iterator[str]:
        """As `DocumentFile.documents`; what is left out of a file is read, but not turned into text."""
        try:
            for rows in self.rows.skip(start).iter(ROWS):
                yield from rows[self.column]
        # Arrow, fsspec and the hub's client each raise their own.
        except Exception as error:
            raise DataError(
                f"{self.where}: {type(error).__name__}: {hub.first_line(error)}; what is prepared is kept"
            ) from error


def hub_text(
    *,
    name: str,
    hub_id: str,
    revision: str,
    files: str,
    val_files: str | None,
    sample: str | None,
    column: str,
    tokens: PositiveInt,
    bytes_per_token: Positive,
    vocab_size: Annotated[int, Range(least=1, most=65536)],
    block_size: PositiveInt,
    seed: Seed,
    samples: list[str] | None = None,
    source: Literal["hub", "folder", "shards"] = "hub",
    path: str | None = None,
    data_dir: str = "~/.cache/adamwprune",
    max_tokens: PositiveInt | None = None,
    val_fraction: Fraction | None = 0.005,
    shard_tokens: PositiveInt = 100_000_000,
    num_processes: PositiveInt | None = None,
) -> "Data":
    """Documents of a repository of the hub, prepared at first use and kept in `data_dir`.

    After that neither the hub nor `datasets` is needed. A document is held out by the file that it is
    in (`val_files`), or by a hash of its text (`val_fraction`, see `encoding.is_validation`).

    Args:
        name: of the data set.
        hub_id: the repository, OWNER/NAME.
        revision: of the repository, 40 hex digits: a name may come to mean something else.
        files: parquet files within it, a pattern; `{sample}` in it stands for the key.
        val_files: those that validate; null: a part of `files` does.
        sample: one of several samples that the repository has; null where it has none.
        samples: all of them.
        column: the text of a document.
        tokens: about how many GPT-2 tokens there are in all.
        bytes_per_token: about how many bytes are downloaded for each.
        vocab_size: tokens that the model knows.
        block_size: tokens a sample.
        seed: moves the training windows from epoch to epoch; content and split never depend on it.
        source: `hub`; `folder`, parquet files at `path`, laid out as on the hub; or `shards`, a folder at
            `path` that was prepared from either with these keys.
        path: the folder.
        data_dir: where prepared tokens are kept.
        max_tokens: taken from the beginning, for training and validation together; null: all.
        val_fraction: part of the documents that validates; null with `val_files`.
        shard_tokens: tokens a file.
        num_processes: that encode; null: one for each core. The result does not depend on it.

    Raises:
        ConfigError: keys that do not fit each other.
        DataError: not prepared and not to be had, or damaged, or of another text, or a key does not fit.
        DiskError: too little space.
    """
    if (path is None) != (source == "hub"):
        wanted = "no path" if source == "hub" else "a path"
        raise ConfigError(f"data.path={shown(path)}: data.source={source} takes {wanted}")
    if (val_fraction is None) != (val_files is not None):
        raise ConfigError(
            f"data.val_fraction={shown(val_fraction)}: goes with data.val_files=null, and only with it"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise DataError(f"data.revision={revision}: must be 40 hex digits, which always mean the same data")
    if ("{sample}" in files) == (sample is None):
        words = "name one" if sample is None else f"{hub_id} has none to choose from; leave it out"
        raise ConfigError(f"data.sample={shown(sample)}: data.files={files}; {words}")
    if samples is not None and sample not in samples:
        raise ConfigError(f"data.sample={shown(sample)}: must be one of {', '.join(samples)}")
    windows, recipe = Windows(vocab_size, block_size, seed), Recipe(max_tokens, val_fraction, shard_tokens)
    location = None if path is None else Path(path).expanduser()
    patterns = _patterns(files.replace("{sample}", sample or ""), val_files)
    identity = {"hub_id": hub_id, "files": list(patterns.values()), "column": column}
    if source == "shards" and location is not None:
        return carried_text(
            location, name=name, identity=identity, recipe=recipe, windows=windows, revision=revision
        )
    repository = Repository(location or hub_id, revision if location is None else None, column, patterns)

    def require(folder: Path) -> None:
        try:
            hub.check()
        except NotThere as error:
            gigabytes = bytes_per_token * (max_tokens or tokens) / 1e9
            raise DataError(
                f"data={name}: {folder} is not prepared, and {error}; it takes about {gigabytes:.2g} GB of "
                f"{hub_id}. Where there is a network: {_download(repository)}, then here data.source=folder "
                "data.path=DIR; data=shakespeare and data=sotu need no download"
            ) from error

    return prepared_text(
        _hub_documents(repository, tokens, identity)
        if location is None
        else _folder_documents(repository, tokens, identity, Path(data_dir).expanduser()),
        name=name,
        data_dir=data_dir,
        recipe=recipe,
        windows=windows,
        num_processes=num_processes,
        **({"require": require} if location is None else {}),
    )


def _patterns(files: str, val_files: str | None) -> dict[Part | None, str]:
    # What validates comes first, and so is complete whatever max_tokens is.
    return {None: files} if val_files is None else {"val": val_files, "train": files}


def _download(repository: Repository) -> str:
    patterns = " ".join(f"--include '{pattern}'" for pattern in repository.patterns.values())
    return (
        f"hf download {repository.location} --repo-type dataset --revision {repository.revision} {patterns} "
        "--local-dir DIR"
    )


def _hub_documents(repository: Repository, tokens: int, identity: dict[str, Any]) -> Documents:
    return Documents(lambda: {**identity, "revision": repository.revision}, repository.files, tokens)


def _folder_documents(
    repository: Repository, tokens: int, identity: dict[str, Any], memory: Path
) -> Documents:
    folder = Path(repository.location)

    def origin() -> dict[str, Any]:
        files: list[Path] = []
        for pattern in repository.patterns.values():
            if not (matches := sorted(folder.glob(pattern))):
                raise DataError(
                    f"data.path={folder}: has no {pattern}; it must be laid out as {identity['hub_id']} is"
                )
            files += matches
        names = [str(file.relative_to(folder)) for file in files]
        # The content: two copies may have the same names, sizes and times.
        return {**identity, "sha256": dict(zip(names, hashes_of(files, memory), strict=True))}

    return Documents(origin, repository.files, tokens)
