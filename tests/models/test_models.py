"""What every model owes the trainer, at sizes that take milliseconds."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adamwprune.models.gpt2 import GPT2
from adamwprune.models.lenet import LeNet5, LeNet5Caffe
from adamwprune.models.resnet import resnet18, resnet50

GRAY_28 = {"num_classes": 10, "in_channels": 1, "image_size": 28}
RGB_32 = {"num_classes": 10, "in_channels": 3, "image_size": 32}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "lenet5": lambda: LeNet5(**GRAY_28),
    "lenet5-32": lambda: LeNet5(**RGB_32),
    "lenet5-caffe": lambda: LeNet5Caffe(**GRAY_28),
    "resnet18-cifar": lambda: resnet18(**RGB_32, stem="cifar", width=4),
    "resnet18-imagenet": lambda: resnet18(**RGB_32, stem="imagenet", width=4),
    "resnet50-cifar": lambda: resnet50(**RGB_32, stem="cifar", width=4),
    "gpt2": lambda: GPT2(vocab_size=97, block_size=16, n_layer=2, n_head=4, n_embd=32, dropout=0.1),
}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name]()


def inputs_for(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if name == "gpt2":
        return torch.randint(97, (2, 16), generator=generator)
    sizes = GRAY_28 if name in ("lenet5", "lenet5-caffe") else RGB_32
    shape = (4, sizes["in_channels"], sizes["image_size"], sizes["image_size"])
    return torch.randn(shape, generator=generator)


@every_model
def test_every_parameter_receives_a_finite_gradient(name):
    """A layer left out of forward() would have none, and would pass every test of shapes."""
    model = build(name)
    logits = model(inputs_for(name))
    targets = torch.zeros(logits.shape[:-1], dtype=torch.int64)
    F.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@every_model
def test_state_dict_round_trip_keeps_the_logits(name):
    """Bitwise: loading copies, it computes nothing. The control is a model of another seed."""
    model, other, inputs = build(name).eval(), build(name, seed=2).eval(), inputs_for(name)
    assert not torch.equal(model(inputs), other(inputs))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(inputs), other(inputs))


@every_model
def test_state_dict_holds_floats_and_the_counters_of_batch_norm_only(name):
    """Masks and caches are no business of a model: dense and pruned runs share their keys."""
    model = build(name)
    extra = model.state_dict().keys() - {key for key, _ in model.named_parameters(remove_duplicate=False)}
    assert all(key.endswith(("running_mean", "running_var", "num_batches_tracked")) for key in extra)


@every_model
def test_forward_compiles_into_one_graph(name):
    """fullgraph=True raises at the first data-dependent branch; the eager backend keeps it cheap."""
    torch.compiler.reset()
    model, inputs = build(name).eval(), inputs_for(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), model(inputs), rtol=0, atol=1e-6)


def test_models_import_neither_configuration_nor_pruning():
    """In a new process, for this one has imported everything; torch proves that it looks."""
    code = "import sys; from adamwprune.models import gpt2, lenet, resnet; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(result.stdout.split())
    assert "torch" in modules
    assert not modules & {"hydra", "omegaconf", "trackio", "wandb"}
    rooms = {module.split(".")[1] for module in modules if module.startswith("adamwprune.")}
    assert rooms == {"models", "errors", "ranges"}
