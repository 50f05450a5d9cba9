"""The order of the training data: a pure function of (seed, step, rank).

Nothing here has a position to save: a resumed run asks for the step that comes next. The ranks
take disjoint parts of one global batch, so their number changes who computes, not what.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

import numpy as np
import torch
from torch import Tensor

from adamwprune.data.base import Dataset

Batch = tuple[Tensor, Tensor]  # inputs, targets

CPU = torch.device("cpu")


class TrainingBatches:
    """Micro batches of every step, each epoch in its own seeded permutation.

    Args:
        dataset: samples by index.
        seed: of the permutations.
        global_batch_size, micro_batch_size: samples per step over all ranks; per forward pass.
        rank, world_size: which part of each global batch is ours.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        self._dataset = dataset
        self._seed = seed
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._rank = rank
        self._world_size = world_size
        # The last, incomplete global batch of an epoch is left out.
        self.steps_per_epoch = len(dataset) // global_batch_size
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def micro_batches(self, step: int) -> list[np.ndarray]:
        """Sample indices of this rank's micro batches for the update number `step` (0, 1, ...)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
            self._order, self._epoch = generator.permutation(len(self._dataset)), epoch
        start = within * self._global_batch_size
        samples = self._order[start : start + self._global_batch_size]
        # (accumulation, rank, sample): each micro batch of one rank is contiguous.
        return list(samples.reshape(-1, self._world_size, self._micro_batch_size)[:, self._rank])

    def load(self, step: int, indices: np.ndarray) -> Batch:
        """The samples of one micro batch, on the CPU."""
        return self._dataset.batch(indices, step // self.steps_per_epoch)


def stream(
    batches: TrainingBatches, first_step: int, num_workers: int, device: torch.device = CPU
) -> Iterator[Batch]:
    """Micro batches of the steps first_step, first_step + 1, ..., in order, without end; on the CPU.

    With `num_workers` threads they are prepared ahead; what comes out is the same. For a CUDA `device`
    they are in pinned memory, from where `.to(device, non_blocking=True)` copies while the CPU goes on.
    """
    load = _pinned(batches.load) if device.type == "cuda" else batches.load
    wanted = ((step, part) for step in count(first_step) for part in batches.micro_batches(step))
    if num_workers == 0:
        yield from (load(step, part) for step, part in wanted)
        return
    with ThreadPoolExecutor(num_workers, thread_name_prefix="batches") as pool:
        ahead: deque[Future[Batch]] = deque()
        try:
            for step, part in wanted:
                ahead.append(pool.submit(load, step, part))
                if len(ahead) > 2 * num_workers:
                    yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _pinned(load: Callable[[int, np.ndarray], Batch]) -> Callable[[int, np.ndarray], Batch]:
    """`load` into pinned memory; torch lends a buffer to another batch only when the copy from it is done."""

    def load_pinned(step: int, indices: np.ndarray) -> Batch:
        inputs, targets = load(step, indices)
        return inputs.pin_memory(), targets.pin_memory()

    return load_pinned
