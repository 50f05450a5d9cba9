"""What our loop costs over a bare hand-written one: same model, data, optimizer, clipping, on this machine.

    python benchmarks/loop_overhead.py
    python benchmarks/loop_overhead.py model=gpt2 hardware=cpu data=shakespeare trainer.global_batch_size=4

The arms alternate within one process, round by round. A round trains each arm anew for the same
steps; the time of a step is that between two step ends, rows of metrics.jsonl included,
evaluation and checkpoints left out. Arms: `bare` (forward, backward, clip, step, nothing else),
`ours` (dense), `pruned` (magnitude masks in force from the first step, updates left out).
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import Seconds, argument_parser, interleave, now, paired_ratio, print_table, report, spread

from adamwprune import run_directory
from adamwprune.callbacks.base import Callback
from adamwprune.composition import complete, compose, to_config
from adamwprune.config import Config
from adamwprune.distributed import Ranks
from adamwprune.training.build import build_training
from adamwprune.training.ledger import Ledger
from adamwprune.training.loop import Session, run_steps, samples_per_step
from adamwprune.training.loop_state import LoopState
from adamwprune.training.records import Records
from adamwprune.training.saver import Saver
from adamwprune.training.signals import stop_requests
from adamwprune.training.throughput import Throughput

ALONE = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
WARM_UP = 5  # steps left out at the beginning of each round
GOAL = 1.03
PRUNED = ("pruning=magnitude", "pruning/schedule=constant", "pruning.target_sparsity=0.5")


def bare(config: Config, steps: int) -> list[Seconds]:
    """The loop that a researcher writes by hand."""
    training = build_training(config, ALONE)
    model, optimizer, clip = training.model, training.optimizer, config.trainer.grad_clip
    parameters = list(model.parameters())
    model.train()
    ends = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = training.base_lrs[0] * training.lr_factor(step, steps)
        optimizer.zero_grad(set_to_none=True)
        for indices in training.batches.micro_batches(step):
            inputs, targets = training.batches.load(step, indices)
            logits = model(inputs)
            loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
            (loss / config.trainer.grad_accum_steps).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        ends.append(now())
    return ends


class StepEnds(Callback):
    """Notes the time of each step's end."""

    def __init__(self) -> None:
        self.ends: list[Seconds] = []

    def on_step_end(self, step: int) -> None:
        """Called by the loop."""
        self.ends.append(now())


def ours(config: Config, steps: int) -> list[Seconds]:
    """The project's loop with its ledger, as `python train.py` runs it."""
    training = build_training(config, ALONE)
    clock = StepEnds()
    with tempfile.TemporaryDirectory() as folder, stop_requests() as stop:
        directory = Path(folder)
        throughput = Throughput(
            unit=training.data.unit,
            samples_per_step=samples_per_step(training),
            flops_per_step=None,
            peak_flops=None,
            device=ALONE.device,
        )
        records = Records(Ledger(directory / run_directory.METRICS), [clock])
        saver = Saver(directory / "checkpoints", keep=1, identity={}, sync_records=records.sync)
        state = LoopState.new(training)
        run_steps(Session(training, state, records, saver, stop, throughput, directory, None))
        saver.close()
        records.close(0)
    return clock.ends


def per_step(ends: list[Seconds]) -> Seconds:
    """Mean time of a step, without the warm-up."""
    return ends[-1].per(len(ends) - WARM_UP, ends[WARM_UP - 1])


def main() -> None:
    """Interleave the arms, print the table, write the JSON."""
    parser = argument_parser(__doc__, rounds=7)
    parser.add_argument(
        "overrides", nargs="*", default=["experiment=gpt2-shakespeare-cpu", "optimizer=adamw"]
    )
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()

    def configure(*more: str) -> Config:
        # Evaluation once, after the last step that is timed.
        cadence = (f"trainer.max_steps={arguments.steps}", f"trainer.eval_every={arguments.steps}")
        threads = f"hardware.threads={arguments.threads}"
        return to_config(compose(complete([*arguments.overrides, *cadence, threads, *more])))

    dense, pruned = configure(), configure(*PRUNED)
    rounds = interleave(
        {
            "bare": lambda: per_step(bare(dense, arguments.steps)),
            "ours": lambda: per_step(ours(dense, arguments.steps)),
            "pruned": lambda: per_step(ours(pruned, arguments.steps)),
        },
        arguments.rounds,
    )
    arms = {name: summary(times, rounds["bare"]) for name, times in rounds.items()}
    print_table(
        ("arm", "wall ms/step", "CPU ms/step", "ratio of CPU", "ratio of wall"),
        [
            (
                name,
                spread(arm["wall_ms"]),
                spread(arm["cpu_ms"]),
                f"{arm['cpu_ratio']:.3f}",
                f"{arm['wall_ratio']:.3f}",
            )
            for name, arm in arms.items()
        ],
    )
    print(f"goal: ours / bare <= {GOAL}")
    figures = {"overrides": arguments.overrides, "steps": arguments.steps, "arms": arms}
    report(figures, model=dense.run_name.partition("_")[0], subject="loop-overhead", file=arguments.json)


def summary(times: list[Seconds], base: list[Seconds]) -> dict[str, Any]:
    """Milliseconds of each round, and the medians of the ratios to the bare loop of the same round."""
    (wall, cpu), (base_wall, base_cpu) = zip(*times, strict=True), zip(*base, strict=True)
    return {
        "wall_ms": [1e3 * seconds for seconds in wall],
        "cpu_ms": [1e3 * seconds for seconds in cpu],
        "cpu_ratio": paired_ratio(cpu, base_cpu).median,
        "wall_ratio": paired_ratio(wall, base_wall).median,
    }


if __name__ == "__main__":
    main()
