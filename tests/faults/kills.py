"""F1: SIGKILL at any moment of a training; what is continued from it is the unbroken run, to the bit.

A run is killed again and again: while it starts, in a step, in an evaluation, while a checkpoint is written
(which the moment after a step mostly is), after the last step, until it finishes. Its rows, mask updates,
weights, masks, optimizer, random state and data position are then compared with those of the same
configuration that nobody killed.
"""

import itertools
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adamwprune.errors import CheckpointError
from adamwprune.run_directory import is_finished
from adamwprune.training.checkpoint import find_problem, load_newest, steps_on_disk
from tests.faults.fork_server import Child, continue_, spawn, trained
from tests.faults.harness import Control, Outcome, Tier
from tests.faults.omissions import OMISSIONS, leave_out
from tests.faults.tiny_runs import MODELS, OPTIMIZERS, PRUNINGS, STEPS, can_train, overrides_of
from tests.helpers.same_run import differences

ROOT = Path(__file__).parents[2]
KILLS = {"short": 40, "long": 1000}
# Runs that are killed once and continued by the command, which takes seconds.
BY_COMMAND = {"short": 1, "long": 6}
# Kills of one run, of which so many after its last step; and steps between its checkpoints.
KILLS_PER_RUN, ENDS_PER_RUN = 12, 2
INTERVAL = 5
CHECKPOINTS = (f"checkpoint.every={INTERVAL}",)
# Seconds that a start and an end take about; a kill falls anywhere within.
START, END = 0.15, 0.3


@dataclass
class Killed:
    """What became of one run that was killed until it finished."""

    kills: int = 0
    at_start: int = 0
    in_save: int = 0
    at_end: int = 0
    unreadable: int = 0
    gone: int = 0  # checkpoints that had been called saved
    lost: int = 0  # steps, at most
    failures: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Kill runs of all combinations in turn until there were enough kills."""
    results = list(_killed_runs(KILLS[tier], seed, scratch))
    results += [_continued_by_command(scratch, seed, trial) for trial in range(BY_COMMAND[tier])]

    def total(name: str) -> int:
        return sum(getattr(result, name) for result in results)

    mismatches = [line for result in results for line in result.mismatches]
    return Outcome(
        fault=f"SIGKILL at random moments, {len(MODELS)} models x {len(OPTIMIZERS)} optimizers x "
        f"{len(PRUNINGS)} prunings",
        promise="the newest checkpoint loads, none that was called saved is lost, and the continued run "
        "equals the unbroken one to the bit",
        trials=total("kills"),
        failures=[line for result in results for line in result.failures] + mismatches,
        figures={
            "kills": total("kills"),
            "of them while starting": total("at_start"),
            "of them in a save": total("in_save"),
            "of them after the last step": total("at_end"),
            "runs continued to their end": len(results),
            "unreadable checkpoints": total("unreadable"),
            "bit differences": len(mismatches),
            "saved checkpoints lost": total("gone"),
            "most steps lost": max(result.lost for result in results),
            "steps between checkpoints": INTERVAL,
        },
        # A checkpoint is written while the next steps are done: what is lost may be a little more.
        goals={
            "unreadable checkpoints": 0,
            "bit differences": 0,
            "saved checkpoints lost": 0,
            "most steps lost": INTERVAL,
        },
        controls=list(_controls(scratch)),
        peer="0 of 12 training frameworks kill a run and compare the continued curve (reliability.md, 1)",
    )


def _killed_runs(kills: int, seed: int, scratch: Path) -> Iterator[Killed]:
    """One run after the other, each compared with its unbroken one, until there were `kills`."""
    names = [names for names in itertools.product(MODELS, OPTIMIZERS, PRUNINGS) if can_train(*names[1:])]
    random.Random(seed).shuffle(names)
    done = 0
    for trial, combination in enumerate(itertools.cycle(names)):
        if done >= kills:
            return
        case = f"--seed {seed}, run {trial}, {' '.join(combination)}"
        overrides = (*overrides_of(*combination), *CHECKPOINTS)
        unbroken, killed = scratch / "-".join(combination), scratch / f"killed-{trial}"
        if not unbroken.exists():
            trained(unbroken, *overrides)
        result = kill_until_finished(killed, overrides, random.Random(f"{seed} {trial}"), KILLS_PER_RUN)
        if not result.failures:
            result.mismatches = [f"{case}: {line}" for line in differences(killed, unbroken)[:3]]
        result.failures = [f"{case}: {line}" for line in result.failures]
        shutil.rmtree(killed)
        done += result.kills
        yield result


def kill_until_finished(
    directory: Path, overrides: tuple[str, ...], rng: random.Random, kills: int, **environment: str
) -> Killed:
    """Start a run in `directory`, kill it `kills` times, let it finish, and look at it after each kill."""
    result = Killed()
    child = spawn(directory, *overrides, **environment)
    while True:
        if result.kills < kills and result.at_end < ENDS_PER_RUN:
            _kill_at_some_moment(child, _newest_step(directory), rng)
        code = child.wait()
        if code == 0:
            return result
        if code != -9:
            result.failures.append(f"a continued run ended with {code}: {child.console[-300:]!r}")
            return result
        result.kills += 1
        result.at_start += child.step == 0
        result.in_save += any((directory / "checkpoints").glob(f".tmp-step_*-{child.pid}"))
        result.at_end += child.step == STEPS
        if problem := _problem(directory):
            result.unreadable += 1
            result.failures.append(f"after kill {result.kills} at step {child.step}: {problem}")
            return result
        newest = _newest_step(directory)
        if child.step:
            result.lost = max(result.lost, child.step - newest)
        if newest < child.saved:
            result.gone += 1
            result.failures.append(f"step {child.saved} was called saved, the newest checkpoint is {newest}")
            return result
        if is_finished(directory):
            return result
        child = continue_(directory, **environment)


def _kill_at_some_moment(child: Child, first: int, rng: random.Random) -> None:
    """While it starts, some steps on, or after its last step, and then a moment later."""
    began = time.monotonic()
    where = rng.random()
    if where < 0.15:
        time.sleep(rng.uniform(0, START))
    elif where < 0.25 or first >= STEPS - 2:
        if child.reached(STEPS):
            time.sleep(rng.uniform(0, END))
    elif child.reached(min(STEPS, first + rng.randint(1, 2 * INTERVAL + 2))):
        a_step = (time.monotonic() - began) / max(1, child.step - first)
        time.sleep(rng.uniform(0, 2 * min(a_step, 0.05)))
    child.kill()


def _is_noticed(directory: Path, unbroken: Path, overrides: tuple[str, ...], *today: str, **how: Any) -> bool:
    """Whether a run that is killed in its middle and continued in another way is refused, or another run."""
    child = spawn(directory, *overrides)
    child.reached(STEPS // 2)
    child.kill()
    child.wait()
    return continue_(directory, *today, **how).wait() != 0 or bool(differences(directory, unbroken))


def _newest_step(directory: Path) -> int:
    """Step of the newest valid checkpoint; 0 where there is none, as where the run began."""
    found = steps_on_disk(directory / "checkpoints")
    return next((step for step, path in found if find_problem(path) is None), 0)


def _problem(directory: Path) -> str:
    """What is wrong with what a kill left behind."""
    found = steps_on_disk(directory / "checkpoints")
    broken = [f"{path.name}: {problem}" for _, path in found if (problem := find_problem(path))]
    if broken or not found:
        return "; ".join(broken)
    try:
        load_newest(directory / "checkpoints")
    except CheckpointError as error:
        return str(error)
    return ""


def _continued_by_command(scratch: Path, seed: int, trial: int) -> Killed:
    """A run that is killed anywhere and continued as a user does."""
    overrides = (*overrides_of("gpt2-nano", "adamw", "state"), *CHECKPOINTS)
    unbroken, directory = scratch / "by-command", scratch / f"by-command-{trial}"
    if not unbroken.exists():
        trained(unbroken, *overrides)
    child = spawn(directory, *overrides)
    child.reached(random.Random(f"{seed} command {trial}").randint(1, STEPS - 5))
    child.kill()
    result = Killed(kills=int(child.wait() != 0))
    command = [sys.executable, str(ROOT / "train.py"), f"resume={directory}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        result.failures = [f"resume= ended with {done.returncode}: {done.stderr[-300:]!r}"]
    else:
        result.mismatches = [f"continued by the command: {line}" for line in differences(directory, unbroken)]
    return result


def _controls(scratch: Path) -> Iterator[Control]:
    """What must not pass: a run that is continued as another one, or without a part of its state."""
    overrides = (*overrides_of("gpt2-nano", "adamw", "state"), *CHECKPOINTS)
    unbroken = trained(scratch / "control", *overrides)
    yield Control(
        "continued with another seed", 1, _is_noticed(scratch / "seed", unbroken, overrides, "seed=2")
    )
    fields = ("exp_avg", "random state of torch", "step")
    noticed = 0
    for name in fields:
        before = leave_out(OMISSIONS[name].change)
        noticed += _is_noticed(scratch / f"without {name}", unbroken, overrides, before=before)
    yield Control(f"continued without {', '.join(fields)} of the state", len(fields), noticed)
