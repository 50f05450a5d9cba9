"""Numbers with a range."""

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamwprune.ranges import Fraction, NonNegative, Positive, PositiveInt, Range, Seed, violation


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (Positive, [1e-9, 1, 1e300], [0, -1, math.inf, math.nan, "1", True, None]),
        (NonNegative, [0, 0.0, 5], [-1e-9, math.nan, math.inf]),
        (Fraction, [0, 0.5, 0.999], [1, 1.0, -0.1, math.nan]),
        (PositiveInt, [1, 2**53], [0, -1, 2.0, 10**20, True, "1"]),
        (Seed, [0, 2**32 - 1], [-1, 2**32]),
        (PositiveInt | None, [None, 3], [0, "x"]),
        (Literal["a", "b"], ["a"], ["c", None]),
        (list[Fraction], [[], [0.5, 0.9]], [[1.0], 0.5]),
        (tuple[Fraction, Fraction], [[0.9, 0.95], (0, 0)], [[0.9], [0.9, 0.9, 0.9], 0.9]),
        (bool, [True, False], [1, "true", None]),
        (str, ["x"], [1, None]),
    ],
)
def test_values_inside_pass_and_outside_are_named(annotation, good, bad):
    """The table of reliability: what each kind of key may hold."""
    assert [violation(annotation, value) for value in good] == [None] * len(good)
    assert all(violation(annotation, value) for value in bad)


@given(st.floats(allow_nan=True), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_membership_is_the_interval(value, low, high):
    """A Range contains exactly what its four bounds say; NaN never."""
    expected = not math.isnan(value) and low < value <= high
    assert (value in Range(above=low, most=high)) == expected
