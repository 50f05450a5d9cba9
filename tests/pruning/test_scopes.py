"""How many weights of which tensors are pruned."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamwprune.pruning.scopes import Segment, global_, layerwise, pruned_count

SHAPES = [(10, 5), (3, 3, 3, 3), (7, 1)]


def test_layerwise_gives_each_tensor_its_own_segment():
    assert layerwise(SHAPES, 0.5) == [Segment((0,), 25), Segment((1,), 41), Segment((2,), 4)]


def test_global_gives_one_segment():
    assert global_(SHAPES, 0.5) == [Segment((0, 1, 2), 69)]


@pytest.mark.parametrize(
    ("size", "sparsity", "count"),
    [(50, 0.5, 25), (5, 0.5, 3), (431080, 0.9, 387972), (7, 0.0, 0), (1, 0.49, 0)],
)
def test_count_is_rounded_half_up(size, sparsity, count):
    assert pruned_count(size, sparsity) == count


@given(st.integers(1, 10**9), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_count_is_within_half_a_weight_and_never_falls(size, a, b):
    low, high = sorted((a, b))
    assert pruned_count(size, low) <= pruned_count(size, high) <= size
    # Half a weight, and the rounding of s * N in float64.
    assert abs(pruned_count(size, a) - a * size) <= 0.5 + 1e-6
