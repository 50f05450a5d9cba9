"""The comparison of stores: equal to the bit, and each kind of difference named."""

import math

from hypothesis import given
from hypothesis import strategies as st

from adamwprune.trackers.parity import compare, is_same, series

VALUES = st.one_of(st.floats(), st.integers(), st.text(max_size=3), st.none(), st.booleans())
SERIES = st.dictionaries(st.tuples(st.integers(0, 9), st.sampled_from(["a", "b/c", "d"])), VALUES)


@given(SERIES)
def test_a_store_equals_itself(truth) -> None:
    """NaN too; and the line says how much was compared."""
    parity = compare(truth, dict(truth))
    assert parity.is_equal
    assert str(parity).startswith(f"{len(truth)} values at {len({step for step, _ in truth})} steps")


@given(SERIES.filter(bool), st.data())
def test_each_difference_is_counted_and_the_first_is_named(truth, data) -> None:
    """One value taken away, one added, one changed by the smallest step of a double."""
    at = data.draw(st.sampled_from(sorted(truth)))
    without = {key: value for key, value in truth.items() if key != at}
    missing = compare(truth, without)
    assert (missing.missing, missing.extra, missing.different) == (1, 0, 0)
    assert f"step {at[0]} {at[1]}:" in str(missing)
    extra = compare(without, truth)
    assert (extra.missing, extra.extra, extra.different) == (0, 1, 0)
    changed = compare({**truth, at: 1.0}, {**truth, at: math.nextafter(1.0, 2.0)})
    assert (changed.missing, changed.extra, changed.different) == (0, 0, 1)
    assert [missing.is_equal, extra.is_equal, changed.is_equal] == [False] * 3


def test_what_counts_as_the_same() -> None:
    """NaN is NaN, 1 is 1.0; neither is a text, and the infinities differ."""
    assert is_same(math.nan, math.nan)
    assert is_same(1, 1.0)
    assert not is_same(math.nan, "NaN")
    assert not is_same(math.inf, -math.inf)
    assert not is_same(0.1, None)


def test_rows_of_one_step_merge_and_finals_are_no_series() -> None:
    """As W&B merges them; the row that ends a run in Trackio is left out."""
    rows = [(1, {"a": 1.0, "b": 2.0}), (1, {"a": 3.0}), (1, {"final/a": 9.0, "run/exit_code": 0})]
    assert series(rows) == {(1, "a"): 3.0, (1, "b"): 2.0}
