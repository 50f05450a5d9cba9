"""A small network, and a loop that trains it as the engine does."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from adamwprune.pruning.criteria.magnitude import magnitude
from adamwprune.pruning.pruner import Pruner
from adamwprune.pruning.schedules import zhu_gupta
from adamwprune.pruning.scopes.layerwise import layerwise


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def make_model() -> Callable[[], nn.Module]:
    """Makes equal networks: two prunable tensors (320 and 200 weights), a head, biases."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 3))

    return make


@pytest.fixture
def make_pruner() -> Callable[..., Pruner]:
    """Makes pruners of `make_model` networks; keywords replace the defaults."""
    return partial(
        Pruner,
        criterion=magnitude,
        schedule=zhu_gupta,
        scope=layerwise,
        target_sparsity=0.9,
        start_step=5,
        end_step=50,
        update_every=5,
    )


@pytest.fixture
def train() -> Callable[..., None]:
    """Trains for steps first..last on data that depend on the step alone; calls `look` after each."""

    def run(model, optimizer, pruner, first, last, clip: float | None = 0.5, look=lambda step: None):
        for step in range(first, last + 1):
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(8, 16, generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), torch.arange(8) % 3).backward()
            pruner.mask_grads_()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            pruner.after_step(step)
            look(step)

    return run


@pytest.fixture
def snapshot() -> Callable[..., dict[str, Tensor]]:
    """Copies of all weights and of all state tensors, by name."""

    def take(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        tensors = {}
        for name, parameter in model.named_parameters():
            tensors[name] = parameter.detach().clone()
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}.{key}"] = value.clone()
        return tensors

    return take
