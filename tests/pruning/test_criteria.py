"""Criteria against NumPy, and what the scores may not depend on."""

from functools import partial

import numpy as np
import pytest
import torch

from adamwprune.pruning.criteria.magnitude import magnitude
from adamwprune.pruning.criteria.state import state
from adamwprune.pruning.scoring import ScoreError, TensorScores, identity, needs

SIZE = 5000


@pytest.fixture
def weight():
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(1)) * 0.02


@pytest.fixture
def moment():
    """As small as with gradients clipped to norm 1 at GPT-2's size: mean 8e-9."""
    return torch.empty(SIZE).exponential_(generator=torch.Generator().manual_seed(2)) * 8e-9


ORACLES = {
    "magnitude": (lambda w, v: magnitude(w), lambda w, v: np.abs(w)),
    "state 0": (partial(state, q=0.0), lambda w, v: np.abs(w)),
    "state 1/4": (state, lambda w, v: np.abs(w) * np.sqrt(np.sqrt(v))),
    "state 1/2": (partial(state, q=0.5), lambda w, v: np.abs(w) * np.sqrt(v)),
}


@pytest.mark.parametrize("name", ORACLES)
def test_scores_equal_a_numpy_oracle_bitwise(name, weight, moment):
    """Only correctly rounded operations: no tolerance."""
    criterion, oracle = ORACLES[name]
    scores = criterion(weight, moment)
    assert scores.dtype is torch.float32
    np.testing.assert_array_equal(scores.numpy(), oracle(weight.numpy(), moment.numpy()))


@pytest.mark.parametrize("q", [0.125, 0.3])
def test_other_powers_equal_a_double_precision_oracle(q, weight, moment):
    """pow is not correctly rounded: a few units in the last place."""
    oracle = np.abs(weight.numpy().astype(np.float64)) * moment.numpy().astype(np.float64) ** q
    np.testing.assert_allclose(state(weight, moment, q=q).numpy(), oracle, rtol=1e-6)


def test_state_separates_moments_far_below_any_eps(weight):
    """With the ancestor's eps of 1e-8 both halves would tie: v is 1e-12 and 1e-11."""
    moment = torch.full((SIZE,), 1e-12)
    moment[::2] = 1e-11
    scores = state(torch.ones(SIZE), moment)
    assert scores[0] / scores[1] == pytest.approx(10**0.25, rel=1e-6)


def test_needs_are_the_positional_names_and_settings_the_live_keywords():
    bound = partial(state, q=0.5)
    assert needs(magnitude) == ("weight",)
    assert needs(bound) == ("weight", "exp_avg_sq")
    assert identity(bound) == {"name": "state", "q": 0.5}
    assert identity(magnitude) == {"name": "magnitude"}


def scores_of(criterion, mask=None, **sources):
    size = next(iter(sources.values())).numel()
    mask = torch.ones(size, dtype=torch.bool) if mask is None else mask
    return TensorScores("layer.weight", mask, criterion, sources)


def test_a_live_weight_that_never_saw_a_gradient_is_kept_first(weight, moment):
    """v == 0 exactly means nothing is known: +inf, also for a weight that is zero itself."""
    moment[10:20] = 0.0
    weight[15] = 0.0
    tensor = scores_of(state, weight=weight, exp_avg_sq=moment)
    scores = tensor.read(slice(0, SIZE))
    assert np.isposinf(scores[10:20]).all()
    assert np.isfinite(np.delete(scores, np.s_[10:20])).all()
    assert tensor.count_unseen() == 10


def test_the_rule_speaks_only_where_the_formula_is_silent(weight, moment):
    """q = 0 stays magnitude where v is 0; a ratio of zeros gets a score instead of NaN."""
    moment[:3] = 0.0
    plain = scores_of(partial(state, q=0.0), weight=weight, exp_avg_sq=moment).read(slice(0, SIZE))
    np.testing.assert_array_equal(plain, weight.abs().numpy())
    ratio = scores_of(lambda weight, exp_avg_sq: exp_avg_sq / exp_avg_sq, weight=weight, exp_avg_sq=moment)
    assert np.isposinf(ratio.read(slice(0, SIZE))[:3]).all()


def test_pruned_entries_may_have_no_score(weight, moment):
    mask = torch.ones(SIZE, dtype=torch.bool)
    mask[4] = False
    weight[4] = torch.nan
    scores_of(state, mask, weight=weight, exp_avg_sq=moment).read(slice(0, SIZE))


def test_nan_score_of_a_live_weight_is_an_error_that_names_tensor_and_place(weight, moment):
    weight[1234] = torch.nan
    tensor = scores_of(state, weight=weight, exp_avg_sq=moment)
    with pytest.raises(ScoreError, match=r"criterion=state: .*layer\.weight is NaN at flat index 1234"):
        tensor.read(slice(1000, 2000))


def test_a_criterion_that_is_not_elementwise_is_refused(weight):
    with pytest.raises(ScoreError, match="must be elementwise"):
        scores_of(lambda weight: weight.norm(), weight=weight).read(slice(0, 100))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scores_are_computed_in_float32_whatever_the_dtype(dtype, weight, moment):
    """Low precision would underflow: fp16 ends at 6e-8."""
    tensor = scores_of(state, weight=weight.to(dtype), exp_avg_sq=moment)
    expected = state(weight.to(dtype).float(), moment).numpy()
    np.testing.assert_array_equal(tensor.read(slice(0, SIZE)), expected)
