"""The loss that is trained on, and evaluations that a stop cuts short."""

import os
import signal
import sys

import pytest
import torch

from adamwprune.config import Precision
from adamwprune.distributed import Ranks
from adamwprune.errors import Preempted
from adamwprune.run_directory import SUMMARY, read_json
from adamwprune.training import continuation
from adamwprune.training import signals as stops
from adamwprune.training.checkpoint import load_newest
from adamwprune.training.evaluation import cross_entropy, evaluate, evaluated_samples
from adamwprune.training.precision import Autocast
from adamwprune.training.run import train
from tests.helpers.runs import IMAGES, mask_updates, rows, run, start, summary


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_is_a_mixture_of_the_target_and_all_classes(smoothing):
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 7, dtype=torch.float64), torch.randint(7, (2, 5))
    surprise = logits.exp().sum(-1, keepdim=True).log() - logits
    of_target = surprise.gather(-1, targets[..., None]).mean()
    expected = (1 - smoothing) * of_target + smoothing * surprise.mean()
    torch.testing.assert_close(cross_entropy(logits, targets, smoothing=smoothing), expected)
    assert smoothing == 0.0 or not torch.isclose(expected, of_target, rtol=1e-3)


class SortedByLabel:
    """A validation set in the order of its classes, as folders of images have it."""

    def __len__(self):
        return 1000

    def batch(self, indices, epoch):
        labels = torch.from_numpy(indices // 100)
        return torch.nn.functional.one_hot(labels, 10).float(), labels


def test_a_part_of_a_set_that_is_sorted_by_label_has_all_classes():
    """A model that knows classes 0 to 4 alone is right in half of it, as in half of the whole set."""
    model = torch.nn.Linear(10, 10, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.diag(torch.tensor([9.0] * 5 + [-9.0] * 5)))
    options = {
        "batch_size": 64,
        "ranks": Ranks(0, 0, 1, torch.device("cpu")),
        "autocast": Autocast(Precision.fp32, "cpu"),
    }
    whole, part = (
        evaluate(model, SortedByLabel(), "accuracy", limit=limit, **options)["accuracy"]
        for limit in (None, 200)
    )
    assert whole == 0.5
    assert part == pytest.approx(0.5, abs=0.1)  # three standard deviations


@pytest.mark.parametrize(("size", "limit"), [(1000, 200), (1000, 1), (7, 7), (7, 100), (7, None)])
def test_which_samples_are_evaluated_is_fixed(size, limit):
    """Always the same, each once, in order, at no even distance; all of them without a limit."""
    chosen = evaluated_samples(size, limit)
    assert chosen.tolist() == sorted(set(chosen.tolist())) == evaluated_samples(size, limit).tolist()
    assert len(chosen) == min(limit or size, size)
    assert chosen.max() < size
    if limit == 200:
        assert len(set(chosen.tolist()) & set(range(0, size, 5))) < 80  # no stride: 40 are to be expected


# Evaluations of four batches, at steps 6 and 12, and one more of the test set at the end.
SHORT = (
    *IMAGES,
    "trainer.max_steps=12",
    "trainer.eval_every=6",
    "trainer.log_every=3",
    "hardware.micro_batch_size=16",
    "pruning=magnitude",
)


@pytest.fixture
def signalled(monkeypatch):
    """A signal arrives before the n-th batch of all evaluations; set it as `at`."""
    seen = {"at": 0, "batches": 0}
    real = stops.StopRequest.asked

    def asked(self, *arguments):
        seen["batches"] += sys._getframe(1).f_code.co_name == "poll"
        if seen["batches"] == seen["at"]:
            seen["at"] = 0
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    monkeypatch.setattr(stops.StopRequest, "asked", asked)
    return seen


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("unbroken") / "run", *SHORT)


@pytest.mark.parametrize(("batch", "step"), [(2, 6), (7, 12), (10, 12)])
def test_a_stop_inside_an_evaluation_is_continued_with_it(tmp_path, unbroken, signalled, batch, step):
    """In one in the middle, the last, the test: saved at once; the rows are those of an unbroken run."""
    config, directory = start(tmp_path / "run", *SHORT)
    signalled["at"] = batch
    with pytest.raises(Preempted, match=f"saved at step {step}"):
        train(config, directory)
    assert signalled["batches"] == batch  # it did not go on to the end
    assert load_newest(directory / "checkpoints").step == step
    assert read_json(directory / SUMMARY)["exit_code"] == 75
    train(config, directory)
    assert rows(directory) == rows(unbroken)
    assert mask_updates(directory) == mask_updates(unbroken)
    assert summary(directory)["metrics"]["final"]["test/loss"] == pytest.approx(
        summary(unbroken)["metrics"]["final"]["test/loss"], abs=0
    )


def test_a_row_that_was_under_way_would_be_missed(tmp_path, unbroken, signalled, monkeypatch):
    """Control: a checkpoint that forgets it leads to other rows."""
    config, directory = start(tmp_path / "run", *SHORT)
    signalled["at"] = 2
    with pytest.raises(Preempted):
        train(config, directory)
    real = continuation.restore

    def without(training, checkpoint):
        checkpoint.state["row"] = None
        return real(training, checkpoint)

    monkeypatch.setattr(continuation, "restore", without)
    train(config, directory)
    assert rows(directory) != rows(unbroken)
