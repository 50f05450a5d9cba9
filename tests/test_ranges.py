"""Numbers with a range."""

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamwprune.errors import ConfigError
from adamwprune.ranges import (
    Fraction,
    NonNegative,
    Positive,
    PositiveInt,
    Range,
    Seed,
    UnitInterval,
    hint,
    violation,
)


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


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({}, "finite"),
        ({"above": 0}, "> 0 and finite"),
        ({"least": 0}, ">= 0 and finite"),
        ({"most": 1}, "<= 1 and finite"),
        ({"below": 1}, "< 1 and finite"),
        ({"least": 0, "below": 1}, "in [0, 1)"),
        ({"above": 0, "most": 1}, "in (0, 1]"),
        ({"above": 0, "below": 0.5}, "in (0, 0.5)"),
        ({"least": 1, "most": 2**53}, "from 1 to 2^53"),
    ],
)
def test_the_words_of_a_range_name_both_bounds(bounds, words):
    """What is allowed is said whole: an upper bound is not lost."""
    assert str(Range(**bounds)) == words


def test_a_value_of_another_type_is_told_type_and_range():
    """One line is enough to mend it."""
    assert violation(PositiveInt, "x") == "must be an integer from 1 to 2^53"
    assert violation(Positive, None) == "must be a number > 0 and finite"


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (Fraction, 90, "; did you mean 0.9?"),
        (Fraction | None, "90%", "; did you mean 0.9?"),
        (Fraction, 1.5, ""),
        (Fraction, "150%", ""),
        (UnitInterval, True, ""),
        (PositiveInt, 1e9, "; write 1000000000"),
        (PositiveInt, 2.5, ""),
    ],
)
def test_a_hint_is_given_only_where_it_fits(annotation, value, words):
    """Percent and whole floats are meant otherwise; whatever is hinted would be taken."""
    assert hint(annotation, value) == words


@given(st.text())
def test_a_problem_is_one_printable_line(text):
    """Whatever was typed or read: no second line, no control character, no lone surrogate."""
    (problem,) = ConfigError(text).problems
    assert problem.isprintable()
    assert text != problem or text.isprintable()
