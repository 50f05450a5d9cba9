"""Exact resume from every step: a run that is continued from any of its checkpoints is itself, to the bit.

One run keeps a checkpoint of each of its 60 steps. For each of them a folder is made as it was when that one
had been saved: the checkpoint, and rows up to there. It is continued by another process and compared with
the run at its end: rows, mask updates, weights, masks, optimizer, random state, data position. The steps
are before, in and after the ramp, in the middle of rows and between mask updates, at each epoch's end; every
step of the language model accumulates two batches. Two ranks on gloo do the same at every fifth step.
"""

import itertools
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from adamwprune import run_directory
from adamwprune.callbacks.plot import Plot
from adamwprune.config import Config
from adamwprune.training.checkpoint import load
from tests.faults.fork_server import Child, continue_, fork, trained
from tests.faults.harness import Control, Outcome, Tier
from tests.faults.tiny_runs import OPTIMIZERS, PRUNINGS, STEPS, can_train, overrides_of
from tests.helpers.runs import configure, start
from tests.helpers.same_run import differences

MODELS = ("lenet5", "resnet18", "gpt2-nano")
EVERY_STEP = ("checkpoint.every=1", f"checkpoint.keep={STEPS}")
# A continued run writes its last checkpoint alone, and no plot, which takes as long as twenty steps.
LAST_ONLY = (f"checkpoint.every={STEPS}",)
# What the short tier resumes from: every third step, every sixth, every twentieth.
SHORT = {
    ("lenet5", "adamwspam", "movement"): 6,
    ("resnet18", "sgd", "magnitude"): 20,
    ("gpt2-nano", "adamw", "state"): 3,
}
TWO_RANKS = ("hardware.num_devices=2", "hardware.micro_batch_size=4")


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Resume all combinations from every step, or a sample of both; then two ranks, then the control."""
    failures: list[str] = []
    strides = SHORT if tier == "short" else dict.fromkeys(_combinations(), 1)
    for combination, stride in strides.items():
        unbroken = every_step(scratch / "-".join(combination), *overrides_of(*combination))
        for step in range(stride, STEPS + 1, stride):
            failures += [f"{' '.join(combination)}, step {step}: {line}" for line in resumed(unbroken, step)]
        shutil.rmtree(unbroken)
    resumes = sum(STEPS // stride for stride in strides.values())
    steps = "each step" if tier == "long" else "a sample of the steps"
    ranks_failures, ranks_trials = _two_ranks(tier, scratch)
    return Outcome(
        fault=f"continued from {steps} of a {STEPS}-step run, {len(strides)} combinations of model, "
        "optimizer and pruning, and 2 ranks on gloo",
        promise="rows, weights, masks, optimizer, random state, data position equal the unbroken run's bits",
        trials=resumes + ranks_trials,
        failures=failures + ranks_failures,
        figures={
            "resumes": resumes,
            "combinations": len(strides),
            "resumes of 2 ranks": ranks_trials,
            "bit differences": len(failures) + len(ranks_failures),
        },
        goals={"bit differences": 0},
        controls=list(_controls(scratch)),
        peer="Composer 6 points at tolerance 0; Megatron-LM 1 point (reliability.md, 1)",
    )


def _combinations() -> Iterator[tuple[str, str, str]]:
    """Those of the three models that can be trained."""
    optimizers = [name for name in OPTIMIZERS if name != "adam"]
    for names in itertools.product(MODELS, optimizers, PRUNINGS):
        if can_train(*names[1:]):
            yield names


def every_step(directory: Path, *overrides: str) -> Path:
    """A finished run with a checkpoint of each of its steps."""
    return trained(directory, *overrides, *EVERY_STEP, before=without_plot)


def resumed(unbroken: Path, step: int) -> list[str]:
    """What differs where the run is continued from `step`."""
    directory = as_it_was(unbroken, step, unbroken.with_name("resumed"))
    try:
        child = continue_(directory, *LAST_ONLY, before=without_plot)
        if code := child.wait():
            return [f"ended with {code}: {child.console[-300:]!r}"]
        return differences(directory, unbroken)[:3]
    finally:
        shutil.rmtree(directory)


def as_it_was(unbroken: Path, step: int, directory: Path) -> Path:
    """The run's folder as a kill after the checkpoint of `step` would have left it, with no older one."""
    name = f"step_{step:08d}"
    saved = unbroken / "checkpoints" / name
    (directory / "checkpoints" / name).mkdir(parents=True)
    for file in saved.iterdir():
        os.link(file, directory / "checkpoints" / name / file.name)
    shutil.copy(unbroken / run_directory.RECORD, directory)
    for file, length in load(saved, step).state["records"].items():
        (directory / file).write_bytes((unbroken / file).read_bytes()[:length])
    return directory


def without_plot() -> None:
    """Called in a child: leave metrics.png out."""
    Plot.close = lambda self, exit_code: None  # type: ignore[method-assign]


def _two_ranks(tier: Tier, scratch: Path) -> tuple[list[str], int]:
    """Failures and trials of a run on two ranks that is continued from every fifth step."""
    overrides = (*overrides_of("gpt2-nano", "adamw", "state"), *TWO_RANKS)
    unbroken = scratch / "ranks"
    for child in ranks_of(*start(unbroken, *overrides, *EVERY_STEP)):
        child.wait()
    steps = range(5, STEPS, 5) if tier == "long" else (5, 30)
    failures = []
    for step in steps:
        directory = as_it_was(unbroken, step, scratch / f"ranks-{step}")
        codes = [child.wait() for child in ranks_of(configure(*overrides, *LAST_ONLY), directory)]
        found = differences(directory, unbroken) if codes == [0, 0] else [f"the ranks ended with {codes}"]
        failures += [f"2 ranks, step {step}: {line}" for line in found[:3]]
    return failures, len(steps)


def ranks_of(config: Config, directory: Path) -> list[Child]:
    """Two ranks of one run, as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return [
        fork(
            config,
            directory,
            before=without_plot,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(2)
    ]


def _controls(scratch: Path) -> Iterator[Control]:
    """The same look at the checkpoint of another step, and at a run of another seed."""
    overrides = overrides_of("lenet5", "adamw", "magnitude")
    unbroken = every_step(scratch / "control", *overrides)
    other = every_step(scratch / "other", *overrides, "seed=2")
    yield Control("compared with a run of another seed", 1, int(bool(differences(unbroken, other))))
    directory = as_it_was(unbroken, 30, scratch / "mixed")
    wrong = directory / "checkpoints" / "step_00000030"
    shutil.rmtree(wrong)
    shutil.copytree(other / "checkpoints" / wrong.name, wrong)
    code = continue_(directory, *LAST_ONLY, before=without_plot).wait()
    noticed = code != 0 or bool(differences(directory, unbroken))
    yield Control("continued from the checkpoint of another seed", 1, int(noticed))
