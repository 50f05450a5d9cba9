"""Loss and accuracy or perplexity on a fixed set of samples, always the same, in order.

No random number is drawn and no training state is touched: training is the same, to the bit,
with and without evaluations.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from adamwprune.data.base import Dataset
from adamwprune.distributed import Ranks
from adamwprune.training.precision import Autocast


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean", smoothing: float = 0.0) -> Tensor:
    """Cross entropy in nats; logits (..., C), targets (...).

    `smoothing` is the share of each target's probability that all C classes divide evenly (Szegedy et
    al., arXiv 1512.00567, section 7).
    """
    return F.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), reduction=reduction, label_smoothing=smoothing
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode within the context."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def evaluated_samples(size: int, limit: int | None) -> NDArray[np.int64]:
    """Indices of the samples that an evaluation sees, in order: all, or a random choice that never changes.

    The first ones would be the first classes of a set that is sorted by label. The choice depends on nothing
    but the two numbers: every run, seed and arm is measured with the same samples.
    """
    if limit is None or limit >= size:
        return np.arange(size, dtype=np.int64)
    # Raw bits of Philox, which no release of NumPy may change.
    order = np.argsort(np.random.Philox(key=[0, size]).random_raw(size), kind="stable")
    return np.sort(order[:limit]).astype(np.int64)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    metric: Literal["accuracy", "perplexity"],
    *,
    batch_size: int,
    limit: int | None,
    ranks: Ranks,
    autocast: Autocast,
    poll: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean loss over all samples or a fixed part of them, and accuracy in [0, 1] or perplexity = exp(loss).

    `poll` is called before each batch, by all ranks as often; what it raises ends the evaluation.

    The ranks take every world_size-th batch; sums and counts are added up, not means. All make as many
    forward passes, in which FSDP's weights travel: one that has no batch left takes the first, uncounted.
    """
    ranks.share_buffers_(model)
    # Apple's GPU has no float64; float32 counts exactly to 16 million.
    wide = torch.float32 if ranks.device.type == "mps" else torch.float64
    sums = torch.zeros(3, dtype=wide, device=ranks.device)  # loss, correct, count
    samples = evaluated_samples(len(dataset), limit)
    count = len(samples)
    with evaluating(model):
        for first in range(0, count, ranks.world_size * batch_size):
            poll()
            start = first + ranks.rank * batch_size
            is_counted = start < count
            start = start if is_counted else 0
            indices = samples[start : start + batch_size]
            inputs, targets = (
                tensor.to(ranks.device, non_blocking=True) for tensor in dataset.batch(indices, 0)
            )
            with autocast():
                logits = model(inputs)
                if not is_counted:
                    continue
                sums[0] += cross_entropy(logits, targets, reduction="sum")
            if metric == "accuracy":
                sums[1] += (logits.argmax(-1) == targets).sum()
            sums[2] += targets.numel()
    loss_sum, correct, total = ranks.sum_(sums).tolist()
    loss = loss_sum / total
    return {"loss": loss, metric: correct / total if metric == "accuracy" else perplexity(loss)}


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that overflows, never cut off."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
