"""Whether a criterion, a scope, a mode and an optimizer fit each other; what does not is ConfigError.

The optimizer is tried, not looked up: see trial.py.
"""

import logging
import math
from collections.abc import Iterable, Sequence

import torch
from torch.nn import Parameter

from adamwprune.errors import ConfigError
from adamwprune.pruning.modes.base import Mode
from adamwprune.pruning.schedules import Plan
from adamwprune.pruning.scopes.segments import Scope, Shape, name_of
from adamwprune.pruning.scoring import SECOND_MOMENTS, Criterion, identity, needs
from adamwprune.pruning.sources import of_optimizer
from adamwprune.pruning.state_view import StateView
from adamwprune.pruning.trial import Factory, missing_state, revives_pruned

log = logging.getLogger(__name__)

# Furthest that what a scope can reach may lie from the target: rows, groups and blocks round.
ROUNDING = 0.005


def check_scope(scope: Scope, shapes: Sequence[Shape], target_sparsity: float) -> None:
    """The scope takes these shapes, can reach the target, and leaves something of every tensor."""
    segments = scope(shapes, target_sparsity)
    for segment in segments:
        size = sum(math.prod(shapes[i]) for i in segment.tensors)
        if segment.planned >= size:
            raise ConfigError(
                f"pruning.target_sparsity={target_sparsity:g}: rounds to all {size:,} weights of "
                f"{name_of(shapes[segment.tensors[0]], segment.tensors[0])}, and a layer without weights "
                "passes nothing on; lower it, or leave that tensor out with pruning.exclude"
            )
    planned, total = sum(segment.planned for segment in segments), sum(map(math.prod, shapes))
    if abs(planned - target_sparsity * total) > max(1.0, ROUNDING * total):
        raise ConfigError(
            f"pruning.target_sparsity={target_sparsity:g}: pruning.scope={identity(scope)['name']} rounds it "
            f"to {planned / total:.4f}; set pruning.target_sparsity={planned / total:.4f}, or choose "
            "pruning/scope=layerwise"
        )


def check_exchange(scope: Scope, shapes: Sequence[Shape], sparsities: Sequence[float], mode: str) -> None:
    """The scope has room above the target for what a mode prunes before it grows as much back."""
    target, *above = sparsities
    for sparsity in above if above > [target] else ():
        try:
            least, most = (sum(s.planned for s in scope(shapes, share)) for share in (target, sparsity))
        except ConfigError:
            least, most = 0, 0
        if least >= most:
            raise ConfigError(
                f"pruning.mode={mode.lower()}: prunes up to {sparsity:.4g} before it grows weights back, and "
                f"pruning.scope={identity(scope)['name']} leaves no room above the target, {target:g}; set "
                "pruning.mode.grow=none, or choose pruning/scope=layerwise"
            )


def check_start(criterion: Criterion, lacking: Sequence[str], plan: Plan) -> None:
    """What the optimizer does not keep before its first step the criterion does not need before it.

    A mode may need it all the same: at a first update nothing can come back.
    """
    missing = [name for name in lacking if name in of_optimizer(needs(criterion))]
    if missing and plan.sparsity(0):
        raise ConfigError(
            f"pruning.criterion={identity(criterion)['name']}: the plan prunes before the first step, when "
            f"the optimizer has no {', '.join(missing)}; choose pruning/schedule=oneshot with "
            "pruning.start_step >= 1 and pruning.initial_sparsity=0, or pruning=magnitude"
        )


def check_resets(reset_every: int | None, wait: float, end_step: int, total_steps: int) -> None:
    """Moments that restart (SPAM) mean something long enough, and again before the run ends.

    Args:
        reset_every: steps from one restart to the next; None where there are none.
        wait: gradients that moments must average before masks are chosen by them.
        end_step: of the last mask update.
        total_steps: of the run.
    """
    if reset_every is None:
        return
    if reset_every <= wait:
        raise ConfigError(
            f"optimizer.reset_every={reset_every}: moments restart before they average the {wait:.0f} "
            "gradients that masks are chosen by; must be more, or choose pruning=magnitude"
        )
    age = end_step % reset_every
    if end_step >= reset_every and age < wait and end_step - age + wait > total_steps:
        raise ConfigError(
            f"optimizer.reset_every={reset_every}: the last mask update, at step {end_step}, would wait for "
            f"{wait:.0f} gradients after the restart at step {end_step - age}, and the run ends at step "
            f"{total_steps}; choose an earlier pruning.end_step, or another optimizer.reset_every"
        )


def check_optimizer(
    criterion: Criterion, mode: Mode, state: StateView, parameter: Parameter, *, has_shown_state: bool
) -> None:
    """The optimizer keeps what is read and leaves at 0 what is 0: one of its class shows it."""
    make_optimizer, name = state.twin(parameter), state.optimizer_name
    try:
        if not has_shown_state:
            check_state(criterion, mode.reads, make_optimizer, name, parameter.device)
        check_mode(mode.sets_zeros, make_optimizer, name, parameter.device)
    except ConfigError:
        raise
    except Exception as error:
        # A class that needs more than its settings cannot be tried: the first update will tell.
        log.warning(
            "%s could not be tried on a small weight (%s), so it is not known whether it leaves pruned "
            "weights at 0; call verify() after the run",
            name,
            error,
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
    if settings.get("normalize") == "l2" and "index" in needs(criterion):
        raise ConfigError(
            f"pruning.scope.normalize=l2: pruning.criterion={identity(criterion)['name']} gives all tensors "
            "the same random numbers; choose pruning.scope.normalize=none"
        )
    is_across = settings["name"] == "global" and settings.get("normalize") == "none"
    reads_moments = not set(SECOND_MOMENTS).isdisjoint(needs(criterion))
    if is_across and reads_moments and getattr(optimizer, "normalizes_per_tensor", False):
        raise ConfigError(
            f"pruning.scope=global: {type(optimizer).__name__} normalises gradients tensor by tensor, so "
            "exp_avg_sq cannot be compared between tensors; choose pruning/scope=layerwise, or "
            "pruning.scope.normalize=l2"
        )


def warn_of_moments(reads: Iterable[str], plan: Plan, state: StateView, parameter: Parameter) -> None:
    """Say so where second moments that are read average too few gradients, or cannot average at all."""
    if set(SECOND_MOMENTS).isdisjoint(reads):
        return
    first, warm = plan.updates()[0], state.warm_up(parameter)
    if first < warm:
        log.warning(
            "pruning.start_step=%d: before step %.0f, 3 / (1 - beta2), exp_avg_sq averages too few "
            "gradients to prune by; set pruning.start_step=%.0f or later, train longer, or lower beta2",
            first,
            warm,
            warm,
        )
    if 3.0 / warm < torch.finfo(parameter.dtype).eps / 2.0:
        log.warning(
            "exp_avg_sq of %s weights cannot average over 1 / (1 - beta2) = %.0f steps: what a step adds is "
            "rounded away; keep float32 weights and use autocast, or lower beta2",
            str(parameter.dtype).removeprefix("torch."),
            warm / 3.0,
        )
