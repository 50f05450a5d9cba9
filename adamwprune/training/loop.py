"""The training loop.

One step, in the order that hard masks need (shared by every model and optimizer):

    micro batches: forward, backward   gradients add up; ranks exchange them with the last
    unscale                            fp16 only
    pruner.mask_and_norm_grads_()      one pass; pruned gradients do not eat into the norm
    finite or not                      a step that would spoil the weights is not taken
    optimizer.step(), clipped
    pruner.after_step(step)            at an update: weights and moments of newly pruned to zero
    average.update(step)               where weights are averaged

Rows, evaluations and checkpoints follow the step; `state` alone says where the run stands.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from adamwprune.errors import DiskError, DivergedError, RunError
from adamwprune.pruning.gradients import norm_of
from adamwprune.pruning.mask_update import MaskUpdate
from adamwprune.training import checkpoint as checkpoints
from adamwprune.training.batches import Batch, stream
from adamwprune.training.build import Training
from adamwprune.training.clipping import clip_, clipped
from adamwprune.training.evaluation import cross_entropy, evaluate
from adamwprune.training.loop_state import LoopState, capture
from adamwprune.training.records import Records
from adamwprune.training.signals import StopRequest
from adamwprune.training.text_samples import write_texts
from adamwprune.training.throughput import Throughput

# Evaluations in a run where trainer.eval_every does not say.
EVALUATIONS = 20


def run_steps(
    training: Training,
    state: LoopState,
    records: Records,
    stop: StopRequest,
    throughput: Throughput,
    checkpoint_dir: Path,
    revision: str | None,
) -> None:
    """Run the steps that are left; `state` is advanced in place.

    Raises:
        DivergedError: a gradient is not finite; the weights are those before the step.
        Interrupted, Preempted: a signal or a limit stopped the run after a checkpoint.
    """
    training.model.train()
    if state.step == 0 and (mask_update := training.pruner.after_step(0)):  # a plan may start sparse
        average(training, 0, has_new_masks=True)
        records.log(0, mask_update_row(training, records, mask_update))
    workers = training.config.hardware.num_workers
    batches = stream(training.batches, state.step + state.skipped, workers, training.ranks.device)
    started = time.monotonic() - state.seconds
    while state.step < training.total_steps:
        training.set_lr(state.step)
        loss = accumulate_gradients(training, batches)
        unmasked = unmasked_norm(training, state.step + 1)
        norm = update(training, state, loss)
        if norm is None:  # fp16 overflow: the scale was lowered, the step does not count
            state.skipped += 1
            continue
        state.step += 1
        state.loss_sum += loss
        state.loss_count += 1
        state.pruned_steps += training.pruner.pruned()
        mask_update = training.pruner.after_step(state.step)
        average(training, state.step, has_new_masks=mask_update is not None)
        throughput.step()
        records.step_end(state.step)

        row: dict[str, object] = {}
        if mask_update is not None:
            with throughput.paused():
                row |= mask_update_row(training, records, mask_update)
        if is_log_step(training, state.step):
            row |= training_row(training, state, norm) | unmasked | throughput.row()
        if is_eval_step(training, state.step):
            with throughput.paused():
                row |= validation_row(training, state)
                records.sampled(state.step, samples(training))
        if row:
            records.log(state.step, row)
        state.seconds = time.monotonic() - started
        if records.is_stop_requested:
            stop.press_button()
        stop_error = stop.agreed(training.ranks, training.config.trainer, state)
        if stop_error or is_checkpoint_step(training, state):
            with throughput.paused():
                save(training, state, records, checkpoint_dir, revision)
        if stop_error:
            raise stop_error


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
            training.autocast.scaler.scale(loss).backward()
        total += loss.detach()
    return total


def unmasked_norm(training: Training, step: int) -> dict[str, float]:
    """The norm that gradients have before masking, where a row is due and masks are in force."""
    if not (training.pruner.pruned() and is_log_step(training, step)):
        return {}
    gradients = [parameter.grad for parameter in training.model.parameters() if parameter.grad is not None]
    scale = training.autocast.scaler.get_scale()
    return {"train/grad_norm_unmasked": float(norm_of(gradients)) / scale}


def update(training: Training, state: LoopState, loss: torch.Tensor) -> float | None:
    """Mask, clip and take the optimizer's step; the norm before clipping, or None where fp16 skipped it."""
    scaler, optimizer = training.autocast.scaler, training.optimizer
    scaler.unscale_(optimizer)
    # Read back once per step: the price of never stepping on a NaN, under a mask or not. It is equal on
    # all ranks.
    norm, largest = float(training.pruner.mask_and_norm_grads_()), training.config.trainer.grad_clip
    if not math.isfinite(norm):
        return skip_or_stop(training, state, loss, norm)
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


def skip_or_stop(training: Training, state: LoopState, loss: torch.Tensor, norm: float) -> None:
    """An overflow of fp16 lowers the loss scale and passes the batch over; anything else has diverged."""
    scaler = training.autocast.scaler
    if scaler.is_enabled():
        scaler.step(training.optimizer)  # which it skips
        scaler.update()
    if not scaler.is_enabled() or scaler.get_scale() < 1.0:
        raise diverged(training, state, loss, norm)


def diverged(training: Training, state: LoopState, loss: torch.Tensor, norm: float) -> DivergedError:
    """The error that names the step, the numbers and the first parameter with a bad gradient."""
    bad = [
        name
        for name, parameter in training.model.named_parameters()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]
    return DivergedError(
        f"step {state.step + 1}: loss {loss.item():g}, gradient norm {norm:g}, lr {training.applied_lr:g}, "
        f"first bad gradient in {bad[0] if bad else 'none'}; the weights are those of step {state.step}; "
        "lower optimizer.lr or raise lr_schedule.warmup_steps"
    )


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


def mask_update_row(training: Training, records: Records, mask_update: MaskUpdate) -> dict[str, object]:
    """Write the event, and return its numbers for the row of the step."""
    check_masks_agree(training, mask_update.step, mask_update.mask_hash)
    records.mask_updated(mask_update.step, mask_update.event())
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


def validation_row(training: Training, state: LoopState) -> dict[str, object]:
    """Loss and metric on the validation set, sparsity by layer; remembers the best at full sparsity."""
    scores = state.latest = evaluate_split(training, "val")
    if training.pruner.is_final(state.step):
        remember_best(state, scores)
    layers = {f"sparsity/{name}": value for name, value in training.pruner.layer_sparsity().items()}
    return {"sparsity/global": training.pruner.sparsity(), **scores, **layers}


def evaluate_split(training: Training, split: str) -> dict[str, float]:
    """`val/loss` and its like, or `test/...`; validation is limited to eval_samples, test never.

    Of the average of the weights, where one is kept.
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


def save(
    training: Training, state: LoopState, records: Records, directory: Path, revision: str | None
) -> None:
    """Write a checkpoint on rank 0; every rank learns whether it was written.

    Raises:
        DiskError: it was not.
        RunError: the ranks' masks differ, so the run is worth nothing.
    """
    check_masks_agree(training, state.step, training.pruner.mask_hash())
    weights, values = capture(training, state, revision)
    problem = ""
    if training.ranks.is_main:
        try:
            records.sync()
            saved = checkpoints.save(directory, state.step, weights, values)
            best = state.best.get("val/loss")
            keep = training.config.checkpoint.keep
            checkpoints.remove_old(directory, keep=keep, best_step=int(best["step"]) if best else None)
            records.checkpoint_saved(state.step, saved)
        except (DiskError, OSError) as error:
            problem = f"{directory}: {error}" if isinstance(error, OSError) else str(error)
    if problem := training.ranks.share(problem):
        raise DiskError(problem)
