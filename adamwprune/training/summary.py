"""summary.json: how a run ended and its final numbers, counted from the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamwprune.run_directory import METRICS
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
            "reached": training.pruner.is_final(state.step),
        },
        "parameters": counts,
        "trackers": {},
        "exact": not training.config.resume_allow,
        "paths": {
            "run": str(directory),
            "metrics": METRICS,
            "plot": "metrics.png",
            "checkpoints": "checkpoints",
        },
    }
