"""The pruner: criterion x schedule x scope x exact selection, in any training loop.

    pruner = Pruner(model, optimizer, criterion=magnitude, schedule=zhu_gupta, scope=layerwise,
                    target_sparsity=0.9, start_step=1000, end_step=3000, update_every=50)
    for step in range(1, max_steps + 1):
        loss_of(next(batches)).backward()
        pruner.mask_grads_()            # after unscaling, before clipping
        optimizer.step()
        pruner.after_step(step)         # completed optimizer steps; not for a skipped one
        optimizer.zero_grad()

Mode hard: an update sets the weight and all moments of newly pruned entries to 0; from then on
their gradients are 0 before clipping. So they stay exactly +0.0 under SGD, Adam and AdamW, with
weight decay and AMSGrad, for-loop, foreach and fused, and no step passes over the weights. The
optimizer knows nothing of it.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Size, Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from adamwprune.errors import CheckpointError, ConfigError, RunError, SparsityError
from adamwprune.pruning.counting import SparsityCounter
from adamwprune.pruning.layout import flat, memory_order, zero_pruned_
from adamwprune.pruning.masks import Masks
from adamwprune.pruning.schedules import Plan, Schedule
from adamwprune.pruning.scopes import Scope, Segment
from adamwprune.pruning.scoring import SECOND_MOMENTS, Criterion, TensorScores, identity, needs
from adamwprune.pruning.selection import prune_lowest_
from adamwprune.pruning.state_view import StateView, missing_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskUpdate:
    """What one update of the masks did."""

    step: int
    pruned: int  # weights pruned by now
    newly_pruned: int
    sparsity: float  # pruned / prunable
    thresholds: tuple[float, ...]  # highest pruned score of each segment; NaN where none was due
    unseen: int  # live weights whose second moment is 0: no gradient ever reached them
    milliseconds: float


class Pruner(SparsityCounter):
    """Prunes a model while it is trained.

    Args:
        model: without wrappers (DDP, torch.compile), on its device, in its memory format.
        optimizer: any torch optimizer of the model's parameters.
        criterion: elementwise score, high = keep (criteria/, scoring.py).
        schedule: progress -> share of the way to the target (schedules.py).
        scope: shapes, sparsity -> segments (scopes.py).
        target_sparsity, initial_sparsity: fractions in [0, 1).
        start_step, end_step, update_every: optimizer steps; updates follow start_step,
            +update_every, ..., and always end_step.
        include, exclude: name patterns of weights (prunable.py).

    Raises:
        ConfigError: nothing to prune, an impossible plan, or a criterion that needs what the
            optimizer does not keep.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        criterion: Criterion,
        schedule: Schedule,
        scope: Scope,
        target_sparsity: float,
        initial_sparsity: float = 0.0,
        start_step: int,
        end_step: int,
        update_every: int,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__(model, include=include, exclude=exclude)
        if not self.prunable:
            raise ConfigError(
                "pruning.include: the model has no weight to prune but what is excluded; name some of "
                f"{', '.join(self.excluded)}"
            )
        self.plan = Plan(schedule, target_sparsity, initial_sparsity, start_step, end_step, update_every)
        self.masks = Masks(self.prunable)
        self._criterion, self._scope = criterion, scope
        self._state = StateView(optimizer)
        self._last_update = -1
        self._has_told_unseen = False
        self._check_needs()
        self._warn_if_cold()

    def mask_grads_(self) -> None:
        """Zero the gradients of pruned weights: after backward and unscaling, before clipping.

        They become exactly +0.0, whatever they were; look for NaN and inf before.
        """
        self.masks.zero_grads_()

    def after_step(self, step: int) -> MaskUpdate | None:
        """Update the masks if an update is due after `step` completed optimizer steps.

        Call it after every step that was not skipped; with 0, before the first, if the plan starts
        sparse. An update that was passed over is made up for at the next call.

        Raises RunError where the optimizer keeps no state for a weight that is to be scored.
        """
        due = self.plan.latest_update(step)
        if due is None or due <= self._last_update:
            return None
        segments = self._segments(due)
        rises = any(self._remaining(segment) > 0 for segment in segments)
        update = self._update(step, segments) if rises else None
        self._last_update = due
        return update

    def _update(self, step: int, segments: list[Segment]) -> MaskUpdate:
        started, before = time.perf_counter(), self.pruned()
        scores = self._scores(step)
        thresholds = [self._prune_(segment, scores) for segment in segments]
        unseen = sum(tensor.count_unseen() for tensor in scores)
        for name, parameter in self.prunable.items():
            zero_pruned_(parameter, self.masks[name])
            # With the weight alone at 0 its moments would move it back within a few steps.
            self._state.zero_pruned_(parameter, self.masks[name])
        self.masks.recount()
        if unseen and not self._has_told_unseen:
            log.info("step %d: no gradient ever reached %d live weights; they score infinity", step, unseen)
            self._has_told_unseen = True
        return MaskUpdate(
            step=step,
            pruned=self.pruned(),
            newly_pruned=self.pruned() - before,
            sparsity=self.pruned() / self.prunable_count,
            thresholds=tuple(thresholds),
            unseen=unseen,
            milliseconds=1e3 * (time.perf_counter() - started),
        )

    def _prune_(self, segment: Segment, scores: Sequence[TensorScores]) -> float:
        if self._remaining(segment) <= 0:
            return math.nan
        return prune_lowest_([scores[i] for i in segment.tensors], segment.count)

    def _segments(self, update: int) -> list[Segment]:
        shapes = [parameter.shape for parameter in self.prunable.values()]
        return self._scope(shapes, self.plan.sparsity(update))

    def _remaining(self, segment: Segment) -> int:
        """Weights that a segment still has to prune."""
        pruned = list(self.masks.pruned.values())
        return segment.count - sum(pruned[i] for i in segment.tensors)

    def _scores(self, step: int) -> list[TensorScores]:
        wanted, scores = needs(self._criterion), []
        for name, parameter in self.prunable.items():
            view = self._state.read(parameter)
            if lacking := [need for need in wanted if need not in view]:
                raise RunError(
                    f"step {step}: the optimizer keeps no {', '.join(lacking)} for {name}, which was never "
                    "stepped (frozen, or without a gradient); leave it out with pruning.exclude"
                )
            order = memory_order(self.masks[name])
            sources = {need: _flat_source(view[need], parameter.shape, order) for need in wanted}
            scores.append(TensorScores(name, flat(self.masks[name], order), self._criterion, sources))
        return scores

    def pruned(self) -> int:
        """Weights that the masks hold at zero."""
        return sum(self.masks.pruned.values())

    def planned_count(self, step: int) -> int:
        """Weights that are to be pruned after `step` steps, the update due then included."""
        due = self.plan.latest_update(step)
        return 0 if due is None else sum(segment.count for segment in self._segments(due))

    def is_final(self, step: int) -> bool:
        """Whether the target is reached by `step`: masks no longer change."""
        return self.plan.sparsity_in_force(step) == self.plan.target_sparsity

    def mean_density(self, total_steps: int) -> float:
        """Mean share of live weights over a run of this length, as planned."""
        return self.plan.mean_density(total_steps)

    def mask_hash(self) -> str:
        """64-bit hash of all masks, 16 hex digits; the same on all ranks."""
        return self.masks.hash()

    def verify(self, step: int) -> None:
        """Raise SparsityError unless plan, masks and weights agree after `step` steps.

        Each segment must have exactly its planned number of pruned weights, and these must be 0.
        A live weight may be 0 by itself: sparsity() counts it, the masks are not at fault.
        """
        counts = self.masks.count()
        due = self.plan.latest_update(step)
        for segment in [] if due is None else self._segments(due):
            names = [list(counts)[i] for i in segment.tensors]
            masked = sum(counts[name][0] for name in names)
            if masked != segment.count:
                where = names[0] if len(names) == 1 else f"{len(names)} tensors"
                raise SparsityError(
                    f"step {step}: {segment.count:,} weights of {where} are to be pruned, the masks "
                    f"prune {masked:,}"
                )
        for name, (masked, revived) in counts.items():
            if revived or masked != self.masks.pruned[name]:
                raise SparsityError(
                    f"step {step}: {self.masks.pruned[name]:,} weights of {name} were pruned, of which the "
                    f"masks hold {masked:,}, and {revived:,} of these are not 0; something else wrote to them"
                )

    def describe(self) -> dict[str, Any]:
        """Facts for the run record, read from the live objects, never from what was asked for."""
        return {**self._configuration(), **self.describe_weights()}

    def state_dict(self) -> dict[str, Any]:
        """Masks packed to bits, counts, and the configuration that they belong to: plain values."""
        return {
            "masks": self.masks.state_dict(),
            "pruned": self.pruned(),
            "last_update": self._last_update,
            "configuration": self._configuration(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; the model is loaded before. Raises CheckpointError, changing nothing."""
        if not state:
            raise CheckpointError("pruning: the checkpoint is that of a dense run; resume with pruning=none")
        theirs, ours = state["configuration"], self._configuration()
        if changed := [key for key in ours if ours[key] != theirs.get(key)]:
            raise CheckpointError(
                "pruning: the checkpoint was made with another configuration: "
                + ", ".join(f"{key}={theirs.get(key)} instead of {ours[key]}" for key in changed)
            )
        masks = Masks(self.prunable)
        masks.load_state_dict(state["masks"])
        if sum(masks.pruned.values()) != state["pruned"]:
            raise CheckpointError(
                f"pruning: {state['pruned']:,} weights should be pruned, the masks prune "
                f"{sum(masks.pruned.values()):,}"
            )
        self.masks, self._last_update = masks, state["last_update"]

    def _configuration(self) -> dict[str, Any]:
        return {
            "criterion": identity(self._criterion),
            "schedule": identity(self.plan.schedule),
            "scope": identity(self._scope),
            "mode": "hard",
            "target_sparsity": self.plan.target_sparsity,
            "initial_sparsity": self.plan.initial_sparsity,
            "start_step": self.plan.start_step,
            "end_step": self.plan.end_step,
            "update_every": self.plan.update_every,
            "prunable": {name: list(parameter.shape) for name, parameter in self.prunable.items()},
        }

    def _check_needs(self) -> None:
        """Refuse a criterion that cannot be fed now, not at its first update."""
        parameter = next(iter(self.prunable.values()))
        key = f"pruning.criterion={identity(self._criterion)['name']}"
        lacking = self._state.missing(needs(self._criterion), parameter)
        if lacking and self.plan.sparsity(0):
            raise ConfigError(
                f"{key}: the plan prunes before the first step, when the optimizer has no "
                f"{', '.join(lacking)}; choose pruning.start_step >= 1, or pruning=magnitude"
            )
        if lacking and not self._state.has_stepped(parameter):
            lacking = self._missing_after_a_step(parameter)
        if lacking:
            raise ConfigError(
                f"{key}: needs {', '.join(lacking)}, which {self._state.optimizer_name} does not keep; "
                "choose optimizer=adamw, or pruning=magnitude"
            )

    def _missing_after_a_step(self, parameter: Parameter) -> list[str]:
        try:
            return missing_state(self._criterion, self._state.twin(parameter), device=parameter.device)
        except (TypeError, ValueError, RuntimeError):
            return []  # a class that needs more than its settings: the first update will tell

    def _warn_if_cold(self) -> None:
        warm = self._state.warm_up(next(iter(self.prunable.values())))
        first = self.plan.updates()[0]
        if first < warm and not set(SECOND_MOMENTS).isdisjoint(needs(self._criterion)):
            log.warning(
                "pruning.start_step=%d: before step %.0f, 3 / (1 - beta2), exp_avg_sq averages too few "
                "gradients to prune by; set pruning.start_step=%.0f or later, train longer, or lower beta2",
                first,
                warm,
                warm,
            )


class Dense(SparsityCounter):
    """The interface of Pruner without pruning: counts zeros over the same weights, touches nothing."""

    def mask_grads_(self) -> None:
        """Leave the gradients as they are."""

    def after_step(self, step: int) -> MaskUpdate | None:
        """No update is ever due."""
        return None

    def planned_count(self, step: int) -> int:
        """Nothing is to be pruned after any step."""
        return 0

    def is_final(self, step: int) -> bool:
        """Nothing is left to reach."""
        return True

    def verify(self, step: int) -> None:
        """There is no plan to disagree with."""

    def mean_density(self, total_steps: int) -> float:
        """All weights live at every step."""
        return 1.0

    def mask_hash(self) -> str:
        """Hash no masks."""
        return Masks({}).hash()

    def describe(self) -> dict[str, Any]:
        """Facts for the run record."""
        return {"criterion": {"name": "none"}, "target_sparsity": 0.0, **self.describe_weights()}

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError for the state of a run that pruned."""
        if state:
            raise CheckpointError(
                "pruning=none: the checkpoint is that of a pruned run; resume with its own pruning"
            )


def _flat_source(source: Tensor | float, shape: Size, order: Sequence[int]) -> Tensor | float:
    """State of the weight's shape as a flat tensor; numbers, and scalars such as step, as they are."""
    return flat(source, order) if isinstance(source, Tensor) and source.shape == shape else source
