"""summary.json: how a run ended and its final numbers, counted from the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamwprune.errors import SparsityError
from adamwprune.run_directory import MASK_UPDATES, METRICS
from adamwprune.training.build import Training
from adamwprune.training.loop_state import LoopState
from adamwprune.training.metrics import json_row, sanitise


def summarise(
    training: Training,
    state: LoopState,
    status: str,
    exit_code: int,
    final: Mapping[str, float],
    directory: Path,
) -> dict[str, Any]:
    """The summary as plain values; `trackers` is filled in when they have closed."""
    counts = training.pruner.counts()
    target = training.config.pruning.target_sparsity
    return {
        "status": status,
        "exit_code": exit_code,
        "steps": state.step,
        "total_steps": training.total_steps,
        "seconds": state.seconds,
        "metrics": {"final": json_row(sanitise(final)), "best": state.best},
        "sparsity": {
            "target": target if training.config.pruning.criterion else None,
            "achieved": training.pruner.sparsity(),
            "mean_density": training.pruner.mean_density(training.total_steps),
            "mean_density_achieved": _mean_density(training, state),
            "reached": _is_reached(training, state),
        },
        "parameters": counts,
        "trackers": {},
        "exact": not training.config.resume_allow,
        "paths": {
            "run": str(directory),
            "metrics": METRICS,
            **({"mask_updates": MASK_UPDATES} if training.config.pruning.criterion else {}),
            "plot": "metrics.png",
            "checkpoints": "checkpoints",
        },
    }


def _mean_density(training: Training, state: LoopState) -> float | None:
    """Mean share of live weights over the steps that were done; None before the first."""
    possible = state.step * training.pruner.prunable_count
    return 1.0 - state.pruned_steps / possible if possible else None


def _is_reached(training: Training, state: LoopState) -> bool:
    """Whether masks have reached the target and weights agree with them."""
    try:
        training.pruner.verify(state.step)
    except SparsityError:
        return False
    return training.pruner.is_final(state.step)
