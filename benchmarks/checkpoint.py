"""What a checkpoint costs, and how long training waits for it.

    python benchmarks/checkpoint.py                  GPT-2 124M with AdamW's moments: 1.5 GB
    python benchmarks/checkpoint.py --model resnet18

Arms, in turn, each writing the same weights and state to the same file system: `plain` (torch.save in
place, no fsync), `durable` (torch.save in place, then fsync of file and folder: the least that survives a
power cut), `ours` (checkpoint.save: temporary folder, SHA-256, fsync, rename, read back and compared) and
`beside` (saver.Saver, as a run does it), of which two times are taken: how long training waits, and how
long it takes in all.

Goals (reliability.md, section 11): ours at most 1.25 of durable; training waits for at most a tenth of ours.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import argument_parser, interleave, paired_ratio, print_table, report, spread
from torch import Tensor

from adamwprune.composition import complete, compose, to_config
from adamwprune.distributed import Ranks
from adamwprune.run_directory import sync_directory
from adamwprune.training import checkpoint
from adamwprune.training.build import build_training
from adamwprune.training.loop_state import LoopState, capture
from adamwprune.training.saver import Saver, Snapshot

DATA = {"resnet18": ("data=synthetic_images",)}
WORDS = ("data=synthetic_tokens", "data.num_tokens=100000", "recipe.block_size=64")
GOALS = {"ours / durable": 1.25, "wait / ours": 0.10}


class Times(NamedTuple):
    """Seconds that training waits, and until all is on the disk."""

    wait: float
    total: float


def snapshot(model: str) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Weights and state of a model with AdamW after one step, as a run would save them."""
    overrides = [f"model={model}", "optimizer=adamw", "trainer.max_steps=2", *DATA.get(model, WORDS)]
    overrides += ["trainer.global_batch_size=1", "hardware.micro_batch_size=1"]
    config = to_config(compose(complete(overrides)))
    training = build_training(config, Ranks(0, 0, 1, torch.device("cpu")))
    for parameter in training.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    return capture(training, LoopState.new(training), None, {})


def whole(save: Callable[[Path], None]) -> Callable[[Path], Times]:
    """An arm that training waits for to its end."""

    def arm(folder: Path) -> Times:
        start = time.perf_counter()
        save(folder)
        seconds = time.perf_counter() - start
        return Times(seconds, seconds)

    return arm


def main() -> None:
    """Interleave the arms, print the table, write the JSON."""
    parser = argument_parser(__doc__, rounds=7)
    parser.add_argument("--model", default="gpt2", help="an option of conf/model (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder of the system)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    weights, state = snapshot(arguments.model)
    size = checkpoint.nbytes(weights) + checkpoint.nbytes(state)

    def plain(folder: Path) -> None:
        torch.save({"weights": dict(weights), "state": dict(state)}, folder / "checkpoint.pt")

    def durable(folder: Path) -> None:
        plain(folder)
        with (folder / "checkpoint.pt").open("rb") as file:
            os.fsync(file.fileno())
        sync_directory(folder)

    def ours(folder: Path) -> None:
        checkpoint.save(folder, 1, weights, state)

    def beside() -> Times:
        nonlocal step
        step += 1
        start = time.perf_counter()
        saver.start(Snapshot(step, weights, state, "", None))
        wait = time.perf_counter() - start
        saver.wait()
        return Times(wait, time.perf_counter() - start)

    def in_new_folder(arm: Callable[[Path], Times]) -> Callable[[], Times]:
        def measured() -> Times:
            folder = Path(tempfile.mkdtemp(dir=arguments.folder))
            try:
                return arm(folder)
            finally:
                shutil.rmtree(folder)

        return measured

    # A run has one saver; its first save also has to find memory for the copy, which is not measured here.
    step, kept = 0, Path(tempfile.mkdtemp(dir=arguments.folder))
    saver = Saver(kept, keep=1, identity={}, sync_records=lambda: None)
    first = beside()
    arms = {"plain": whole(plain), "durable": whole(durable), "ours": whole(ours)}
    measured = {name: in_new_folder(arm) for name, arm in arms.items()} | {"beside": beside}
    rounds = interleave(measured, arguments.rounds)
    saver.close()
    shutil.rmtree(kept)
    figures = {
        name: {key: spread(getattr(times, key) for times in found) for key in Times._fields}
        for name, found in rounds.items()
    }
    totals = {name: [times.total for times in found] for name, found in rounds.items()}
    ratios = {
        "ours / plain": paired_ratio(totals["ours"], totals["plain"]),
        "ours / durable": paired_ratio(totals["ours"], totals["durable"]),
        "wait / ours": paired_ratio([times.wait for times in rounds["beside"]], totals["ours"]),
    }
    print_table(
        ("arm", "training waits, s", "on the disk after, s"),
        [(name, times["wait"], times["total"]) for name, times in figures.items()],
    )
    print(f"first wait of a run, s: {first.wait:.3g}")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio}" + (f", goal {GOALS[name]}" if name in GOALS else ""))
    content = {"bytes": size, "first_wait": first.wait, "seconds": figures, "ratios": ratios, "goals": GOALS}
    report(content, model=arguments.model, subject="checkpoint", file=arguments.json)


if __name__ == "__main__":
    main()
