"""F4: every field of the saved state is needed: a run that is continued without one must be noticed.

The fields are S1 to S23 of reliability.md, section 2. One is left out as if it had never been saved: the
continued run has there what a new run has. That shows in its rows, weights or state, or it is refused.
Not here: S5 and S14 to S16 beside the position (learning rate, order and augmentation are functions of step
and seed, with no state), S10 (CUDA's generator: needs a GPU), S20 (in `trackers`).
"""

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from adamwprune import run_directory
from adamwprune.errors import CheckpointError
from adamwprune.pruning.masks import hash_of
from adamwprune.training import continuation, random_state
from adamwprune.training import run as run_module
from adamwprune.training.build import Training
from adamwprune.training.checkpoint import Checkpoint
from tests.faults.fork_server import Before, continue_, trained
from tests.faults.harness import Control, Outcome, Tier
from tests.faults.resume import LAST_ONLY, as_it_was, without_plot
from tests.faults.tiny_runs import STEPS, overrides_of
from tests.helpers.same_run import differences

ROOT = Path(__file__).parents[2]
REFUSED = "refused"
Change = Callable[[Checkpoint], object]
# Steps between checkpoints; most runs are continued from the first one: in the ramp, between two rows, two
# evaluations and two mask updates. The best accuracy of `amsgrad` is before the second.
EVERY, KEPT = 25, ("checkpoint.every=25", f"checkpoint.keep={STEPS}")
# One more, two steps after the reset of SPAM's moments and within the warm-up that follows.
AFTER_RESET = 33


def nothing() -> None:
    """Called in a child that trains as it is."""


def draw_from(generator: Callable[[], float]) -> Before:
    """A loss that depends on a generator that nothing of ours draws from, as a user's model may."""

    def before() -> None:
        real = torch.nn.functional.cross_entropy

        def noisy(*arguments: Any, **options: Any) -> torch.Tensor:
            return real(*arguments, **options) * (1 + 0.1 * generator())

        torch.nn.functional.cross_entropy = noisy

    return before


def scale_losses() -> None:
    """Train with the scaler of fp16, whose scale doubles every ten steps, although a CPU has no fp16."""
    real = run_module.build_training

    def with_scaler(*arguments: Any) -> Training:
        training = real(*arguments)
        training.autocast.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=10)
        return training

    run_module.build_training = with_scaler


class Base(NamedTuple):
    """A run in which a field matters."""

    overrides: tuple[str, ...]
    before: Before = nothing


BASES = {
    "gpt2": Base(overrides_of("gpt2-nano", "adamw", "state")),
    "resnet": Base(overrides_of("resnet18", "sgd", "none")),
    "amsgrad": Base((*overrides_of("lenet5", "adamw", "none"), "optimizer.amsgrad=true")),
    "spam": Base((*overrides_of("lenet5", "adamwspam", "magnitude"), f"checkpoint.every={AFTER_RESET}")),
    "movement": Base(overrides_of("lenet5", "sgd", "movement")),
    "average": Base(overrides_of("lenet5_caffe", "adam", "none")),
    "python": Base(overrides_of("lenet5", "sgd", "none"), draw_from(random.random)),
    "numpy": Base(overrides_of("lenet5", "sgd", "none"), draw_from(np.random.random)),
    "scaler": Base(overrides_of("lenet5", "sgd", "none"), scale_losses),
}


class Omission(NamedTuple):
    """A field of the state, the run in which it matters, and how a checkpoint loses it."""

    number: str
    base: str
    change: Change
    step: int = EVERY


def state_of_optimizer(name: str) -> Change:
    """As before the first step."""

    def change(checkpoint: Checkpoint) -> None:
        for values in checkpoint.state["optimizer"]["state"].values():
            values[name] = values[name] * 0

    return change


def groups(**values: Any) -> Change:
    """Counts that an optimizer keeps in its groups."""

    def change(checkpoint: Checkpoint) -> None:
        for group in checkpoint.state["optimizer"]["param_groups"]:
            assert values.keys() <= group.keys()
            group.update(values)

    return change


def put(**values: Any) -> Change:
    """Fields of the loop."""

    def change(checkpoint: Checkpoint) -> None:
        assert values.keys() <= checkpoint.state.keys()
        checkpoint.state.update(values)

    return change


def tensors(end: str, value: float) -> Change:
    """All tensors of the model whose name ends in `end`, as a new model has them."""

    def change(checkpoint: Checkpoint) -> None:
        found = [tensor for name, tensor in checkpoint.weights.items() if name.endswith(end)]
        assert found
        for tensor in found:
            tensor.fill_(value)

    return change


def new_weights(checkpoint: Checkpoint) -> None:
    """Parameters as another initialisation draws them; buffers as they are."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in checkpoint.weights.items():
        if name.endswith("weight") and tensor.ndim > 1:
            mask = tensor != 0
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.02 * mask)


def all_live(checkpoint: Checkpoint) -> None:
    """Masks that prune nothing, with the hash that they have."""
    masks = checkpoint.state["pruner"]["masks"]
    masks["packed"] = {name: torch.full_like(bits, 255) for name, bits in masks["packed"].items()}
    masks["hash"] = hash_of(masks["packed"])
    checkpoint.state["pruner"]["pruned"] = 0


def pruner(key: str, value: Any) -> Change:
    """A field of the pruner."""

    def change(checkpoint: Checkpoint) -> None:
        assert key in checkpoint.state["pruner"]
        checkpoint.state["pruner"][key] = value

    return change


def sums(checkpoint: Checkpoint) -> None:
    """Movement sums of a pruner that has seen no step."""
    for total in checkpoint.state["pruner"]["sums"]["movement"].values():
        total.zero_()


def average(checkpoint: Checkpoint) -> None:
    """The average begins again at the weights."""
    kept = checkpoint.state["average"]
    kept.update({name: checkpoint.weights[name].clone() for name in kept})


def generator(name: str) -> Change:
    """The state of a generator that is seeded anew."""

    def change(checkpoint: Checkpoint) -> None:
        random_state.seed_everything(1, rank=0)
        checkpoint.state["random"][0][name] = random_state.capture()[name]

    return change


def scaler(checkpoint: Checkpoint) -> None:
    """A scale as it began."""
    checkpoint.state["scaler"].update(scale=256.0, _growth_tracker=0)


def environment(key: str) -> Change:
    """A field of the environment."""
    return lambda checkpoint: checkpoint.state["environment"].pop(key)


OMISSIONS = {
    "parameters": Omission("S1", "gpt2", new_weights),
    "running means of BatchNorm": Omission("S2", "resnet", tensors("running_mean", 0.0)),
    "running variances of BatchNorm": Omission("S2", "resnet", tensors("running_var", 1.0)),
    "batches that BatchNorm has seen": Omission("S2", "resnet", tensors("num_batches_tracked", 0)),
    "exp_avg": Omission("S3", "gpt2", state_of_optimizer("exp_avg")),
    "exp_avg_sq": Omission("S3", "gpt2", state_of_optimizer("exp_avg_sq")),
    "optimizer step": Omission("S3", "gpt2", state_of_optimizer("step")),
    "max_exp_avg_sq": Omission("S3", "amsgrad", state_of_optimizer("max_exp_avg_sq")),
    "momentum": Omission("S3", "resnet", state_of_optimizer("momentum_buffer")),
    "SPAM's steps": Omission("S4", "spam", groups(steps=0), AFTER_RESET),
    "SPAM's step after a reset": Omission("S4", "spam", state_of_optimizer("step"), AFTER_RESET),
    "masks": Omission("S6", "gpt2", all_live),
    "last mask update": Omission("S7", "movement", pruner("last_update", -1)),
    "pruned steps": Omission("S7", "gpt2", put(pruned_steps=0)),
    "movement sums": Omission("S8", "movement", sums),
    "dense weights of mode ste": Omission("S8", "movement", pruner("mode", {"dense": {}})),
    "loss scale": Omission("S9", "scaler", scaler),
    "average of the weights": Omission("S9", "average", average),
    "random state of Python": Omission("S11", "python", generator("python")),
    "random state of NumPy": Omission("S12", "numpy", generator("numpy")),
    "random state of torch": Omission("S13", "gpt2", generator("torch")),
    "step": Omission("S14", "gpt2", put(step=0)),
    "skipped batches": Omission("S14", "gpt2", put(skipped=1)),
    "sum of losses": Omission("S17", "gpt2", lambda checkpoint: checkpoint.state["loss_sum"][0].zero_()),
    "steps in that sum": Omission("S17", "gpt2", put(loss_count=0)),
    "best scores": Omission("S18", "amsgrad", put(best={}), 2 * EVERY),
    "latest scores": Omission("S18", "gpt2", put(latest={"val/loss": 0.0}), STEPS),
    "data fingerprint": Omission("S23", "gpt2", environment("data")),
    **{
        f"environment: {key}": Omission("S22", "gpt2", environment(key))
        for key in ("revision", "torch", "numpy", "device", "precision", "world_size", "threads")
    },
}


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Leave out each field; both tiers do all."""
    del tier, seed
    runs = {
        name: trained(scratch / name, *KEPT, *base.overrides, before=_both(base.before, without_plot))
        for name, base in BASES.items()
    }
    found = {
        f"{omission.number} {name}": continued(runs[omission.base], omission, leave_out(omission.change))
        for name, omission in OMISSIONS.items()
    }
    found["S19 rows before the checkpoint"] = _without_rows(runs["gpt2"])
    found["S21 configuration"] = _with_another_configuration(runs["gpt2"])
    whole = {(omission.base, omission.step): omission for omission in OMISSIONS.values()}
    broken = [
        f"nothing left out of {base} at step {step}: {line}"
        for (base, step), omission in whole.items()
        for line in continued(runs[base], omission, nothing)
    ]
    missed = [f"without {name} the continued run is the same run" for name, seen in found.items() if not seen]
    return Outcome(
        fault=f"{len(found)} fields of the saved state, each left out of a continued run in which it matters",
        promise="every omission is refused or changes the run",
        trials=len(found),
        failures=missed + broken,
        figures={
            "fields": len(found),
            "noticed": len(found) - len(missed),
            "of them refused": sum(seen == [REFUSED] for seen in found.values()),
            "kinds of S1 to S23": len({name.partition(" ")[0] for name in found}),
            "complete states that differ": len(broken),
        },
        goals={"complete states that differ": 0},
        controls=[Control("fields left out of the state", len(found), len(found) - len(missed))],
        peer="Composer: 1 control (reliability.md, 1)",
    )


def continued(unbroken: Path, omission: Omission, change: Before) -> list[str]:
    """What is noticed of a run that is continued after `change`; REFUSED alone where it was not let go on.

    Raises:
        RuntimeError: it ended in another way, so `change` is not what it should be.
    """
    directory = as_it_was(unbroken, omission.step, unbroken.with_name("continued"))
    before = _both(BASES[omission.base].before, without_plot, change)
    try:
        child = continue_(directory, *LAST_ONLY, before=before)
        code = child.wait()
        if code not in (0, CheckpointError.exit_code):
            raise RuntimeError(f"{omission}: ended with {code}: {child.console[-300:]}")
        return [REFUSED] if code else differences(directory, unbroken)
    finally:
        shutil.rmtree(directory)


def leave_out(change: Change) -> Before:
    """Called in a child: checkpoints are read without a field."""

    def before() -> None:
        newest_first = continuation.newest_first

        def without(root: Path) -> Iterator[Checkpoint]:
            for checkpoint in newest_first(root):
                change(checkpoint)
                yield checkpoint

        continuation.newest_first = without

    return before


def _both(*calls: Before) -> Before:
    """One call after the other."""

    def before() -> None:
        for call in calls:
            call()

    return before


def _without_rows(unbroken: Path) -> list[str]:
    """What is noticed where rows that were written before the checkpoint are lost, and no other is there."""
    directory = as_it_was(unbroken, EVERY, unbroken.with_name("without-rows"))
    rows = directory / run_directory.METRICS
    rows.write_bytes(rows.read_bytes()[: rows.stat().st_size // 2])
    code = continue_(directory, *LAST_ONLY, before=without_plot).wait()
    return [REFUSED] if code == CheckpointError.exit_code else []


def _with_another_configuration(unbroken: Path) -> list[str]:
    """What the command says to another learning rate; with the run's own it must say that it is complete."""

    def code(*today: str) -> int:
        command = [sys.executable, str(ROOT / "train.py"), f"resume={unbroken}", *today]
        return subprocess.run(command, capture_output=True, check=False).returncode

    return [REFUSED] if (code("optimizer.lr=0.5"), code()) == (CheckpointError.exit_code, 0) else []
