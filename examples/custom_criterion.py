"""A criterion of your own: one elementwise function, used with a pruner, beside its controls.

    python examples/custom_criterion.py

A small network learns digits and half-way loses 95 % of its weights at once, by four criteria. A
few seconds on a CPU.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from adamwprune.data.mnist import mnist5k
from adamwprune.pruning import Pruner
from adamwprune.pruning.criteria.magnitude import magnitude
from adamwprune.pruning.criteria.random import random
from adamwprune.pruning.criteria.state import state
from adamwprune.pruning.schedules import oneshot
from adamwprune.pruning.scoring import Criterion

STEPS = 200
DIGITS = mnist5k(num_classes=10, channels=1, image_size=28)


# The names of the positional parameters say what it reads, here the weight and Adam's moments; a
# keyword-only one is a setting. It gets float32 slices of flat tensors, and the lowest scores are pruned.
# No eps: a live weight whose second moment is 0 is kept, where its score is 0 or undefined.
def onward(weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, trust: float = 0.5) -> Tensor:
    """|w| (1 - trust r), r = sign(w) m / sqrt(v): less for a weight that Adam is bringing to 0."""
    shrinking = weight.sign() * exp_avg / exp_avg_sq.sqrt()
    return weight.abs() * (1.0 - trust * shrinking)


def run(criterion: Criterion) -> tuple[float, float]:
    """Test accuracy of the pruned network, and the overlap of its pruned set with magnitude's."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    pruner = Pruner.over(
        STEPS,
        model,
        optimizer,
        criterion=criterion,
        target_sparsity=0.95,
        schedule=oneshot,
        start_step=STEPS // 2,
        unseen="prune",  # pixels at the edge are always 0: weights that no gradient ever reaches
    )
    overlap = math.nan
    for step in range(1, STEPS + 1):
        indices = np.random.default_rng(step).integers(0, len(DIGITS.train), 64)
        inputs, labels = DIGITS.train.batch(indices, epoch=0)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        pruner.mask_grads_()
        optimizer.step()
        if update := pruner.after_step(step):
            overlap = update.jaccard_magnitude
    pruner.verify(STEPS)
    inputs, labels = DIGITS.test.batch(np.arange(len(DIGITS.test)), epoch=0)
    return (model(inputs).argmax(1) == labels).float().mean().item(), overlap


def main() -> None:
    """Run each criterion once. One seed shows how it is done, not which criterion is best."""
    torch.set_num_threads(1)  # faster than more for a network this small
    print("criterion  accuracy  overlap with magnitude")
    for criterion in (onward, state, magnitude, random):
        accuracy, overlap = run(criterion)
        print(f"{criterion.__name__:10} {accuracy:8.4f}  {overlap:22.4f}")


if __name__ == "__main__":
    main()
