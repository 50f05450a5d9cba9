"""Selection against an independent stable sort, bit for bit."""

import tracemalloc
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adamwprune.pruning import layout, selection
from adamwprune.pruning.selection import keys_of, prune_lowest_, score_of


@dataclass
class Scored:
    """Scores that exist already, and a mask."""

    scores: np.ndarray
    mask: torch.Tensor

    def read(self, part):
        return self.scores[part]


@contextmanager
def small_chunks(chunk=64, few=4):
    """Makes small tensors take the paths of large ones: many chunks, a sample, recounts."""
    with (
        patch.object(layout, "CHUNK", chunk),
        patch.object(selection, "CHUNK", chunk),
        patch.object(selection, "_FEW", few),
    ):
        yield


def oracle(tensors, count):
    """Masks by a stable sort of all scores in float64; pruned entries come first."""
    scores = np.concatenate([t.scores for t in tensors]).astype(np.float64) + 0.0
    kept = np.concatenate([t.mask.numpy() for t in tensors])
    order = np.lexsort((np.arange(scores.size), scores, kept))
    result = np.ones(scores.size, bool)
    result[order[:count]] = False
    return np.split(result, np.cumsum([t.scores.size for t in tensors])[:-1])


def tie_at_zero(rng, scores):
    return np.where(rng.random(scores.size) < 0.5, np.float32(0), np.abs(scores))


def bfloat16_values(rng, scores):
    return torch.from_numpy(scores).to(torch.bfloat16).float().numpy()


def special_values(rng, scores):
    specials = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3.4e38], np.float32)
    return np.where(rng.random(scores.size) < 0.3, rng.choice(specials, scores.size), scores)


KINDS = {
    "positive": lambda rng, x: np.abs(x),
    "signed": lambda rng, x: x,
    "half zeros": tie_at_zero,
    "all equal": lambda rng, x: np.full_like(x, 0.25),
    "bfloat16": bfloat16_values,
    "special": special_values,
    "spread over all exponents": lambda rng, x: (x * np.exp(rng.uniform(-80, 80, x.size))).astype(np.float32),
}


def draw(seed, kind, sizes, pruned):
    rng = np.random.default_rng(seed)
    tensors = []
    for size in sizes:
        scores = KINDS[kind](rng, rng.standard_normal(size).astype(np.float32)).astype(np.float32)
        tensors.append(Scored(scores, torch.from_numpy(rng.random(size) >= pruned)))
    return tensors


def check(tensors, target):
    """Prune to `target` and compare with the oracle."""
    total = sum(t.scores.size for t in tensors)
    before = sum(int((~t.mask).sum()) for t in tensors)
    count = int(np.floor(target * total + 0.5))
    if count <= before:
        return
    expected = oracle(tensors, count)
    newly = np.concatenate([~e & t.mask.numpy() for e, t in zip(expected, tensors, strict=True)])
    threshold = prune_lowest_(tensors, count)
    for tensor, mask in zip(tensors, expected, strict=True):
        np.testing.assert_array_equal(tensor.mask.numpy(), mask)
    assert threshold == np.concatenate([t.scores for t in tensors])[newly].max()


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(sorted(KINDS)),
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=4),
    pruned=st.sampled_from([0.0, 0.3, 0.9]),
    target=st.one_of(st.floats(0.0005, 1.0), st.sampled_from([0.5, 0.9, 0.999, 1.0])),
    chunk=st.sampled_from([16, 64, 1 << 18]),
    few=st.sampled_from([0, 4, 1 << 14]),
)
@settings(max_examples=300, deadline=None)
def test_masks_equal_a_stable_sort(seed, kind, sizes, pruned, target, chunk, few):
    """Exact for ties, zeros of both signs, infinities, and whatever path is taken."""
    with small_chunks(chunk, few):
        check(draw(seed, kind, sizes, pruned), target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [0.0005, 0.5, 0.9, 0.9999])
def test_masks_equal_a_stable_sort_over_several_real_chunks(kind, target):
    """The sizes that training has: 600,000 scores in two tensors, half of them pruned before."""
    check(draw(7, kind, [590_000, 10_001, 3], pruned=0.0004), target)


@pytest.mark.parametrize("low", [0, 1 << 20, 2**32 - 1])
@pytest.mark.parametrize("bits", [0, 17, 31])
def test_a_wrong_guess_costs_a_pass_and_changes_nothing(low, bits):
    with small_chunks(), patch.object(selection, "_guess", lambda *_: (min(low, 2**32 - 2**bits), bits)):
        for kind in KINDS:
            check(draw(3, kind, [500, 200], pruned=0.2), 0.6)


def test_the_first_of_equal_scores_go_in_the_order_of_tensors_and_places():
    tensors = draw(0, "all equal", [100, 100], pruned=0.0)
    with small_chunks():
        prune_lowest_(tensors, 130)
    assert not tensors[0].mask.any()
    assert tensors[1].mask.nonzero().flatten().tolist() == list(range(30, 100))


def test_pruned_entries_stay_pruned_and_take_no_place_of_live_ones():
    scores = np.array([9, 1, 8, 2, 7], np.float32)
    tensor = Scored(scores, torch.tensor([False, True, True, True, True]))
    assert prune_lowest_([tensor], 3) == 2.0
    assert tensor.mask.tolist() == [False, False, True, False, True]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=50))
def test_keys_order_as_scores_do_and_lead_back_to_them(values):
    scores = np.array(values, np.float32)
    keys = keys_of(scores, np.ones(scores.size, bool))
    assert (np.argsort(keys, kind="stable") == np.argsort(scores + 0.0, kind="stable")).all()
    assert keys.min() > 0  # 0 is for pruned entries
    assert [score_of(int(key)) for key in keys] == [value + 0.0 for value in scores.tolist()]


def test_selection_reads_each_score_at_most_three_times():
    """A sample, one census, one pass over the masks; a sort reads them some twenty times."""
    tensor = draw(1, "positive", [1_000_000], 0.0)[0]
    read, entries = tensor.read, 0

    def count(part):
        nonlocal entries
        scores = read(part)
        entries += scores.size
        return scores

    tensor.read = count
    prune_lowest_([tensor], 900_000)
    assert entries < 2.1 * 1_000_000


def test_extra_memory_does_not_grow_with_the_tensor():
    """Chunks and two histograms, whatever the size; all scores would be 4 MB and 16 MB."""
    peaks = []
    for size in (1_000_000, 4_000_000):
        tensor = draw(1, "positive", [size], 0.0)[0]
        tracemalloc.start()
        prune_lowest_([tensor], size // 2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 8 * 2**20
    assert peaks[1] - peaks[0] < 2**20
