"""A whole training step between mask updates, and a mask update: bare, ours without pruning, ours pruned.

    python benchmarks/train_step.py                        gpt2-nano, one sequence of 256 tokens
    python benchmarks/train_step.py --model gpt2
    python benchmarks/train_step.py --model lenet5 trainer.global_batch_size=64
    python benchmarks/train_step.py --model resnet18 --threads 2

Arms: `bare`, what a researcher writes by hand, with torch's clip_grad_norm_ and fused AdamW; `dense`,
adamwprune/training/loop.py with pruning=none; `pruned`, the same with half of the prunable weights masked
by Adam's state, no update being due. All three load the same batches and train the same model with the
same optimizer, so where tensors lie in memory favours none; rows, evaluations and checkpoints are left
out (loop_overhead.py has rows in it). `peak` is the memory that comes and goes in a step.

Then updates in a row, each pruning some more: `decision` chooses masks and brings weights and state
in line, `record` is what the update reports of itself, both wall time. The last line spreads the CPU time
of both over the steps between two updates of a long run.
"""

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from measure import (
    Seconds,
    argument_parser,
    interleave,
    paired_ratio,
    peak_extra_bytes,
    print_table,
    report,
    spread,
    tensor_bytes,
    timed,
)

from adamwprune.command_line import exit_codes
from adamwprune.composition import complete, compose, to_config
from adamwprune.config import Config
from adamwprune.distributed import Ranks
from adamwprune.pruning import Dense
from adamwprune.pruning.mask_update import MaskUpdate
from adamwprune.training.batches import Batch, stream
from adamwprune.training.build import Training, build_pruner, build_training, choose_device
from adamwprune.training.loop import accumulate_gradients, update
from adamwprune.training.loop_state import LoopState

TOKENS = ("data=synthetic_tokens", "recipe.block_size=256", "trainer.global_batch_size=1")
IMAGES = ("data=synthetic_images",)
MODELS = {
    "lenet5": (*IMAGES, "trainer.global_batch_size=64"),
    "resnet18": (*IMAGES, "data.channels=3", "data.image_size=32", "trainer.global_batch_size=32"),
    "gpt2-nano": (*TOKENS, "data.vocab_size=12030"),
    "gpt2": (*TOKENS, "data.vocab_size=50257"),
}
RUN = (
    "optimizer=adamw",
    "lr_schedule=constant",
    "trainer.max_tokens=null",
    "trainer.max_epochs=null",
    "trainer.max_steps=1000000",  # none of them is reached
)
PRUNED = ("pruning=state", "pruning.target_sparsity=0.5")
AT_ONCE = ("pruning/schedule=oneshot", "pruning.start_step=1", "pruning.end_step=1")
WARM_UP = 3  # steps
UPDATE_EVERY = 100  # steps, of a long run
GOAL = 1.01

Step = Callable[[], Any]


# ------------------------------------------------------------------------------------- the arms


def bare(training: Training, batches: Iterator[Batch]) -> None:
    """One step as one writes it by hand."""
    optimizer, device, trainer = training.optimizer, training.ranks.device, training.config.trainer
    for group in optimizer.param_groups:
        group["lr"] = training.base_lrs[0]
    optimizer.zero_grad(set_to_none=True)
    for _ in range(trainer.grad_accum_steps):
        inputs, targets = (tensor.to(device) for tensor in next(batches))
        loss = F.cross_entropy(training.model(inputs).flatten(0, -2), targets.flatten())
        (loss / trainer.grad_accum_steps).backward()
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), trainer.grad_clip)
    optimizer.step()


def ours(training: Training, state: LoopState, batches: Iterator[Batch]) -> None:
    """One step of adamwprune/training/loop.py."""
    training.set_lr(state.step)
    loss = accumulate_gradients(training, batches)
    update(training, state, loss)
    state.step += 1
    training.pruner.after_step(state.step)


def build_arms(training: Training, count: int) -> dict[str, Step]:
    """`count` steps of each arm, on the same model, optimizer and stream of batches."""
    batches = stream(training.batches, 0, num_workers=0)
    state = LoopState.new(training)
    dense = replace(training, pruner=Dense(training.model))
    steps = {
        "bare": partial(bare, training, batches),
        "dense": partial(ours, dense, state, batches),
        "pruned": partial(ours, training, state, batches),
    }
    return {name: partial(repeat, step, count) for name, step in steps.items()}


def repeat(step: Step, count: int) -> None:
    """Some steps in a row."""
    for _ in range(count):
        step()


# -------------------------------------------------------------------------------------- timing


def main() -> None:
    """Interleave the arms, update masks, print both tables, write the JSON."""
    parser = argument_parser(__doc__, rounds=15)
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    parser.add_argument("--model", choices=MODELS, default="gpt2-nano", help="%(choices)s (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="of each arm in a round (%(default)s)")
    arguments = parser.parse_args()
    # Moments of a few steps are enough to measure with.
    logging.getLogger("adamwprune.pruning").setLevel(logging.ERROR)
    training = build_training(configure(arguments, *PRUNED, *AT_ONCE), ranks(arguments))
    training.model.train()
    figures = {
        "weights": sum(parameter.numel() for parameter in training.model.parameters()),
        "prunable_weights": training.pruner.prunable_count,
        "samples_per_step": training.config.trainer.global_batch_size,
        "units_per_sample": training.data.units_per_sample,
        "arms": measure_steps(training, arguments),
    }
    figures["updates"] = measure_updates(training, arguments)
    show(figures)
    subject = f"train-step-{arguments.threads}t"
    report(figures, model=arguments.model, subject=subject, file=arguments.json)


def configure(arguments: argparse.Namespace, *more: str) -> Config:
    """The checked configuration of a model; what the command line says wins."""
    fixed = (f"model={arguments.model}", f"hardware.threads={arguments.threads}")
    words = (*RUN, *fixed, *MODELS[arguments.model], *more, *arguments.overrides)
    last = {word.partition("=")[0]: word for word in words}
    return to_config(compose(complete(list(last.values()))))


def ranks(arguments: argparse.Namespace) -> Ranks:
    """This process alone, on the device of the configuration."""
    device = choose_device(configure(arguments).hardware.device)
    return Ranks(rank=0, local_rank=0, world_size=1, device=torch.device(device))


def measure_steps(training: Training, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Figures of each arm."""
    single = build_arms(training, 1)
    repeat(single["bare"], WARM_UP)  # moments to prune by
    repeat(single["dense"], WARM_UP)
    repeat(single["pruned"], 1)
    if training.pruner.pruned() == 0:
        raise RuntimeError("the masks of the pruned arm prune nothing")
    peaks = {name: peak_extra_bytes(step) for name, step in single.items()}
    arms = build_arms(training, arguments.steps)
    rounds = interleave({name: partial(timed, arm) for name, arm in arms.items()}, arguments.rounds)
    return {
        name: summarise(times, rounds, arguments.steps) | {"peak_extra_bytes": peaks[name]}
        for name, times in rounds.items()
    }


def summarise(times: list[Seconds], rounds: Mapping[str, list[Seconds]], steps: int) -> dict[str, Any]:
    """Milliseconds of a step, and ratios to the other arms of the same round."""
    wall, cpu = zip(*times, strict=True)
    figures = {
        "wall_ms": spread(1e3 * seconds / steps for seconds in wall),
        "cpu_ms": spread(1e3 * seconds / steps for seconds in cpu),
    }
    for base in ("bare", "dense"):
        base_wall, base_cpu = zip(*rounds[base], strict=True)
        figures[f"wall_of_{base}"] = paired_ratio(wall, base_wall)
        figures[f"cpu_of_{base}"] = paired_ratio(cpu, base_cpu)
    return figures


def measure_updates(training: Training, arguments: argparse.Namespace) -> dict[str, Any]:
    """What mask updates in a row take: one to warm up, one a round, and a last one for its memory."""
    last = arguments.rounds + 3
    ramp = ("pruning/schedule=linear", "pruning.start_step=1", f"pruning.end_step={last}")
    config = configure(arguments, *PRUNED, *ramp, "pruning.update_every=1")
    before = tensor_bytes()
    pruner = build_pruner(config, training.model, training.optimizer, training.total_steps)
    held = (tensor_bytes() - before) / pruner.prunable_count
    events: list[MaskUpdate] = []
    # At step 1 the ramp asks for no sparsity yet.
    seconds = [timed(lambda step=step: events.append(pruner.after_step(step))) for step in range(2, last)]
    peak = peak_extra_bytes(lambda: pruner.after_step(last))
    return {
        "held_bytes_per_weight": held,
        "decision_ms": spread(event.milliseconds for event in events[1:]),
        "record_ms": spread(event.record_milliseconds for event in events[1:]),
        "cpu_ms": spread(1e3 * second.cpu for second in seconds[1:]),
        "peak_extra_bytes": peak,
    }


def show(figures: Mapping[str, Any]) -> None:
    """A table of steps, and one of updates."""
    print_table(
        ("arm", "wall ms", "CPU ms", "wall, of bare", "CPU, of bare", "CPU, of dense", "peak MB"),
        [
            (
                name,
                arm["wall_ms"],
                arm["cpu_ms"],
                f"{arm['wall_of_bare'].median:.3f}",
                f"{arm['cpu_of_bare'].median:.3f}",
                f"{arm['cpu_of_dense'].median:.3f}",
                megabytes(arm["peak_extra_bytes"]),
            )
            for name, arm in figures["arms"].items()
        ],
    )
    print()
    updates = figures["updates"]
    print_table(
        ("mask update", "decision ms", "record ms", "CPU ms, both", "peak MB", "masks, bytes a weight"),
        [
            (
                f"{figures['prunable_weights']:,} weights",
                updates["decision_ms"],
                updates["record_ms"],
                updates["cpu_ms"],
                megabytes(updates["peak_extra_bytes"]),
                f"{updates['held_bytes_per_weight']:.2f}",
            )
        ],
    )
    share = updates["cpu_ms"].median / UPDATE_EVERY / figures["arms"]["dense"]["cpu_ms"].median
    print(f"\ngoal: pruned <= {GOAL} of dense; an update every {UPDATE_EVERY} steps adds {share:.2%}")


def megabytes(count: int | None) -> str:
    """As printed."""
    return "?" if count is None else f"{count / 1e6:.1f}"


if __name__ == "__main__":
    with exit_codes():
        main()
