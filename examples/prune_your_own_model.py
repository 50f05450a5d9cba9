"""Prune a model of your own while you train it: three lines in a plain PyTorch loop.

    python examples/prune_your_own_model.py

Trains a perceptron on 5,000 MNIST digits that ship with the package, dense and at 90 % sparsity,
and stops half-way to save everything and go on in new objects. A few seconds on a CPU.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adamwprune.data.mnist import mnist5k
from adamwprune.pruning import Pruner
from adamwprune.pruning.criteria.state import state

STEPS = 300
BATCH = 64
DIGITS = mnist5k(num_classes=10, channels=1, image_size=28)


def build(sparsity: float) -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
    """A model, its optimizer and its pruner: nothing about the first two is special."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    # Line 1. Prunes from a quarter to three quarters of the run, all but the output layer. Keywords
    # choose schedule, scope, selection and mode: docs/pruning.md.
    pruner = Pruner.over(STEPS, model, optimizer, criterion=state, target_sparsity=sparsity)
    return model, optimizer, pruner


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, pruner: Pruner, *, first: int, last: int
) -> None:
    """Steps `first` to `last`, both included."""
    for step in range(first, last + 1):
        inputs, labels = batch(step)
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        # Line 2. With a GradScaler: after scaler.unscale_(optimizer). Before clipping, so that pruned
        # gradients do not count in the norm.
        pruner.mask_grads_()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        # Line 3. The number of steps done; not after one that a GradScaler skipped.
        update = pruner.after_step(step)
        if update is not None and step % 30 == 0:
            print(
                f"  step {step}: {update.pruned:,} weights pruned, {update.sparsity:.1%}; "
                f"{update.newly_pruned:,} of them now"
            )


def batch(step: int) -> tuple[Tensor, Tensor]:
    """A batch that depends on the step alone, so that a continued run sees the same ones."""
    indices = np.random.default_rng(step).integers(0, len(DIGITS.train), BATCH)
    return DIGITS.train.batch(indices, epoch=0)


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Share of the test digits that are recognised."""
    inputs, labels = DIGITS.test.batch(np.arange(len(DIGITS.test)), epoch=0)
    return (model(inputs).argmax(1) == labels).float().mean().item()


def main() -> None:
    """Train at two sparsities; each run is saved and loaded half-way."""
    torch.set_num_threads(1)  # faster than more for a network this small
    for sparsity in (0.0, 0.9):
        print(f"target sparsity {sparsity:.0%}")
        model, optimizer, pruner = build(sparsity)
        train(model, optimizer, pruner, first=1, last=STEPS // 2)

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "checkpoint.pt"
            torch.save([part.state_dict() for part in (model, optimizer, pruner)], file)
            model, optimizer, pruner = build(sparsity)
            # In this order: masks are refused where the weights that they prune are not 0.
            for part, content in zip((model, optimizer, pruner), torch.load(file), strict=True):
                part.load_state_dict(content)

        train(model, optimizer, pruner, first=STEPS // 2 + 1, last=STEPS)
        pruner.verify(STEPS)  # exactly the planned number is pruned, and all of it is 0
        print(
            f"  sparsity {pruner.sparsity():.4f}, accuracy {accuracy(model):.4f}, "
            f"{pruner.counts()['nonzero']:,} non-zero parameters"
        )


if __name__ == "__main__":
    main()
