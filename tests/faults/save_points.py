"""F2, F3: a training is killed at each point of a save; and, for comparison, savers at random moments.

A save has nine points (adamwprune/fault_points.py). Up to the rename the checkpoint before must be the newest
valid one, from then on the new one; what is continued from it must end as the run that nobody killed.
"""

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from adamwprune.fault_points import SAVE_POINTS
from adamwprune.training import checkpoint
from tests.faults import disk_runs
from tests.faults.fork_server import spawn
from tests.faults.harness import Control, Outcome, Tier
from tests.faults.savers import Saver

TRIALS = {"short": 3, "long": 20}  # of each point
SAVERS = {"short": 20, "long": 100}  # savers that are killed at random, of each kind
# The first save has nothing to fall back to, the first two have nothing to remove.
PASSINGS = {point: range(1, 6) for point in SAVE_POINTS} | dict.fromkeys(SAVE_POINTS[-2:], range(1, 4))


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Kill, look, continue; then the savers."""
    outcome = Outcome(
        "SIGKILL at each of the 9 points of a save, and savers at random moments",
        "newest valid checkpoint = the one due at that point, none unreadable, continued run bitwise equal",
        peer="in place: 179 of 200 kills leave an unreadable file (reliability.md, section 2)",
    )
    reference = disk_runs.unbroken(scratch / "unbroken")
    lost = 0
    for point in SAVE_POINTS:
        chosen = random.Random(f"{seed} {point}")
        for trial in range(TRIALS[tier]):
            passing = chosen.choice(PASSINGS[point])
            directory = scratch / f"{point}-{trial}"
            problems, steps = kill_at(point, passing, directory, reference)
            lost = max(lost, steps)
            outcome.trials += 1
            outcome.failures += [f"{point}:{passing}, seed {seed}: {problem}" for problem in problems]
    broken = kill_savers(BY_PROCEDURE, SAVERS[tier], seed, scratch / "procedure")
    outcome.trials += SAVERS[tier]
    outcome.failures += [f"saver killed at random, seed {seed}: {line}" for line in broken]
    in_place = kill_savers(IN_PLACE, SAVERS[tier], seed, scratch / "in_place")
    outcome.controls.append(Control("checkpoint written in place", SAVERS[tier], len(in_place), 0.5))
    outcome.figures = {
        "unreadable": sum("unreadable" in line for line in outcome.failures),
        "most steps lost": lost,
    }
    outcome.goals = {"unreadable": 0, "most steps lost": disk_runs.SAVE_EVERY}
    return outcome


def kill_at(point: str, passing: int, directory: Path, reference: Path) -> tuple[list[str], int]:
    """One training, killed at the passing-th time that a save gets to `point`: what is wrong; steps lost."""
    told = directory.with_suffix(".saves")
    child = spawn(
        directory,
        *disk_runs.RUN,
        before=partial(disk_runs.tell_saves, told),
        ADAMWPRUNE_FAULT=f"{point}:{passing}",
    )
    code = child.wait()
    if code != -signal.SIGKILL:
        return [f"was not reached; the run ended with {code}"], 0
    newest = disk_runs.newest_step(directory)
    begun = disk_runs.saves(told, "begun")
    is_renamed = SAVE_POINTS.index(point) >= SAVE_POINTS.index("after_rename")
    due = begun[-1] if is_renamed else [0, *begun][-2]
    problems = [f"unreadable {line}" for line in disk_runs.unreadable(directory)]
    problems += disk_runs.torn_rows(directory)
    if newest != due:
        problems.append(f"the newest valid checkpoint is of step {newest}, due is {due}")
    return problems + disk_runs.problems_after(directory, reference), child.step - newest


# -------------------------------------------------------------------------------------- savers


@dataclass(frozen=True)
class Way:
    """A way to keep the newest state in a folder.

    Attributes:
        save: write the state of a step.
        read: the step that is found afterwards.
    """

    save: Callable[[Path, int], object]
    read: Callable[[Path], int]


def _state(step: int) -> dict[str, torch.Tensor]:
    """4 MB."""
    return {"step": torch.tensor(step), "values": torch.full((1_000_000,), float(step))}


BY_PROCEDURE = Way(
    lambda root, step: checkpoint.save(root, step, {"weight": torch.zeros(1)}, _state(step)),
    lambda root: checkpoint.load_newest(root).step,
)
IN_PLACE = Way(
    lambda root, step: torch.save(_state(step), root / "state.pt"),
    lambda root: int(torch.load(root / "state.pt", weights_only=True)["step"]),
)


def kill_savers(way: Way, trials: int, seed: int, folder: Path) -> list[str]:
    """Savers that save again and again, killed after 5 to 50 ms: what was lost of what they had saved."""
    chosen, problems = random.Random(seed), []
    for trial in range(trials):
        root = folder / str(trial)
        root.mkdir(parents=True)
        saver = Saver(way.save, root)
        saver.wait_for(1)
        time.sleep(chosen.uniform(0.005, 0.05))
        saver.kill()
        try:
            found = way.read(root)
        except Exception as error:  # torch and the loader each have their own
            problems.append(f"saver {trial}: unreadable ({type(error).__name__})")
        else:
            problems += [f"saver {trial}: step {saver.saved} lost"] if found < saver.saved else []
        shutil.rmtree(root)
    return problems
