"""Every selection against an independent stable sort, bit for bit."""

from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adamwprune.pruning import scoring
from adamwprune.pruning.criteria.fisher import fisher
from adamwprune.pruning.criteria.magnitude import magnitude
from adamwprune.pruning.criteria.movement import movement
from adamwprune.pruning.criteria.random import random
from adamwprune.pruning.criteria.state import state
from adamwprune.pruning.scoring import ScoreError, TensorScores
from adamwprune.pruning.selection import streaming as module
from adamwprune.pruning.selection.keys import INFINITY, keys_of, score_of, signed_keys_of
from adamwprune.pruning.selection.on_device import on_device
from adamwprune.pruning.selection.sorting import sorting
from adamwprune.pruning.selection.streaming import streaming
from tests.helpers import oracles
from tests.helpers.memory import Peak

SELECTIONS = [streaming, sorting, on_device]


def as_they_are(weight):
    """A criterion whose scores are the weights."""
    return weight


def scored(scores, mask):
    return TensorScores("layer.weight", mask, as_they_are, {"weight": torch.from_numpy(scores)})


@contextmanager
def small_chunks(chunk=64, few=4):
    """Makes small tensors take the paths of large ones: many chunks, a sample, recounts."""
    with (
        patch.object(scoring, "CHUNK", chunk),
        patch.object(module, "CHUNK", chunk),
        patch.object(module, "_FEW", few),
    ):
        yield


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
    """(scores, masks) of some tensors."""
    rng = np.random.default_rng(seed)
    scores = [KINDS[kind](rng, rng.standard_normal(size).astype(np.float32)) for size in sizes]
    return [s.astype(np.float32) for s in scores], [rng.random(size) >= pruned for size in sizes]


def check(select, scores, kept, target):
    """Prune to `target` and compare masks and threshold with the oracle's."""
    total, before = sum(s.size for s in scores), sum(int((~k).sum()) for k in kept)
    count = oracles.nearest(total, target)
    if count <= before:
        return
    expected = oracles.prune(scores, kept, count)
    masks = [torch.from_numpy(k.copy()) for k in kept]
    threshold = select([scored(s, m) for s, m in zip(scores, masks, strict=True)], count)
    for mask, wanted in zip(masks, expected, strict=True):
        np.testing.assert_array_equal(mask.numpy(), wanted)
    newly = np.concatenate([k & ~e for k, e in zip(kept, expected, strict=True)])
    assert float(threshold) == np.concatenate(scores)[newly].max()


@given(
    select=st.sampled_from(SELECTIONS),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(sorted(KINDS)),
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=4),
    pruned=st.sampled_from([0.0, 0.3, 0.9]),
    target=st.one_of(st.floats(0.0005, 1.0), st.sampled_from([0.0005, 0.1, 0.5, 0.9, 0.99, 1.0])),
    chunk=st.sampled_from([16, 64, 1 << 18]),
    few=st.sampled_from([0, 4, 1 << 14]),
)
@settings(max_examples=120, deadline=None)
def test_masks_equal_a_stable_sort(select, seed, kind, sizes, pruned, target, chunk, few):
    """Exact for ties, zeros of both signs, infinities, and whatever path is taken."""
    with small_chunks(chunk, few):
        check(select, *draw(seed, kind, sizes, pruned), target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [0.0005, 0.5, 0.9, 0.9999])
def test_masks_equal_a_stable_sort_over_several_real_chunks(kind, target):
    """The sizes that training has: 600,000 scores in three tensors, some pruned before."""
    check(streaming, *draw(7, kind, [590_000, 10_001, 3], pruned=0.0004), target)


@pytest.mark.parametrize("low", [0, 1 << 20, 2**32 - 1])
@pytest.mark.parametrize("bits", [0, 17, 31])
def test_a_wrong_guess_costs_a_pass_and_changes_nothing(low, bits):
    with small_chunks(), patch.object(module, "_guess", lambda *_: (min(low, 2**32 - 2**bits), bits)):
        for kind in KINDS:
            check(streaming, *draw(3, kind, [500, 200], pruned=0.2), 0.6)


@pytest.mark.parametrize("select", SELECTIONS)
def test_the_first_of_equal_scores_go_in_the_order_of_tensors_and_places(select):
    masks = [torch.ones(100, dtype=torch.bool) for _ in range(2)]
    with small_chunks():
        select([scored(np.full(100, 0.25, np.float32), mask) for mask in masks], 130)
    assert not masks[0].any()
    assert masks[1].nonzero().flatten().tolist() == list(range(30, 100))


@pytest.mark.parametrize("select", SELECTIONS)
def test_pruned_entries_stay_pruned_and_take_no_place_of_live_ones(select):
    mask = torch.tensor([False, True, True, True, True])
    assert float(select([scored(np.array([9, 1, 8, 2, 7], np.float32), mask)], 3)) == 2.0
    assert mask.tolist() == [False, False, True, False, True]


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("place", [0, 777])
def test_a_live_weight_without_a_score_ends_in_the_error_that_names_it(select, place):
    """On a device it is found when the threshold is asked for; a pruned one may be NaN (control)."""
    scores = np.arange(1, 1001, dtype=np.float32)
    scores[place] = np.float32("nan") if place else -np.float32("nan")
    mask = torch.ones(1000, dtype=torch.bool)
    with (
        small_chunks(),
        pytest.raises(ScoreError, match=rf"layer\.weight is NaN at flat index {place};"),
    ):
        float(select([scored(scores, mask)], 500))
    mask.fill_(True)
    mask[place] = False
    assert float(select([scored(scores, mask)], 500)) > 0.0


# ------------------------------------------------------------------------------------------- keys


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=50))
def test_keys_order_as_scores_do_and_lead_back_to_them(values):
    scores = np.array(values, np.float32)
    keys = keys_of(scores, np.ones(scores.size, bool))
    assert (np.argsort(keys, kind="stable") == np.argsort(scores + 0.0, kind="stable")).all()
    assert keys.min() > 0  # 0 is for pruned entries
    assert [score_of(int(key)) for key in keys] == [value + 0.0 for value in scores.tolist()]


@given(st.lists(st.tuples(st.floats(width=32), st.booleans()), min_size=1, max_size=50))
def test_keys_on_a_device_are_those_of_the_host(values):
    """Shifted by 2^31. NaN of either sign lies above infinity there; the host refuses it before."""
    scores, kept = (np.array(column) for column in zip(*values, strict=True))
    scores = scores.astype(np.float32)
    signed = signed_keys_of(torch.from_numpy(scores), torch.from_numpy(kept)).numpy().astype(np.int64)
    undefined = np.isnan(scores) & kept
    assert (signed[undefined] > INFINITY).all()
    assert (signed[~undefined] <= INFINITY).all()
    expected = keys_of(scores, kept).astype(np.int64) - 2**31
    np.testing.assert_array_equal(signed[~undefined], expected[~undefined])


# ---------------------------------------------------------------------------------- what is offered


LAYOUTS = {
    "contiguous": lambda t: t.clone(),
    "channels last": lambda t: t.clone(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "reversed": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("divisor", [1.0, 3.3])
def test_scores_of_host_and_device_are_those_of_the_logical_order(layout, dtype, divisor):
    """Whatever the strides, with weights and moments that are 0, pruned entries, and slices of all sorts."""
    torch.manual_seed(0)
    weight = (torch.randn(6, 5, 3, 3) * (torch.rand(6, 5, 3, 3) < 0.7)).to(dtype)
    moment = torch.rand(6, 5, 3, 3) * (torch.rand(6, 5, 3, 3) < 0.7)
    mask = torch.rand(6, 5, 3, 3) < 0.8
    expected = oracles.state(weight.float().numpy(), moment.numpy()).reshape(-1) / np.float32(divisor)
    make = LAYOUTS[layout]
    with small_chunks(chunk=100):
        sources = {"weight": make(weight), "exp_avg_sq": make(moment)}
        tensor = TensorScores("layer.weight", make(mask), state, sources)
        tensor._divisor = np.float32(divisor)
        parts = list(tensor.parts())
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(270))
        for part in [*parts, slice(0, None, 7), slice(3, 200)]:
            kept = mask.reshape(-1)[part].numpy()
            np.testing.assert_array_equal(tensor.read(part)[kept], expected[part][kept])
            np.testing.assert_array_equal(tensor.scores(part).numpy()[kept], expected[part][kept])
            np.testing.assert_array_equal(tensor.kept(part).numpy(), kept)
        np.testing.assert_array_equal(tensor.sample(7), keys_of(expected[::7], mask.reshape(-1)[::7].numpy()))


# ------------------------------------------------------------------------------- time and memory


def test_selection_reads_each_score_at_most_three_times():
    """A sample, one census, one pass over the masks; a sort reads them some twenty times."""
    read = []

    def counted(weight):
        read.append(weight.numel())
        return weight.abs()

    weight = torch.randn(1_000_000)
    mask = torch.ones(1_000_000, dtype=torch.bool)
    streaming([TensorScores("layer.weight", mask, counted, {"weight": weight})], 900_000)
    assert sum(read) < 2.1 * 1_000_000


CRITERIA = {
    "magnitude": magnitude,
    "state": state,
    "fisher": fisher,
    "random": partial(random, seed=3),
    "movement": movement,
}


@pytest.mark.parametrize(
    ("select", "criterion", "most"),
    [*((streaming, name, 10) for name in CRITERIA), (on_device, "random", 36)],
    ids=[*CRITERIA, "random on a device"],
)
def test_extra_memory_is_a_few_chunks_for_every_criterion(select, criterion, most):
    """In MiB, chunks of 1, and no more for three times as many weights, whose keys alone are 6 MiB more.

    All scores tie but for random. A CPU widens the 15 comparisons of on_device to 8 bytes to add them up.
    """
    peaks = []
    for size in (800_000, 2_400_000):
        values = torch.ones(size)
        sources = {
            "weight": values,
            "exp_avg_sq": values,
            "movement": values,
            "salt": 17,
            "index": lambda part, size=size: torch.arange(*part.indices(size)),
        }
        function = CRITERIA[criterion]
        mask = torch.ones(size, dtype=torch.bool)
        wanted = {name: sources[name] for name in scoring.needs(function)}
        with Peak() as peak:
            select([TensorScores("layer.weight", mask, function, wanted)], size // 2)
        peaks.append(peak.mebibytes)
    assert peaks[1] < most
    assert peaks[1] - peaks[0] < 0.5


def test_peak_sees_what_numpy_and_torch_allocate():
    """Control of the test above: 8 MiB of NumPy, and twice 4 MiB of torch one after the other."""
    with Peak() as peak:
        first = np.zeros(1 << 20)
        second = torch.zeros(1 << 20)
        del second
        third = torch.ones(1 << 20)
        del first, third
    assert peak.mebibytes == pytest.approx(12, abs=0.5)


# ------------------------------------------------------------------------------------ accelerator


@pytest.mark.gpu
@pytest.mark.parametrize("criterion", CRITERIA)
def test_selection_on_a_gpu_waits_for_nothing_and_equals_the_host(criterion):
    """Up to the threshold, which waits when it is asked for; roots are correctly rounded there too."""
    torch.manual_seed(0)
    sizes = (5_000_000, 70_001)
    masks = {
        device: [torch.ones(n, dtype=torch.bool, device=device) for n in sizes] for device in ("cpu", "cuda")
    }
    weights = [torch.randn(n).bfloat16().float() for n in sizes]
    moments = [torch.rand(n) * (torch.rand(n) < 0.9) for n in sizes]
    function, thresholds = CRITERIA[criterion], {}
    for device in ("cpu", "cuda"):
        tensors = []
        for weight, moment, mask in zip(weights, moments, masks[device], strict=True):
            sources = {
                "weight": weight.to(device),
                "exp_avg_sq": moment.to(device),
                "movement": weight.to(device),
                "salt": 17,
                "index": lambda part, mask=mask: torch.arange(
                    *part.indices(mask.numel()), device=mask.device
                ),
            }
            wanted = {name: sources[name] for name in scoring.needs(function)}
            tensors.append(TensorScores("layer.weight", mask, function, wanted))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            threshold = streaming(tensors, 3_000_000)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        thresholds[device] = float(threshold)
    assert thresholds["cpu"] == thresholds["cuda"]
    for ours, theirs in zip(masks["cpu"], masks["cuda"], strict=True):
        assert (ours == theirs.cpu()).all()
