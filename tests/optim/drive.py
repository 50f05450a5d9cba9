"""Steps an optimizer with given gradients, and what the tests of all optimizers are run on."""

import numpy as np
import torch
from torch.nn import Parameter

from adamwprune.optim.adam import adam
from adamwprune.optim.adamw import adamw
from adamwprune.optim.adamw_spam import AdamWSPAM
from adamwprune.optim.adamw_spam_ancestor import AncestorSPAM
from adamwprune.optim.muon import Muon
from adamwprune.optim.sgd import sgd
from adamwprune.optim.stable_spam import StableSPAM

# With a reset in every few steps, so that short tests see several.
OURS = {
    "spam": (AdamWSPAM, {"reset_every": 10, "warmup_steps": 5, "clip_after": 3}),
    "spam-published": (
        AdamWSPAM,
        {"reset_every": 10, "clip_after": 3, "reset_step": False, "clip_zero_v": True},
    ),
    "ancestor": (AncestorSPAM, {"reset_every": 10}),
    "stable": (StableSPAM, {"reset_every": 10}),
    "stable-published": (StableSPAM, {"reset_every": 10, "published_reset": True, "decay_steps": 50}),
}
ALL = {
    **OURS,
    "sgd": (sgd, {}),
    "adam": (adam, {}),
    "adamw": (adamw, {}),
    "adamw-amsgrad": (adamw, {"amsgrad": True}),
    "muon": (Muon, {}),
}


def make(name, params, **changed):
    """One of ALL over parameters or groups."""
    kind, settings = ALL[name]
    return kind(params, **{"lr": 1e-2, **settings, **changed})


def random_grads(steps, size, *, scale=1e-3, seed=0):
    """(steps, size) float32 with a spike of 1,000 times the usual in one entry of every 37th step."""
    generator = np.random.default_rng(seed)
    grads = scale * generator.standard_normal((steps, size))
    spikes = np.arange(36, steps, 37)
    grads[spikes, generator.integers(size, size=len(spikes))] *= 1000
    return grads.astype(np.float32)


def run(optimizer, parameter, grads):
    """The weights (steps, N) after each step with the given gradients."""
    history = []
    for grad in grads:
        parameter.grad = torch.from_numpy(grad).view_as(parameter).clone()
        optimizer.step()
        history.append(parameter.detach().flatten().numpy().copy())
    return np.stack(history)


def parameter(size, *, seed=0):
    """A weight vector like those of a trained network."""
    return Parameter(0.02 * torch.randn(size, generator=torch.Generator().manual_seed(seed)))


def same_bits(first, second):
    """Whether two tensors are equal to the bit, the sign of zeros included."""
    return torch.equal(first.contiguous().view(torch.int32), second.contiguous().view(torch.int32))
