"""What our loop costs over a bare hand-written one: same model, data, optimizer, clipping, on this machine.

    python benchmarks/loop_overhead.py
    python benchmarks/loop_overhead.py model=gpt2 hardware=cpu data=shakespeare trainer.global_batch_size=4

The arms alternate within one process, round by round. A round trains each arm anew for the same
steps; the time of a step is that between two step ends, rows of metrics.jsonl included,
evaluation and checkpoints left out. Arms: `bare` (forward, backward, clip, step, nothing else),
`ours` (dense), `pruned` (magnitude masks in force from the first step, updates left out).
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from adamwprune import run_directory
from adamwprune.callbacks.base import Callback
from adamwprune.composition import complete, compose, to_config
from adamwprune.config import Config
from adamwprune.distributed import Ranks
from adamwprune.training.build import build_training
from adamwprune.training.ledger import Ledger
from adamwprune.training.loop import run_steps, samples_per_step
from adamwprune.training.loop_state import LoopState
from adamwprune.training.records import Records
from adamwprune.training.signals import stop_requests
from adamwprune.training.throughput import Throughput

ALONE = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
WARM_UP = 5  # steps left out at the beginning of each round
GOAL = 1.03
PRUNED = ("pruning=magnitude", "pruning/schedule=constant", "pruning.target_sparsity=0.5")

Times = list[tuple[float, float]]  # wall and CPU seconds at each step end


def now() -> tuple[float, float]:
    """Wall and CPU clock of this process."""
    return time.perf_counter(), time.process_time()


def bare(config: Config, steps: int) -> Times:
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
        self.ends: Times = []

    def on_step_end(self, step: int) -> None:
        """Called by the loop."""
        self.ends.append(now())


def ours(config: Config, steps: int) -> Times:
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
        run_steps(
            training, LoopState.new(training), records, stop, throughput, directory / "checkpoints", None
        )
        records.close(0)
    return clock.ends


def per_step(ends: Times) -> tuple[float, float]:
    """Mean wall and CPU milliseconds of a step, without the warm-up."""
    first, last = ends[WARM_UP - 1], ends[-1]
    count = len(ends) - WARM_UP
    return 1e3 * (last[0] - first[0]) / count, 1e3 * (last[1] - first[1]) / count


def main() -> None:
    """Interleave the arms, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "overrides", nargs="*", default=["experiment=gpt2-shakespeare-cpu", "optimizer=adamw"]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path, default=None, help="file for the figures")
    arguments = parser.parse_args()

    def configure(*more: str) -> Config:
        # Evaluation once, after the last step that is timed.
        cadence = (f"trainer.max_steps={arguments.steps}", f"trainer.eval_every={arguments.steps}", *more)
        return to_config(compose(complete([*arguments.overrides, *cadence])))

    dense, pruned = configure(), configure(*PRUNED)
    arms: dict[str, Callable[[], Times]] = {
        "bare": lambda: bare(dense, arguments.steps),
        "ours": lambda: ours(dense, arguments.steps),
        "pruned": lambda: ours(pruned, arguments.steps),
    }
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for number in range(arguments.rounds):
        names = list(arms) if number % 2 else list(arms)[::-1]
        for name in names:
            figures[name].append(per_step(arms[name]()))
    report(figures, arguments)


def report(figures: dict[str, list[tuple[float, float]]], arguments: argparse.Namespace) -> None:
    """Medians with their spread, ratios to the bare loop of the same round, and the goal."""
    print(f"{'arm':8} {'wall ms/step':>24} {'CPU ms/step':>24} {'ratio of CPU':>14} {'ratio of wall':>14}")
    results = {}
    for name, pairs in figures.items():
        wall, cpu = zip(*pairs, strict=True)
        ratios = [
            statistics.median(pair[i] / base[i] for pair, base in zip(pairs, figures["bare"], strict=True))
            for i in (0, 1)
        ]
        results[name] = {"wall_ms": wall, "cpu_ms": cpu, "wall_ratio": ratios[0], "cpu_ratio": ratios[1]}
        spread = [f"{statistics.median(x):8.2f} ({min(x):.2f} to {max(x):.2f})" for x in (wall, cpu)]
        print(f"{name:8} {spread[0]:>24} {spread[1]:>24} {ratios[1]:14.3f} {ratios[0]:14.3f}")
    print(f"goal: ours / bare <= {GOAL}")
    if arguments.json:
        machine = {
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "processor": platform.machine(),
        }
        content = {"overrides": arguments.overrides, "steps": arguments.steps, "arms": results, **machine}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
