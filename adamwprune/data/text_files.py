"""Text from your own files: .txt, .jsonl and .parquet, the first two also as .gz or .xz."""

import glob
import gzip
import itertools
import json
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

from adamwprune.data.files.hub import first_line, require_packages
from adamwprune.data.files.known_hashes import hashes_of
from adamwprune.data.preparation.documents import Documents
from adamwprune.data.preparation.prepare import Recipe
from adamwprune.data.preparation.prepared import Windows, carried_text, prepared_text
from adamwprune.errors import ConfigError, DataError
from adamwprune.ranges import Fraction, PositiveInt, Range, Seed, shown

if TYPE_CHECKING:
    from adamwprune.data.base import Data

Unit = Literal["file", "line", "paragraph"]

ENDINGS = (".txt", ".txt.gz", ".txt.xz", ".jsonl", ".jsonl.gz", ".jsonl.xz", ".parquet")
# About how many bytes of a file make one GPT-2 token of English, plain and compressed.
BYTES_PER_TOKEN = {"": 4.2, ".gz": 1.5, ".xz": 1.2}


def text(
    *,
    path: str | list[str] | None,
    column: str,
    document: Literal["file", "line", "paragraph"],
    vocab_size: Annotated[int, Range(least=1, most=65536)],
    block_size: PositiveInt,
    seed: Seed,
    remap_vocab: bool = False,
    name: str = "text",
    source: Literal["files", "shards"] = "files",
    data_dir: str = "~/.cache/adamwprune",
    max_tokens: PositiveInt | None = None,
    val_fraction: Fraction = 0.01,
    shard_tokens: PositiveInt = 100_000_000,
    num_processes: PositiveInt | None = None,
) -> "Data":
    """Your files, prepared at first use and again when their content has changed.

    Args:
        path: a file, a folder (all files below it with one of `ENDINGS`), a pattern such as 'notes/*.txt',
            or a list of these; in that order, those of a folder or pattern by name. Hidden names are left
            out, links are followed.
        column: of .parquet, and key in each line of .jsonl: the text of a document.
        document: what a document is in .txt: the `file`, a `line`, or a `paragraph` (up to a blank line).
        vocab_size: tokens that the model knows.
        block_size: tokens a sample.
        seed: moves the training windows from epoch to epoch; content and split never depend on it.
        remap_vocab: number the tokens that occur from 0, see `tokens.remap`.
        name: of the data set, in records and for its folder.
        source: `files`; or `shards`, one folder at `path` that was prepared from files with these keys.
        data_dir: where prepared tokens are kept.
        max_tokens: taken from the beginning, for training and validation together; null: all.
        val_fraction: part of the documents that validates, chosen by a hash of their text.
        shard_tokens: tokens a file.
        num_processes: that encode; null: one for each core. The result does not depend on it.

    Raises:
        ConfigError: there is no path, or more than one where a folder of shards is meant.
        DataError: nothing is there, or not in the form that its ending says; or a key does not fit.
        DiskError: too little space.
    """
    if not path:
        raise ConfigError(
            f"data.path={shown(path)}: must be a file, a folder or a pattern; give data.path=PATH"
        )
    recipe = Recipe(max_tokens, val_fraction, shard_tokens)
    windows = Windows(vocab_size, block_size, seed, remap_vocab)
    if source == "shards":
        if not isinstance(path, str):
            raise ConfigError(f"data.path={shown(path)}: data.source=shards takes one prepared folder")
        return carried_text(
            Path(path).expanduser(),
            name=name,
            identity={"hub_id": None, "column": column, "document": document},
            recipe=recipe,
            windows=windows,
        )
    return prepared_text(
        text_documents(
            [path] if isinstance(path, str) else path,
            column=column,
            document=document,
            memory=Path(data_dir).expanduser(),
        ),
        name=name,
        data_dir=data_dir,
        recipe=recipe,
        windows=windows,
        num_processes=num_processes,
    )


def text_documents(
    paths: Sequence[str | Path],
    *,
    column: str = "text",
    document: Unit = "file",
    memory: Path | None = None,
) -> Documents:
    """The documents of files, folders and patterns, in that order; see `text`.

    `memory` is the folder that remembers hashes of files, see `known_hashes`.

    Raises:
        DataError: nothing is there, or a file has another ending, or is named twice.
    """
    files = [file for path in paths for file in find_files(str(path))]
    targets = [file.resolve() for file in files]
    if len(twice := set(targets)) < len(targets):
        first = next(file for file, target in zip(files, targets, strict=True) if targets.count(target) > 1)
        raise DataError(f"data.path: {first} is named twice; the {len(twice)} files must be different")

    def origin() -> dict[str, Any]:
        # The content: two files may have one name, size and time.
        names = [file.name for file in files]
        return {
            "sha256": [list(pair) for pair in zip(names, hashes_of(files, memory), strict=True)],
            "column": column,
            "document": document,
        }

    return Documents(
        origin,
        lambda: [_READERS[_kind(file)](file, column, document) for file in files],
        sum(int(_size(file) / BYTES_PER_TOKEN.get(file.suffix, 4.2)) + 1 for file in files),
    )


def find_files(path: str) -> list[Path]:
    """The files that a path, a folder or a pattern stands for, by name.

    A linked file keeps the name of the link, for what it leads to may be called by its hash.

    Raises:
        DataError: there is none, or one has another ending or leads nowhere.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        found = sorted(_text_below(place, set()))
    elif place.exists():
        found = [place]
    else:
        found = sorted(Path(match) for match in glob.glob(str(place), recursive=True))
    if not found:
        raise DataError(
            f"data.path={path}: nothing is there; it must be a file, a folder or a pattern that has "
            f"files in {', '.join(ENDINGS)}"
        )
    if other := next((file for file in found if not file.is_file() or _kind(file) is None), None):
        raise DataError(f"data.path={path}: {other} is not a file in {', '.join(ENDINGS)}; name those")
    return [file.absolute() for file in found]


def _text_below(folder: Path, entered: set[Path]) -> Iterator[Path]:
    """Files with one of `ENDINGS`, hidden names left out; a link is followed, no folder is entered twice."""
    entered.add(folder.resolve())
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.resolve() not in entered:
                yield from _text_below(entry, entered)
        elif _kind(entry) is not None:
            yield entry


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error


def _kind(file: Path) -> str | None:
    """`.txt`, `.jsonl` or `.parquet`."""
    ending = next((ending for ending in ENDINGS if file.name.endswith(ending)), None)
    return ending and f".{ending.split('.')[1]}"


@dataclass(frozen=True)
class _File:
    """A local file; each kind says how documents are read from it."""

    file: Path
    column: str
    document: Unit
    part: None = None

    def documents(self, start: int) -> Iterator[str]:
        """As `DocumentFile.documents`."""
        try:
            yield from self._read(start)
        except DataError:
            raise
        # Of the decompressor, the decoder, the parser or Arrow.
        except Exception as error:
            raise DataError(f"{self.file}: {type(error).__name__}: {first_line(error)}") from error

    def _read(self, start: int) -> Iterator[str]:
        raise NotImplementedError

    def _lines(self) -> IO[str]:
        opener: Callable[..., Any] = {".gz": gzip.open, ".xz": lzma.open}.get(self.file.suffix, open)
        # With a byte order mark or without; any line end becomes \n.
        return opener(self.file, "rt", encoding="utf-8-sig")


class _PlainText(_File):
    def _read(self, start: int) -> Iterator[str]:
        with self._lines() as stream:
            units: Iterator[str]
            match self.document:
                case "file":
                    units = iter([stream.read()])
                case "line":
                    units = (line.rstrip("\n") for line in stream)
                case "paragraph":
                    units = _paragraphs(stream)
            yield from itertools.islice(units, start, None)


class _JsonLines(_File):
    def _read(self, start: int) -> Iterator[str]:
        with self._lines() as stream:
            for number, line in enumerate(itertools.islice(stream, start, None), start=start + 1):
                yield self._text_of(line, number) if line.strip() else ""

    def _text_of(self, line: str, number: int) -> str:
        row = json.loads(line)
        text = row.get(self.column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(
                f"{self.file}, line {number}: no text under {self.column}, it has {keys}; "
                "name one as data.column"
            )
        return text


class _Parquet(_File):
    def _read(self, start: int) -> Iterator[str]:
        require_packages("pyarrow")
        from pyarrow import parquet, types

        with parquet.ParquetFile(self.file) as file:
            names = [field.name for field in file.schema_arrow]
            if self.column not in names:
                raise DataError(
                    f"{self.file}: no column {self.column}, it has {', '.join(names)}; "
                    "name one as data.column"
                )
            kind = file.schema_arrow.field(self.column).type
            if not (types.is_string(kind) or types.is_large_string(kind)):
                raise DataError(
                    f"{self.file}: column {self.column} is {kind}, not text; name another as data.column"
                )
            for batch in file.iter_batches(columns=[self.column], batch_size=256):
                texts = batch.column(0).slice(min(start, len(batch)))
                start = max(start - len(batch), 0)
                yield from (text or "" for text in texts.to_pylist())


_READERS: dict[str | None, type[_File]] = {".txt": _PlainText, ".jsonl": _JsonLines, ".parquet": _Parquet}


def _paragraphs(lines: Iterator[str] | IO[str]) -> Iterator[str]:
    """Lines up to a blank one, as one text; its own line ends stay."""
    for is_blank, group in itertools.groupby(lines, key=lambda line: not line.strip()):
        if not is_blank:
            yield "".join(group).removesuffix("\n")
