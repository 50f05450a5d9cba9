"""The training loop.

One step, in the order that hard masks need (shared by every model and optimizer):

    micro batches: forward, backward   gradients add up; ranks exchange them with the last
    unscale                            fp16 only
    pruner.mask_and_norm_grads_()      one pass; pruned gradients do not eat into the norm
    finite or not                      a step that would spoil the weights is not taken
    optimizer.step(), clipped
    pruner.after_step(step)            at an update: weights and moments of newly pruned to zero
    average.update(step)               where weights are averaged

Its end: evaluation, row, checkpoint, stop. `state` alone says where the run stands; a stop inside a
long evaluation keeps the row that is under way there, and the continued run evaluates first.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from adamwprune.errors import DiskError, Interrupted, Preempted, RunError
from adamwprune.pruning.gradients import norm_of
from adamwprune.pruning.mask_update import MaskUpdate
from adamwprune.training.batches import Batch, stream
from adamwprune.training.build import Training
from adamwprune.training.clipping import clip_, clipped
from adamwprune.training.divergence import RunningStatistics, diverged, skipped_step
from adamwprune.training.evaluation import cross_entropy, evaluate
from adamwprune.training.loop_state import LoopState, capture
from adamwprune.training.records import Records
from adamwprune.training.saver import Saver, Snapshot
from adamwprune.training.signals import StopRequest
from adamwprune.training.text_samples import write_texts
from adamwprune.training.throughput import Throughput

# Evaluations in a run where trainer.eval_every does not say.
EVALUATIONS = 20


@dataclass
class Session:
    """One start of a run: what is trained, where it stands, and who watches and stops it."""

    training: Training
    state: LoopState
    records: Records
    saver: Saver
    stop: StopRequest
    throughput: Throughput
    directory: Path
    revision: str | None
    started: float = 0.0  # monotonic time at which the run, unbroken, would have begun


def run_steps(session: Session) -> None:
    """Run the steps that are left; the session's state is advanced in place.

    Raises:
        DivergedError: a gradient is not finite; the weights are those before the step.
        Interrupted, Preempted: a signal or a limit stopped the run after a checkpoint.
        DiskError: a checkpoint or a row could not be written.
    """
    training, state = session.training, session.state
    training.model.train()
    session.started = time.monotonic() - state.seconds
    if state.step == 0 and (mask_update := training.pruner.after_step(0)):  # a plan may start sparse
        average(training, 0, has_new_masks=True)
        session.records.log(0, mask_update_row(session, mask_update))
    workers = training.config.hardware.num_workers
    batches = stream(training.batches, state.step + state.skipped, workers, training.ranks.device)
    if state.row is not None:  # stopped in this step's evaluation
        end_step(session)
    while state.step < training.total_steps:
        if take_step(session, batches):
            end_step(session)
    finish_saving(session)


def take_step(session: Session, batches: Iterator[Batch]) -> bool:
    """One step of the optimizer and what masks make of it; False where its gradients were no use."""
    training, state = session.training, session.state
    training.set_lr(state.step)
    statistics = RunningStatistics(training.model)
    loss = accumulate_gradients(training, batches)
    unmasked = unmasked_norm(training, state.step + 1)
    norm = update(session, loss, statistics)
    if norm is None:  # its batch is passed over, the step does not count
        state.skipped += 1
        return False
    state.step += 1
    state.loss_sum += loss
    state.loss_count += 1
    state.pruned_steps += training.pruner.pruned()
    mask_update = training.pruner.after_step(state.step)
    average(training, state.step, has_new_masks=mask_update is not None)
    session.throughput.step()
    session.records.step_end(state.step)
    state.row = {}
    if mask_update is not None:
        with session.throughput.paused():
            state.row |= mask_update_row(session, mask_update)
    if is_log_step(training, state.step):
        state.row |= training_row(training, state, norm) | unmasked | session.throughput.row()
    return True


def end_step(session: Session) -> None:
    """Evaluation, row, checkpoint and stop, where they are due after the step."""
    training, state, records, stop = session.training, session.state, session.records, session.stop
    assert state.row is not None, "take_step() comes before"
    if is_eval_step(training, state.step):
        with session.throughput.paused():
            try:
                state.row |= validation_row(training, state, stop_polled(session))
            except (Interrupted, Preempted):
                save_and_wait(session)
                raise
            records.sampled(state.step, samples(training))
    row, state.row = state.row, None
    if row:
        records.log(state.step, row)
    state.seconds = time.monotonic() - session.started
    if records.is_stop_requested or session.saver.has_failed:
        stop.press_button()
    stop_error = stop.agreed(training.ranks, training.config.trainer, state)
    if stop_error:
        save_and_wait(session)
        raise stop_error
    if is_checkpoint_step(training, state):
        with session.throughput.paused():
            save(session)


def stop_polled(session: Session) -> Callable[[], None]:
    """What a long evaluation calls between its batches: raises where a signal asks all ranks to stop."""

    def poll() -> None:
        training = session.training
        if error := session.stop.asked(training.ranks, training.config.trainer, session.state):
            raise error

    return poll


def accumulate_gradients(training: Training, batches: Iterator[Batch]) -> torch.Tensor:
    """Backward of the mean loss over one step's micro batches; that loss, on the device."""
    device, parts = training.ranks.device, training.config.trainer.grad_accum_steps
    smoothing = training.config.trainer.label_smoothing
    total = torch.zeros((), device=device)
    training.optimizer.zero_grad(set_to_none=True)
    for part in range(parts):
        inputs, targets = (tensor.to(device, non_blocking=True) for tensor in next(batches))
        with training.gradient_sync(is_last=part == parts - 1):
            with training.autocast():
                loss = cross_entropy(training.forward(inputs), targets, smoothing=smoothing) / parts
            # A loss that is not finite may have finite gradients: then these must not be, on any rank.
            training.autocast.scaler.scale(loss).backward(1 + 0 * loss.detach())
        total += loss.detach()
    return total


def unmasked_norm(training: Training, step: int) -> dict[str, float]:
    """The norm that gradients have before masking, where a row is due and masks are in force."""
    if not (training.pruner.pruned() and is_log_step(training, step)):
        return {}
    gradients = [parameter.grad for parameter in training.model.parameters() if parameter.grad is not None]
    scale = training.autocast.scaler.get_scale()
    return {"train/grad_norm_unmasked": float(norm_of(gradients)) / scale}


def update(session: Session, loss: torch.Tensor, before: RunningStatistics) -> float | None:
    """Mask, clip and take the optimizer's step; the norm before clipping, or None where it was skipped.

    A step that is not taken leaves the model as it was `before` its forward pass.
    """
    training = session.training
    scaler, optimizer = training.autocast.scaler, training.optimizer
    scaler.unscale_(optimizer)
    # Read back once per step: the price of never stepping on a NaN, under a mask or not. It is equal on
    # all ranks.
    norm, largest = float(training.pruner.mask_and_norm_grads_()), training.config.trainer.grad_clip
    if not math.isfinite(norm):
        before.put_back_()
        return skip_or_stop(session, loss, norm)
    if scaler.is_enabled():
        clip_(optimizer, norm, largest)
        scaler.step(optimizer)
        scaler.update()
    else:
        with clipped(optimizer, norm, largest):
            optimizer.step()
    return norm


def average(training: Training, step: int, *, has_new_masks: bool) -> None:
    """Take the step into the average of the weights; what new masks prune is zero there too."""
    if training.average is None:
        return
    training.average.update(step)
    if has_new_masks:
        with training.average.in_place():
            training.pruner.masks.zero_weights_()


def skip_or_stop(session: Session, loss: torch.Tensor, norm: float) -> None:
    """Pass a batch over whose gradients are not finite, where that is allowed; else raise DivergedError.

    An overflow of fp16 lowers the loss scale; anything else counts against trainer.max_skipped_steps.
    """
    training, state = session.training, session.state
    scaler = training.autocast.scaler
    if scaler.is_enabled():
        scaler.step(training.optimizer)  # which it skips
        scaler.update()
        if scaler.get_scale() >= 1.0:
            return
    if state.not_finite >= training.config.trainer.max_skipped_steps:
        raise diverged(training, state, loss, norm, session.directory)
    state.not_finite += 1
    session.records.alert(state.step, skipped_step(training, state, loss, norm))


# ---------------------------------------------------------------------------- rows and cadence


def is_log_step(training: Training, step: int) -> bool:
    """Whether a training row is due: the first step, every log_every, the last."""
    return step == 1 or step % training.config.trainer.log_every == 0 or step == training.total_steps


def is_eval_step(training: Training, step: int) -> bool:
    """Whether an evaluation is due: every eval_every (a twentieth of the run by default), the last step."""
    every = training.config.trainer.eval_every or max(1, training.total_steps // EVALUATIONS)
    return step % every == 0 or step == training.total_steps


def is_checkpoint_step(training: Training, state: LoopState) -> bool:
    """Whether one is due: every checkpoint.every (each evaluation by default), a new best, the last step."""
    every = training.config.checkpoint.every
    if every is None:
        return is_eval_step(training, state.step)
    is_best = state.best.get("val/loss", {}).get("step") == state.step
    return is_best or state.step % every == 0 or state.step == training.total_steps


def mask_update_row(session: Session, mask_update: MaskUpdate) -> dict[str, object]:
    """Write the event, and return its numbers for the row of the step."""
    check_masks_agree(session.training, mask_update.step, mask_update.mask_hash)
    session.records.mask_updated(mask_update.step, mask_update.event())
    return mask_update.row()


def check_masks_agree(training: Training, step: int, mask_hash: str) -> None:
    """Raise RunError if the ranks' masks differ: the run is worth nothing."""
    hashes = training.ranks.gather(mask_hash)
    if len(set(hashes)) > 1:
        raise RunError(f"step {step}: the ranks' masks differ ({', '.join(hashes)}); this is a bug")


def training_row(training: Training, state: LoopState, norm: float) -> dict[str, object]:
    """Means over the steps since the last row; reads the device once."""
    ranks = training.ranks
    loss = ranks.sum_(state.loss_sum.clone()) / (ranks.world_size * state.loss_count)
    state.loss_sum.zero_()
    state.loss_count = 0
    return {
        "train/loss": loss,
        "train/lr": training.applied_lr,
        "train/grad_norm": norm,
        "train/epoch": state.step / training.batches.steps_per_epoch,
        f"train/{training.data.unit}": state.step * samples_per_step(training),
        "sparsity/global": training.pruner.sparsity(),
    }


def samples_per_step(training: Training) -> int:
    """Images or tokens that one optimizer step sees on all ranks together."""
    return training.config.trainer.global_batch_size * training.data.units_per_sample


def validation_row(training: Training, state: LoopState, poll: Callable[[], None]) -> dict[str, object]:
    """Loss and metric on the validation set, sparsity by layer; remembers the best at full sparsity."""
    scores = state.latest = evaluate_split(training, "val", poll)
    if training.pruner.is_final(state.step):
        remember_best(state, scores)
    layers = {f"sparsity/{name}": value for name, value in training.pruner.layer_sparsity().items()}
    return {"sparsity/global": training.pruner.sparsity(), **scores, **layers}


def evaluate_split(training: Training, split: str, poll: Callable[[], None]) -> dict[str, float]:
    """`val/loss` and its like, or `test/...`; validation is limited to eval_samples, test never.

    Of the average of the weights, where one is kept. `poll` is called between batches, and may raise.
    """
    trainer = training.config.trainer
    with training.evaluated_weights():
        scores = evaluate(
            training.model,
            getattr(training.data, split),
            training.data.metric,
            batch_size=training.config.hardware.micro_batch_size,
            limit=trainer.eval_samples if split == "val" else None,
            ranks=training.ranks,
            autocast=training.autocast,
            poll=poll,
        )
    return {f"{split}/{name}": value for name, value in scores.items()}


def samples(training: Training) -> list[str]:
    """What the weights that are evaluated make of each prompt."""
    config, tokenizer = training.config.samples, training.data.tokenizer
    if not config.tokens or tokenizer is None:
        return []
    with training.evaluated_weights():
        return write_texts(
            training.model,
            tokenizer,
            config.prompts,
            tokens=config.tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            block_size=training.data.units_per_sample,
            seed=training.config.seed,
            autocast=training.autocast,
        )


def remember_best(state: LoopState, scores: dict[str, float]) -> None:
    """Keep each finite score that beats the best so far: the highest accuracy, the lowest of the rest."""
    for name, value in scores.items():
        sign = 1 if name.endswith("accuracy") else -1
        best = state.best.get(name)
        if not math.isfinite(value):
            continue
        if best is None or sign * value > sign * best["value"]:
            state.best[name] = {"value": value, "step": state.step}


# -------------------------------------------------------------------------------- checkpoints


def save(session: Session) -> None:
    """Begin to write a checkpoint on rank 0, after the one before it is on the disk.

    Raises:
        DiskError: the one before could not be written; every rank raises it.
        RunError: the ranks' masks differ, so the run is worth nothing.
    """
    finish_saving(session)
    training, state = session.training, session.state
    weights, values = capture(training, state, session.revision, session.records.lengths())
    mask_hash = values["pruner"]["masks"]["hash"] if values["pruner"] else training.pruner.mask_hash()
    check_masks_agree(training, state.step, mask_hash)
    if training.ranks.is_main:
        best = state.best.get("val/loss")
        best_step = int(best["step"]) if best else None
        session.saver.start(Snapshot(state.step, weights, values, mask_hash, best_step))


def finish_saving(session: Session) -> None:
    """Wait for the save that is under way; every rank learns how it ended.

    Raises:
        DiskError: nothing was saved; earlier checkpoints are kept.
    """
    problem = ""
    try:
        if saved := session.saver.wait():
            session.records.checkpoint_saved(*saved)
    except DiskError as error:
        problem = str(error)
    if problem := session.training.ranks.share(problem):
        raise DiskError(problem)


def save_and_wait(session: Session) -> None:
    """Save before the run stops: what the last row says is on the disk when this returns."""
    save(session)
    finish_saving(session)
