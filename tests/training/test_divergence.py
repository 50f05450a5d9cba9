"""A step whose gradients are not finite: nothing of it reaches the weights, and it can be looked at."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adamwprune.errors import DivergedError, Preempted
from adamwprune.training import loop
from adamwprune.training import run as run_module
from adamwprune.training.ledger import read_lines
from adamwprune.training.run import train
from tests.helpers.runs import IMAGES, rows, start, summary

RESNET = (*IMAGES, "model=resnet18", "model.width=4", "trainer.max_steps=12", "trainer.log_every=1")
# Samples of the training set; each is in one step of the first epoch.
POISONED = (17, 99)


@pytest.fixture
def built(monkeypatch):
    """The objects of each run, whose data set has samples that are not finite."""
    found = []
    real = run_module.build_training

    def poisoned(config, ranks):
        training = real(config, ranks)
        load = training.batches.load

        def poisoned_load(step, indices):
            inputs, targets = load(step, indices)
            inputs = inputs.clone()
            inputs[torch.from_numpy(np.isin(indices, POISONED))] = math.inf
            return inputs, targets

        training.batches.load = poisoned_load
        found.append(training)
        return training

    monkeypatch.setattr(run_module, "build_training", poisoned)
    return found


def fate(training):
    """Everything that a bad step might have touched."""
    tensors = dict(training.model.state_dict())
    states = training.optimizer.state_dict()["state"]
    tensors |= {f"{i}.{k}": v for i, state in states.items() for k, v in state.items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def step_of(training, sample):
    """The update in which the first epoch has it, 0, 1, ..."""
    return next(
        step
        for step in range(training.batches.steps_per_epoch)
        if any(sample in part for part in training.batches.micro_batches(step))
    )


@pytest.fixture
def before_updates(monkeypatch):
    """What was there before each update, in order."""
    seen = []
    real = loop.accumulate_gradients

    def looking(training, batches):
        seen.append(fate(training))
        return real(training, batches)

    monkeypatch.setattr(loop, "accumulate_gradients", looking)
    return seen


def test_the_batch_is_kept_and_the_weights_are_those_before(tmp_path, built, before_updates):
    """Exit 7 with step, layer and samples; weights and moments bitwise as before the step."""
    config, directory = start(tmp_path / "run", *RESNET)
    with pytest.raises(DivergedError, match=r"first bad layer stem|first bad layer conv1") as caught:
        train(config, directory)
    training = built[0]
    bad = min(step_of(training, sample) for sample in POISONED)
    learned = {name: value for name, value in fate(training).items() if "running_" not in name}
    assert all(
        torch.equal(learned[name], before_updates[bad][name]) for name in learned if "num_" not in name
    )
    assert len(before_updates) == bad + 1
    record = json.loads((directory / f"diverged/step_{bad + 1:08d}_rank0.json").read_text())
    (expected,) = training.batches.micro_batches(bad)
    assert record["samples"] == expected.tolist()
    assert str(expected[0]) in str(caught.value)
    assert (record["step"], record["rank"]) == (bad + 1, 0)
    assert record["layer"] in dict(training.model.named_modules())
    kept = load_file(directory / f"diverged/step_{bad + 1:08d}_rank0.safetensors")
    assert np.flatnonzero(kept["inputs_0"].isinf().flatten(1).any(1)).tolist() == [
        index for index, sample in enumerate(expected) if sample in POISONED
    ]
    assert summary(directory)["steps"] == bad


def test_a_batch_that_cannot_be_kept_hides_nothing(tmp_path, built):
    """A full or broken disk in the same moment: still exit 7, with the step, and why there is no batch."""
    config, directory = start(tmp_path / "run", *RESNET)
    (directory / "diverged").write_text("in the way")
    with pytest.raises(DivergedError, match=r"step \d+: loss .*not kept: .*File exists"):
        train(config, directory)
    assert summary(directory)["exit_code"] == 7


def test_skipped_steps_leave_no_trace(tmp_path, built, before_updates):
    """Running means included, which the bad forward pass had written to; the run goes to its end."""
    config, directory = start(tmp_path / "run", *RESNET, "trainer.max_skipped_steps=2")
    train(config, directory)
    training = built[0]
    for bad in (step_of(training, sample) for sample in POISONED):
        before, after = before_updates[bad], before_updates[bad + 1]
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(before_updates) == 12 + len(POISONED)
    alerts = [line for line in read_lines(directory / "metrics.jsonl") if line.get("rule") == "skipped_step"]
    assert [alert["title"].partition(", ")[2] for alert in alerts] == ["1 of 2", "2 of 2"]
    assert all(math.isfinite(value) for row in rows(directory) for key, value in row.items() if "loss" in key)


def test_without_putting_them_back_running_means_would_be_lost(tmp_path, built, monkeypatch):
    """Control: the same run, its buffers left as the bad pass made them, is not finite in evaluation."""
    monkeypatch.setattr(loop.RunningStatistics, "put_back_", lambda self: None)
    config, directory = start(tmp_path / "run", *RESNET, "trainer.max_skipped_steps=2")
    train(config, directory)
    assert rows(directory)[-1]["val/loss"] in ("nan", "inf", None, "NaN")


def test_more_than_allowed_end_the_run(tmp_path, built):
    """The second of two, where one may be passed over."""
    config, directory = start(tmp_path / "run", *RESNET, "trainer.max_skipped_steps=1")
    with pytest.raises(DivergedError):
        train(config, directory)
    last = max(step_of(built[0], sample) for sample in POISONED)
    assert summary(directory)["steps"] == last - 1  # one of the batches before did not count


def test_a_continued_run_remembers_what_it_passed_over(tmp_path, built):
    """Stopped after the first of two, where one may be passed over, it ends at the second."""
    config, directory = start(tmp_path / "run", *RESNET, "trainer.max_skipped_steps=1")
    first = min(step_of(run_module.build_training(config, _alone()), sample) for sample in POISONED)
    config.trainer.stop_step = first + 1
    with pytest.raises(Preempted):
        train(config, directory)
    config.trainer.stop_step = None
    with pytest.raises(DivergedError):
        train(config, directory)


def test_a_loss_that_is_not_finite_stops_the_step_though_its_gradients_are(tmp_path, monkeypatch):
    """As where one logit lies so far above the target's that their difference overflows."""
    real, calls = loop.cross_entropy, []

    def overflowing(*arguments, **options):
        calls.append(1)
        return real(*arguments, **options) + (math.inf if len(calls) == 3 else 0)

    monkeypatch.setattr(loop, "cross_entropy", overflowing)
    config, directory = start(tmp_path / "run", *IMAGES, "trainer.max_steps=8", "optimizer=sgd")
    with pytest.raises(DivergedError, match="step 3: loss inf"):
        train(config, directory)


def test_an_overflowing_loss_has_finite_gradients():
    """Control: why the gradients alone do not tell."""
    logits = torch.tensor([[3e38, -3e38]], requires_grad=True)
    loss = loop.cross_entropy(logits, torch.tensor([1]))
    loss.backward()
    assert not loss.isfinite()
    assert logits.grad.isfinite().all()


def _alone():
    from adamwprune.distributed import Ranks

    return Ranks(0, 0, 1, torch.device("cpu"))
