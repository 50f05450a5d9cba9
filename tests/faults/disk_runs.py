"""The run on whose disk the faults are done, and what must be left of it: whole rows, a valid checkpoint.

Twenty steps of a GPT-2 of 7,000 weights that is pruned by its optimizer's state; a row each step, a
checkpoint of 130 KB every fourth.
"""

import json
import re
from pathlib import Path
from typing import Any

from adamwprune import run_directory
from adamwprune.callbacks import plot
from adamwprune.errors import CheckpointError, DiskError
from adamwprune.training import checkpoint, saver
from tests.faults.fork_server import Child, console_of, continue_, home_of, spawn
from tests.helpers.runs import TOKENS
from tests.helpers.same_run import differences

STEPS, SAVE_EVERY = 20, 4
# Seconds that an undisturbed run may take.
LONGEST = 900.0
RUN = (
    *TOKENS,
    "data.num_tokens=3000",
    "hardware.micro_batch_size=4",
    f"trainer.max_steps={STEPS}",
    f"trainer.eval_every={SAVE_EVERY}",
    "trainer.log_every=1",
    "pruning=state",
    "pruning.update_every=2",
)


def without_picture() -> None:
    """Draw none, for a child's `before`: it takes longer than the training."""
    plot.plot_run = lambda *_, **__: None


def place(folder: Path, disk: Path) -> Path:
    """A run's folder on `disk`, whose HOME and console stay in `folder`: nobody's terminal is full."""
    directory = disk / "run"
    if disk != folder:
        (folder / "home").mkdir()
        home_of(directory).symlink_to(folder / "home")
        console_of(directory).symlink_to(folder / "console.txt")
    return directory


def tell_saves(file: Path) -> None:
    """No picture either; and a line in `file` where a save begins, and one where it has returned."""
    without_picture()
    save = saver.save

    def telling(root: Path, step: int, *values: Any, **options: Any) -> Path:
        with file.open("a", buffering=1) as stream:
            stream.write(f"begun {step}\n")
            saved = save(root, step, *values, **options)
            stream.write(f"saved {step}\n")
        return saved

    saver.save = telling


def saves(file: Path, word: str) -> list[int]:
    """Steps of the saves that were `begun` or `saved`, as tell_saves() has it."""
    lines = file.read_text().split("\n") if file.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith(f"{word} ")]


def unbroken(directory: Path, *overrides: str) -> Path:
    """The same run, undisturbed.

    Raises:
        RuntimeError: it does not come to its end, so there is nothing to compare with.
    """
    child = spawn(directory, *RUN, *overrides, before=without_picture)
    if code := child.wait(LONGEST):
        raise RuntimeError(f"an undisturbed run ends with {code}: {last_line(child)}")
    return directory


def newest_step(directory: Path) -> int:
    """Step of the newest valid checkpoint of a run; 0 where it has none."""
    try:
        return checkpoint.load_newest(directory / "checkpoints").step
    except CheckpointError:
        return 0


def unreadable(directory: Path) -> list[str]:
    """Checkpoints that bear a final name and are not valid, with the reason."""
    found = checkpoint.steps_on_disk(directory / "checkpoints")
    problems = ((path.name, checkpoint.find_problem(path)) for _, path in found)
    return [f"{name}: {problem}" for name, problem in problems if problem]


def torn_rows(directory: Path) -> list[str]:
    """Lines of the run's ledgers that are no JSON, less a last one without its newline."""
    torn = []
    for name in (run_directory.METRICS, run_directory.MASK_UPDATES):
        file = directory / name
        for number, line in enumerate(file.read_bytes().split(b"\n")[:-1] if file.exists() else [], 1):
            try:
                json.loads(line)
            except ValueError:
                torn.append(f"{name}:{number} is torn")
    return torn


def problems_after(directory: Path, reference: Path) -> list[str]:
    """What is wrong when the run is continued, with nothing in its way, and must end as the unbroken one."""
    child = continue_(directory, before=without_picture)
    if code := child.wait():
        return [f"continued, it ends with {code}: {last_line(child)}"]
    return differing(directory, reference)


def differing(directory: Path, reference: Path) -> list[str]:
    """In what a finished run differs from the unbroken one, such as in having no checkpoint at all."""
    try:
        return differences(reference, directory)
    except CheckpointError as error:
        return [str(error)]


def problems_at_end(child: Child, code: int, told: Path) -> list[str]:
    """What is wrong with the end of a run that should have had this exit code, and with what it left.

    Of one that ends with 9 the last line must name a path of the run; `told` is the file of tell_saves().
    """
    found = child.wait()
    problems = [] if found == code else [f"ends with {found}: {last_line(child)}"]
    if found == DiskError.exit_code and not re.match(r"error\[9\]: .*/", last_line(child)):
        problems.append(f"its last line is {last_line(child)!r}")
    return problems + problems_left(child, told)


def problems_left(child: Child, told: Path) -> list[str]:
    """What is wrong with rows and checkpoints of a run that has ended somehow."""
    saved, newest = max(saves(told, "saved"), default=0), newest_step(child.directory)
    lost = [f"step {saved} was saved, the newest checkpoint is of step {newest}"] if newest < saved else []
    return lost + unreadable(child.directory) + torn_rows(child.directory)


def last_line(child: Child) -> str:
    """What a run said last."""
    return (child.console.strip().splitlines() or ["nothing"])[-1]
