"""Where a run goes on: from its newest checkpoint that is whole and fits, or from the beginning.

A checkpoint is passed over, with a warning, where its files do not match their checksums, where what they
hold does not fit the model, the optimizer or the masks, or where rows that it refers to are gone. Another
environment is no fault of a checkpoint: it is refused, unless `resume_allow=[environment]`.
"""

import logging
from pathlib import Path

from adamwprune.errors import CheckpointError
from adamwprune.training.build import Training
from adamwprune.training.checkpoint import Checkpoint, newest_first, steps_on_disk
from adamwprune.training.loop_state import LoopState, check_agreed, check_environment, restore

log = logging.getLogger(__name__)


def continue_or_start(training: Training, directory: Path, revision: str | None) -> LoopState:
    """The state to go on from, with everything in `training` brought there; every rank calls it.

    Raises:
        CheckpointError: there are checkpoints, but none can be used here.
    """
    root, problems = directory / "checkpoints", []
    for checkpoint in newest_first(root):
        name = checkpoint.directory.name
        check_agreed(training, checkpoint.step)
        if "environment" not in training.config.resume_allow:
            check_environment(training, checkpoint, revision)
        state, problem = _restored(training, checkpoint, directory)
        found = [text for text in training.ranks.gather(problem) if text]
        if state is not None and not found:
            log.info("continuing at step %d from %s", state.step, checkpoint.directory)
            return state
        problems.append(f"{name}: {found[0]}")
        older = [path.name for step, path in steps_on_disk(root) if step < checkpoint.step]
        log.warning("skipped checkpoint %s; trying %s", problems[-1], older[0] if older else "no other")
    if problems:
        raise CheckpointError(f"{root}: no checkpoint can be used ({'; '.join(problems)})")
    check_agreed(training, 0)
    return LoopState.new(training)


def _restored(training: Training, checkpoint: Checkpoint, directory: Path) -> tuple[LoopState | None, str]:
    """The state that the checkpoint leads to, or why it cannot be used."""
    try:
        if checkpoint.step > training.total_steps:
            raise CheckpointError(
                f"step {checkpoint.step} lies behind the run's {training.total_steps} steps"
            )
        if checkpoint.state["step"] != checkpoint.step:
            raise CheckpointError(f"its state is that of step {checkpoint.state['step']}")
        _check_records(checkpoint, directory)
        return restore(training, checkpoint), ""
    except CheckpointError as error:
        return None, str(error)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        return None, f"its state is not that of this version ({type(error).__name__}: {error})"


def _check_records(checkpoint: Checkpoint, directory: Path) -> None:
    """Raise CheckpointError where rows that were written before the checkpoint are missing."""
    for name, length in checkpoint.state["records"].items():
        file = directory / name
        found = file.stat().st_size if file.exists() else 0
        if found < length:
            raise CheckpointError(f"{name} has {found:,} bytes, {length:,} when it was saved")
