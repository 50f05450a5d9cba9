"""Exported weights as safetensors files, and back: `load(file)` gives them dense, whatever the encoding.

A tensor stands under its own name or, where an encoding makes it smaller, in parts `NAME:PART`. The header
says how to read the file (`encoding`, and in `encoded` the shapes of such tensors), whose weights these are,
and the SHA-256 of all that. A file is a function of what it holds: the same weights give the same bytes.

    from adamwprune.export.files import load
    from adamwprune.training.checkpoint import load_weights_

    load_weights_(model, load("bitmask.safetensors"))
"""

import contextlib
import filecmp
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adamwprune.errors import CheckpointError, ConfigError, DiskError
from adamwprune.export.encodings import ENCODINGS, Parts, Unsuitable, raw
from adamwprune.run_directory import sync_directory

DENSE = "dense"
# Bytes that the header has more for an encoded tensor: an entry for each further part, and its shape.
OVERHEAD = 256


@dataclass(frozen=True)
class Encoded:
    """One tensor in an encoding."""

    encoding: str
    shape: tuple[int, ...]
    parts: Parts

    def decode(self) -> Tensor:
        """The tensor: contiguous, on the CPU, every bit as it was."""
        return ENCODINGS[self.encoding].decode(self.parts, self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())


@dataclass(frozen=True)
class Export:
    """What one file holds.

    Attributes:
        encoding: "dense", "bitmask", "csr" or "2:4".
        plain: tensors as they are, by name.
        encoded: the others.
        reasons: why a candidate stayed plain; known to who encodes, not written.
        facts: whose weights they are: texts for the header.
    """

    encoding: str
    plain: dict[str, Tensor]
    encoded: dict[str, Encoded] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    def weights(self) -> dict[str, Tensor]:
        """All tensors by name, decoded."""
        return self.plain | {name: tensor.decode() for name, tensor in self.encoded.items()}


def encode(
    weights: Mapping[str, Tensor],
    encoding: str,
    *,
    candidates: Collection[str],
    facts: Mapping[str, str] | None = None,
) -> Export:
    """`weights` with every one of the `candidates` encoded that becomes smaller by it.

    Args:
        weights: tensors by name; a tied weight once.
        encoding: "dense", which encodes nothing, or a key of ENCODINGS.
        candidates: names of those to try.
        facts: texts for the header.
    """
    export = Export(encoding, dict(weights), facts=dict(facts or {}))
    for name in candidates if encoding != DENSE else ():
        tensor = weights[name]
        try:
            encoded = Encoded(encoding, tuple(tensor.shape), ENCODINGS[encoding].encode(tensor))
            if encoded.nbytes + OVERHEAD >= tensor.nbytes:
                raise Unsuitable(f"{encoded.nbytes:,} bytes would replace {tensor.nbytes:,}")
        except Unsuitable as reason:
            export.reasons[name] = str(reason)
        else:
            export.encoded[name] = encoded
            del export.plain[name]
    return export


# --------------------------------------------------------------------------------------- write


def write(export: Export, file: Path, *, weights: Mapping[str, Tensor]) -> None:
    """Write `file` atomically; it gets its name when it has been read back, decoded and found equal.

    An equal file that is there stays as it is.

    Args:
        export: what to write.
        file: its folder is created.
        weights: what `load` must give.

    Raises:
        ConfigError: another file is there.
        DiskError: the file system refuses, or gives back other bits than it was given.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(export), temporary, metadata=_metadata(export))
        _sort_metadata_(temporary)
        if not equal(load(temporary), weights):
            raise DiskError(f"{file}: reads back as something else; the disk does not keep what it is given")
        if file.exists() and not filecmp.cmp(file, temporary, shallow=False):
            raise ConfigError(
                f"{file}: another file of this name is there; remove it or give another --output"
            )
        temporary.replace(file)
        sync_directory(file.parent)
    except (OSError, SafetensorError) as error:
        raise DiskError(f"{file}: not written ({error}); free some space or give another --output") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether two sets of weights agree in names, shapes, dtypes and every bit."""
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype
        and ours[name].shape == theirs[name].shape
        and np.array_equal(raw(ours[name]), raw(theirs[name]))
        for name in ours
    )


def _tensors(export: Export) -> dict[str, Tensor]:
    parts = {
        f"{name}:{part}": tensor
        for name, encoded in export.encoded.items()
        for part, tensor in encoded.parts.items()
    }
    return {name: tensor.contiguous() for name, tensor in export.plain.items()} | parts


def _metadata(export: Export) -> dict[str, str]:
    # "pt" tells other readers that names and tensors are those of a model: true of dense files alone.
    metadata = {**export.facts, "format": "pt" if export.encoding == DENSE else "adamwprune"}
    shapes = {name: encoded.shape for name, encoded in export.encoded.items()}
    metadata |= {"encoding": export.encoding, "encoded": json.dumps(shapes)}
    return metadata | {"sha256": _digest(metadata, _tensors(export))}


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a file's content but for the digest itself, 64 hex digits."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(raw(tensor).data)
    return digest.hexdigest()


def _sort_metadata_(file: Path) -> None:
    """Sort the header's texts in place: safetensors 0.8 writes them in an order that changes by process."""
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        stream.seek(8)
        stream.write(text.ljust(size))
        stream.flush()
        os.fsync(stream.fileno())


# ---------------------------------------------------------------------------------------- read


def load(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights in an exported file by name, dense, bit for bit those of the checkpoint.

    Raises:
        CheckpointError: the file is none that `write` wrote, or is damaged.
    """
    return read(Path(file)).weights()


def read(file: Path) -> Export:
    """An exported file with its tensors still encoded.

    Raises:
        CheckpointError: as `load`.
    """
    try:
        with safe_open(file, framework="pt") as stream:
            metadata = stream.metadata() or {}
            names = stream.keys()
            tensors = {name: stream.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise CheckpointError(f"{file}: there is no such file") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: damaged, or no safetensors file ({error})") from None
    if metadata.get("encoding") not in (DENSE, *ENCODINGS):
        raise CheckpointError(f"{file}: not written by python -m adamwprune.export, or by a newer one")
    if metadata.pop("sha256", None) != _digest(metadata, tensors):
        raise CheckpointError(f"{file}: damaged, its content does not match its checksum; export it again")
    encoding, shapes = metadata.pop("encoding"), json.loads(metadata.pop("encoded"))
    del metadata["format"]
    encoded = {name: _take(tensors, encoding, name, shape) for name, shape in shapes.items()}
    return Export(encoding, tensors, encoded, facts=metadata)


def _take(tensors: dict[str, Tensor], encoding: str, name: str, shape: list[int]) -> Encoded:
    """Take the parts of one tensor out of those of the file."""
    parts = {part: tensors.pop(f"{name}:{part}") for part in ENCODINGS[encoding].parts}
    return Encoded(encoding, tuple(shape), parts)
