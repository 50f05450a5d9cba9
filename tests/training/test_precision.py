"""Number formats: bf16 by autocast, fp16's loss scaling with steps that overflow, compiled models."""

import numpy as np
import pytest
import torch

from adamwprune.config import Precision
from adamwprune.errors import DivergedError, Preempted
from adamwprune.training import build as build_module
from adamwprune.training import run as run_module
from adamwprune.training.precision import Autocast, choose
from adamwprune.training.run import train
from tests.helpers.runs import BUSY, IMAGES, TOKENS, final_state, rows, run, start, summary

PRUNED = ("pruning=state", "pruning.update_every=2", "trainer.log_every=1")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_bf16_follows_fp32(tmp_path):
    """Autocast on the CPU: losses within 2 % over 12 steps, parameters and states in float32."""
    shared = (*IMAGES, *PRUNED, "trainer.max_steps=12")
    fp32 = [row["train/loss"] for row in rows(run(tmp_path / "fp32", *shared))]
    bf16 = [row["train/loss"] for row in rows(run(tmp_path / "bf16", *shared, "hardware.precision=bf16"))]
    assert fp32 != bf16
    np.testing.assert_allclose(bf16, fp32, rtol=2e-2)


def test_auto_is_fp32_where_bf16_is_not_known_to_be_fast():
    """A CPU without matrix units is slower in bf16: auto does not choose it; a given format stands."""
    assert choose(Precision.auto, "cpu") is Precision.fp32
    assert choose(Precision.bf16, "cpu") is Precision.bf16


def scaled(monkeypatch, scale):
    """Runs from here on scale their loss by `scale`, as fp16 does."""
    real = build_module.Autocast

    class Scaled(real):
        def __init__(self, precision, device_type):
            super().__init__(precision, device_type)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)

    monkeypatch.setattr(build_module, "Autocast", Scaled)


def overflowing(monkeypatch, *batches):
    """In runs from here on the gradients of these batches (1, 2, ...) overflow."""
    scaled(monkeypatch, 2.0**10)
    real = run_module.build_training

    def build(config, ranks):
        training = real(config, ranks)
        load, seen = training.batches.load, []

        def counted(step, indices):
            seen.append(step)
            return load(step, indices)

        training.batches.load = counted
        weight = next(p for p in training.model.parameters() if p.ndim >= 2)
        weight.register_hook(lambda grad: grad * torch.inf if seen[-1] + 1 in batches else grad)
        return training

    monkeypatch.setattr(run_module, "build_training", build)


def test_an_overflow_step_does_not_count(tmp_path, monkeypatch):
    """Batches 3 and 7 overflow: 10 steps are done with 12 batches, the scale fell, masks are met."""
    overflowing(monkeypatch, 3, 7)
    directory = run(tmp_path / "run", *IMAGES, *PRUNED, "trainer.max_steps=10")
    state = final_state(directory)
    assert (state["skipped"], state["scaler"]["scale"]) == (2, 2.0**8)
    assert summary(directory)["steps"] == 10
    assert [row["step"] for row in rows(directory)] == list(range(1, 11))
    assert summary(directory)["sparsity"]["reached"]
    assert state["optimizer"]["state"][0]["step"] == 10


def test_an_overflow_in_pruned_gradients_alone_does_not_count_either(tmp_path, monkeypatch):
    """Masking would hide the overflow that the scaler has seen: the check comes first."""
    scaled(monkeypatch, 2.0**10)
    real = run_module.build_training
    moved = []

    def build(config, ranks):
        training = real(config, ranks)
        weight, mask = training.model.fc1.weight, training.pruner.masks["fc1.weight"]
        calls = []

        def poison(gradient):
            calls.append(weight.detach().clone())
            if len(calls) in (8, 9):
                assert not mask.all()  # some weights are pruned by now
                gradient = gradient.masked_fill(~mask, torch.inf)
            moved.append(len(calls) < 2 or not torch.equal(calls[-1], calls[-2]))
            return gradient

        weight.register_hook(poison)
        return training

    monkeypatch.setattr(run_module, "build_training", build)
    directory = run(tmp_path / "run", *IMAGES, *PRUNED, "trainer.max_steps=10")
    assert final_state(directory)["skipped"] == 2
    assert [number for number, has in enumerate(moved, 1) if not has] == [9, 10]
    assert summary(directory)["steps"] == 10


def test_a_nan_in_a_pruned_gradient_stops_a_run_without_scaling(tmp_path, monkeypatch):
    """A NaN is never masked away."""
    real = run_module.build_training

    def build(config, ranks):
        training = real(config, ranks)
        mask = training.pruner.masks["fc1.weight"]
        training.model.fc1.weight.register_hook(
            lambda gradient: gradient if mask.all() else gradient.masked_fill(~mask, torch.nan)
        )
        return training

    monkeypatch.setattr(run_module, "build_training", build)
    config, directory = start(tmp_path / "run", *IMAGES, *PRUNED, "trainer.max_steps=10")
    with pytest.raises(DivergedError, match=r"first bad layer fc1.weight"):
        train(config, directory)
    assert summary(directory)["exit_code"] == 7


def test_scaling_by_a_power_of_two_changes_no_bit(tmp_path, monkeypatch):
    """Unscaled gradients are those of a run without scaling."""
    shared = (*IMAGES, *PRUNED, "trainer.max_steps=10")
    plain = run(tmp_path / "plain", *shared)
    scaled(monkeypatch, 2.0**10)
    assert rows(run(tmp_path / "scaled", *shared)) == rows(plain)


def test_a_run_with_overflows_resumes_to_the_bit(tmp_path, monkeypatch):
    """The position in the data counts the batch that was passed over."""
    overflowing(monkeypatch, 4, 11)
    shared = (*TOKENS, *BUSY, *PRUNED[:2], "trainer.max_steps=16")
    unbroken = run(tmp_path / "unbroken", *shared)
    config, directory = start(tmp_path / "stopped", *shared, "trainer.stop_step=9")
    with pytest.raises(Preempted):
        train(config, directory)
    config.trainer.stop_step = None
    train(config, directory)
    assert rows(directory) == rows(unbroken)


def test_a_nan_that_no_scale_cures_ends_the_run(tmp_path, monkeypatch):
    """Control: skipping is bounded; at a scale below 1 the run has diverged."""
    scaled(monkeypatch, 4.0)
    real = run_module.build_training

    def poisoned(config, ranks):
        training = real(config, ranks)
        training.model.fc1.register_forward_hook(lambda *_: _[2] * float("nan"))
        return training

    monkeypatch.setattr(run_module, "build_training", poisoned)
    config, directory = start(tmp_path / "run", *IMAGES, "trainer.max_steps=10")
    with pytest.raises(DivergedError, match="step 1"):
        train(config, directory)
    assert summary(directory)["steps"] == 0


def test_the_scaler_is_off_without_fp16():
    """fp32 and bf16 scale nothing."""
    assert not Autocast(Precision.fp32, "cpu").scaler.is_enabled()
    assert not Autocast(Precision.bf16, "cpu").scaler.is_enabled()


@pytest.mark.slow
@pytest.mark.parametrize("parts", [IMAGES, TOKENS], ids=["lenet5", "gpt2-nano"])
def test_compiled_follows_eager(tmp_path, parts):
    """Fused kernels add in another order: losses within 1e-4 over 8 steps; same masks and counts."""
    dropout = ("model.dropout=0.0",) if parts is TOKENS else ()
    shared = (*parts, *dropout, *PRUNED, "trainer.max_steps=8")
    eager, compiled = (
        run(tmp_path / "eager", *shared),
        run(tmp_path / "compiled", *shared, "hardware.compile=true"),
    )
    losses = [[row["train/loss"] for row in rows(directory)] for directory in (eager, compiled)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert summary(compiled)["sparsity"] == summary(eager)["sparsity"]
