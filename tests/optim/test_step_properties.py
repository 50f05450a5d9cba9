"""Steps against float64 NumPy: any shapes, settings, and gradients that some tensors lack in some steps.

Weights are float64, so that the bound is that of roundings. The updates are written from the docstrings
of adamwprune/optim, tensor by tensor, and share nothing with it.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter

from adamwprune.optim.adam import adam
from adamwprune.optim.adamw import adamw
from adamwprune.optim.adamw_spam import AdamWSPAM
from adamwprune.optim.muon import Muon
from adamwprune.optim.sgd import sgd
from adamwprune.optim.stable_spam import StableSPAM
from tests.helpers.properties import tried

SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)
BETAS = st.tuples(st.floats(0.0, 0.95), st.floats(0.5, 0.9999))
POSITIVE = st.floats(1e-6, 1.0)
DECAYS = st.sampled_from([0.0, 0.01, 0.3])
STEPS = 9


class Tensors:
    """Weights and gradients; in step t a tensor has one unless a coin of its seed says otherwise."""

    def __init__(self, shapes, seed):
        draw = np.random.default_rng(seed)
        self.starts = [draw.standard_normal(shape) for shape in shapes]
        self.grads = [
            [draw.standard_normal(shape) * 10.0 ** draw.integers(-2, 2) for shape in shapes]
            for _ in range(STEPS)
        ]
        self.has_grad = draw.random((STEPS, len(shapes))) < 0.8
        self.has_grad[0] |= not self.has_grad[0].any()

    def stepped_by(self, make):
        """Weights after all steps of a real optimizer."""
        parameters = [Parameter(torch.from_numpy(start.copy())) for start in self.starts]
        optimizer = make(parameters)
        for grads, present in zip(self.grads, self.has_grad, strict=True):
            for parameter, grad, has_grad in zip(parameters, grads, present, strict=True):
                parameter.grad = torch.from_numpy(grad.copy()) if has_grad else None
            optimizer.step()
        return [parameter.detach().numpy() for parameter in parameters]

    def written_out(self, update, **settings):
        """Weights after all steps of `update(w, g, state, step, **settings)`; g may be None: no gradient."""
        weights, states = [start.copy() for start in self.starts], [{} for _ in self.starts]
        for step, (grads, present) in enumerate(zip(self.grads, self.has_grad, strict=True), start=1):
            for i, (grad, has_grad) in enumerate(zip(grads, present, strict=True)):
                weights[i] = update(weights[i], grad if has_grad else None, states[i], step, **settings)
        return weights


def assert_equal(ours, written, rtol=1e-9):
    for mine, theirs in zip(ours, written, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=1e-12)


def zeros(state, *names):
    for name in names:
        state.setdefault(name, 0.0)


def adam_step(w, g, s, _, *, lr, betas, eps, weight_decay, amsgrad, decoupled):
    if g is None:
        return w
    zeros(s, "n", "m", "v", "most")
    g, w = (g, w * (1 - lr * weight_decay)) if decoupled else (g + weight_decay * w, w)
    s["n"] += 1
    s["m"] = betas[0] * s["m"] + (1 - betas[0]) * g
    s["v"] = betas[1] * s["v"] + (1 - betas[1]) * g**2
    s["most"] = np.maximum(s["most"], s["v"])
    v = (s["most"] if amsgrad else s["v"]) / (1 - betas[1] ** s["n"])
    return w - lr * s["m"] / (1 - betas[0] ** s["n"]) / (np.sqrt(v) + eps)


@given(SHAPES, st.integers(0, 999), BETAS, POSITIVE, POSITIVE, DECAYS, st.booleans(), st.booleans())
@tried(10)
def test_adam_and_adamw(shapes, seed, betas, lr, eps, weight_decay, amsgrad, decoupled):
    settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
    tensors = Tensors(shapes, seed)
    ours = tensors.stepped_by(lambda params: (adamw if decoupled else adam)(params, **settings))
    assert_equal(ours, tensors.written_out(adam_step, decoupled=decoupled, **settings))


def sgd_step(w, g, s, _, *, lr, momentum, nesterov, weight_decay):
    if g is None:
        return w
    g = g + weight_decay * w
    s["b"] = momentum * s.get("b", 0.0) + g
    return w - lr * (g + momentum * s["b"] if nesterov else s["b"])


@given(SHAPES, st.integers(0, 999), st.sampled_from([0.0, 0.5, 0.9]), POSITIVE, DECAYS, st.booleans())
@tried(10)
def test_sgd(shapes, seed, momentum, lr, weight_decay, nesterov):
    settings = {
        "lr": lr,
        "momentum": momentum,
        "nesterov": nesterov and momentum > 0,
        "weight_decay": weight_decay,
    }
    tensors = Tensors(shapes, seed)
    assert_equal(
        tensors.stepped_by(lambda params: sgd(params, **settings)), tensors.written_out(sgd_step, **settings)
    )


def spam_step(
    w, g, s, i, *, lr, betas, eps, weight_decay, theta, clip_after, reset_every, warmup_steps, **how
):
    since = i % reset_every if i >= reset_every else None
    if since == 0 and s:
        s["m"], s["v"] = 0 * s["m"], 0 * s["v"]
        s["n"] = 0 if how["reset_step"] else s["n"]
    if g is None:
        return w
    zeros(s, "n", "m", "v")
    if theta is not None and (i if since is None else since) >= clip_after:
        limit = np.sqrt(theta * s["v"]) * np.ones_like(g)
        limit = limit if how["clip_zero_v"] else np.where(limit == 0, np.inf, limit)
        g = np.clip(g, -limit, limit)
    s["n"] += 1
    s["m"] = betas[0] * s["m"] + (1 - betas[0]) * g
    s["v"] = betas[1] * s["v"] + (1 - betas[1]) * g**2
    factor = 1.0
    if since is not None and since < warmup_steps:
        factor = 1 - 0.99 * (1 + math.cos(math.pi * since / (warmup_steps + 1))) / 2
    size = factor * lr * math.sqrt(1 - betas[1] ** s["n"]) / (1 - betas[0] ** s["n"])
    w = w - size * s["m"] / (np.sqrt(s["v"]) + eps)
    return w - lr * weight_decay * w


@given(
    SHAPES,
    st.integers(0, 999),
    st.fixed_dictionaries(
        {
            "lr": POSITIVE,
            "betas": BETAS,
            "eps": POSITIVE,
            "weight_decay": DECAYS,
            "theta": st.sampled_from([None, 0.5, 2.0, 5000.0]),
            "clip_after": st.integers(0, 5),
            "reset_every": st.integers(1, 12),
            "warmup_steps": st.integers(0, 6),
            "reset_step": st.booleans(),
            "clip_zero_v": st.booleans(),
        }
    ),
)
@tried(20)
def test_spam(shapes, seed, settings):
    """A pause of a tensor counts: cycles are the group's, the bias correction is the tensor's own."""
    tensors = Tensors(shapes, seed)
    ours = tensors.stepped_by(lambda params: AdamWSPAM(params, **settings))
    assert_equal(ours, tensors.written_out(spam_step, **settings))


def stable_step(
    w, g, s, i, *, lr, betas, eps, weight_decay, gamma1, gamma2, gamma3, reset_every, decay_steps
):
    if i % reset_every == 0 and s:
        s["m"], s["v"], s["n"] = 0 * s["m"], 0 * s["v"], 0
    if g is None:
        return w
    zeros(s, "n", "k", "m", "v", "top", "norm", "square")
    decay = 0.75 + 0.25 * math.cos(math.pi * min(1.0, i / (decay_steps + 1))) if decay_steps else 1.0
    s["k"] += 1
    if gamma3 is not None:
        top = np.abs(g).max()
        s["top"] = gamma3 * s["top"] + (1 - gamma3) * top
        limit = s["top"] / (1 - gamma3 ** s["k"])
        g = np.where(np.abs(g) > limit, g / top * limit, g)
    if gamma1 is not None:
        first, norm = gamma1 * decay, math.sqrt((g**2).sum())
        s["norm"] = first * s["norm"] + (1 - first) * norm
        s["square"] = gamma2 * s["square"] + (1 - gamma2) * norm**2
        usual = s["norm"] / (1 - first ** s["k"])
        g = g / norm * usual / (math.sqrt(s["square"] / (1 - gamma2 ** s["k"])) + eps)
    settings = {"lr": lr, "betas": (betas[0] * decay, betas[1]), "eps": eps, "weight_decay": weight_decay}
    return adam_step(w, g, s, i, amsgrad=False, decoupled=True, **settings)


@given(
    SHAPES,
    st.integers(0, 999),
    st.fixed_dictionaries(
        {
            "lr": POSITIVE,
            "betas": BETAS,
            "eps": POSITIVE,
            "weight_decay": DECAYS,
            "gamma1": st.sampled_from([None, 0.0, 0.7]),
            "gamma2": st.sampled_from([0.0, 0.9]),
            "gamma3": st.sampled_from([None, 0.0, 0.9, 0.999]),
            "reset_every": st.integers(1, 12),
            "decay_steps": st.sampled_from([None, 1, 5, 20]),
        }
    ),
)
@tried(20)
def test_stable_spam(shapes, seed, settings):
    tensors = Tensors(shapes, seed)
    ours = tensors.stepped_by(lambda params: StableSPAM(params, **settings))
    assert_equal(ours, tensors.written_out(stable_step, **settings))


def orthogonalised(u, steps):
    """Newton-Schulz in float64 with Jordan's coefficients, by the shorter side."""
    x = (u if len(u) <= len(u.T) else u.T) / np.linalg.norm(u)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x if len(u) <= len(u.T) else x.T


@given(
    st.integers(2, 12), st.integers(2, 12), st.integers(0, 999), st.floats(0.0, 0.95), st.booleans(), DECAYS
)
@tried(10)
def test_muon_on_matrices_and_adamw_on_vectors(rows, columns, seed, momentum, nesterov, weight_decay):
    """Torch iterates in bfloat16, and iterations magnify roundings of small singular values: within 15 %."""
    draw = np.random.default_rng(seed)
    matrix, vector = draw.standard_normal((rows, columns)), draw.standard_normal(columns)
    settings = {"lr": 0.01, "adam_lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": weight_decay}
    parameters = [Parameter(torch.from_numpy(values.copy())) for values in (matrix, vector)]
    optimizer = Muon(parameters, momentum=momentum, nesterov=nesterov, **settings)
    buffer, state = np.zeros_like(matrix), {}
    for step in range(1, 4):
        grads = draw.standard_normal(matrix.shape), draw.standard_normal(columns)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = torch.from_numpy(grad.copy())
        before = parameters[0].detach().numpy().copy()
        optimizer.step()
        buffer = momentum * buffer + (1 - momentum) * grads[0]
        update = orthogonalised(momentum * buffer + (1 - momentum) * grads[0] if nesterov else buffer, 5)
        size = 0.01 * 0.2 * math.sqrt(max(rows, columns))
        moved = before * (1 - 0.01 * weight_decay) - parameters[0].detach().numpy()
        assert np.linalg.norm(moved - size * update) <= 0.15 * np.linalg.norm(size * update)
        of_adam = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": weight_decay}
        vector = adam_step(vector, grads[1], state, step, amsgrad=False, decoupled=True, **of_adam)
        np.testing.assert_allclose(parameters[1].detach().numpy(), vector, rtol=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [{"reset_every": 5}, {"theta": 1.9}, {"clip_after": 3}, {"warmup_steps": 2}, {"reset_step": False}],
)
def test_control_the_comparison_sees_each_setting_of_spam(wrong):
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "theta": 2.0}
    settings |= {
        "clip_after": 2,
        "reset_every": 4,
        "warmup_steps": 3,
        "reset_step": True,
        "clip_zero_v": False,
    }
    tensors = Tensors([(4, 3), (5,)], 3)
    ours = tensors.stepped_by(lambda params: AdamWSPAM(params, **settings))
    with pytest.raises(AssertionError):
        assert_equal(ours, tensors.written_out(spam_step, **{**settings, **wrong}))
