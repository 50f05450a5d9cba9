"""Checkpoints that survive kills, full disks and flipped bits, and say so when they do not.

    checkpoints/step_00000100/model.safetensors    weights and buffers, tied weights once
                              training_state.pt    all else; loads with weights_only=True
                              manifest.json        step, sizes and SHA-256 of the two

Written under a temporary name in the same folder, fsynced, renamed, the folder fsynced, read
back and compared with the manifest; only then is it "saved" and only then are older ones
removed. A reader trusts nothing but a manifest that matches, and falls back to the newest
checkpoint that does.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adamwprune.errors import CheckpointError, DiskError
from adamwprune.run_directory import sync_directory, write_json
from adamwprune.training.parallel import gathered, is_spread, spread

log = logging.getLogger(__name__)

SCHEMA = 1
WEIGHTS, STATE, MANIFEST = "model.safetensors", "training_state.pt", "manifest.json"
_NAME = re.compile(r"step_(\d{8,})")


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


def save(root: Path, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of `step` below `root`, verified; return its folder.

    Raises:
        DiskError: the file system refuses; earlier checkpoints are untouched.
    """
    final = root / f"step_{step:08d}"
    if final.exists():
        if problem := find_problem(final):
            final.rename(root / f".bad-{final.name}-{os.getpid()}")
            log.warning("%s was broken (%s) and is written anew", final.name, problem)
        else:
            return final
    temporary = root / f".tmp-{final.name}-{os.getpid()}"
    try:
        root.mkdir(exist_ok=True)
        # The run is locked, so whatever bears these names was left by a process that died.
        for left in (*root.glob(".tmp-step_*"), *root.glob(".del-step_*")):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        save_file(dict(weights), temporary / WEIGHTS)
        torch.save(dict(state), temporary / STATE)
        files = {name: _describe(temporary / name) for name in (WEIGHTS, STATE)}
        for name in files:
            _sync_file(temporary / name)
        write_json(temporary / MANIFEST, {"schema": SCHEMA, "step": step, "files": files})
        temporary.rename(final)
        sync_directory(root)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(root if root.exists() else root.parent).free / 2**20
        needed = sum(tensor.nbytes for tensor in weights.values()) * 3 / 2**20
        raise DiskError(
            f"{final}: not saved ({error}); about {needed:.0f} MB needed, {free:.0f} MB free; "
            "earlier checkpoints are kept"
        ) from None
    if problem := find_problem(final):
        raise DiskError(f"{final}: {problem} right after writing; the disk does not keep what it is given")
    return final


def find_problem(directory: Path) -> str | None:
    """Why the checkpoint in `directory` cannot be trusted; None where it can."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            return f"format {manifest['schema']}, this version reads {SCHEMA}"
        match = _NAME.fullmatch(directory.name)
        if match is None or manifest["step"] != int(match[1]):
            return f"{MANIFEST} is that of step {manifest['step']}"
        for name in (WEIGHTS, STATE):
            if _describe(directory / name) != manifest["files"][name]:
                return f"{name} does not match its checksum"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} is not readable ({error})"
    return None


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


def load_newest(root: Path) -> Checkpoint:
    """The newest checkpoint that is whole; each one passed over is named in a warning.

    Raises:
        CheckpointError: there is none.
    """
    skipped = []
    for step, directory in steps_on_disk(root):
        if problem := find_problem(directory):
            skipped.append(f"{directory.name}: {problem}")
            continue
        for line in skipped:
            log.warning("skipped checkpoint %s; using %s", line, directory.name)
        return load(directory, step)
    raise CheckpointError(f"{root}: no valid checkpoint ({'; '.join(skipped) or 'none was written'})")


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
    return Checkpoint(directory, step, weights, state)


def remove_old(root: Path, *, keep: int, best_step: int | None) -> None:
    """Remove all checkpoints but the newest `keep` and the best; a failure only warns."""
    for step, directory in steps_on_disk(root)[keep:]:
        if step == best_step:
            continue
        doomed = root / f".del-{directory.name}-{os.getpid()}"
        try:
            directory.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            log.warning("old checkpoint %s was not removed: %s", directory, error)


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
