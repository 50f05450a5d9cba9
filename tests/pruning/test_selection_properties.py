"""Which weights go: what holds for any scores, number format, scope and count.

The oracle sorts tuples (pruned before, score, tensor, place) with Python's own stable sort.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from adamwprune.errors import ConfigError
from adamwprune.pruning.masks import hash_of, pack, unpack
from adamwprune.pruning.scopes.block import block
from adamwprune.pruning.scopes.erk import erk
from adamwprune.pruning.scopes.global_ import global_
from adamwprune.pruning.scopes.layerwise import layerwise
from adamwprune.pruning.scopes.nm import nm
from adamwprune.pruning.scopes.row import row
from adamwprune.pruning.scopes.segments import most_pruned, pruned_count
from adamwprune.pruning.scoring import GrowthScores, TensorScores
from adamwprune.pruning.selection.on_device import on_device
from adamwprune.pruning.selection.sorting import sorting
from adamwprune.pruning.selection.streaming import streaming
from adamwprune.pruning.sharding import ALONE
from tests.helpers.properties import tried
from tests.pruning.test_selection import small_chunks

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Ties, zeros of both signs, infinities, the ends of the denormal and of the normal numbers.
SPECIAL = [0.0, -0.0, 0.5, -0.5, math.inf, -math.inf, 1e-45, -1e-45, 1.1754942e-38, 3.4e38, 1e300]
SCORES = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32, allow_nan=False))
SELECTIONS = st.sampled_from([streaming, sorting, on_device])


def as_they_are(weight):
    """A criterion whose scores are the weights."""
    return weight


@dataclass
class Problem:
    """Some tensors with their masks, and how many of all are to be pruned."""

    weights: list[Tensor]
    masks: list[Tensor]
    count: int

    @property
    def scores(self) -> list[float]:
        """Of all tensors in a row, in float32 as criteria get them."""
        return torch.cat([weight.float().flatten() for weight in self.weights]).tolist()

    @property
    def live(self) -> list[bool]:
        """Before the selection, in the same order."""
        return torch.cat([mask.flatten() for mask in self.masks]).tolist()

    def after(self, select, count=None, masks=None) -> list[bool]:
        """What lives after a selection; the masks stay as they are."""
        masks = [mask.clone() for mask in (masks or self.masks)]
        tensors = [
            TensorScores(f"layer{i}", mask, as_they_are, {"weight": weight})
            for i, (weight, mask) in enumerate(zip(self.weights, masks, strict=True))
        ]
        float(select(tensors, self.count if count is None else count, ALONE))
        return torch.cat([mask.flatten() for mask in masks]).tolist()


@st.composite
def problems(draw, distinct=False):
    """One to three tensors of up to 60 entries; some of them pruned before."""
    dtype = torch.float32 if distinct else draw(st.sampled_from(DTYPES))
    weights, masks = [], []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.integers(1, 60))
        weights.append(
            torch.tensor(draw(st.lists(SCORES, min_size=size, max_size=size)), dtype=torch.float64)
        )
        masks.append(torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size))))
    if distinct:  # places in an order: no two are equal
        ranks = torch.randperm(sum(w.numel() for w in weights), generator=torch.Generator().manual_seed(0))
        weights = list(ranks.double().split([w.numel() for w in weights]))
    pruned = sum(int((~mask).sum()) for mask in masks)
    total = sum(mask.numel() for mask in masks)
    count = draw(st.integers(max(1, pruned), total))
    return Problem([weight.to(dtype) for weight in weights], masks, count)


def by_sorting_tuples(problem: Problem) -> list[bool]:
    """What lives when the `count` first of (pruned before, score, tensor, place) have gone."""
    ranked = sorted(
        (is_live, score if is_live else 0.0, place)
        for place, (is_live, score) in enumerate(zip(problem.live, problem.scores, strict=True))
    )
    result = [True] * len(ranked)
    for _, _, place in ranked[: problem.count]:
        result[place] = False
    return result


@given(problems(), SELECTIONS, st.sampled_from([(16, 0), (16, 4), (1 << 18, 1 << 14)]))
@tried(25)
def test_exactly_so_many_go_the_lowest_first_and_equal_ones_by_their_place(problem, select, sizes):
    with small_chunks(*sizes):
        after = problem.after(select)
    scores, live = problem.scores, problem.live
    assert after.count(False) == problem.count
    assert not any(lives and not lived for lives, lived in zip(after, live, strict=True))
    gone = [(score, i) for i, score in enumerate(scores) if live[i] and not after[i]]
    left = [(score, i) for i, score in enumerate(scores) if after[i]]
    if gone and left:
        assert max(gone) < min(left)  # by score, and by place among equal scores
    assert after == by_sorting_tuples(problem)


@given(problems(), SELECTIONS, st.data())
@tried(15)
def test_masks_are_nested_as_more_is_pruned_and_do_not_depend_on_the_steps_between(problem, select, data):
    """A ramp ends where one update to its last sparsity would."""
    pruned = problem.live.count(False)
    between = data.draw(st.integers(max(1, pruned), problem.count))
    sooner, later = problem.after(select, between), problem.after(select)
    assert not any(lives and not lived for lives, lived in zip(later, sooner, strict=True))
    parts = torch.tensor(sooner).split([mask.numel() for mask in problem.masks])
    assert problem.after(select, masks=list(parts)) == later


@given(problems(distinct=True), SELECTIONS, st.randoms(use_true_random=False))
@tried(15)
def test_places_decide_nothing_but_ties(problem, select, random):
    """Permuted entries of a tensor, and permuted tensors, get permuted masks."""
    after = torch.tensor(problem.after(select)).split([mask.numel() for mask in problem.masks])
    orders = [torch.tensor(random.sample(range(m.numel()), m.numel())) for m in problem.masks]
    tensors = random.sample(range(len(orders)), len(orders))
    moved = Problem(
        [problem.weights[i][orders[i]] for i in tensors],
        [problem.masks[i][orders[i]] for i in tensors],
        problem.count,
    )
    assert moved.after(select) == torch.cat([after[i][orders[i]] for i in tensors]).tolist()


@given(problems(), SELECTIONS, st.integers(-3, 3))
@tried(15)
def test_only_the_order_of_scores_counts(problem, select, exponent):
    """Scores times a power of two that neither overflows nor underflows: the same order, the same masks."""
    weights = [
        torch.where((w == 0) | w.isinf(), w, w.sign() * w.abs().clamp(1e-3, 1e3)) for w in problem.weights
    ]
    scores = Problem(weights, problem.masks, problem.count)
    scaled = Problem([w * 2.0**exponent for w in weights], problem.masks, problem.count)
    assert scaled.after(select) == scores.after(select)


@given(problems(), SELECTIONS, st.data())
@tried(15)
def test_the_highest_of_the_pruned_come_back(problem, select, data):
    """And none of the live go: as many are left pruned as asked for."""
    pruned = problem.live.count(False)
    assume(pruned > 1)
    left = data.draw(st.integers(1, pruned))
    masks = [mask.clone() for mask in problem.masks]
    tensors = [
        GrowthScores(f"layer{i}", mask, as_they_are, {"weight": weight})
        for i, (weight, mask) in enumerate(zip(problem.weights, masks, strict=True))
    ]
    # Scores are read while masks are written: each selection has to read a part before it writes it.
    float(select(tensors, left, ALONE))
    after = torch.cat([mask.flatten() for mask in masks]).tolist()
    highest = torch.finfo(torch.float32).max
    ranked = sorted(
        (min(max(score, -highest), highest), place)  # growth is finite
        for place, (is_live, score) in enumerate(zip(problem.live, problem.scores, strict=True))
        if not is_live
    )
    assert [place for place, lives in enumerate(after) if not lives] == sorted(i for _, i in ranked[:left])


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([(1, 2), (2, 4), (4, 8)]), st.data())
@tried(25)
def test_n_of_every_m_are_kept_and_they_are_the_highest(rows, groups, n_of_m, data):
    n, m = n_of_m
    size = rows * groups * m
    values = data.draw(st.lists(SCORES, min_size=size, max_size=size))
    weight = torch.tensor(values, dtype=torch.float32).view(rows, groups * m)
    mask = torch.ones_like(weight, dtype=torch.bool)
    scores = [TensorScores("layer0", mask, as_they_are, {"weight": weight})]
    (segment,) = nm([weight.shape], (m - n) / m, n=n, m=m)
    float(segment.prune_(scores, streaming, ALONE))
    for group, kept in zip(weight.view(-1, m).tolist(), mask.view(-1, m).tolist(), strict=True):
        by_score = sorted(range(m), key=lambda i: (group[i] + 0.0, i))
        assert [i for i in range(m) if not kept[i]] == sorted(by_score[: m - n])


# ------------------------------------------------------------------------------------------- counts

SHAPES = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=6,
)
SPARSITIES = st.one_of(st.sampled_from([0.0, 0.5, 0.9]), st.floats(0, 1, exclude_max=True))


@given(SHAPES, SPARSITIES, st.sampled_from([None, 0.5, 0.9, 1.0]))
@tried(25)
def test_what_each_tensor_loses_adds_up(shapes, sparsity, cap):
    """Layerwise within half a weight of each share; erk and global to the weight of the total."""
    sizes = [math.prod(shape) for shape in shapes]
    total = pruned_count(sum(sizes), sparsity)
    for segment, size in zip(layerwise(shapes, sparsity), sizes, strict=True):
        assert abs(segment.planned - sparsity * size) <= 0.5 + 1e-9
    caps = sizes if cap is None else [most_pruned(size, cap) for size in sizes]
    for scope in (erk, global_):
        if sum(caps) < total:
            with pytest.raises(ConfigError, match="max_layer_sparsity"):
                scope(shapes, sparsity, max_layer_sparsity=cap)
            continue
        segments = scope(shapes, sparsity, max_layer_sparsity=cap)
        assert sum(segment.planned for segment in segments) == total
        assert sorted(i for segment in segments for i in segment.tensors) == list(range(len(shapes)))
        if scope is erk:
            assert all(0 <= s.planned <= most for s, most in zip(segments, caps, strict=True))


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 4]), SPARSITIES)
@tried(25)
def test_rows_and_blocks_lose_whole_numbers_nearest_to_their_share(rows, columns, side, sparsity):
    shape = (rows * side, columns * side)
    (of_rows,), (of_blocks,) = row([shape], sparsity), block([shape], sparsity, size=side)
    assert of_rows.planned % shape[0] == 0
    assert abs(of_rows.planned / shape[0] - sparsity * shape[1]) <= 0.5 + 1e-9
    assert of_blocks.planned % side**2 == 0
    assert abs(of_blocks.planned / side**2 - sparsity * rows * columns) <= 0.5 + 1e-9


# ------------------------------------------------------------------------------------------ packing


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.data())
@tried(25)
def test_packed_masks_are_the_bits_in_order_and_come_back(shape, data):
    size = math.prod(shape)
    bits = data.draw(st.lists(st.booleans(), min_size=min(size, 200), max_size=min(size, 200)))
    flat = np.resize(np.array(bits, bool), size) if bits else np.zeros(0, bool)
    mask = torch.from_numpy(flat).view(shape)
    packed = pack(mask)
    written = "".join("01"[int(bit)] for bit in flat)
    expected = [int(written[i : i + 8].ljust(8, "0"), 2) for i in range(0, size, 8)]
    assert packed.tolist() == expected
    assert packed.dtype is torch.uint8
    assert torch.equal(unpack(packed, mask.shape), mask)


@given(
    st.dictionaries(st.text(max_size=5), st.binary(min_size=1, max_size=20), min_size=1, max_size=3),
    st.data(),
)
@tried(25)
def test_a_hash_knows_every_bit_and_name_and_no_order(masks, data):
    tensors = {name: torch.frombuffer(bytearray(value), dtype=torch.uint8) for name, value in masks.items()}
    found = hash_of(tensors)
    assert hash_of(dict(reversed(tensors.items()))) == found
    name = data.draw(st.sampled_from(sorted(tensors)))
    place = data.draw(st.integers(0, 8 * tensors[name].numel() - 1))
    flipped = tensors[name].clone()
    flipped[place // 8] ^= 1 << place % 8
    assert hash_of({**tensors, name: flipped}) != found
    renamed = {key if key != name else f"{key}x": value for key, value in tensors.items()}
    assert len(renamed) < len(tensors) or hash_of(renamed) != found
