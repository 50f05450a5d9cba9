"""Text data sets: prepared at first use, kept as shards, mapped into memory.

    prepared_text(documents, name="mine", data_dir=..., recipe=Recipe(...), windows=Windows(...))

is a data set made of any `Documents`, such as `text_files.text_documents(["corpus/*.jsonl"])`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamwprune.data import bpe
from adamwprune.data.preparation.documents import Documents
from adamwprune.data.preparation.prepare import Recipe, prepare
from adamwprune.data.preparation.remapped import is_remapped, read_vocab_map, remapped
from adamwprune.data.preparation.shards import MANIFEST, Shards, read_manifest, read_shards
from adamwprune.data.tokenizer import Tokenizer
from adamwprune.errors import ConfigError, DataError
from adamwprune.ranges import shown
from adamwprune.validation import is_name

if TYPE_CHECKING:
    from adamwprune.data.base import Data


@dataclass(frozen=True)
class Windows:
    """What the same-named keys of `data` say: how shards become samples."""

    vocab_size: int
    block_size: int
    seed: int
    remap_vocab: bool = False


def prepared_text(
    documents: Documents,
    *,
    name: str,
    data_dir: str | Path,
    recipe: Recipe,
    windows: Windows,
    num_processes: int | None = None,
    require: Callable[[Path], None] = lambda folder: None,
) -> "Data":
    """The `Data` of a corpus; its shards lie in `data_dir`/NAME-DIGEST and are made first if they must be.

    Args:
        documents: the corpus; opened only if it is not prepared yet.
        name: of the data set.
        data_dir: where prepared tokens are kept.
        recipe: what is taken, and how it is divided.
        windows: how it becomes samples.
        num_processes: that encode; None is one for each core. The result does not depend on it.
        require: called with the folder before anything is created, to refuse what cannot be had now.

    Raises:
        ConfigError: the name cannot be a folder's.
        DataError: not prepared and not to be had, or damaged, or a key does not fit.
        DiskError: too little space.
    """
    _check_name(name)
    origin = documents.origin()
    described = {**asdict(recipe), **origin, "tokenizer_sha256": bpe.SHA256}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    folder = Path(data_dir).expanduser() / f"{name}-{digest[:12]}"
    if not folder.exists():
        require(folder)
        prepare(documents, folder, recipe, origin, num_processes)
    return shards_text(folder, name=name, windows=windows)


def carried_text(
    folder: Path,
    *,
    name: str,
    identity: Mapping[str, Any],
    recipe: Recipe,
    windows: Windows,
    revision: str | None = None,
) -> "Data":
    """The `Data` of a folder that was prepared elsewhere, by the same keys: its manifest must say so.

    Args:
        folder: the prepared folder.
        name: of the data set.
        identity: what the text is, as `Documents.origin` says it; all of it must be recorded.
        recipe: what was taken, and how it was divided; the same.
        windows: how it becomes samples.
        revision: of the hub; the same where the manifest knows it, which that of a copied folder does not.

    Raises:
        ConfigError: the name cannot be a folder's.
        DataError: it is of another text, or made with other keys, or damaged.
    """
    _check_name(name)
    recorded = read_manifest(folder / MANIFEST).get("recipe")
    found = recorded if isinstance(recorded, dict) else {}
    expected = {**identity, "revision": found.get("revision") and revision}
    others = [key for key, value in expected.items() if found.get(key) != value]
    if others:
        key = others[0]
        raise DataError(
            f"data.path={folder}: was prepared with {key}={shown(found.get(key))}, and data={name} has "
            f"{shown(expected[key])}: it is another text; name the data set that it was made from"
        )
    wrong = {key: value for key, value in asdict(recipe).items() if found.get(key) != value}
    if wrong:
        keys = ", ".join(f"data.{key}={shown(value)}" for key, value in wrong.items())
        right = " ".join(f"data.{key}={shown(found.get(key))}" for key in wrong)
        raise DataError(f"{keys}: {folder} was prepared otherwise, and is taken as it is; use {right}")
    return shards_text(folder, name=name, windows=windows)


def shards_text(folder: Path, *, name: str, windows: Windows) -> "Data":
    """The `Data` of a prepared folder, whatever it was made from.

    Raises:
        DataError: it is none, or damaged, or a key does not fit.
    """
    from adamwprune.data.windows import token_data  # and torch, which refusing needs not

    shards = read_shards(remapped(folder) if windows.remap_vocab else folder)
    tokenizer, fix = _tokenizer(shards, name, windows)
    return token_data(
        name=name,
        train=shards.train,
        val=shards.val,
        vocab_size=windows.vocab_size,
        block_size=windows.block_size,
        seed=windows.seed,
        tokenizer=tokenizer,
        vocab_fix=fix,
        facts={
            "source": "shards",
            "folder": str(shards.folder),
            "recipe": shards.recipe,
            "documents": shards.documents,
        },
    )


def _check_name(name: str) -> None:
    if not is_name(name):
        raise ConfigError(
            f"data.name={shown(name)}: must be 1 to 64 of A-Z a-z 0-9 . _ - starting with a letter or digit, "
            "for it names a folder in data.data_dir"
        )


def _tokenizer(shards: Shards, name: str, windows: Windows) -> tuple[Tokenizer, str]:
    """What turned the text into these ids, and the way out if the vocabulary is too small."""
    sha256 = shards.recipe.get("tokenizer_sha256")
    if sha256 != bpe.SHA256:
        raise DataError(f"data={name}: shards of the tokenizer {sha256}, must be of GPT-2's, {bpe.SHA256}")
    if is_remapped(shards.recipe) != windows.remap_vocab:
        raise DataError(f"data.remap_vocab=false: {shards.folder} holds remapped tokens; name the original")
    if not windows.remap_vocab:
        return Tokenizer(), f"data.vocab_size={bpe.VOCAB_SIZE}"
    vocab_map = read_vocab_map(shards)
    size = len(vocab_map)
    # Exactly: with remapping on, a larger vocabulary is not padding but a forgotten key.
    if windows.vocab_size != size:
        raise DataError(
            f"data.vocab_size={windows.vocab_size}: with data.remap_vocab=true {name} has {size} tokens; "
            f"use data.vocab_size={size}"
        )
    return Tokenizer(vocab_map), f"data.vocab_size={size}"
