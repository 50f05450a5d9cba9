"""F22: a run depends on its configuration alone, not on when, where or by whom it is done.

The same configuration is trained again, with other numbers of loader threads, and by `python train.py` with
other hash seeds, languages, time zones and working folders: one SHA-256 over rows, mask updates and the
last checkpoint must be equal. Two ranks sum gradients in another order, so their rows agree with those of one
process within a tolerance; twice on two ranks is equal again.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from adamwprune.training.checkpoint import load_newest
from tests.faults.fork_server import trained
from tests.faults.harness import Control, Outcome, Tier
from tests.faults.resume import TWO_RANKS, ranks_of, without_plot
from tests.faults.tiny_runs import overrides_of
from tests.helpers.runs import mask_updates, rows, start

ROOT = Path(__file__).parents[2]
RUNS = {
    "gpt2-nano": overrides_of("gpt2-nano", "adamw", "state"),
    "resnet18": overrides_of("resnet18", "sgd", "magnitude"),
    "lenet5_caffe": overrides_of("lenet5_caffe", "adam", "movement"),
}
# What a user's shell may say; a language that is not installed falls back to C, as it would for the user.
SURROUNDINGS: dict[str, dict[str, str]] = {
    "hash seed 1": {"PYTHONHASHSEED": "1"},
    "hash seed 4294967295": {"PYTHONHASHSEED": "4294967295"},
    "LC_ALL C": {"LC_ALL": "C"},
    "LC_ALL de_DE.UTF-8": {"LC_ALL": "de_DE.UTF-8"},
    "LC_ALL tr_TR.UTF-8": {"LC_ALL": "tr_TR.UTF-8"},
    "TZ Pacific/Kiritimati": {"TZ": "Pacific/Kiritimati"},
    "TZ America/St_Johns": {"TZ": "America/St_Johns"},
    "another working folder": {},
}
SHORT = ("hash seed 1", "LC_ALL tr_TR.UTF-8", "TZ Pacific/Kiritimati")
# Relative, of losses and norms of two ranks against one process after sixty steps.
TOLERANCE = 1e-5


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Compare hashes; both tiers do every kind of difference, the long one with every model."""
    del seed
    failures: list[str] = []
    trials = 0
    names = list(RUNS) if tier == "long" else ["lenet5_caffe"]
    for name in names:
        first = trained(scratch / name, *RUNS[name], before=without_plot)
        for what, other in _variants(name, scratch):
            trials += 1
            failures += [] if digest(other) == digest(first) else [f"{name}: another run {what}"]
    surroundings = list(SURROUNDINGS) if tier == "long" else list(SHORT)
    first = trained(scratch / "forked", *RUNS["gpt2-nano"], before=without_plot)
    for what in surroundings:
        trials += 1
        other = _by_command(scratch / what.replace("/", " "), RUNS["gpt2-nano"], SURROUNDINGS[what])
        failures += [] if digest(other) == digest(first) else [f"another run with {what}"]
    worst, of_ranks = _two_ranks(scratch)
    if of_ranks:
        failures.append(of_ranks)
    seeded = trained(scratch / "seed", *RUNS["gpt2-nano"], "seed=2", before=without_plot)
    return Outcome(
        fault="the same run twice, with 0 to 5 loader threads, on 2 ranks, under other hash seeds, "
        "languages, time zones and folders",
        promise=f"equal SHA-256 of rows, masks, weights and state; 1 and 2 ranks agree within {TOLERANCE:g}",
        trials=trials + 2,
        failures=failures,
        figures={
            "equal hashes": trials - len(failures),
            "largest relative difference of 1 and 2 ranks": float(f"{worst:.2g}"),
        },
        goals={"largest relative difference of 1 and 2 ranks": TOLERANCE},
        controls=[Control("another seed", 1, int(digest(seeded) != digest(first)))],
        peer="torchtitan: 100 steps against a stored curve, no resume (reliability.md, 1)",
    )


def digest(directory: Path) -> str:
    """SHA-256 of what a run computed: rows, mask updates, last weights and state."""
    checkpoint = load_newest(directory / "checkpoints")
    parts = {key: checkpoint.state[key] for key in ("optimizer", "pruner", "average", "random", "best")}
    digest = hashlib.sha256(json.dumps([rows(directory), mask_updates(directory)]).encode())
    digest.update(save(checkpoint.weights))
    digest.update(repr(list(_leaves(parts))).encode())
    return digest.hexdigest()


def _leaves(tree: Any) -> Iterator[Any]:
    """Values of a nest in their order; a tensor as its bytes."""
    if isinstance(tree, Tensor):
        yield hashlib.sha256(tree.contiguous().numpy().tobytes()).hexdigest()
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            yield from _leaves(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _leaves(value)
    else:
        yield tree


def _variants(name: str, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Runs that must be the same, by what is different."""
    yield "done again", trained(scratch / f"{name} again", *RUNS[name], before=without_plot)
    for workers in (0, 1, 2, 5):
        own = (*RUNS[name], f"hardware.num_workers={workers}")
        yield (
            f"with {workers} loader threads",
            trained(scratch / f"{name} {workers}", *own, before=without_plot),
        )


def _by_command(folder: Path, overrides: tuple[str, ...], environment: dict[str, str]) -> Path:
    """The run as a user starts it, in a working folder of its own."""
    folder.mkdir()
    command = [sys.executable, str(ROOT / "train.py"), *overrides, "hydra.run.dir=run"]
    surroundings = {**os.environ, **environment}
    done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder.name} ended with {done.returncode}: {done.stderr[-300:]}")
    return folder / "run"


def _two_ranks(scratch: Path) -> tuple[float, str]:
    """The largest difference of two ranks from one process, and what is wrong with two ranks, if anything."""
    overrides = overrides_of("lenet5", "adamw", "none")
    alone = trained(scratch / "alone", *overrides, before=without_plot)
    pairs = [scratch / "pair", scratch / "pair again"]
    for pair in pairs:
        children = ranks_of(*start(pair, *overrides, *TWO_RANKS))
        if any([child.wait() for child in children]):
            return math.inf, f"two ranks did not finish: {children[0].console[-300:]}"
    worst = max(
        abs(value - other) / abs(value)
        for one, two in zip(rows(alone), rows(pairs[0]), strict=True)
        for value, other in ((one[key], two[key]) for key in one if key.endswith(("loss", "grad_norm")))
    )
    if digest(pairs[0]) != digest(pairs[1]):
        return worst, "two ranks: another run when done again"
    return worst, "" if worst <= TOLERANCE else f"two ranks differ from one process by {worst:.2g}"
