"""Parts put together, and the largest micro batch."""

import dataclasses

import pytest
import torch

from adamwprune.config import Precision, TrainerConfig
from adamwprune.errors import ConfigError
from adamwprune.fit.forecast import forecast
from adamwprune.fit.memory import Predictor, divisors, workload
from adamwprune.fit.speed import budget_steps
from tests.helpers.runs import configure

# A GPT-2 that is traced within a tenth of a second.
GPT2 = (
    "model=gpt2-nano",
    "data=synthetic_tokens",
    "model.n_layer=1",
    "trainer.global_batch_size=64",
    "hardware.micro_batch_size=4",
)


def predictor_of(*overrides):
    return Predictor(workload(configure(*GPT2, *overrides)))


@pytest.fixture(scope="module")
def predictor():
    return predictor_of("hardware=a10g")


def test_the_largest_micro_batch_fits_and_the_next_does_not(predictor):
    """By bisection; the same as trying all."""
    sizes = divisors(64)
    totals = {size: predictor.at(size).total for size in sizes}
    for limit in (totals[1] - 1, totals[1], totals[8] + 5, totals[64]):
        fitting = [size for size in sizes if totals[size] <= limit]
        assert predictor.largest(sizes, limit) == (fitting[-1] if fitting else None)
    assert list(totals.values()) == sorted(totals.values())


@pytest.mark.slow
def test_several_devices_keep_gradients_and_have_buffers(predictor):
    """DDP's buckets stay between steps, so a single micro batch finds gradients there too."""
    one, four = predictor.at(16, 1), predictor_of("hardware=a10gx4").at(16, 1)
    assert four.parts["communication"] > 0
    assert "communication" not in one.parts
    assert four.parts["gradients"] > one.parts.get("gradients", 0)
    assert four.parts["optimizer"] == one.parts["optimizer"]


@pytest.mark.slow
def test_fsdp_divides_what_is_kept_and_not_what_passes(predictor):
    """Weights, gradients, optimizer by the number of devices; activations are each device's own."""
    spread = predictor_of("hardware=a10gx4", "hardware.parallel=fsdp").at(16, 4).parts
    whole = predictor.at(16, 4).parts
    for part in ("weights", "gradients", "optimizer"):
        assert spread[part] == whole[part] // 4
    assert spread["activations"] == whole["activations"]
    assert 0 < spread["gathered"] <= 3 * whole["weights"]


@pytest.mark.slow
def test_precision_pruning_and_averages_show(predictor):
    """Each key that costs memory has its part, or a larger one."""
    half, full = predictor.at(16).parts, predictor_of("hardware=a10g", "hardware.precision=fp32").at(16).parts
    assert half["activations"] < full["activations"]
    pruned = predictor_of("hardware=a10g", "pruning=movement", "trainer.ema_decay=0.999")
    assert pruned.at(16).parts["pruning"] == 5 * pruned.prunable
    assert pruned.at(16).parts["average"] == half["weights"]


@pytest.mark.slow
def test_auto_on_another_machine_is_what_a_gpu_of_today_has():
    """`hardware=gpu` is asked on a machine without one."""
    load = workload(configure(*GPT2, "hardware=gpu"))
    assert load.on_gpu
    assert load.precision is (Precision.bf16 if not torch.cuda.is_available() else load.precision)
    assert workload(configure(*GPT2, "hardware=cpu", "hardware.precision=auto")).precision is Precision.fp32


def test_data_that_do_not_say_what_a_sample_is_are_refused():
    """No data are read, so their options have to tell."""
    config = configure(*GPT2)
    config = dataclasses.replace(config, data={"_target_": "mine.words"})
    with pytest.raises(ConfigError, match=r"data._target_=mine.words: .*block_size.*image_size"):
        workload(config)


@pytest.mark.slow
def test_a_model_that_cannot_be_followed_is_named():
    """With what to do instead."""
    predictor = predictor_of()
    predictor.load = dataclasses.replace(predictor.load, shape=(4096,))  # longer than the model takes
    with pytest.raises(ConfigError, match=r"model._target_=.*GPT2: cannot be followed .*measure its memory"):
        predictor.at(1)


@pytest.mark.slow
def test_speed_is_the_assumed_share_of_the_peak_and_hours_follow():
    """Tokens a second x FLOPs a token = 40 % of four peaks; the run is as long as its tokens."""
    fast = ("hardware=a10gx4", "hardware.memory_bandwidth=1e15", "trainer.max_tokens=1_000_000_000")
    config = configure(*GPT2, *fast)
    found = forecast(config, 0.4)
    flops = found.speed.units_per_second * Predictor(workload(config)).model.flops_per_token()
    assert found.speed.bound == "arithmetic"
    assert flops == pytest.approx(0.4 * 4 * 70e12)
    assert found.steps == 1_000_000_000 // (64 * 64)
    assert found.hours == pytest.approx(found.steps * 64 * 64 / found.speed.units_per_second / 3600)
    slower = forecast(dataclasses.replace(config, hardware=_with(config.hardware, memory_bandwidth=1e9)), 0.4)
    assert slower.speed.bound == "memory"
    assert slower.speed.units_per_second < found.speed.units_per_second
    assert (
        forecast(dataclasses.replace(config, hardware=_with(config.hardware, peak_flops=None)), 0.4).speed
        is None
    )


def _with(hardware, **changes):
    return dataclasses.replace(hardware, **changes)


def test_budgets():
    """Steps are given, or follow from tokens; epochs depend on data that are not read."""
    assert budget_steps(TrainerConfig(max_steps=7), 1, "tokens") == 7
    tokens = TrainerConfig(global_batch_size=64, max_tokens=100_000)
    assert budget_steps(tokens, 64, "tokens") == 100_000 // (64 * 64)
    assert budget_steps(TrainerConfig(max_epochs=3.0), 1, "images") is None
    with pytest.raises(ConfigError, match=r"trainer.max_tokens=100000: less than one step, 131,072 tokens"):
        budget_steps(tokens, 2048, "tokens")
    with pytest.raises(ConfigError, match=r"trainer.max_tokens=100000: the data have no tokens"):
        budget_steps(tokens, 1, "images")
