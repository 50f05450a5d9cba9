"""Exit code 8: the line has the numbers, and what to type."""

import re

import pytest
import torch

from adamwprune.errors import OutOfMemoryError
from adamwprune.fit import out_of_memory
from adamwprune.models.lenet import LeNet5
from adamwprune.training.run import train
from tests.helpers.runs import IMAGES, configure, start, summary

CPU = torch.device("cpu")
TOO_LARGE = (
    "model=gpt2-nano",
    "data=synthetic_tokens",
    "model.n_layer=1",
    "trainer.global_batch_size=64",
    "hardware=a10g",
)


def test_a_step_that_does_not_fit_ends_with_the_numbers(tmp_path, monkeypatch):
    """The model's first forward pass finds no memory: 8, parts in GiB, and the micro batch to type."""

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(LeNet5, "forward", full)
    overrides = (*IMAGES, "trainer.max_steps=4", "hardware.memory_gb=0.001", "hardware.num_workers=0")
    config, directory = start(tmp_path / "run", *overrides)
    with pytest.raises(OutOfMemoryError) as caught:
        train(config, directory)
    line = str(caught.value)
    assert caught.value.exit_code == summary(directory)["exit_code"] == 8
    assert "\n" not in line
    assert line.startswith(
        "hardware.micro_batch_size=16: does not fit into the memory of cpu (CUDA out of memory. Tried to "
        "allocate 2.00 GiB)"
    )


def test_the_line_names_parts_memory_and_the_largest_that_fits():
    """And that one does fit, by the prediction."""
    config = configure(*TOO_LARGE, "hardware.micro_batch_size=64", "hardware.memory_gb=0.97")
    line = out_of_memory.explanation(config, CPU, "CUDA out of memory")
    numbers = re.search(r"predicted ([\d.]+) of 0.90 GiB \((.*)\); 85% of it hold (\d+): try (.*)$", line)
    assert numbers
    parts = [float(part.rpartition(" ")[2]) for part in numbers[2].split(", ")]
    assert sum(parts) == pytest.approx(float(numbers[1]), abs=0.05)
    assert parts == sorted(parts, reverse=True)
    assert numbers[4] == f"hardware.micro_batch_size={numbers[3]}"
    smaller = configure(*TOO_LARGE, numbers[4], "hardware.memory_gb=0.97")
    assert "which should fit" in out_of_memory.explanation(smaller, CPU, "")


@pytest.mark.slow
def test_where_it_should_have_fitted_the_next_smaller_is_advised():
    """Something else takes the memory: half as much, if the batch can be divided so."""
    config = configure(*TOO_LARGE, "trainer.global_batch_size=48", "hardware.micro_batch_size=16")
    line = out_of_memory.explanation(config, CPU, "full")
    assert "something else may use the device; try hardware.micro_batch_size=8" in line


@pytest.mark.slow
def test_where_nothing_fits_other_ways_are_named():
    """On one device: activation checkpointing, or a larger one."""
    config = configure(*TOO_LARGE, "hardware.memory_gb=0.1")
    line = out_of_memory.explanation(config, CPU, "full")
    assert line.endswith("try model.activation_checkpointing=true or a larger device")
    several = configure(*TOO_LARGE, "hardware.memory_gb=0.1", "hardware.num_devices=2")
    assert "try hardware.parallel=fsdp or" in out_of_memory.explanation(several, CPU, "full")


@pytest.mark.slow
def test_a_model_that_cannot_be_followed_still_gets_advice(monkeypatch):
    """The explanation of one error must not be another."""
    monkeypatch.setattr(out_of_memory, "_prediction", _fails)
    config = configure(*TOO_LARGE, "hardware.micro_batch_size=16")
    assert out_of_memory.explanation(config, CPU, "full").endswith("try hardware.micro_batch_size=8")


def _fails(*_):
    raise RuntimeError("data-dependent")
