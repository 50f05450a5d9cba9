"""How fast training batches come, and what of a training step is spent waiting for them.

    python benchmarks/loader.py
    python benchmarks/loader.py --workers 2      two threads prepare ahead, two processes of DataLoader

Tokens: batches of 12 sequences of 1,024 from shards on disk, which lie in the page cache. `ours` is
training/batches.py over data/windows.py, the order of the data included; `ours, 20 shards` the same in 20
files; `by hand` slices a np.memmap at random places and opens the file for every batch, as nanoGPT does
(github.com/karpathy/nanoGPT, train.py, get_batch); `DataLoader` is torch's, shuffled, one window a sample.

Images: batches of 64 of 3,600 digits. `ours` gathers from tensors; `DataLoader` is torch's over samples
that are made floats and normalised one by one.

Share: the loop's own step of two models, and the time of it that passes in the iterator of batches.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import (
    Seconds,
    argument_parser,
    interleave,
    now,
    paired_ratio,
    print_table,
    report,
    spread,
    steady_clock,
    timed,
)
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from adamwprune.command_line import exit_codes
from adamwprune.composition import complete, compose, to_config
from adamwprune.data.base import Dataset
from adamwprune.data.mnist import mnist5k
from adamwprune.data.windows import TokenWindows
from adamwprune.distributed import Ranks
from adamwprune.training.batches import Batch, TrainingBatches, stream
from adamwprune.training.build import build_training
from adamwprune.training.loop import accumulate_gradients, update
from adamwprune.training.loop_state import LoopState

CPU = torch.device("cpu")
SEQUENCES, BLOCK = 12, 1024
IMAGES = 64
SHARDS = 20
VOCABULARY = 50257
MODELS = {
    "gpt2-nano": ("experiment=gpt2-shakespeare-cpu",),
    "lenet5": ("experiment=lenet5-mnist5k",),
}
WARM_UP = 5  # steps
GOAL = 0.01


# ---------------------------------------------------------------------------------- ours, and peers


def ours(dataset: Dataset, size: int, workers: int) -> Iterator[Batch]:
    """Batches without end, as the loop takes them."""
    order = TrainingBatches(
        dataset, seed=0, global_batch_size=size, micro_batch_size=size, rank=0, world_size=1
    )
    return stream(order, 0, workers)


def by_hand(file: Path) -> Iterator[Batch]:
    """Random slices of a file, opened anew for each batch."""
    while True:
        tokens = np.memmap(file, dtype=np.uint16, mode="r")
        starts = torch.randint(len(tokens) - BLOCK, (SEQUENCES,)).tolist()
        inputs = [tokens[start : start + BLOCK].astype(np.int64) for start in starts]
        targets = [tokens[start + 1 : start + 1 + BLOCK].astype(np.int64) for start in starts]
        yield tuple(torch.stack([torch.from_numpy(row) for row in rows]) for rows in (inputs, targets))


class Windows(TorchDataset):
    """One window a sample, as torch's tutorials have it."""

    def __init__(self, file: Path) -> None:
        self._tokens = np.memmap(file, dtype=np.uint16, mode="r")

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // BLOCK

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        window = torch.from_numpy(self._tokens[index * BLOCK : (index + 1) * BLOCK + 1].astype(np.int64))
        return window[:-1], window[1:]


class Digits(TorchDataset):
    """One image a sample, made a float tensor and normalised."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self._images[index]).float().div(255)
        return (image - 0.1307) / 0.3081, int(self._labels[index])


def torch_loader(dataset: TorchDataset, size: int, workers: int) -> Iterator[Batch]:
    """Batches of torch, epoch after epoch."""
    loader = DataLoader(
        dataset,
        batch_size=size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


# -------------------------------------------------------------------------------------- batches


def measure_tokens(folder: Path, arguments: argparse.Namespace) -> dict[str, list[Seconds]]:
    """Seconds a batch of each arm in each round."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, arguments.tokens).astype("<u2")
    file = folder / "train-00000.bin"
    ids.tofile(file)
    shards = [folder / f"part-{number:05d}.bin" for number in range(SHARDS)]
    for shard, part in zip(shards, np.array_split(ids, SHARDS), strict=True):
        part.tofile(shard)
    return race(
        {
            "by hand": by_hand(file),
            "DataLoader": torch_loader(Windows(file), SEQUENCES, arguments.workers),
            "ours": ours(mapped([file]), SEQUENCES, arguments.workers),
            "ours, 20 shards": ours(mapped(shards), SEQUENCES, arguments.workers),
        },
        arguments,
    )


def mapped(files: Sequence[Path]) -> TokenWindows:
    """The windows of some files, as training reads them."""
    return TokenWindows([np.memmap(file, dtype="<u2", mode="r") for file in files], BLOCK, seed=0)


def measure_images(arguments: argparse.Namespace) -> dict[str, list[Seconds]]:
    """Seconds a batch of each arm in each round."""
    data = mnist5k(num_classes=10, channels=1, image_size=28)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(data.train), 1, 28, 28), dtype=np.uint8)
    return race(
        {
            "DataLoader": torch_loader(
                Digits(images, rng.integers(0, 10, len(images))), IMAGES, arguments.workers
            ),
            "ours": ours(data.train, IMAGES, arguments.workers),
        },
        arguments,
    )


def race(arms: dict[str, Iterator[Batch]], arguments: argparse.Namespace) -> dict[str, list[Seconds]]:
    """The mean time of a batch in each round; the first batches, for which workers start, are untimed."""
    for batches in arms.values():
        take(batches, arguments.batches)
    takes = {name: partial(take, batches, arguments.batches) for name, batches in arms.items()}
    rounds = interleave({name: partial(timed, work) for name, work in takes.items()}, arguments.rounds)
    return {
        name: [seconds.per(arguments.batches, Seconds(0, 0)) for seconds in times]
        for name, times in rounds.items()
    }


def take(batches: Iterator[Batch], count: int) -> None:
    """Some batches in a row."""
    for _ in range(count):
        next(batches)


# ---------------------------------------------------------------------------------------- share


class Waiting:
    """An iterator of batches that adds up the time that passes in it."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.seconds = Seconds(0, 0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = now()
        batch = next(self._batches)
        wall, cpu = now().per(1, start)
        self.seconds = Seconds(self.seconds.wall + wall, self.seconds.cpu + cpu)
        return batch


def measure_share(model: str, arguments: argparse.Namespace, clock: str) -> dict[str, Any]:
    """Milliseconds of a step and of the waiting in it, and their ratio, of each round."""
    threads = f"hardware.threads={arguments.threads}"
    config = to_config(compose(complete([*MODELS[model], "optimizer=adamw", threads])))
    training = build_training(config, Ranks(rank=0, local_rank=0, world_size=1, device=CPU))
    training.model.train()
    batches = Waiting(stream(training.batches, 0, arguments.workers))
    state = LoopState.new(training)

    def steps(count: int) -> tuple[float, float]:
        batches.seconds, start = Seconds(0, 0), now()
        for _ in range(count):
            training.set_lr(state.step)
            update(training, state, accumulate_gradients(training, batches))
            state.step += 1
        return tuple(1e3 * getattr(each, clock) / count for each in (now().per(1, start), batches.seconds))

    steps(WARM_UP)
    rounds = [steps(arguments.steps) for _ in range(arguments.rounds)]
    return {
        "step_ms": spread(step for step, _ in rounds),
        "wait_ms": spread(wait for _, wait in rounds),
        "share": spread(wait / step for step, wait in rounds),
    }


# --------------------------------------------------------------------------------------- report


def main() -> None:
    """Interleave the arms, print three tables, write the JSON."""
    parser = argument_parser(__doc__, rounds=15)
    parser.add_argument("--workers", type=int, default=0, help="that prepare ahead (%(default)s)")
    parser.add_argument("--batches", type=int, default=40, help="of each arm in a round (%(default)s)")
    parser.add_argument("--tokens", type=int, default=50_000_000, help="on disk (%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="of each model in a round (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        tokens = measure_tokens(Path(folder), arguments)
    # A worker's time is not this process's.
    clock = steady_clock(arguments.threads, CPU) if arguments.workers == 0 else "wall"
    arms = {
        **summarise(tokens, "tokens", "by hand", clock),
        **summarise(measure_images(arguments), "images", "DataLoader", clock),
    }
    shares = {model: measure_share(model, arguments, clock) for model in MODELS}
    print_table(
        ("arm", f"{clock} us a batch", "batches/s", "times as fast"),
        [(name, arm["us"], f"{1e6 / arm['us'].median:.0f}", arm["speed"]) for name, arm in arms.items()],
    )
    print()
    print_table(
        ("model", f"{clock} ms a step", "waiting for data", "share in %"),
        [
            (model, share["step_ms"], share["wait_ms"], f"{100 * share['share'].median:.3f}")
            for model, share in shares.items()
        ],
    )
    print(f"goal: below {GOAL:.0%} of a step")
    figures = {"clock": clock, "workers": arguments.workers, "arms": arms, "shares": shares}
    subject = f"loader-{arguments.workers}w"
    report(figures, model="batches", subject=subject, file=arguments.json)


def summarise(rounds: dict[str, list[Seconds]], kind: str, peer: str, clock: str) -> dict[str, Any]:
    """Microseconds a batch, and how many times as fast as the peer of the same round."""
    seconds = {name: [getattr(each, clock) for each in times] for name, times in rounds.items()}
    return {
        f"{kind}: {name}": {
            "us": spread(1e6 * value for value in values),
            "speed": paired_ratio(seconds[peer], values),
        }
        for name, values in seconds.items()
    }


if __name__ == "__main__":
    with exit_codes():
        main()
