"""The record of an update against sets of places, and the rows made of it."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter

from adamwprune.pruning.mask_update import record, snapshot
from adamwprune.pruning.masks import Masks
from adamwprune.pruning.sharding import ALONE
from tests.helpers.properties import tried

FACTS = {
    "step": 7,
    "planned": 0.5,
    "layer_unseen": {"a": 3, "b": 4},
    "counts": {"nonzero": 11},
    "thresholds": {"a": 0.25},
    "milliseconds": 1.5,
}


def recorded(shapes, before, after, reference):
    """The record of masks that were `before` and are `after`; each a list of tensors."""
    parameters = {name: Parameter(torch.ones(shape)) for name, shape in zip("ab", shapes, strict=True)}
    masks = Masks(parameters)
    for name, mask in zip("ab", before, strict=True):
        masks[name].copy_(mask)
    earlier = snapshot(masks, parameters)
    for name, mask in zip("ab", after, strict=True):
        masks[name].copy_(mask)
    chosen = None if reference is None else dict(zip("ab", reference, strict=True))
    return record(parameters, masks, earlier, chosen, ALONE, comparing=0.001, **FACTS)


def places(masks):
    """Of pruned entries: (tensor, flat index)."""
    return {
        (i, place) for i, mask in enumerate(masks) for place in (~mask).flatten().nonzero().flatten().tolist()
    }


def share(part, total):
    return len(part) / len(total) if total else math.nan


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)),
    st.integers(0, 999),
    st.floats(0.1, 0.9),
    st.booleans(),
)
@tried(20)
def test_a_record_counts_what_sets_of_places_count(linear, conv, seed, density, has_reference):
    generator = torch.Generator().manual_seed(seed)
    shapes = (linear, conv)
    before, after, chosen = (
        [torch.rand(shape, generator=generator) < density for shape in shapes] for _ in range(3)
    )
    update = recorded(shapes, before, after, chosen if has_reference else None)
    was, now, other = places(before), places(after), places(chosen if has_reference else after)
    total = math.prod(linear) + math.prod(conv)
    assert (update.pruned, update.newly_pruned, update.regrown) == (len(now), len(now - was), len(was - now))
    assert update.sparsity == len(now) / total
    assert update.churn == len(now ^ was) / total
    assert update.jaccard_magnitude == pytest.approx(share(now & other, now | other), nan_ok=True)
    new = share((now & other) - was, (now | other) - was)
    assert update.jaccard_magnitude_new == pytest.approx(new, nan_ok=True)
    dead_rows = [sum(not row.any() for row in mask) for mask in after]
    dead_columns = [sum(not column.any() for column in mask.transpose(0, 1)) for mask in after]
    assert update.layer_dead_rows == dict(zip("ab", dead_rows, strict=True))
    assert update.layer_dead_columns == dict(zip("ab", dead_columns, strict=True))
    assert (update.dead_rows, update.dead_columns) == (sum(dead_rows), sum(dead_columns))
    sparsities = [sum(i == of for i, _ in now) / math.prod(shape) for of, shape in enumerate(shapes)]
    assert update.layer_sparsity == dict(zip("ab", sparsities, strict=True))
    assert update.record_milliseconds >= 1.0
    assert dataclasses.asdict(update).items() >= FACTS.items()


def test_rows_and_events_have_the_documented_names():
    """Of trackers and of mask_updates.jsonl; what is measured is marked as perf/."""
    shapes = [(2, 2), (1, 1, 1, 1)]
    all_live = [torch.ones(shape, dtype=torch.bool) for shape in shapes]
    pruned = [torch.tensor([[True, False], [False, False]]), torch.ones(1, 1, 1, 1, dtype=torch.bool)]
    update = recorded(shapes, all_live, pruned, all_live)
    assert update.unseen == 7
    row = update.row()
    assert {key: value for key, value in row.items() if not key.startswith("perf/")} == {
        "prune/pruned": 3,
        "prune/nonzero": 11,
        "prune/newly_pruned": 3,
        "prune/regrown": 0,
        "prune/churn": 0.6,
        "prune/jaccard_magnitude": 0.0,
        "prune/jaccard_magnitude_new": 0.0,
        "prune/unseen": 7,
        "prune/dead_rows": 1,
        "prune/dead_columns": 1,
        "sparsity/a": 0.75,
        "sparsity/b": 0.0,
    }
    assert row["perf/mask_update_ms"] == 1.5
    event = update.event()
    own = {field.name for field in dataclasses.fields(update)}
    assert event.keys() == own - {"step", "milliseconds", "record_milliseconds"} | {
        "unseen",
        "perf/milliseconds",
        "perf/record_milliseconds",
    }
    assert (event["unseen"], event["perf/milliseconds"]) == (7, 1.5)
    assert event["perf/record_milliseconds"] == update.record_milliseconds


def test_shares_of_nothing_are_not_numbers():
    live = [torch.ones(2, 2, dtype=torch.bool), torch.ones(1, 1, 1, 1, dtype=torch.bool)]
    update = recorded([(2, 2), (1, 1, 1, 1)], live, live, live)
    for value in (update.jaccard_magnitude, update.jaccard_magnitude_new):
        assert math.isnan(value)
    assert not any(itertools.chain(update.layer_dead_rows.values(), update.layer_dead_columns.values()))
