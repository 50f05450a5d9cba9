"""The pruner: criterion x schedule x scope x selection x mode, in any training loop.

    pruner = Pruner.over(max_steps, model, optimizer, criterion=state, target_sparsity=0.9)
    for step in range(1, max_steps + 1):
        loss_of(next(batches)).backward()
        pruner.mask_grads_()            # after unscaling, before clipping
        optimizer.step()
        pruner.after_step(step)         # completed optimizer steps; not for a skipped one
        optimizer.zero_grad()

The optimizer knows nothing of it. What masks do to weights, gradients and state is the mode's
business (modes/); which weights compete the scope's (scopes/); how the lowest scores are found
the selection's (selection/).
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from adamwprune.errors import CheckpointError, ConfigError, SparsityError
from adamwprune.pruning.compatibility import (
    check_comparable,
    check_exchange,
    check_optimizer,
    check_resets,
    check_scope,
    check_start,
    lacks_state,
    warn_of_moments,
)
from adamwprune.pruning.counting import SparsityCounter
from adamwprune.pruning.criteria.magnitude import magnitude
from adamwprune.pruning.gradients import Pair, mask_, mask_and_norm_
from adamwprune.pruning.hooks import attach
from adamwprune.pruning.mask_update import MaskUpdate, record, snapshot
from adamwprune.pruning.masks import Masks
from adamwprune.pruning.modes.base import Mode
from adamwprune.pruning.modes.hard import Hard
from adamwprune.pruning.ranking import Ranking, Unseen, remaining
from adamwprune.pruning.schedules import Plan, Schedule, default_update_every, window, zhu_gupta
from adamwprune.pruning.scopes.blocks import require_whole_blocks
from adamwprune.pruning.scopes.layerwise import layerwise
from adamwprune.pruning.scopes.segments import NamedShape, Scope, Segment
from adamwprune.pruning.scoring import Criterion, function_of, identity, needs
from adamwprune.pruning.selection.keys import Selection
from adamwprune.pruning.selection.streaming import streaming
from adamwprune.pruning.sources import Sources, of_optimizer
from adamwprune.pruning.state_view import StateView

log = logging.getLogger(__name__)

# Share of a tensor's live weights from which those that no gradient ever reached are worth a warning.
CROWD = 0.1


class Pruner(SparsityCounter):
    """Prunes a model while it is trained.

    Args:
        model: without wrappers (DDP, torch.compile), on its device, in its memory format; fully_shard
            (FSDP2) comes before.
        optimizer: any torch optimizer of the model's parameters.
        criterion: elementwise score, high = keep (criteria/, sources.py).
        target_sparsity, initial_sparsity: fractions in [0, 1).
        start_step, end_step, update_every: optimizer steps; updates follow start_step,
            +update_every, ..., and always end_step.
        schedule: progress -> share of the way to the target (schedules.py).
        scope: shapes, sparsity -> segments (scopes/).
        selection: how the lowest scores are found; all find the same (selection/).
        mode: what masks do: a class, or a partial of one (modes/).
        unseen: whether live weights with a second moment of exactly 0, of which a criterion that reads it
            knows nothing, are kept or go first.
        include, exclude: name patterns of weights (prunable.py).

    Raises:
        ConfigError: nothing to prune, an impossible plan, or parts that do not fit each other or the
            optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        criterion: Criterion,
        target_sparsity: float,
        start_step: int,
        end_step: int,
        update_every: int,
        initial_sparsity: float = 0.0,
        schedule: Schedule = zhu_gupta,
        scope: Scope = layerwise,
        selection: Selection = streaming,
        mode: Callable[..., Mode] = Hard,
        unseen: Unseen = "keep",
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
        self.masks = Masks(self.prunable, self.shards)
        self._optimizer, self._state = optimizer, StateView(optimizer)
        self._criterion, self._scope, self._selection = criterion, scope, selection
        self._mode_factory, self._mode = mode, mode(self.prunable, self.masks, optimizer)
        self._reads = (*needs(criterion), *self._mode.reads)
        self._sources = Sources(self._reads, self.prunable, self._state, self.shards)
        self._last_update = -1
        self._unseen = unseen
        self._told_unseen: set[str] = set()
        self._check()

    @classmethod
    def over(cls, total_steps: int, model: nn.Module, optimizer: Optimizer, **settings: Any) -> "Pruner":
        """A pruner whose ramp takes the second and third quarter of a run of `total_steps` steps."""
        start, end = window(total_steps)
        plan = {"start_step": start, "end_step": end, "update_every": default_update_every(start, end)}
        return cls(model, optimizer, **{**plan, **settings})

    # ------------------------------------------------------------------------------ in the loop

    def mask_grads_(self) -> None:
        """Zero the gradients of pruned weights: after backward and unscaling, before clipping.

        They become exactly +0.0, whatever they were; look for NaN and inf before. Once a step.
        """
        mask_(self._edited_gradients())

    def mask_and_norm_grads_(self) -> Tensor:
        """mask_grads_, and the L2 norm of all the model's gradients after it, in the same pass.

        NaN if a gradient was not finite, under a mask or not. Pruned gradients are 0 of either sign.
        """
        return mask_and_norm_(self._edited_gradients())

    def _edited_gradients(self) -> list[Pair]:
        """All gradients with their masks, when criterion and mode have done with them what they do."""
        self._sources.accumulate_(self._mode.weight, self.model.parameters())
        self._mode.edit_grads_()
        masks = self._mode.gradient_masks()
        return [(p.grad, masks.get(id(p))) for p in self.model.parameters() if p.grad is not None]

    def after_step(self, step: int) -> MaskUpdate | None:
        """Update the masks if an update is due after `step` completed optimizer steps.

        Call it after every step that was not skipped; with 0, before the first, if the plan starts
        sparse. An update that was passed over is made up for at the next call; one that is due just
        after the optimizer reset its moments waits until they mean something.

        Raises RunError where the optimizer keeps no state for a weight that is to be scored.
        """
        self._mode.after_step()
        due = self.plan.latest_update(step)
        if due is None or due <= self._last_update or self._waits(step):
            return None
        rises = any(remaining(segment, self.masks) > 0 for segment in self._segments(due))
        update = (
            self._update(step, due) if rises or (self._mode.revives and self.plan.sparsity(due)) else None
        )
        self._last_update = due
        return update

    def attach(self, step: int = 0) -> list[RemovableHandle]:
        """Call mask_grads_ and after_step around every step of the optimizer from now on.

        For loops that cannot be edited (hooks.py); `step` says how many steps are done already. What the
        loop clips is clipped before it is masked, so pruned gradients eat into the norm: mask_grads_ in the
        loop is better. Remove the handles to detach.
        """
        if step < self._last_update:
            raise ConfigError(
                f"step={step}: the masks are those of step {self._last_update}; give attach the steps that "
                "are done"
            )
        self.after_step(step)
        return attach(self, self._optimizer, step)

    def _update(self, step: int, due: int) -> MaskUpdate:
        """Choose new masks, bring weights and state in line, and record what happened."""
        sparsity, before = self.plan.sparsity(due), snapshot(self.masks, self.prunable)
        started = time.perf_counter()
        ranking = self._ranking(step)
        reference = None if self._is_magnitude() else ranking.by_magnitude(sparsity)
        compared = time.perf_counter()
        thresholds = self._mode.choose_(ranking, sparsity, self.plan.progress(due))
        self.masks.recount()
        highest = [float(threshold) for threshold in thresholds]  # from their device
        unseen = ranking.count_unseen()
        self._mode.apply_()
        finished = time.perf_counter()
        self._tell_unseen(step, unseen)
        firsts = [list(self.prunable)[segment.tensors[0]] for segment in ranking.segments(sparsity)]
        return record(
            self.prunable,
            self.masks,
            before,
            reference,
            self.shards,
            step=step,
            planned=sparsity,
            layer_unseen=unseen,
            counts=self.counts(),
            thresholds=dict(zip(firsts, highest, strict=True)),
            milliseconds=1e3 * (finished - compared),
            comparing=compared - started,
        )

    def _ranking(self, step: int) -> Ranking:
        return Ranking(
            step=step,
            parameters=self.prunable,
            masks=self.masks,
            mode=self._mode,
            criterion=self._criterion,
            scope=self._scope,
            selection=self._selection,
            sources=self._sources,
            shards=self.shards,
            unseen=self._unseen,
        )

    def _is_magnitude(self) -> bool:
        """Whether a comparison with magnitude would compare it with itself."""
        return function_of(self._criterion) is magnitude and not self._mode.reads

    def _waits(self, step: int) -> bool:
        """Whether the optimizer has reset the moments that are read, and not filled them since."""
        age = self._state.age(next(iter(self.prunable.values())))
        return self._reads_moments() and age is not None and age < min(step, self._wait())

    def _wait(self) -> float:
        """Gradients that moments must average before masks are chosen by them: max(20, .1 / (1 - beta2))."""
        return max(20.0, self._state.warm_up(next(iter(self.prunable.values()))) / 30.0)

    def _reads_moments(self) -> bool:
        return not set(of_optimizer(self._reads)) <= {"weight"}

    def _tell_unseen(self, step: int, unseen: Mapping[str, int]) -> None:
        """Once a tensor: weights of which nothing is known crowd out those that learn."""
        for name, count in unseen.items() if self._unseen == "keep" else ():
            live = self.prunable[name].numel() - self.masks.pruned[name]
            if count > CROWD * live and name not in self._told_unseen:
                self._told_unseen.add(name)
                log.warning(
                    "step %d: no gradient ever reached %d of the %d live weights of %s, and they are kept; "
                    "if their inputs are dead rather than rare, set pruning.unseen=prune",
                    step,
                    count,
                    live,
                    name,
                )

    # ---------------------------------------------------------------------------- what is planned

    def _segments(self, update: int) -> Sequence[Segment]:
        return self._scope(NamedShape.of(self.prunable), self.plan.sparsity(update))

    @property
    def mode(self) -> Mode:
        """What masks do."""
        return self._mode

    def pruned(self) -> int:
        """Weights that the masks hold at zero."""
        return sum(self.masks.pruned.values())

    def planned_count(self, step: int) -> int:
        """Weights that are to be pruned after `step` steps, the update due then included."""
        due = self.plan.latest_update(step)
        return 0 if due is None else sum(segment.planned for segment in self._segments(due))

    def is_final(self, step: int) -> bool:
        """Whether masks have reached the target by `step`; an update that waits has not."""
        is_due = self.plan.sparsity_in_force(step) == self.plan.target_sparsity
        return is_due and self.pruned() == self.planned_count(step)

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
            if masked != segment.planned:
                where = names[0] if len(names) == 1 else f"{len(names)} tensors"
                raise SparsityError(
                    f"step {step}: {segment.planned:,} weights of {where} are to be pruned, the masks "
                    f"prune {masked:,}"
                )
        for name, (masked, revived) in counts.items():
            if revived or masked != self.masks.pruned[name]:
                raise SparsityError(
                    f"step {step}: {self.masks.pruned[name]:,} weights of {name} were pruned, of which the "
                    f"masks hold {masked:,}, and {revived:,} of these are not 0; something else wrote to them"
                )

    # ----------------------------------------------------------------------------------- records

    def __repr__(self) -> str:
        plan = self.plan
        criterion, mode = (identity(part)["name"] for part in (self._criterion, self._mode_factory))
        return (
            f"Pruner({criterion}, {mode}, {plan.target_sparsity:g} of {self.prunable_count:,} weights, "
            f"steps {plan.start_step} to {plan.end_step}, {self.pruned():,} pruned)"
        )

    def describe(self) -> dict[str, Any]:
        """Facts for the run record, read from the live objects, never from what was asked for."""
        return {**self._configuration(), **self.describe_weights()}

    def state_dict(self) -> dict[str, Any]:
        """Masks packed to bits, counts, and the configuration that they belong to: plain values.

        With sharded parameters every process has to call it; what it returns is whole.
        """
        return {
            "masks": self.masks.state_dict(),
            "mode": self._mode.state_dict(),
            "sums": self._sources.state_dict(),
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
        masks = Masks(self.prunable, self.shards)
        masks.load_state_dict(state["masks"])
        if sum(masks.pruned.values()) != state["pruned"]:
            raise CheckpointError(
                f"pruning: {state['pruned']:,} weights should be pruned, the masks prune "
                f"{sum(masks.pruned.values()):,}"
            )
        self._sources.check(state["sums"])
        self._mode.load_state_dict(state["mode"])
        self._sources.load_state_dict(state["sums"])
        self.masks.take_(masks)
        self._last_update = state["last_update"]

    def _configuration(self) -> dict[str, Any]:
        return {
            "criterion": identity(self._criterion),
            "schedule": identity(self.plan.schedule),
            "scope": identity(self._scope),
            "selection": identity(self._selection),
            "mode": identity(self._mode_factory),
            "unseen": self._unseen,
            "target_sparsity": self.plan.target_sparsity,
            "initial_sparsity": self.plan.initial_sparsity,
            "start_step": self.plan.start_step,
            "end_step": self.plan.end_step,
            "update_every": self.plan.update_every,
            "prunable": {name: list(parameter.shape) for name, parameter in self.prunable.items()},
        }

    # ------------------------------------------------------------------------------------ checks

    def _check(self) -> None:
        """Refuse now what would fail at an update."""
        shapes, target = NamedShape.of(self.prunable), self.plan.target_sparsity
        check_scope(self._scope, shapes, target)
        mode = identity(self._mode_factory)["name"]
        check_exchange(self._scope, shapes, self._mode.sparsities(target), mode)
        require_whole_blocks(self._scope(shapes, target), self.shards)
        check_comparable(self._criterion, self._scope, self._optimizer)
        parameter = next(iter(self.prunable.values()))
        lacking = self._state.missing(of_optimizer(self._reads), parameter)
        check_start(self._criterion, lacking, self.plan)
        self.check_resets(self.plan.end_step, sys.maxsize)
        if lacking and self._state.has_stepped(parameter):
            raise lacks_state(self._criterion, lacking, self._state.optimizer_name)
        check_optimizer(self._criterion, self._mode, self._state, parameter, has_shown_state=not lacking)
        warn_of_moments(self._reads, self.plan, self._state, parameter)

    def check_resets(self, end_step: int, total_steps: int) -> None:
        """Raise ConfigError if moments that restart keep a run from its last mask update, at `end_step`."""
        if self._reads_moments():
            reset_every = self._state.reset_every(next(iter(self.prunable.values())))
            check_resets(reset_every, self._wait(), end_step, total_steps)
