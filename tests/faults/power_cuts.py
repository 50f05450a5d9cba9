"""F6: power cuts while checkpoints are saved one after the other on an ext4 of its own.

The file system lives in an image file. A cut is a copy of that file at a random moment: it has what was
written to the device, and not what only memory held. A checkpoint counts as acknowledged once save() has
returned; none of these may be missing in the copy. The writer is stopped while the copy is made, so a cut
falls between two of its system calls; losses are understated by that.
"""

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from adamwprune.errors import CheckpointError
from adamwprune.training import checkpoint
from tests.faults import mounts
from tests.faults.harness import Control, Outcome, Tier
from tests.faults.savers import Saver

TRIALS = {"short": 6, "long": 200}
CONTROLS = {"short": 6, "long": 40}
OPTIONS = ("defaults", "noauto_da_alloc,data=writeback")
IMAGE = 48 * mounts.MIB
# A writer begins anew after so many cuts: its file system has been torn by none of them.
CUTS_OF_A_WRITER = 25


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Cut the power of a writer that does all, and of one that never calls fsync."""
    outcome = Outcome(
        "power cuts while saving, ext4 on a loop device, both mount options",
        "no acknowledged checkpoint is lost, none that has its name is broken",
        peer="rename without fsync: 32 to 35 of 40 cuts lose checkpoints (reliability.md, section 2)",
    )
    if reason := mounts.ext4_obstacle(scratch / "obstacle"):
        outcome.skipped = reason
        return outcome
    cuts = list(cut_all(with_everything, TRIALS[tier], seed, scratch / "procedure"))
    outcome.trials = TRIALS[tier]
    outcome.failures = [f"{cut.what}, seed {seed}: {line}" for cut in cuts for line in cut.problems]
    unsynced = list(cut_all(without_fsync, CONTROLS[tier], seed, scratch / "unsynced"))
    noticed = sum(bool(cut.problems) for cut in unsynced)
    outcome.controls.append(Control("renamed without fsync", CONTROLS[tier], noticed, 0.5))
    outcome.figures = {
        "acknowledged": max(cut.acknowledged for cut in cuts),
        "acknowledged and lost": sum(cut.lost for cut in cuts),
        "control: most lost in a cut": max(cut.lost for cut in unsynced),
    }
    outcome.goals = {"acknowledged and lost": 0}
    return outcome


@dataclass(frozen=True)
class Cut:
    """What one power cut has left.

    Attributes:
        what: mount options and number of the cut.
        acknowledged: the last step whose save had returned.
        found: the newest valid checkpoint of the copy; 0 where there is none.
        broken: checkpoints of the copy that bear a final name and are not valid.
    """

    what: str
    acknowledged: int
    found: int
    broken: tuple[str, ...]

    @property
    def lost(self) -> int:
        """Acknowledged checkpoints that are newer than what was found."""
        return max(0, self.acknowledged - self.found)

    @property
    def problems(self) -> list[str]:
        """One line a broken promise."""
        missing = [f"step {self.acknowledged} was acknowledged, found {self.found}"] if self.lost else []
        return [*missing, *self.broken]


def cut_all(before: Callable[[], object], trials: int, seed: int, folder: Path) -> Iterator[Cut]:
    """Power cuts of writers, as many with each of the mount options."""
    for number, options in enumerate(OPTIONS):
        chosen = random.Random(f"{seed} {options}")
        left = trials // len(OPTIONS) + (number < trials % len(OPTIONS))
        while left:
            cuts = min(left, CUTS_OF_A_WRITER)
            yield from cut_a_writer(before, options, cuts, chosen, folder / f"{number}-{left}")
            left -= cuts


def cut_a_writer(
    before: Callable[[], object], options: str, cuts: int, chosen: random.Random, folder: Path
) -> Iterator[Cut]:
    """One writer on one new file system, whose image is copied again and again."""
    folder.mkdir(parents=True)
    mounts.make_ext4(folder / "image", IMAGE)
    with mounts.ext4(folder / "image", folder / "mounted", options) as mounted:
        saver = Saver(save, mounted / "checkpoints", before)
        try:
            saver.wait_for(1)
            for number in range(cuts):
                time.sleep(chosen.uniform(0.0, 0.15))
                saver.stop()
                copy(folder / "image", folder / "copy")
                acknowledged = saver.saved
                saver.go_on()
                with mounts.ext4(folder / "copy", folder / "after", options) as after:
                    yield look(after / "checkpoints", acknowledged, f"{options}, cut {number}")
        finally:
            saver.kill()
    (folder / "image").unlink()
    (folder / "copy").unlink()


def look(root: Path, acknowledged: int, what: str) -> Cut:
    """What is left after the journal has been replayed."""
    problems = ((path.name, checkpoint.find_problem(path)) for _, path in checkpoint.steps_on_disk(root))
    broken = tuple(f"{name}: {problem}" for name, problem in problems if problem)
    try:
        found = checkpoint.load_newest(root).step
    except CheckpointError:
        found = 0
    return Cut(what, acknowledged, found, broken)


def copy(image: Path, to: Path) -> None:
    """The bytes of the device as they are now."""
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", image, to], check=True)


def save(root: Path, step: int) -> None:
    """800 KB, of which the newest two are kept."""
    tensors = {"weight": torch.full((100_000,), float(step))}
    checkpoint.save(root, step, tensors, {"step": step, **tensors})
    checkpoint.remove_old(root, keep=2, best_step=None)


def with_everything() -> None:
    """In the writer: nothing is left out."""


def without_fsync() -> None:
    """In the writer: temporary files and renames as ever, but nothing is flushed."""
    os.fsync = lambda _: None
