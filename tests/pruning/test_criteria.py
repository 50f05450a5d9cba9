"""Every criterion against NumPy, its golden value and its documented formula; what no score may depend on."""

import ast
import importlib
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from adamwprune.pruning.criteria.magnitude import magnitude
from adamwprune.pruning.criteria.random import random
from adamwprune.pruning.criteria.state import state
from adamwprune.pruning.rounding import debiased, power
from adamwprune.pruning.scoring import ScoreError, TensorScores, identity, needs
from adamwprune.pruning.sources import _shuffled

ROOT = Path(__file__).parents[2]
FILES = sorted(
    file for file in (ROOT / "adamwprune/pruning/criteria").glob("*.py") if file.stem != "__init__"
)
NAMES = [file.stem for file in FILES]
SIZE = 5000
# What the pruner can give a criterion: state_view.py, and what it keeps or computes itself.
SOURCES = {
    *("weight", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step", "lr", "eps", "beta1", "beta2"),
    *("index", "salt", "movement", "shuffled_exp_avg_sq"),
}
# Sources in the letters of the formulas.
LETTERS = {"w": "weight", "g": "grad", "m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq"}
LETTERS |= {"S": "movement", "v_shuffled": "shuffled_exp_avg_sq", "n": "step"}


def criterion(name):
    return getattr(importlib.import_module(f"adamwprune.pruning.criteria.{name}"), name)


def score(function, sources):
    """What the pruner does: each source by the name of a positional parameter."""
    function = criterion(function) if isinstance(function, str) else function
    return function(*(sources[name] for name in needs(function)))


def hashed(index, salt, seed):
    """MurmurHash3's finaliser in NumPy's own unsigned arithmetic; the two halves of the index in turn."""

    def mix(words):
        words = np.atleast_1d(np.asarray(words, np.uint32))
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            words = (words ^ (words >> np.uint32(shift))) * np.uint32(factor)
        return words ^ (words >> np.uint32(16))

    low, high = (
        np.asarray(index).astype(np.uint64).view(np.uint32).reshape(-1, 2)[:, half] for half in (0, 1)
    )
    key = mix(mix(seed) + np.uint32(salt))
    return (mix(mix(low) ^ (high + key)) % np.uint32(0x7F800000)).view(np.float32)


# name -> (the formula in float64 NumPy, its value at POINT). A value here never changes: a score that
# computes something else is another criterion and gets another name.
ORACLES = {
    "random": (lambda s: hashed(s["index"], s["salt"], 0).astype(np.float64), 160.1333770751953),
    "magnitude": (lambda s: abs(s["w"]), 2.0),
    "state": (lambda s: abs(s["w"]) * s["v"] ** 0.25, 0.5),
    "fisher": (lambda s: np.sqrt(s["w"] ** 2 * s["v"]), 0.125),
    "fisher_amsgrad": (lambda s: np.sqrt(s["w"] ** 2 * s["v_max"]), 0.5),
    "taylor_ema": (lambda s: abs(s["w"] * s["m"]), 0.5),
    "snr": (lambda s: np.sqrt((s["w"] * s["m"]) ** 2 / s["v"]), 8.0),
    "escape": (lambda s: abs(s["w"] / s["m"]) * np.sqrt(s["v"]), 0.5),
    "lookahead": (lambda s: abs(adam_step(s)), 4.0),
    "movement": (lambda s: s["S"], -0.75),
    "shuffled_state": (lambda s: abs(s["w"]) * s["v_shuffled"] ** 0.25, 1.0),
    "bitter0": (lambda s: s["w"] ** 2 * abs(s["m"]) / np.sqrt(s["v"]), 16.0),
    "bitter3": (lambda s: abs(s["w"]) * abs(s["m"]) ** 0.5, 1.0),
    "bitter5": (lambda s: np.sign(s["w"]) * s["m"] * s["v"] ** -0.5 + 0.1 * abs(s["w"]), -3.8),
    "bitter6": (lambda s: abs(s["w"]) * abs(s["m"]) ** 1.5 * s["v"] ** -0.5, 4.0),
    "bitter8": (lambda s: abs(s["w"]) * np.sqrt(abs(s["m"]) / (1 - s["beta1"] ** s["n"])), 2.0),
    "bitter9": (
        lambda s: abs(s["w"]) * abs(s["m"]) ** 0.5 + 0.1 * np.sign(s["w"]) * s["m"] * s["v"] ** -0.5,
        0.6,
    ),
    "grow_momentum": (lambda s: abs(s["m"]) * s["v"] ** -0.5, 4.0),
    "grow_gradient": (lambda s: abs(s["g"]), 0.5),
}
POINT = {"weight": -2.0, "grad": -0.5, "exp_avg": 0.25, "exp_avg_sq": 2.0**-8, "max_exp_avg_sq": 2.0**-4}
POINT |= {"movement": -0.75, "shuffled_exp_avg_sq": 2.0**-4, "index": 3, "salt": 12345}
NUMBERS = {"step": 1, "lr": 0.5, "eps": 0.125, "beta1": 0.75, "beta2": 0.75}


def adam_step(s):
    """The weight after torch's own Adam has stepped, by its m and v of now."""
    m_hat, v_hat = s["m"] / (1 - s["beta1"] ** s["n"]), s["v"] / (1 - s["beta2"] ** s["n"])
    return s["w"] - s["lr"] * m_hat / (np.sqrt(v_hat) + s["eps"])


def letters(sources):
    """Sources as an oracle reads them: float64 arrays and numbers, by letter."""
    names = {name: letter for letter, name in LETTERS.items()}
    return {
        names.get(name, name): value.numpy().astype(np.int64 if name == "index" else np.float64)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in sources.items()
    }


@pytest.fixture
def sources():
    """Gradients as small as with clipping to norm 1 at GPT-2's size: the mean of v is 8e-9."""
    generator = torch.Generator().manual_seed(1)
    weight, grad, mean, noise = torch.randn(4, SIZE, generator=generator)
    moment, peak, other = torch.empty(3, SIZE).exponential_(generator=generator) * 8e-9
    return {
        "weight": weight * 0.02,
        "grad": grad * 1e-4,
        "exp_avg": mean * 3e-5,
        "exp_avg_sq": moment,
        "max_exp_avg_sq": moment + peak,
        "movement": noise * 1e-3,
        "shuffled_exp_avg_sq": other,
        "index": torch.arange(SIZE),
        "salt": 12345,
        **{"step": 7, "lr": 1e-3, "eps": 1e-8, "beta1": 0.9, "beta2": 0.999},
    }


# ------------------------------------------------------------------------------- formulas


def test_every_criterion_has_an_oracle_and_a_golden_value():
    """P7: one formula for a name; a new file needs a row in the table."""
    assert set(ORACLES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_a_double_precision_oracle(name, sources):
    """A16. A few roundings of float32, and cancellation where a score is a difference."""
    expected = ORACLES[name][0](letters(sources))
    scores = score(name, sources)
    assert scores.dtype is torch.float32
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-6, atol=1e-6 * np.median(abs(expected)))


def point():
    tensors = {name: torch.tensor([value]) for name, value in POINT.items() if name != "salt"}
    return {**tensors, **NUMBERS, "salt": POINT["salt"]}


@pytest.mark.parametrize("name", NAMES)
def test_golden_value(name):
    """P7: exact powers of two, worked out by hand; 0.1 is rounded once."""
    assert score(name, point()).item() == pytest.approx(ORACLES[name][1], rel=1e-6)


# The ancestor's names that got no file: whose scores they are.
ALIASES = {"bitter1": "magnitude", "bitter2": "magnitude", "bitter4": "bitter3", "bitter7": "state"}


def documented_formulas():
    """Name -> formula, from the tables of docs/criteria.md."""
    rows = re.findall(
        r"^\| `(\w+)` \| `(.+?)` \|", (ROOT / "docs/criteria.md").read_text("utf-8"), re.MULTILINE
    )
    return [(name, formula.replace("\\|", "|")) for name, formula in rows]


def evaluate(formula, sources):
    """A documented formula as NumPy: |x| is abs(x), ^ is **."""
    values = letters(sources)
    values |= {"sqrt": np.sqrt, "sign": np.sign, "q": 0.25, "seed": 0}
    values["m_hat"] = values["m"] / (1 - values["beta1"] ** values["n"])
    values["v_hat"] = values["v"] / (1 - values["beta2"] ** values["n"])
    values["hash"] = hashed
    return eval(re.sub(r"\|([^|]+)\|", r"abs(\1)", formula).replace("^", "**"), {}, values)


@pytest.mark.parametrize(("name", "formula"), documented_formulas())
def test_documented_formula_is_what_is_computed(name, formula, sources):
    """P7: the formula of the page, evaluated, gives the scores of the function."""
    expected = evaluate(formula, sources)
    scores = score(ALIASES.get(name, name), sources).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-6 * np.median(abs(expected)))


@pytest.mark.parametrize("name", NAMES)
def test_documented_formula_stands_in_the_docstring(name):
    """P7: the page and the code say the same, letter by letter."""
    text = (ROOT / f"adamwprune/pruning/criteria/{name}.py").read_text("utf-8")
    assert dict(documented_formulas())[name] in text


def test_every_name_is_documented_once():
    """Each file, and the names of the ancestor that have none; no name has two rows."""
    documented = [name for name, _ in documented_formulas()]
    assert sorted(documented) == sorted([*NAMES, *ALIASES])


def test_a_wrong_documented_formula_is_found(sources):
    """Control: bitter7 as it was before 5 November 2025."""
    wrong = evaluate("|w| / sqrt(v)", sources)
    assert not np.allclose(score("state", sources).numpy(), wrong, rtol=1e-2)


@pytest.mark.parametrize("q", [0.0, 0.125, 0.25, 0.375, 0.5])
def test_powers_in_eighths_are_correctly_rounded_roots(q, sources):
    """Portable: square roots and products alone, so no tolerance. pow is off in one of eight entries."""
    weight, moment = sources["weight"].numpy(), sources["exp_avg_sq"].numpy()
    second, fourth = np.sqrt(moment), np.sqrt(np.sqrt(moment))
    roots = {
        0.0: np.float32(1),
        0.125: np.sqrt(fourth),
        0.25: fourth,
        0.375: fourth * np.sqrt(fourth),
        0.5: second,
    }
    scores = state(sources["weight"], sources["exp_avg_sq"], q=q)
    np.testing.assert_array_equal(scores.numpy(), np.abs(weight) * roots[q])


@pytest.mark.parametrize("q", [0.125, 0.3, 0.375])
def test_other_powers_equal_a_double_precision_oracle(q, sources):
    """A few units in the last place."""
    moment = sources["exp_avg_sq"]
    np.testing.assert_allclose(power(moment, q).numpy(), moment.double().numpy() ** q, rtol=5e-7)


@pytest.mark.parametrize(
    "step", [1, 1000, 1.0, torch.tensor(1.0), torch.tensor(1000), torch.tensor(1000.0).double()]
)
def test_bias_correction_is_exact_whatever_holds_the_step(step):
    """1 - 0.999 has four good digits in float32; torch keeps steps as float32, float64 or numbers."""
    mean = torch.tensor([0.3, -2e-9])
    corrected = debiased(mean, 0.999, step)
    assert corrected.dtype is torch.float32
    np.testing.assert_allclose(
        corrected.numpy(), mean.double().numpy() / (1 - 0.999 ** float(step)), rtol=2e-7
    )


def test_lookahead_is_the_step_of_torch_adam(sources):
    """Weights of before with the state of after are what torch's step made of them."""
    weight = torch.nn.Parameter(sources["weight"].clone())
    optimizer = torch.optim.Adam([weight], lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    for scale in (1.0, -0.5, 0.25):
        before, weight.grad = weight.detach().clone(), sources["grad"] * scale
        optimizer.step()
        predicted = score("lookahead", {**sources, **optimizer.state[weight], "weight": before})
        torch.testing.assert_close(predicted, weight.detach().abs(), rtol=1e-6, atol=1e-9)


# --------------------------------------------------------------- what no score may depend on

# A sum of terms with different units; lookahead has the optimizer's own eps, here 0.
NOT_SCALE_FREE = {"bitter9"}


def scaled(sources, factor):
    """The same run with all gradients multiplied by a constant."""
    linear = ("grad", "exp_avg", "movement")
    square = ("exp_avg_sq", "max_exp_avg_sq", "shuffled_exp_avg_sq")
    return {
        **sources,
        "eps": 0.0,
        **{name: (sources[name].double() * factor).float() for name in linear},
        **{name: (sources[name].double() * factor**2).float() for name in square},
    }


def ranking(scores):
    """The order in which entries go, ties by index."""
    assert torch.isfinite(scores).all()
    return scores.argsort(stable=True)


def is_scale_free(function, sources):
    """Whether c = 4^j, from where v is hardly normal to where it is hardly finite, changes no rank."""
    reference = ranking(score(function, scaled(sources, 1.0)))
    exponents = range(-20, 37, 4)  # v from 1e-36 to 1e+36
    return all(ranking(score(function, scaled(sources, 4.0**j))).equal(reference) for j in exponents)


@pytest.mark.parametrize("name", sorted(set(NAMES) - NOT_SCALE_FREE))
def test_scaling_all_gradients_changes_no_rank(name, sources):
    """A9. Roots and ratios of powers of 4 are exact, so not even rounding differs."""
    assert is_scale_free(name, sources)


@pytest.mark.parametrize("q", [0.0, 0.125, 0.375, 0.5])
def test_scaling_all_gradients_changes_no_rank_at_any_eighth(q, sources):
    """A9 for the family."""
    assert is_scale_free(partial(state, q=q), sources)


def test_the_check_of_scale_freedom_finds_an_eps_an_underflow_and_bitter9(sources):
    """P5, controls: the ancestor's eps, w^2 v in float32, and the score that is excepted."""
    assert not is_scale_free(lambda weight, exp_avg_sq: weight.abs() * (exp_avg_sq + 1e-8) ** 0.25, sources)
    assert not is_scale_free("bitter9", sources)
    small = {**sources, "weight": sources["weight"] * 1e-4}
    assert is_scale_free("fisher", small)
    assert not is_scale_free(lambda weight, exp_avg_sq: weight**2 * exp_avg_sq, small)


def test_state_separates_moments_far_below_any_eps():
    """P5: with the ancestor's eps of 1e-8 both would tie: v is 1e-12 and 1e-11."""
    scores = state(torch.ones(2), torch.tensor([1e-11, 1e-12]))
    assert scores[0] / scores[1] == pytest.approx(10**0.25, rel=1e-6)


def corrected(sources, step):
    """m_hat and v_hat in place of m and v."""
    return {
        **sources,
        "exp_avg": sources["exp_avg"] / (1 - 0.9**step),
        **{name: sources[name] / (1 - 0.999**step) for name in ("exp_avg_sq", "max_exp_avg_sq")},
    }


def keeps_ranks(name, sources, step):
    """In the order of one, the other never falls by more than rounding does."""
    before, after = score(name, sources).double(), score(name, corrected(sources, step)).double()
    ordered = after[before.argsort(stable=True)]
    return bool((ordered.cummax(0).values - ordered <= 1e-6 * ordered.abs()).all())


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"bitter5", "bitter9", "lookahead"}))
@pytest.mark.parametrize("step", [1, 10, 3000])
def test_bias_correction_keeps_ranks(name, step, sources):
    """A10: one factor for the whole tensor. Lookahead has it built in."""
    assert keeps_ranks(name, sources, step)


@pytest.mark.parametrize("name", ["bitter5", "bitter9"])
def test_bias_correction_moves_scores_that_add_up_different_units(name, sources):
    """A10, control: one of the two terms alone is corrected."""
    assert not keeps_ranks(name, sources, 1)


def test_bitter8_is_bitter3_within_a_tensor_and_not_between_tensors_of_different_age(sources):
    """Its documented difference: a tensor whose state was reset has small m, which the correction undoes."""
    young, old = {**sources, "step": 1}, {**sources, "step": 1000}
    assert ranking(score("bitter8", young)).equal(ranking(score("bitter3", young)))
    ratio = score("bitter8", young) / score("bitter8", old)
    np.testing.assert_allclose(ratio.numpy(), 10**0.5, rtol=1e-5)


# ------------------------------------------------------------------------------------- signs


def at(name, *, mean, steps=10):
    """Score of a weight of 1 after some steps of SGD with a constant gradient of the sign of `mean`."""
    weight, movement = 1.0, 0.0
    for _ in range(steps):
        movement -= mean * weight
        weight -= 0.01 * mean
    sources = {**point(), "weight": torch.tensor([1.0]), "exp_avg": torch.tensor([mean])}
    return score(name, {**sources, "movement": torch.tensor([movement])}).item()


@pytest.mark.parametrize("name", ["movement", "lookahead"])
def test_a_weight_that_shrinks_scores_below_one_that_grows(name):
    """P15: w = 1, m = +1 moves towards zero."""
    assert at(name, mean=1.0) < at(name, mean=-1.0)


@pytest.mark.parametrize("name", ["bitter5", "bitter9"])
def test_bitter5_and_bitter9_have_the_sign_reversed_as_documented(name):
    """P15, the exception: kept for the record, warned of in the docs."""
    assert at(name, mean=1.0) > at(name, mean=-1.0)


@pytest.mark.parametrize(
    "name", sorted(set(NAMES) - {"movement", "lookahead", "bitter5", "bitter9", "random"})
)
def test_all_other_scores_have_no_sign(name):
    """The direction of m does not matter, and no score is negative."""
    assert at(name, mean=1.0) == at(name, mean=-1.0) >= 0.0


def test_movement_under_sgd_is_the_change_of_the_squared_weight():
    """The identity of the docstring: S = (w_T^2 - w_0^2) / (2 lr) - (lr / 2) * sum of g^2, in float64."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(64, 20, generator=generator, dtype=torch.float64)
    targets = inputs @ torch.randn(20, generator=generator, dtype=torch.float64)
    weight = torch.randn(20, generator=generator, dtype=torch.float64)
    first, movement, squares, lr = weight.clone(), torch.zeros(20).double(), torch.zeros(20).double(), 0.01
    for _ in range(100):
        grad = inputs.T @ (inputs @ weight - targets) / 64
        movement += -grad * weight
        squares += grad**2
        weight = weight - lr * grad
    change = (weight**2 - first**2) / (2 * lr)
    torch.testing.assert_close(score("movement", {"movement": movement}), change - lr / 2 * squares)
    is_clear = change.abs() > lr * squares
    assert is_clear.sum() >= 15
    assert (movement.sign() == change.sign())[is_clear].all()


# ------------------------------------------------------------------------------- edges of float


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_finite_live_weights_are_finite(name):
    """Extremes in every combination, v > 0. Escape is infinite where a weight has no direction."""
    grid = np.meshgrid([0.0, 1e-18, -0.02, 1e4], [0.0, -1e-18, 1e-5, 1e3], [1e-37, 1e-9, 1e6])
    weight, mean, moment = (torch.from_numpy(axis.ravel().astype(np.float32)) for axis in grid)
    tensors = {"weight": weight, "grad": mean, "exp_avg": mean, "movement": mean}
    tensors |= dict.fromkeys(("exp_avg_sq", "max_exp_avg_sq", "shuffled_exp_avg_sq"), moment)
    scores = score(name, {**tensors, "index": torch.arange(weight.numel()), "salt": 1, **NUMBERS})
    assert not scores.isnan().any()
    is_documented = (mean == 0.0) & (weight != 0.0) if name == "escape" else torch.zeros_like(weight).bool()
    assert scores.isinf().equal(is_documented)


def test_nothing_grows_where_no_gradient_ever_was():
    """m = v = 0 gives 0, not NaN; NaN stays NaN."""
    mean, moment = torch.tensor([0.0, 0.0, torch.nan]), torch.tensor([0.0, 4.0, 1.0])
    scores = score("grow_momentum", {"exp_avg": mean, "exp_avg_sq": moment})
    np.testing.assert_array_equal(scores.numpy(), [0.0, 0.0, np.nan])


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"random", "grow_gradient", "grow_momentum"}))
def test_a_weight_that_is_not_a_number_has_no_score(name, sources):
    """So that scoring can refuse it by name and place; none is hidden by a default."""
    key = {"movement": "movement"}.get(name, "weight")
    sources[key][7] = torch.nan
    assert score(name, sources).isnan().nonzero().flatten().tolist() == [7]


# ------------------------------------------------------------------------------------ random


@pytest.mark.parametrize(("salt", "seed"), [(0, 0), (12345, 0), (2**32 - 1, 1), (77, 2**32 - 1)])
def test_random_scores_equal_an_independent_hash(salt, seed):
    """NumPy's uint32 against torch's int64, below and above 2^32 entries; the index is left alone."""
    index = torch.cat([torch.arange(2000), torch.arange(2000) + 2**32 - 1000, torch.arange(9) + 2**40])
    before = index.clone()
    np.testing.assert_array_equal(random(index, salt, seed=seed).numpy(), hashed(index.numpy(), salt, seed))
    assert index.equal(before)


def kept(scores, sparsity):
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    mask[ranking(scores)[: round(sparsity * scores.numel())]] = False
    return mask


def test_random_masks_are_nested_and_need_no_generator():
    """A function of place alone: later calls, slices and torch's generator make no difference."""
    index, state_before = torch.arange(SIZE), torch.get_rng_state()
    scores = random(index, 5)
    assert (kept(scores, 0.5) | ~kept(random(index, 5), 0.9)).all()
    assert random(index[1000:1500], 5).equal(scores[1000:1500])
    assert torch.get_rng_state().equal(state_before)


@pytest.mark.parametrize("other", [{"salt": 6}, {"seed": 1}, {"salt": 5 + 2**31}])
def test_random_masks_of_layers_and_seeds_are_independent(other):
    """Two masks at 50 % agree in half of the places: 10,000 +- 4 standard deviations of 70.7."""
    index = torch.arange(20_000)
    one, two = (kept(random(index, **key), 0.5) for key in ({"salt": 5}, {"salt": 5, **other}))
    assert abs(int((one == two).sum()) - 10_000) < 283


@pytest.mark.parametrize("group", [lambda i: i // 1250, lambda i: i % 16, lambda i: (i // 125) % 16])
def test_random_masks_are_uniform(group):
    """Pruned entries in 16 groups by place, at 30 %: chi square of 15 degrees, 99.9 % below 37.7."""
    index = torch.arange(20_000)
    pruned = ~kept(random(index, 99), 0.3)
    counts = torch.bincount(group(index)[pruned], minlength=16)
    sizes = torch.bincount(group(index), minlength=16)
    expected = 0.3 * sizes
    assert ((counts - expected) ** 2 / (expected * 0.7)).sum() < 37.7


# ------------------------------------------------------------------------------------- house rules


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_criterion_is_one_short_function_of_known_sources(file):
    """Its name is the file's; under ten lines; what it reads is what the pruner can give."""
    tree = ast.parse(file.read_text("utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    assert [function.name for function in functions] == [file.stem]
    assert not any(isinstance(node, ast.ClassDef) for node in tree.body)
    assert ast.get_docstring(tree)
    assert ast.get_docstring(functions[0])
    del functions[0].body[0]
    assert len(ast.unparse(functions[0]).splitlines()) < 10
    assert needs(criterion(file.stem))
    assert set(needs(criterion(file.stem))) <= SOURCES


# --------------------------------------------------------------------------- as the pruner reads them


@pytest.fixture
def weight(sources):
    return sources["weight"]


@pytest.fixture
def moment(sources):
    return sources["exp_avg_sq"]


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


def test_the_order_in_which_moments_are_dealt_anew_is_for_ever():
    """Masks of the control `shuffled_state` follow from it: the permutation of ten live entries, by hand.

    From 32-bit words: place * 2654435761, exclusive or with itself shifted by 15, times 2246822519.
    """
    mask = torch.ones(12, dtype=torch.bool)
    mask[[3, 7]] = False
    live = [place for place in range(12) if mask[place]]
    words = [place * 2654435761 % 2**32 for place in live]
    words = [(word ^ word >> 15) * 2246822519 % 2**32 for word in words]
    order = [place for _, place in sorted(zip(words, live, strict=True))]
    dealt = _shuffled(torch.arange(12.0), mask)
    assert dealt[mask].tolist() == order != live
    assert dealt[~mask].tolist() == [3.0, 7.0]
