"""The order of the data: a pure function of seed, step and rank."""

import numpy as np
import pytest
import torch

from adamwprune.training.batches import TrainingBatches, stream


class Numbers:
    """A data set whose sample i is the number i."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def batch(self, indices, epoch):
        return torch.from_numpy(indices.copy()), torch.full((len(indices),), epoch)


def batches(size=50, seed=1, global_batch=8, micro=2, rank=0, world=1):
    return TrainingBatches(
        Numbers(size),
        seed=seed,
        global_batch_size=global_batch,
        micro_batch_size=micro,
        rank=rank,
        world_size=world,
    )


def step_samples(order, step):
    return np.concatenate(order.micro_batches(step)).tolist()


def test_an_epoch_is_a_permutation_without_the_incomplete_batch():
    """No sample twice; 50 samples give 6 steps of 8."""
    order = batches()
    seen = [sample for step in range(6) for sample in step_samples(order, step)]
    assert order.steps_per_epoch == 6
    assert len(seen) == len(set(seen)) == 48


def test_epochs_and_seeds_differ_and_repeat():
    """Another epoch or seed is another order; the same is the same."""
    first = [step_samples(batches(), step) for step in range(12)]
    assert first == [step_samples(batches(), step) for step in range(12)]
    assert first[:6] != first[6:]
    assert first != [step_samples(batches(seed=2), step) for step in range(12)]


def test_asking_out_of_order_gives_the_same():
    """A resumed run asks for step 9 first: nothing is replayed."""
    order = batches()
    expected = [step_samples(order, step) for step in range(12)]
    assert step_samples(batches(), 9) == expected[9]
    assert [step_samples(order, step) for step in (9, 2, 11)] == [expected[9], expected[2], expected[11]]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_are_disjoint_and_together_the_global_batch(world):
    """Ranks change who computes, not what."""
    alone = {step: set(step_samples(batches(), step)) for step in range(6)}
    for step in range(6):
        parts = [step_samples(batches(rank=rank, world=world), step) for rank in range(world)]
        assert sum(map(len, parts)) == 8
        assert set().union(*parts) == alone[step]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_change_nothing(workers):
    """The stream is the same with and without threads, from any step on."""

    def take(count):
        running = stream(batches(), 4, workers)
        found = [next(running) for _ in range(count)]
        running.close()
        return [(inputs.tolist(), epochs.tolist()) for inputs, epochs in found]

    order = batches()
    expected = [
        (part.tolist(), [step // 6] * 2) for step in range(4, 9) for part in order.micro_batches(step)
    ]
    assert take(len(expected)) == expected


def test_a_failing_worker_is_heard():
    """Control: an error in the data reaches the loop, from a thread too."""

    class Broken(Numbers):
        def batch(self, indices, epoch):
            raise OSError("gone")

    for workers in (0, 2):
        broken = TrainingBatches(
            Broken(50), seed=1, global_batch_size=8, micro_batch_size=2, rank=0, world_size=1
        )
        with pytest.raises(OSError, match="gone"):
            next(stream(broken, 0, workers))
