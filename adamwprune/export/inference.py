"""Models that compute with encoded weights, so that they hold in memory about what the file holds.

Loading a file with `files.load` gives dense weights: the model is then as fast, and as large, as the dense
one. Here is the other way, which costs time in each forward pass or saves some, as
benchmarks/inference.py measures:

    csr              the product of a sparse matrix and the inputs, for Linear layers
    bitmask, 2:4     the weight of a Linear or Conv layer is decoded before each use and dropped after it

On the CPU. 2:4 kernels need a GPU and another layout than that of the file; none is used.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from adamwprune.export.files import Encoded, Export
from adamwprune.targets import build
from adamwprune.training.checkpoint import load_weights_

# Samples that are multiplied together: transposing 1,024 at once took longer than the product.
SAMPLES = 256


def build_model(node: Mapping[str, Any], export: Export) -> nn.Module:
    """The model that a `model` node of a configuration describes, dense, with exported weights.

    Raises:
        ConfigError: the node names code outside this package.
        CheckpointError: the weights are those of another model.
    """
    model = build(without_weights(node), "model")()
    load_weights_(model, export.weights())
    return model.eval()


def without_weights(node: Mapping[str, Any]) -> dict[str, Any]:
    """A `model` node that reads no file of initial weights, for a model that is given others."""
    return {key: value for key, value in node.items() if key != "weights"}


def use_encoded_(model: nn.Module, export: Export) -> nn.Module:
    """Swap the layers whose weights are encoded for ones that compute with them; other weights stay dense.

    In place, for inference alone: a swapped layer has no parameter `weight`.
    """
    for name, encoded in export.encoded.items():
        path, _, attribute = name.rpartition(".")
        layer = model.get_submodule(path)
        if attribute != "weight":
            continue
        if encoded.encoding == "csr" and isinstance(layer, nn.Linear):
            model.set_submodule(path, CsrLinear(encoded, layer))
        elif encoded.encoding != "csr" and isinstance(layer, nn.Linear | _ConvNd):
            model.set_submodule(path, DecodingLayer(encoded, layer))
    return model


def held_bytes(model: nn.Module) -> int:
    """Bytes of weights and buffers that a model keeps between forward passes, encoded ones as they are."""
    plain = [*model.parameters(), *model.buffers()]
    encoded = [layer.encoded for layer in model.modules() if isinstance(layer, EncodedLayer)]
    return sum(tensor.nbytes for tensor in (*plain, *encoded))


class EncodedLayer(nn.Module):
    """A layer that keeps its weight encoded."""

    def __init__(self, encoded: Encoded) -> None:
        super().__init__()
        self.encoded = encoded


class CsrLinear(EncodedLayer):
    """y = x W^T + b with W in compressed sparse rows; sums run in another order than in nn.Linear."""

    def __init__(self, encoded: Encoded, layer: nn.Linear) -> None:
        super().__init__(encoded)
        parts = encoded.parts
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            self._weight = torch.sparse_csr_tensor(  # a view of the parts, not a copy
                parts["crow"], parts["col"], parts["values"], encoded.shape, check_invariants=True
            )
        self.bias = torch.zeros(encoded.shape[0]) if layer.bias is None else layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        samples = x.reshape(-1, x.shape[-1])
        y = samples.new_empty(len(samples), len(self.bias))
        for inputs, outputs in zip(samples.split(SAMPLES), y.split(SAMPLES), strict=True):
            # The sparse matrix comes first in a product, so samples are columns there.
            outputs.copy_(torch.addmm(self.bias[:, None], self._weight, inputs.t()).t())
        return y.reshape(*x.shape[:-1], -1)


class DecodingLayer(EncodedLayer):
    """A Linear or Conv layer whose weight exists while it is used."""

    def __init__(self, encoded: Encoded, layer: nn.Module) -> None:
        super().__init__(encoded)
        self.layer = layer
        del layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """What the dense layer gives, to the bit."""
        self.layer.weight = self.encoded.decode()
        try:
            return self.layer(x)
        finally:
            del self.layer.weight
