"""Networks with pruned weights, and run folders that hold one of them."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from adamwprune import run_directory
from adamwprune.models.gpt2 import GPT2
from adamwprune.models.lenet import LeNet5, LeNet5Caffe
from adamwprune.models.resnet import resnet18, resnet50
from adamwprune.pruning.prunable import find_prunable
from adamwprune.training import checkpoint

DIGITS = {"num_classes": 10, "in_channels": 1, "image_size": 28}
COLOURS = {"num_classes": 10, "in_channels": 3, "image_size": 16, "stem": "cifar", "width": 8}
MODELS = {
    "lenet5": partial(LeNet5, **DIGITS),
    "lenet5-caffe": partial(LeNet5Caffe, **DIGITS),
    "resnet18": partial(resnet18, **COLOURS),
    "resnet50": partial(resnet50, **COLOURS),
    "gpt2": partial(GPT2, vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.0),
}


def make_model(name: str, zeros: float | str = 0.9, dtype: torch.dtype = torch.float32) -> nn.Module:
    """One of MODELS with drawn buffers, and in its prunable weights a share of zeros or two in four."""
    model = MODELS[name]()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    for parameter in find_prunable(model)[0].values():
        parameter.data.masked_fill_(zeros_at(parameter, zeros), 0.0)
    return model.to(dtype).eval()


def zeros_at(weight: Tensor, zeros: float | str) -> Tensor:
    """Random places to zero; "2:4" along dimension 1."""
    if zeros != "2:4" or weight.shape[1] % 4:
        return torch.rand(weight.shape) < (0.5 if zeros == "2:4" else zeros)
    moved = torch.rand(weight.movedim(1, -1).shape)
    groups = moved.view(-1, 4).argsort(dim=1).argsort(dim=1)
    return (groups < 2).view(moved.shape).movedim(-1, 1)


def inputs_of(model: nn.Module) -> Tensor:
    """A few inputs that the network takes."""
    if isinstance(model, GPT2):
        return torch.randint(50, (2, 16))
    channels = next(model.parameters()).shape[1]
    return torch.randn(4, channels, *((28, 28) if channels == 1 else (16, 16)))


def make_run(folder: Path, model: nn.Module, *steps: int) -> Path:
    """The folder of a run with a checkpoint of `model` at each of some steps."""
    folder.mkdir()
    prunable = {name: weight.numel() for name, weight in find_prunable(model)[0].items()}
    record = {"run_id": "0123456789ab", "name": "lenet5_adamw_x", "pruning": {"prunable": prunable}}
    run_directory.write_json(folder / run_directory.RECORD, record)
    for step in steps:
        checkpoint.save(folder / "checkpoints", step, checkpoint.model_weights(model), {"step": step})
    return folder
