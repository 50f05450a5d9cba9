"""Batch arithmetic and names in the configuration."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from adamwprune import resolvers


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 64))
def test_accumulation_times_micro_times_devices_is_the_global_batch(micro, devices, accum):
    """The identity that the ancestor broke by dividing twice."""
    assert resolvers.grad_accum_steps(micro * devices * accum, micro, devices) == accum


@given(st.integers(1, 512), st.integers(1, 8), st.integers(1, 256))
def test_micro_batch_is_the_largest_that_fits(share, devices, most):
    """It divides the device's share, is at most `most`, and nothing larger does."""
    size = resolvers.micro_batch_size(share * devices, devices, most)
    assert share % size == 0
    assert size <= most
    assert not any(share % larger == 0 for larger in range(size + 1, min(most, share) + 1))


@pytest.mark.parametrize("arguments", [(10, 3, 1), (8, 16, 1), (8, 2, 8)])
def test_indivisible_batches_are_refused_with_the_numbers(arguments):
    """An indivisible batch is an error that names the numbers and the nearest that work."""
    with pytest.raises(ValueError, match=rf"global_batch_size={arguments[0]} is not a multiple.*nearest"):
        resolvers.grad_accum_steps(*arguments)


@pytest.mark.parametrize(
    ("resolver", "arguments", "message"),
    [
        ("grad_accum_steps", (64, 0, 1), "hardware.micro_batch_size=0: must be >= 1"),
        ("grad_accum_steps", (64, -4, -2), "hardware.micro_batch_size=-4: must be >= 1"),
        ("grad_accum_steps", (64, 8, 0), "hardware.num_devices=0: must be >= 1"),
        ("micro_batch_size", (64, 0, 8), "hardware.num_devices=0: must be >= 1"),
        ("micro_batch_size", (64, 2, 0), "recipe.micro_batch_size=0: must be >= 1"),
        ("micro_batch_size", (0, 2, 8), "trainer.global_batch_size=0: must be >= 1"),
    ],
)
def test_zero_is_refused_in_words_not_by_a_division(resolver, arguments, message):
    """Resolvers run before ranges are checked: they name the key and what is allowed."""
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(resolvers, resolver)(*arguments)


def test_resolvers_work_through_omegaconf_and_agree_within_a_process():
    """Two compositions of one launch see one time and one checksum."""
    resolvers.register_resolvers()
    text = "${run_stamp:name} ${project_checksum:} ${grad_accum_steps:8,2,2} ${micro_batch_size:8,2,3}"
    first, second = (OmegaConf.create({"x": text}).x for _ in range(2))
    assert first == second
    assert first.endswith(" 2 2")
    assert len(first.split()[1]) == 5
