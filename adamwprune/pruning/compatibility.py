"""Whether a criterion, a scope, a mode and an optimizer fit each other; what does not is ConfigError.

The optimizer is tried, not looked up: see trial.py.
"""

import math
from collections.abc import Iterable, Sequence

import torch

from adamwprune.errors import ConfigError
from adamwprune.pruning.scopes.segments import Scope, Shape
from adamwprune.pruning.scoring import SECOND_MOMENTS, Criterion, identity, needs
from adamwprune.pruning.sources import of_optimizer
from adamwprune.pruning.trial import Factory, missing_state, revives_pruned

# Furthest that what a scope can reach may lie from the target: rows, groups and blocks round.
ROUNDING = 0.005


def check_scope(scope: Scope, shapes: Sequence[Shape], target_sparsity: float) -> None:
    """The scope takes these shapes, and can reach the target."""
    planned = sum(segment.planned for segment in scope(shapes, target_sparsity))
    total = sum(map(math.prod, shapes))
    if abs(planned - target_sparsity * total) > max(1.0, ROUNDING * total):
        raise ConfigError(
            f"pruning.target_sparsity={target_sparsity:g}: pruning.scope={identity(scope)['name']} rounds it "
            f"to {planned / total:.4f}; set pruning.target_sparsity={planned / total:.4f}, or choose "
            "pruning/scope=layerwise"
        )


def check_state(
    criterion: Criterion,
    reads: Iterable[str],
    make_optimizer: Factory,
    optimizer_name: str,
    device: torch.device | str = "cpu",
) -> None:
    """The optimizer keeps what the criterion, and what the mode, read."""
    if lacking := missing_state(of_optimizer(needs(criterion)), make_optimizer, device=device):
        raise lacks_state(criterion, lacking, optimizer_name)
    if lacking := missing_state(of_optimizer(reads), make_optimizer, device=device):
        raise ConfigError(
            f"pruning.mode: needs {', '.join(lacking)}, which {optimizer_name} does not keep; choose "
            "pruning.mode.grow=gradient, or optimizer=adamw"
        )


def lacks_state(criterion: Criterion, lacking: Sequence[str], optimizer_name: str) -> ConfigError:
    """The error that names what is missing, and an optimizer that has it."""
    remedy = "optimizer=adamwadv" if "max_exp_avg_sq" in lacking else "optimizer=adamw"
    return ConfigError(
        f"pruning.criterion={identity(criterion)['name']}: needs {', '.join(dict.fromkeys(lacking))}, which "
        f"{optimizer_name} does not keep; choose {remedy}, or pruning=magnitude"
    )


def check_mode(
    sets_zeros: bool, make_optimizer: Factory, optimizer_name: str, device: torch.device | str = "cpu"
) -> None:
    """Weights that are 0 stay 0, or the mode sets them to 0 after every step."""
    if not sets_zeros and revives_pruned(make_optimizer, device=device):
        raise ConfigError(
            f"pruning.mode=hard: {optimizer_name} mixes the entries of a matrix and would revive pruned "
            "weights; choose pruning/mode=soft pruning.mode.grow=gradient, which sets them to 0 after every "
            "step"
        )


def check_comparable(criterion: Criterion, scope: Scope, optimizer: object) -> None:
    """Second moments of gradients that were normalised tensor by tensor say nothing across tensors."""
    settings = identity(scope)
    is_across = settings["name"] == "global" and settings.get("normalize") == "none"
    reads_moments = not set(SECOND_MOMENTS).isdisjoint(needs(criterion))
    if is_across and reads_moments and getattr(optimizer, "normalizes_per_tensor", False):
        raise ConfigError(
            f"pruning.scope=global: {type(optimizer).__name__} normalises gradients tensor by tensor, so "
            "exp_avg_sq cannot be compared between tensors; choose pruning/scope=layerwise, or "
            "pruning.scope.normalize=l2"
        )
