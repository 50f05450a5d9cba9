"""From documents to shards: tokenise, divide into training and validation, write.

The result is a function of the documents and the recipe; not of the number of processes, nor of how
often it was interrupted. It appears under its name in one step, when it is complete. Until then it is
NAME.partial, with a note (progress.json) of how far it is: the next process that prepares the same
goes on there. Another recipe, or another content, has another name.
"""

import contextlib
import json
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adamwprune.data import bpe
from adamwprune.data.files.cache import disk_errors, exclusive
from adamwprune.data.files.durable import sync_folder, write_durably
from adamwprune.data.preparation.documents import Documents, Position, batches
from adamwprune.data.preparation.encoding import Encoded, encode_all
from adamwprune.data.preparation.progress import TokenProgress
from adamwprune.data.preparation.shard_writer import NOTHING, ShardWriter
from adamwprune.data.preparation.shards import BYTES_PER_TOKEN, PARTS, write_manifest
from adamwprune.errors import DataError, DiskError
from adamwprune.ranges import shown

NOTE = "progress.json"
NOTE_FORMAT = "adamwprune-progress-1"
# A note costs an fsync of what was written since the last; a kill costs at most the tokens in between.
TOKENS_BETWEEN_NOTES = 20_000_000


@dataclass(frozen=True)
class Recipe:
    """What else decides about the content of the shards."""

    max_tokens: int | None  # whole documents, until the next would exceed it; None: all
    val_fraction: float | None  # None: the files say which part they are of
    shard_tokens: int  # a shard has no more, unless a single document does


def prepare(
    documents: Documents, folder: Path, recipe: Recipe, origin: Mapping[str, Any], num_processes: int | None
) -> None:
    """Make `folder` out of `documents`, unless it exists; one process works, others wait.

    Args:
        documents: the corpus.
        folder: where to; a name that stands for this origin and this recipe.
        recipe: what is taken, and how it is divided.
        origin: what `documents.origin()` said when the folder was named.
        num_processes: that encode; None is one for each core.

    Raises:
        DataError: the documents cannot be read, or changed meanwhile, or a part would be empty.
        DiskError: too little space (nothing was created), or the file system refuses.
    """
    _check_space(folder, _expected_tokens(documents, recipe))
    with exclusive(folder):
        if folder.exists():
            return
        name = folder.name.rpartition("-")[0] or folder.name
        with closing(_Preparation(folder.with_name(f"{folder.name}.partial"), recipe)) as preparation:
            preparation.take(documents, name, num_processes)
            preparation.check(documents.origin() == origin)
        preparation.publish(
            folder,
            {**asdict(recipe), **origin, "tokenizer_sha256": bpe.SHA256, **documents.proof()},
        )


class _Preparation:
    """What is written of a corpus, and the note of it; one process at a time."""

    def __init__(self, partial: Path, recipe: Recipe) -> None:
        with disk_errors(partial):
            partial.mkdir(exist_ok=True)
        note = _read_note(partial / NOTE)
        self._folder = partial
        self._recipe = recipe
        self._tokens: int = note["tokens"]
        # None: all that the recipe takes is written.
        self._position = None if note["position"] is None else Position(*note["position"])
        self._writers = {part: ShardWriter(partial, part, recipe.shard_tokens, note[part]) for part in PARTS}
        self._noted_tokens = self._tokens

    def take(self, documents: Documents, name: str, num_processes: int | None) -> None:
        """Encode and write from the note on to the end; a note at each finished shard, and now and then."""
        if self._position is None:
            return
        total = _expected_tokens(documents, self._recipe)
        stream = encode_all(
            batches(documents.files(), self._position), self._recipe.val_fraction or 0.0, num_processes
        )
        with TokenProgress(name, total, self._tokens) as progress, closing(stream):
            for encoded in stream:
                taken = self._write(encoded)
                progress.advance(len(taken.ids))
                if len(taken.lengths) < len(encoded.lengths):
                    break
                self._position = encoded.end
                self._note_now_and_then()
        for writer in self._writers.values():
            writer.finish()
        self._position = None
        self._note()

    def check(self, is_same_origin: bool) -> None:
        """What was read is of one piece, and both parts have documents.

        Raises:
            DataError: not so; the next try begins anew.
        """
        train, val = (self._writers[part].documents for part in PARTS)
        if is_same_origin and train and val:
            return
        with disk_errors(self._folder):
            (self._folder / NOTE).unlink()
        if not is_same_origin:
            raise DataError(f"{self._folder}: the files changed while they were read; start again")
        raise DataError(
            f"data.val_fraction={shown(self._recipe.val_fraction)}, "
            f"data.max_tokens={shown(self._recipe.max_tokens)}: leave {train} documents to train "
            f"and {val} to validate on; use other values, or more and shorter documents"
        )

    def publish(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        """Vouch for all and give the folder its name."""
        write_manifest(
            self._folder,
            recipe,
            {part: writer.documents for part, writer in self._writers.items()},
            {part: writer.shards for part, writer in self._writers.items()},
        )
        with disk_errors(folder):
            self._folder.rename(folder)
            sync_folder(folder.parent)
            (folder / NOTE).unlink()

    def close(self) -> None:
        """Close what is open; the files stay, and so does the folder, if there are any."""
        for writer in self._writers.values():
            writer.close()
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _write(self, encoded: Encoded) -> Encoded:
        """What of it the recipe still takes, written."""
        if self._recipe.max_tokens is not None:
            encoded = encoded.up_to(self._recipe.max_tokens - self._tokens)
        for part, writer in self._writers.items():
            writer.append(*encoded.part(part == "val"))
        self._tokens += len(encoded.ids)
        return encoded

    def _note_now_and_then(self) -> None:
        is_finished = any(writer.has_unnamed for writer in self._writers.values())
        if is_finished or self._tokens - self._noted_tokens >= TOKENS_BETWEEN_NOTES:
            self._note()

    def _note(self) -> None:
        states = {part: writer.state() for part, writer in self._writers.items()}
        note = {"format": NOTE_FORMAT, "position": self._position, "tokens": self._tokens, **states}
        write_durably(self._folder / NOTE, json.dumps(note, indent=2) + "\n")
        self._noted_tokens = self._tokens
        for writer in self._writers.values():
            writer.name_finished()


def _read_note(file: Path) -> dict[str, Any]:
    """How far an earlier process came; the beginning where there was none.

    Raises:
        DataError: the note is not ours.
    """
    if not file.exists():
        return {"position": Position(0, 0), "tokens": 0, **dict.fromkeys(PARTS, NOTHING)}
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
        if note["format"] != NOTE_FORMAT:
            raise ValueError(f"format is {note['format']}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({error}); remove {file.parent} to begin anew") from error
    return note


def _expected_tokens(documents: Documents, recipe: Recipe) -> int:
    """About how many there will be: `max_tokens` is a bound, which a small corpus does not reach."""
    return min(documents.tokens, recipe.max_tokens or documents.tokens)


def _check_space(folder: Path, tokens: int) -> None:
    """There is room for the shards; what an earlier process left counts as room.

    Raises:
        DiskError: there is not.
    """
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    partial = folder.with_name(f"{folder.name}.partial")
    with disk_errors(folder):
        there = sum(file.stat().st_size for file in partial.glob("*.bin*"))
        free = shutil.disk_usage(place).free
    needed = BYTES_PER_TOKEN * tokens - there
    if needed > free:
        raise DiskError(
            f"{folder}: needs about {needed / 1e9:.3g} GB, {place} has {free / 1e9:.3g} GB free; make room, "
            "take fewer by data.max_tokens=N, or choose another place with data.data_dir=DIR"
        )
