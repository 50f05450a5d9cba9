"""Text data sets: prepared at first use, kept as shards, mapped into memory.

    prepared_text(documents, name="mine", data_dir=..., recipe=Recipe(...), windows=Windows(...))

is a data set made of any `Documents`, such as `text_files.text_documents(["corpus/*.jsonl"])`.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adamwprune.data import bpe
from adamwprune.data.preparation.documents import Documents
from adamwprune.data.preparation.prepare import Recipe, prepare
from adamwprune.data.preparation.remapped import is_remapped, read_vocab_map, remapped
from adamwprune.data.preparation.shards import Shards, read_shards
from adamwprune.data.tokenizer import Tokenizer
from adamwprune.errors import DataError

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
        DataError: not prepared and not to be had, or damaged, or a key does not fit.
        DiskError: too little space.
    """
    origin = documents.origin()
    described = {**asdict(recipe), **origin, "tokenizer_sha256": bpe.SHA256}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    folder = Path(data_dir).expanduser() / f"{name}-{digest[:12]}"
    if not folder.exists():
        require(folder)
        prepare(documents, folder, recipe, origin, num_processes)
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
