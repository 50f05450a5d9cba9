"""A corpus out of packages: found, fetched, read, and written as a folder of text.

    debian_docs-1/   anarchism.jsonl  apache2-doc.jsonl ...  manifest.json

A line of a .jsonl file is one page: {"text": its sentences, a line for each paragraph, "source":
package/path}. Packages are in the order of their names, pages in that of the package. Of lines that
occur more than once in the corpus, which in manuals is boilerplate, the first is kept, and pages of
fewer than `LEAST_CHARACTERS` are left out after that: so no page is there twice.
The folder appears under its name in one step, when it is complete.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from adamwprune.cores import usable_cores
from adamwprune.corpora.apt import Apt, Package, newest
from adamwprune.corpora.archives import pages
from adamwprune.corpora.collections import Collection
from adamwprune.data.files.cache import NotThere, disk_errors, exclusive, file_sha256
from adamwprune.data.files.durable import sync_folder, write_durably
from adamwprune.data.preparation.processes import map_in_processes
from adamwprune.errors import DataError, DiskError

FORMAT = "adamwprune-corpus-1"
MANIFEST = "manifest.json"
LEAST_CHARACTERS = 200
# Pages that are read together, in bytes.
BATCH_BYTES = 1 << 20
# Of Debian's archive; Debian's own sources name it too.
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

Item = TypeVar("Item")
Pages = list[tuple[str, bytes]]  # name within the package, content
Prose = list[tuple[str, list[str]]]  # name, lines


def make_corpus(collection: Collection, data_dir: Path, num_processes: int | None) -> Path:
    """The folder of the corpus, made unless it exists; one process works, others wait.

    Packages are kept in `data_dir`/debian, so after a kill they are not fetched again. `num_processes`
    read pages, None is one for each core; the result does not depend on it.

    Raises:
        DataError: no Debian system, or its archive does not have enough of the packages.
        DiskError: the file system has no room, or refuses.
    """
    folder, store = data_dir / f"{collection.name}-{collection.rules}", data_dir / "debian"
    if folder.exists():
        return folder
    with exclusive(store):  # and not only of the folder: apt's own lists allow one process too
        if folder.exists():
            return folder
        unfinished = folder.with_name(f"{folder.name}.partial")
        try:
            with disk_errors(folder):
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
            _make(collection, store, unfinished, num_processes or usable_cores())
            with disk_errors(folder):
                unfinished.rename(folder)
                sync_folder(folder.parent)
        except NotThere as error:
            raise DataError(
                f"data={collection.name}: {folder} is not there, and {error}; make it on a Debian or Ubuntu "
                "machine with a network and copy it here; data=shakespeare and data=sotu need no download"
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the corpus was made of.

    Raises:
        DataError: it is missing, or not ours.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder / MANIFEST}: cannot be read ({error}); remove {folder}") from error
    if manifest.get("format") != FORMAT:
        raise DataError(f"{folder / MANIFEST}: format is {manifest.get('format')}, must be {FORMAT}")
    return manifest


def _make(collection: Collection, store: Path, folder: Path, processes: int) -> None:
    apt = _apt(collection, store)
    packages, missing = _located(collection, apt)
    if not packages:
        raise NotThere("apt knows none of its packages")
    _require_room(collection, packages, store)
    if missing:
        _say(f"{collection.name}: this machine's archive has no {', '.join(missing)}")
    debs = list(_fetched(collection, apt, packages, store / "archives"))
    texts = _texts(collection, _watched(debs, f"{collection.name}: reading"), processes)
    entries = _write(packages, texts, folder)
    size = sum(entry["bytes"] for entry in entries)
    if size < collection.least_bytes:
        without = f", without {', '.join(missing)}" if missing else ""
        raise NotThere(
            f"the packages of this machine's archive{without} have {size / 1e6:.1f} MB of text, must be "
            f"{collection.least_bytes / 1e6:g} MB"
        )
    pages = sum(entry["documents"] for entry in entries)
    _say(f"{collection.name}: {size / 1e6:.1f} MB of text, {pages:,} pages of {len(entries)} packages")
    manifest = {
        "format": FORMAT,
        "collection": collection.name,
        "rules": collection.rules,
        "bytes": size,
        "missing": missing,
        "packages": entries,
    }
    write_durably(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


# ---------------------------------------------------------------------------------------- packages


def _apt(collection: Collection, store: Path) -> Apt:
    """With the system's sources, or Debian's among them with another component of the archive."""
    apt = Apt(store / "apt")
    apt.update()
    if collection.component == "main":
        return apt
    sources = store / f"{collection.component}.list"
    lines = [
        f"deb [signed-by={KEYRING}] {address} {suite} {collection.component}\n"
        for address, suite in apt.repositories("Debian")
    ]
    with disk_errors(sources):
        sources.write_text("".join(lines), encoding="utf-8")
    apt = Apt(store / f"apt-{collection.component}", sources)
    apt.update()
    return apt


def _located(collection: Collection, apt: Apt) -> tuple[list[Package], list[str]]:
    """The packages that are to be had, and what there is none for."""
    names = apt.names()
    wanted = {pattern: newest(pattern, names) for pattern in collection.packages}
    found = apt.find([name for name in wanted.values() if name])
    packages, missing = [], []
    for pattern, name in wanted.items():
        # Another component has another licence; Ubuntu keeps most of Debian's main in universe.
        if name in found and found[name].component in (collection.component, "universe"):
            packages.append(found[name])
        else:
            missing.append(pattern)
    return packages, missing


def _require_room(collection: Collection, packages: Sequence[Package], store: Path) -> None:
    to_fetch = sum(
        package.bytes for package in packages if not (store / "archives" / package.file_name).exists()
    )
    needed, free = to_fetch + 2 * collection.least_bytes, shutil.disk_usage(store).free
    if free < needed:
        raise DiskError(
            f"{store}: {free / 1e9:.2f} GB are free, {needed / 1e9:.2f} GB are needed; make room, or choose "
            "another place with data.data_dir=DIR"
        )


def _fetched(collection: Collection, apt: Apt, packages: Sequence[Package], archives: Path) -> Iterator[Path]:
    megabytes = sum(package.bytes for package in packages) / 1e6
    for package in _watched(packages, f"{collection.name}: fetching {megabytes:.0f} MB of packages"):
        yield apt.fetch(package, archives)


# ------------------------------------------------------------------------------------------- texts


def _texts(collection: Collection, debs: Iterable[Path], processes: int) -> Iterator[tuple[int, Prose]]:
    """The pages of all packages in order, a few at a time, each with the number of its package."""
    batches = (
        (number, batch) for number, deb in enumerate(debs) for batch in _batches(pages(deb, collection.pages))
    )
    return map_in_processes(partial(_read, collection.prose), batches, processes)


def _batches(members: Iterable[tuple[str, bytes]]) -> Iterator[Pages]:
    batch, size = [], 0
    for name, content in members:
        batch.append((name, content))
        size += len(content)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read(prose: Callable[[bytes], list[str]], batch: tuple[int, Pages]) -> tuple[int, Prose]:
    number, members = batch
    return number, [(name, prose(content)) for name, content in members]


def _write(
    packages: Sequence[Package], texts: Iterator[tuple[int, Prose]], folder: Path
) -> list[dict[str, Any]]:
    """A file for each package; what the manifest says of it."""
    entries, seen = [], set()
    with closing(texts):
        for number, group in itertools.groupby(texts, key=lambda numbered: numbered[0]):
            package = packages[number]
            file = folder / f"{package.name}.jsonl"
            documents, size = 0, 0
            with disk_errors(file), file.open("w", encoding="utf-8") as stream:
                for name, lines in itertools.chain.from_iterable(prose for _, prose in group):
                    text = "\n".join(_first_time(lines, seen))
                    if len(text) >= LEAST_CHARACTERS:
                        page = {"text": text, "source": f"{package.name}/{name}"}
                        stream.write(json.dumps(page, ensure_ascii=False) + "\n")
                        documents += 1
                        size += len(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
            sha256 = file_sha256(file)
            entries.append(
                {
                    **asdict(package),
                    "file": file.name,
                    "documents": documents,
                    "bytes": size,
                    "file_sha256": sha256,
                }
            )
    return entries


def _first_time(lines: Iterable[str], seen: set[bytes]) -> Iterator[str]:
    """The lines that were not seen before; 8 bytes of a hash stand for each."""
    for line in lines:
        digest = hashlib.blake2b(line.encode(), digest_size=8).digest()
        if digest not in seen:
            seen.add(digest)
            yield line


# ---------------------------------------------------------------------------------------- progress


def _watched(items: Sequence[Item], title: str) -> Iterable[Item]:
    """The items, with a bar on a terminal and a line elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        _say(f"{title}, {len(items)} packages")
    return track(items, title, console=console, transient=True, disable=not console.is_terminal)


def _say(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, soft_wrap=True, markup=False)
