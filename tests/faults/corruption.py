"""F10: checkpoints damaged on the disk, in every way that we know, and a run that is to go on from them.

The loader of a real run (training/continuation.py) takes the run's folder after each damage. What was damaged
must be passed over with a warning that names it and what is taken in its place, and what is restored from
that must be the older checkpoint to the bit. Some damages are resealed: the manifest has the right checksums
of wrong contents.
"""

import hashlib
import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from adamwprune.distributed import Ranks
from adamwprune.errors import CheckpointError
from adamwprune.training.build import Training, build_training
from adamwprune.training.checkpoint import (
    MANIFEST,
    STATE,
    WEIGHTS,
    Checkpoint,
    load,
    sealed,
    steps_on_disk,
)
from adamwprune.training.continuation import continue_or_start
from adamwprune.training.loop_state import capture
from adamwprune.training.random_state import seed_everything
from tests.faults import disk_runs
from tests.faults.harness import Control, Outcome, Tier
from tests.helpers.runs import configure
from tests.helpers.runs import run as trained
from tests.helpers.same_run import of_checkpoints

TRIALS = {"short": 200, "long": 3000}
PAGE = 4096
FILES = (WEIGHTS, STATE, MANIFEST)
# Newest first: the run keeps three, all before its end.
STEPS = (20, 16, 12)


@dataclass(frozen=True)
class Damaged:
    """What a damage has left.

    Attributes:
        names: checkpoints that must be passed over.
        taken: step of the one that must be restored; None where the run must be refused.
        what: file and place, for the report.
    """

    names: tuple[str, ...]
    taken: int | None
    what: str = ""


Damage = Callable[[Path, random.Random], Damaged]


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Damage, restore, compare, many times; and the same flips in a plain file of torch's."""
    outcome = Outcome(
        f"{len(DAMAGES)} ways to damage a checkpoint: bits, pages, cuts, swaps, manifests, resealed contents",
        "found; older checkpoint restored bitwise; the warning names both",
        peer="torch.load finds 0.2 % of one-bit flips (reliability.md, section 2)",
    )
    disk_runs.without_picture()
    whole = trained(scratch / "whole", *disk_runs.RUN, "checkpoint.keep=3")
    config = configure(*disk_runs.RUN)
    training = build_training(config, Ranks(0, 0, 1, torch.device("cpu")))
    originals = {step: load(path, step) for step, path in steps_on_disk(whole / "checkpoints")}
    names = list(DAMAGES)
    found = 0
    for trial in range(TRIALS[tier]):
        name = names[trial % len(names)]
        chosen = random.Random(f"{seed} {name} {trial}")
        directory = scratch / "damaged"
        shutil.copytree(whole, directory)
        damaged = DAMAGES[name](directory, chosen)
        problem = look(training, directory, damaged, originals)
        shutil.rmtree(directory)
        outcome.trials += 1
        found += not problem
        outcome.failures += (
            [f"{name} ({damaged.what}), trial {trial}, seed {seed}: {problem}"] if problem else []
        )
    outcome.figures["found and fallen back, %"] = round(100 * found / outcome.trials, 2)
    silent, tried = flips_in_a_plain_file(scratch, seed), 200
    outcome.controls.append(Control("one bit flipped in a torch.save file, torch.load", tried, silent, 0.9))
    outcome.figures["torch.load finds, % of flips"] = round(100 * (tried - silent) / tried, 2)
    return outcome


def look(training: Training, directory: Path, damaged: Damaged, originals: dict[int, Checkpoint]) -> str:
    """What the loader did wrong with the damaged run; empty where nothing."""
    revision = originals[STEPS[0]].state["environment"]["revision"]
    seed_everything(0, rank=0)  # whatever a new process would have
    with warnings() as said:
        try:
            state = continue_or_start(training, directory, revision)
        except CheckpointError as error:
            return "" if damaged.taken is None else f"refused: {error}"
    if damaged.taken is None:
        return f"went on at step {state.step}"
    if state.step != damaged.taken:
        return f"took step {state.step} instead of {damaged.taken}"
    original = originals[state.step]
    restored = capture(training, state, revision, original.state["records"])
    if different := of_checkpoints(original, Checkpoint(original.directory, state.step, *restored)):
        return f"restored, but {', '.join(different)} differ"
    unnamed = [name for name in (*damaged.names, original.directory.name) if name not in "\n".join(said)]
    return f"no warning names {', '.join(unnamed)}" if unnamed else ""


@contextmanager
def warnings() -> Iterator[list[str]]:
    """What is logged as a warning in the block."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger().removeHandler(handler)


# ---------------------------------------------------------------- damages of bytes, names, manifests


def checkpoint_of(directory: Path, step: int) -> Path:
    """Its folder."""
    return directory / "checkpoints" / f"step_{step:08d}"


def newest_damaged(directory: Path, what: str = "") -> Damaged:
    """The newest is to be passed over, the second is to be taken."""
    return Damaged((checkpoint_of(directory, STEPS[0]).name,), STEPS[1], what)


def in_some_file(change: Callable[[bytearray, random.Random], str]) -> Damage:
    """A damage of the bytes of one of the newest checkpoint's files."""

    def damage(directory: Path, chosen: random.Random) -> Damaged:
        file = checkpoint_of(directory, STEPS[0]) / chosen.choice(FILES)
        data = bytearray(file.read_bytes())
        what = change(data, chosen)
        file.write_bytes(data)
        return newest_damaged(directory, f"{file.name}: {what}")

    return damage


def flip(data: bytearray, chosen: random.Random) -> str:
    """One bit."""
    place, bit = chosen.randrange(len(data)), chosen.randrange(8)
    data[place] ^= 1 << bit
    return f"bit {bit} of byte {place}"


def zero_page(data: bytearray, chosen: random.Random) -> str:
    """One page that is not all zero already."""
    pages = [start for start in range(0, len(data), PAGE) if any(data[start : start + PAGE])]
    start = chosen.choice(pages)
    data[start : start + PAGE] = bytes(len(data[start : start + PAGE]))
    return f"page at {start}"


def cut(data: bytearray, chosen: random.Random) -> str:
    """Everything after some length."""
    length = chosen.randrange(len(data))
    del data[length:]
    return f"cut at {length}"


def lengthen(data: bytearray, chosen: random.Random) -> str:
    """Bytes after the end."""
    more = chosen.randrange(1, 100)
    data += chosen.randbytes(more)
    return f"{more} bytes more"


def remove_file(directory: Path, chosen: random.Random) -> Damaged:
    """One of the three files is gone."""
    file = checkpoint_of(directory, STEPS[0]) / chosen.choice(FILES)
    file.unlink()
    return newest_damaged(directory, f"{file.name} gone")


def swap_files(directory: Path, chosen: random.Random) -> Damaged:
    """One file of the newest and of the second, each in the other's place: the third is left."""
    name = chosen.choice(FILES)
    one, two = (checkpoint_of(directory, step) / name for step in STEPS[:2])
    contents = one.read_bytes(), two.read_bytes()
    two.write_bytes(contents[0])
    one.write_bytes(contents[1])
    return Damaged((one.parent.name, two.parent.name), STEPS[2], name)


def rename_as_newer(directory: Path, chosen: random.Random) -> Damaged:
    """An old checkpoint under the name of a step that the run has not reached."""
    step = chosen.choice(STEPS)
    newer = checkpoint_of(directory, chosen.randrange(STEPS[0] + 1, 10**6))
    checkpoint_of(directory, step).rename(newer)
    return Damaged((newer.name,), next(left for left in STEPS if left != step), f"{step} as {newer.name}")


def rename_over_newest(directory: Path, chosen: random.Random) -> Damaged:
    """An old checkpoint in the place of the newest."""
    step, newest = chosen.choice(STEPS[1:]), checkpoint_of(directory, STEPS[0])
    shutil.rmtree(newest)
    checkpoint_of(directory, step).rename(newest)
    return Damaged((newest.name,), next(left for left in STEPS[1:] if left != step), f"{step} as {STEPS[0]}")


def spoil_manifest(directory: Path, chosen: random.Random) -> Damaged:
    """No JSON, no object, or an object without what it must have."""
    file = checkpoint_of(directory, STEPS[0]) / MANIFEST
    manifest = json.loads(file.read_text())
    texts = ["", "null", "[]", "{}", "{", '"text"', "\x00" * 50, "[" * 100_000]
    texts += [
        json.dumps({k: v for k, v in manifest.items() if k != key}) for key in ("schema", "step", "files")
    ]
    texts += [
        json.dumps({**manifest, "files": files}) for files in ({}, None, [], {WEIGHTS: None, STATE: None})
    ]
    text = chosen.choice(texts)
    file.write_text(text)
    return newest_damaged(directory, f"manifest {text[:40]!r}")


def other_schema(directory: Path, chosen: random.Random) -> Damaged:
    """A format that this version does not know."""
    schema = chosen.choice([0, 1, 3, 99, -1, "2", 2.5, None, [2]])
    edit_manifest(checkpoint_of(directory, STEPS[0]), schema=schema)
    return newest_damaged(directory, f"schema {schema!r}")


def lose_rows(directory: Path, chosen: random.Random) -> Damaged:
    """metrics.jsonl is shorter than the newest checkpoint says, and long enough for the second."""
    lengths = [load(checkpoint_of(directory, s), s).state["records"]["metrics.jsonl"] for s in STEPS[:2]]
    length = chosen.randrange(lengths[1], lengths[0])
    with (directory / "metrics.jsonl").open("rb+") as stream:
        stream.truncate(length)
    return newest_damaged(directory, f"metrics.jsonl cut at {length}")


def flip_in_all(directory: Path, chosen: random.Random) -> Damaged:
    """A flipped bit in each checkpoint: there is none to go on from."""
    for step in STEPS:
        file = checkpoint_of(directory, step) / chosen.choice((WEIGHTS, STATE))
        data = bytearray(file.read_bytes())
        flip(data, chosen)
        file.write_bytes(data)
    return Damaged((), None)


# ---------------------------------------------------- resealed: checksums right, contents wrong


def edit_manifest(folder: Path, **changes: object) -> None:
    """Change entries of a manifest, which is whole in itself afterwards."""
    file = folder / MANIFEST
    file.write_text(json.dumps(sealed({**json.loads(file.read_text()), **changes})))


def reseal(folder: Path) -> None:
    """Give the manifest the sizes and checksums of the files as they are."""
    entries = {
        name: {
            "bytes": (folder / name).stat().st_size,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        }
        for name in (WEIGHTS, STATE)
    }
    edit_manifest(folder, files=entries)


def with_weights(change: Callable[[dict[str, Tensor], dict[str, Any], random.Random], str]) -> Damage:
    """A damage of what the newest checkpoint's weights are."""

    def damage(directory: Path, chosen: random.Random) -> Damaged:
        folder = checkpoint_of(directory, STEPS[0])
        checkpoint = load(folder, STEPS[0])
        weights = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
        what = change(weights, checkpoint.state, chosen)
        save_file(weights, folder / WEIGHTS)
        reseal(folder)
        return newest_damaged(directory, what)

    return damage


def with_state(change: Callable[[dict[str, Any], random.Random], str]) -> Damage:
    """A damage of what the newest checkpoint's state is."""

    def damage(directory: Path, chosen: random.Random) -> Damaged:
        folder = checkpoint_of(directory, STEPS[0])
        state = torch.load(folder / STATE, weights_only=True)
        what = change(state, chosen)
        torch.save(state, folder / STATE)
        reseal(folder)
        return newest_damaged(directory, what)

    return damage


def other_shape(weights: dict[str, Tensor], _: dict[str, Any], chosen: random.Random) -> str:
    """As many numbers, in another shape."""
    name = chosen.choice(sorted(name for name, tensor in weights.items() if tensor.ndim > 1))
    weights[name] = weights[name].reshape(-1)
    return f"{name} is flat"


def other_dtype(weights: dict[str, Tensor], _: dict[str, Any], chosen: random.Random) -> str:
    """Rounded."""
    name = chosen.choice(sorted(weights))
    weights[name] = weights[name].to(torch.bfloat16)
    return f"{name} is bfloat16"


def one_weight_less(weights: dict[str, Tensor], _: dict[str, Any], chosen: random.Random) -> str:
    """One is missing."""
    name = chosen.choice(sorted(weights))
    del weights[name]
    return f"no {name}"


def one_weight_more(weights: dict[str, Tensor], _: dict[str, Any], chosen: random.Random) -> str:
    """One that the model does not know."""
    weights["more"] = torch.zeros(chosen.randrange(1, 5))
    return "one more"


def pruned_weight_lives(weights: dict[str, Tensor], state: dict[str, Any], chosen: random.Random) -> str:
    """A weight that a hard mask prunes is not zero."""
    name = chosen.choice(sorted(name for name in weights if ".mlp." in name and name.endswith("weight")))
    place = int((weights[name].view(-1) == 0).nonzero()[0])
    weights[name].view(-1)[place] = 0.5
    return f"{name}, entry {place}"


def key_is_missing(state: dict[str, Any], chosen: random.Random) -> str:
    """One field of the state that this run goes by; it has no average of its weights."""
    key = chosen.choice(sorted(state.keys() - {"environment", "average"}))
    del state[key]
    return f"no {key}"


def moment_of_other_shape(state: dict[str, Any], chosen: random.Random) -> str:
    """Which torch takes without a word."""
    index = chosen.choice(sorted(state["optimizer"]["state"]))
    name = chosen.choice(["exp_avg", "exp_avg_sq"])
    moment = state["optimizer"]["state"][index][name]
    state["optimizer"]["state"][index][name] = torch.zeros(*moment.shape, 2)
    return f"{name} of parameter {index}"


def mask_bit(state: dict[str, Any], chosen: random.Random) -> str:
    """One bit of a packed mask."""
    masks = state["pruner"]["masks"]["packed"]
    name = chosen.choice(sorted(masks))
    masks[name] = masks[name].clone()
    masks[name][chosen.randrange(masks[name].numel())] ^= 1 << chosen.randrange(8)
    return name


def of_a_dense_run(state: dict[str, Any], chosen: random.Random) -> str:
    """No pruner at all."""
    state["pruner"] = {}
    return "no pruner"


def of_another_step(state: dict[str, Any], chosen: random.Random) -> str:
    """A state that says it is of another step than its folder and manifest."""
    state["step"] = chosen.choice([0, 5, 19, 21])
    return f"step {state['step']}"


def not_a_state(directory: Path, chosen: random.Random) -> Damaged:
    """A file of torch's that holds something else, or is none of torch's."""
    folder = checkpoint_of(directory, STEPS[0])
    what = chosen.choice([[1, 2], torch.zeros(3), None, "text"])
    if what is None:
        (folder / STATE).write_bytes(chosen.randbytes(1000))
    else:
        torch.save(what, folder / STATE)
    reseal(folder)
    return newest_damaged(directory, type(what).__name__)


DAMAGES: dict[str, Damage] = {
    "bit flipped": in_some_file(flip),
    "page zeroed": in_some_file(zero_page),
    "file cut": in_some_file(cut),
    "file lengthened": in_some_file(lengthen),
    "file removed": remove_file,
    "files swapped": swap_files,
    "old one renamed as newer": rename_as_newer,
    "old one in the newest's place": rename_over_newest,
    "manifest spoilt": spoil_manifest,
    "manifest of another schema": other_schema,
    "rows lost": lose_rows,
    "bit flipped in all": flip_in_all,
    "resealed: weight of another shape": with_weights(other_shape),
    "resealed: weight of another dtype": with_weights(other_dtype),
    "resealed: weight missing": with_weights(one_weight_less),
    "resealed: weight unknown": with_weights(one_weight_more),
    "resealed: pruned weight not zero": with_weights(pruned_weight_lives),
    "resealed: field missing": with_state(key_is_missing),
    "resealed: moment of another shape": with_state(moment_of_other_shape),
    "resealed: bit of a mask": with_state(mask_bit),
    "resealed: state of a dense run": with_state(of_a_dense_run),
    "resealed: state of another step": with_state(of_another_step),
    "resealed: no state": not_a_state,
}


# --------------------------------------------------------------------------------------- control


def flips_in_a_plain_file(scratch: Path, seed: int, trials: int = 200) -> int:
    """Of so many one-bit flips in a file that torch.save wrote: those that torch.load takes."""
    file, chosen = scratch / "plain.pt", random.Random(seed)
    tensors = {f"layer{i}": torch.randn(200, 200) for i in range(10)}
    torch.save(tensors, file)
    whole, silent = file.read_bytes(), 0
    for _ in range(trials):
        data = bytearray(whole)
        flip(data, chosen)
        file.write_bytes(data)
        try:
            torch.load(file, weights_only=True)
        except Exception:  # of many kinds
            continue
        silent += 1
    return silent
