"""Where text comes from: files of documents, read in order and from any place on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

Part = Literal["train", "val"]

# Text that is encoded together, in characters: long enough that handing it to another process costs nothing.
BATCH_CHARACTERS = 1 << 20


class DocumentFile(Protocol):
    """One file, local or of the hub."""

    part: Part | None  # which part its documents belong to; None: each document's hash decides

    def documents(self, start: int) -> Iterator[str]:
        """Its documents in order, the first `start` left out; an empty text is passed over later.

        Raises:
            DataError: it cannot be read, or is in another form.
        """
        ...


@dataclass(frozen=True)
class Documents:
    """A corpus before it is prepared: cheap to describe, dearer to open."""

    # Plain values that say which content this is; when they change, it is prepared anew.
    origin: Callable[[], dict[str, Any]]
    # The files in order; may need a network.
    files: Callable[[], Sequence[DocumentFile]] = field(repr=False)
    # About how many GPT-2 tokens there are in all, for the progress bar and the space on the disk.
    tokens: int
    # What else is worth recording once everything was read, such as hashes of the files.
    proof: Callable[[], dict[str, Any]] = field(default=dict, repr=False)


class Position(NamedTuple):
    """How far a corpus was read: so many whole files, then so many documents of the next."""

    file: int
    document: int


@dataclass(frozen=True)
class Batch:
    """Documents in a row, all of one part, none empty."""

    texts: list[str]
    part: Part | None
    end: Position  # of the document after the last


def batches(files: Sequence[DocumentFile], start: Position) -> Iterator[Batch]:
    """All documents from `start` on, about `BATCH_CHARACTERS` together."""
    texts: list[str] = []
    characters, part, end = 0, None, start
    for number in range(start.file, len(files)):
        file, first = files[number], start.document if number == start.file else 0
        if texts and file.part != part:
            yield Batch(texts, part, end)
            texts, characters = [], 0
        part = file.part
        for count, text in enumerate(file.documents(first), start=first + 1):
            end = Position(number, count)
            if not text:
                continue
            texts.append(text)
            characters += len(text)
            if characters >= BATCH_CHARACTERS:
                yield Batch(texts, part, end)
                texts, characters = [], 0
    if texts:
        yield Batch(texts, part, end)
