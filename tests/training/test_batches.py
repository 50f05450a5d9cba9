"""The order of the data: a pure function of seed, step and rank."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


@given(
    micro=st.integers(1, 3),
    world=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    epochs=st.integers(1, 3),
    extra=st.integers(0, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_division_of_a_step_is_of_the_same_samples(micro, world, accumulation, epochs, extra, seed):
    """Against one rank with one micro batch: every rank has its places of it, in order."""
    global_batch = micro * world * accumulation
    size = 2 * global_batch + extra
    alone = batches(size, seed, global_batch, micro=global_batch)
    ranks = [batches(size, seed, global_batch, micro, rank, world) for rank in range(world)]
    for step in range(epochs * alone.steps_per_epoch):
        (whole,) = alone.micro_batches(step)
        parts = [order.micro_batches(step) for order in ranks]
        assert {len(part) for rank in parts for part in rank} == {micro}
        together = [part[number] for number in range(accumulation) for part in parts]
        assert np.concatenate(together).tolist() == whole.tolist()
        assert len(set(whole.tolist())) == global_batch


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


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_for_cuda_are_pinned(workers, monkeypatch):
    """Each tensor of each batch, and as it was; for the CPU, the control, none is."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())

    def first(device):
        running = stream(batches(), 0, workers, device)
        found = [next(running) for _ in range(3)]
        running.close()
        return [(inputs.tolist(), epochs.tolist()) for inputs, epochs in found]

    expected = first(torch.device("cpu"))
    assert not pinned
    assert first(torch.device("cuda", 1)) == expected
    assert len(pinned) >= 6


@pytest.mark.gpu
def test_pinned_batches_arrive_whole():
    """Real pinned memory, used again and again, and copies that overlap: what arrives was asked for."""
    device = torch.device("cuda")
    order = batches(size=4096, global_batch=512, micro=512)
    running = stream(order, 0, 2, device)
    arrived = []
    for _ in range(64):
        inputs, _ = next(running)
        assert inputs.is_pinned()
        arrived.append(inputs.to(device, non_blocking=True))
    running.close()
    for step, inputs in enumerate(arrived):
        assert inputs.cpu().tolist() == step_samples(order, step)


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
