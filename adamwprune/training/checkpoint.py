"""Checkpoints that survive kills, full disks and flipped bits, and say so when they do not.

    checkpoints/step_00000100/model.safetensors    weights and buffers, tied weights once
                              training_state.pt    all else; loads with weights_only=True
                              manifest.json        step, sizes and SHA-256 of the two and of itself

Written under a temporary name in the same folder, fsynced, renamed, the folder fsynced, read
back and compared with the manifest; only then is it "saved" and only then are older ones
removed. A reader trusts nothing but a manifest that matches, and falls back to the newest
checkpoint that does. saver.py does this beside the training.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adamwprune.errors import CheckpointError, DiskError
from adamwprune.fault_points import reached
from adamwprune.run_directory import room_for, sync_directory, write_json
from adamwprune.training.parallel import gathered, is_spread, spread

log = logging.getLogger(__name__)

SCHEMA = 2
WEIGHTS, STATE, MANIFEST = "model.safetensors", "training_state.pt", "manifest.json"
_NAME = re.compile(r"step_(\d{8,})")
# Bytes of a file system that a checkpoint leaves free: the manifest, folders, rows of the next steps.
MARGIN = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    directory: Path
    step: int
    weights: dict[str, Tensor]
    state: dict[str, Any]

    @property
    def evaluated(self) -> dict[str, Tensor]:
        """The weights whose scores the run has: their average, where it kept one."""
        average = self.state.get("average", {})
        return {name: average.get(name, tensor) for name, tensor in self.weights.items()}


# ------------------------------------------------------------------------------------- writing


def save(
    root: Path,
    step: int,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    identity: Mapping[str, str] | None = None,
    sync_records: Callable[[], None] = lambda: None,
) -> Path:
    """Write the checkpoint of `step` below `root`, verified; return its folder.

    Args:
        root: the run's checkpoints/, created where it is missing.
        step: optimizer steps done.
        weights: CPU tensors by name.
        state: what `torch.load(weights_only=True)` takes.
        identity: hashes for the manifest, of the configuration and of the masks.
        sync_records: makes durable what the checkpoint refers to; called before it appears.

    Raises:
        DiskError: the file system refuses; earlier checkpoints are untouched.
    """
    final = root / f"step_{step:08d}"
    if final.exists():
        if not (problem := find_problem(final)):
            return final
        log.warning("%s was broken (%s) and is written anew", final.name, problem)
    reached("before_tmp")
    temporary = root / f".tmp-{final.name}-{os.getpid()}"
    needed = nbytes(weights) + nbytes(state) + MARGIN
    try:
        root.mkdir(exist_ok=True)
        _clear_leftovers(root)
        if shutil.disk_usage(root).free < needed:
            raise DiskError("disk full")
        temporary.mkdir()
        files = _write_files(temporary, weights, state)
        reached("before_fsync")
        for name in files:
            _sync_file(temporary / name)
        manifest = {"schema": SCHEMA, "step": step, "files": files, **(identity or {})}
        write_json(temporary / MANIFEST, sealed(manifest))
        sync_records()
        reached("after_fsync")
        if final.exists():
            final.rename(root / f".bad-{final.name}-{os.getpid()}")
        temporary.rename(final)
        reached("after_rename")
        sync_directory(root)
    except (OSError, RuntimeError, SafetensorError, DiskError) as error:
        room = room_for(temporary, needed)
        shutil.rmtree(temporary, ignore_errors=True)
        raise DiskError(
            f"{final}: not saved ({error}); {room}; {_kept(root)}; free some space, then resume"
        ) from None
    if problem := find_problem(final):
        raise DiskError(
            f"{final}: {problem} right after writing, so the disk does not keep what it is given; "
            f"{_kept(root, but=step)}"
        )
    return final


def nbytes(tree: Any) -> int:
    """Bytes of all tensors in a nest of dictionaries, lists and tuples."""
    if isinstance(tree, Tensor):
        return tree.nbytes
    items = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list | tuple) else ()
    return sum(map(nbytes, items))


def _clear_leftovers(root: Path) -> None:
    """The run is locked, so whatever bears these names was left by a process of ours that died."""
    for left in (*root.glob(".tmp-step_*"), *root.glob(".del-step_*")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)


def _write_files(
    folder: Path, weights: Mapping[str, Tensor], state: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Write weights and state; size and SHA-256 of each, found while more is written."""
    with ThreadPoolExecutor(2) as pool:
        save_file(dict(weights), folder / WEIGHTS)
        weights_entry = pool.submit(_describe, folder / WEIGHTS)
        with (folder / STATE).open("wb") as file:
            stream = _Hashing(file, nbytes(state), pool)
            # torch asks for a whole BinaryIO, and calls no more than write and flush.
            torch.save(dict(state), cast(BinaryIO, stream))
        return {WEIGHTS: weights_entry.result(), STATE: stream.describe()}


class _Hashing:
    """A stream that hashes what is written to it, and passes the fault points of its quarters.

    Args:
        file: where it goes.
        expected: bytes in all, about.
        pool: a thread of it hashes what this one writes.
    """

    def __init__(self, file: BinaryIO, expected: int, pool: ThreadPoolExecutor) -> None:
        self._file, self._pool = file, pool
        self._digest, self._bytes = hashlib.sha256(), 0
        self._points = [(expected * quarter // 4, f"write_{25 * quarter}") for quarter in (1, 2, 3)]

    def write(self, data: Any) -> int:
        """Called by torch."""
        hashing = self._pool.submit(self._digest.update, data)
        written = self._file.write(data)
        hashing.result()
        self._bytes += written
        while self._points and self._bytes >= self._points[0][0]:
            reached(self._points.pop(0)[1])
        return written

    def flush(self) -> None:
        """Called by torch."""
        self._file.flush()

    def describe(self) -> dict[str, Any]:
        """The file's entry in the manifest."""
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


def _kept(root: Path, but: int | None = None) -> str:
    """Which checkpoint is left, for the end of a message."""
    kept = next((step for step, path in steps_on_disk(root) if step != but and not find_problem(path)), None)
    return "none was saved before" if kept is None else f"the checkpoint of step {kept} is kept"


def remove_old(root: Path, *, keep: int, best_step: int | None) -> None:
    """Remove all checkpoints but the newest `keep` and the best; a failure only warns."""
    for step, directory in steps_on_disk(root)[keep:]:
        if step == best_step or directory.is_symlink():
            continue
        doomed = root / f".del-{directory.name}-{os.getpid()}"
        reached("before_delete")
        try:
            directory.rename(doomed)
            reached("mid_delete")
            shutil.rmtree(doomed)
        except OSError as error:
            log.warning("old checkpoint %s was not removed: %s", directory, error)


# ------------------------------------------------------------------------------------- reading


def find_problem(directory: Path) -> str | None:
    """Why the checkpoint in `directory` cannot be trusted; None where it can."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            return f"format {manifest['schema']}, this version reads {SCHEMA}"
        if manifest != sealed(manifest):
            return f"{MANIFEST} does not match its checksum"
        match = _NAME.fullmatch(directory.name)
        if match is None or manifest["step"] != int(match[1]):
            return f"{MANIFEST} is that of step {manifest['step']}"
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(_describe, (directory / name for name in (WEIGHTS, STATE)))
            for name, entry in zip((WEIGHTS, STATE), found, strict=True):
                if entry != manifest["files"][name]:
                    return f"{name} does not match its checksum"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{MANIFEST} is not readable ({error})"
    return None


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with a checksum of itself: a flipped bit in what it says of the run is found too."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True)
    return {**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _describe(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def _sync_file(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def steps_on_disk(root: Path) -> list[tuple[int, Path]]:
    """Checkpoints below `root`, newest first; names that are not ours are ignored."""
    found = ((_NAME.fullmatch(path.name), path) for path in root.glob("step_*") if path.is_dir())
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def newest_first(root: Path) -> Iterator[Checkpoint]:
    """The checkpoints that are whole, newest first; asking for the next one rejects the one before.

    Each one passed over is named in a warning, with its reason and with the one that is tried in its place.
    """
    skipped = []
    for step, directory in steps_on_disk(root):
        problem, checkpoint = find_problem(directory), None
        if problem is None:
            try:
                checkpoint = load(directory, step)
            except CheckpointError as error:
                problem = str(error)
        if checkpoint is None:
            skipped.append(f"{directory.name}: {problem}")
            continue
        for line in skipped:
            log.warning("skipped checkpoint %s; trying %s", line, directory.name)
        skipped = []
        yield checkpoint
    if skipped:
        raise CheckpointError(f"{root}: no valid checkpoint ({'; '.join(skipped)})")


def load_newest(root: Path) -> Checkpoint:
    """The newest checkpoint that is whole.

    Raises:
        CheckpointError: there is none.
    """
    for checkpoint in newest_first(root):
        return checkpoint
    raise CheckpointError(f"{root}: no valid checkpoint (none was written)")


def load(directory: Path, step: int) -> Checkpoint:
    """Read a checkpoint whose checksums have been verified; nothing in it is executed.

    Raises:
        CheckpointError: it holds something other than tensors and plain values.
    """
    try:
        weights = load_file(directory / WEIGHTS)
        # Mapped, so that ranks which take their rows of it read no more than these.
        state = torch.load(directory / STATE, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{directory}: cannot be loaded ({reason})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{directory}: {STATE} holds no state")
    return Checkpoint(directory, step, weights, state)


# ------------------------------------------------------------------------------------- weights


def model_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers on the CPU by name; a tied weight once, under its first name.

    Of a model that is spread over ranks every rank has to call it; parameters are whole on rank 0 alone.
    """
    return {name: gathered(tensor).detach().cpu().contiguous() for name, tensor in _tensors(model).items()}


def load_weights_(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights and buffers into `model`; names, shapes and dtypes are compared before any copy.

    However the model is spread over ranks, `weights` are whole.

    Raises:
        CheckpointError: naming what is missing, unexpected or of another shape.
    """
    own = _tensors(model)
    problems = [f"{name} is missing" for name in own.keys() - weights.keys()]
    problems += [f"{name} is unknown to the model" for name in weights.keys() - own.keys()]
    for name in own.keys() & weights.keys():
        ours, theirs = own[name], weights[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            problems.append(
                f"{name} is {tuple(theirs.shape)} {theirs.dtype}, ours {tuple(ours.shape)} {ours.dtype}"
            )
    if problems:
        raise CheckpointError("the checkpoint is of another model: " + "; ".join(sorted(problems)[:5]))
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(spread(tensor, own[name]) if is_spread(own[name]) else tensor)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, a tied one once."""
    seen: dict[int, str] = {}
    named = model.state_dict(keep_vars=True).items()
    return {name: tensor for name, tensor in named if seen.setdefault(id(tensor), name) == name}
