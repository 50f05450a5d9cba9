"""Networks that compute with encoded weights give what the dense one gives, and hold less."""

import pytest
import torch
from torch import nn

from adamwprune.export.files import encode
from adamwprune.export.inference import CsrLinear, DecodingLayer, held_bytes, use_encoded_
from adamwprune.pruning.prunable import find_prunable
from adamwprune.training.checkpoint import load_weights_, model_weights
from tests.export.networks import MODELS, inputs_of, make_model


def encoded_twin(model, name, encoding):
    """The same network, computing with encoded weights."""
    weights = model_weights(model)
    export = encode(weights, encoding, candidates=list(find_prunable(model)[0]))
    twin = MODELS[name]().eval()
    load_weights_(twin, export.weights())
    return use_encoded_(twin, export)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("encoding", "zeros"), [("bitmask", 0.9), ("2:4", "2:4"), ("csr", 0.9)])
@torch.inference_mode()
def test_logits_are_those_of_the_dense_network(name, encoding, zeros):
    """To the bit where weights are decoded, within float32 sums in another order (1e-5) for CSR."""
    model = make_model(name, zeros)
    twin = encoded_twin(model, name, encoding)
    kind = CsrLinear if encoding == "csr" else DecodingLayer
    is_encoded = any(isinstance(layer, kind) for layer in twin.modules())
    assert is_encoded == ((name, encoding) not in [("resnet18", "csr"), ("resnet50", "csr")])
    inputs = inputs_of(model)
    tolerance = 1e-5 if encoding == "csr" else 0
    torch.testing.assert_close(twin(inputs), model(inputs), rtol=tolerance, atol=tolerance)


def test_a_network_holds_what_its_encodings_take():
    """LeNet-5 at 90 %: bits and values of three weights instead of them, and the rest as it was."""
    model = make_model("lenet5")
    pruned = find_prunable(model)[0].values()
    nonzero = sum(int(weight.count_nonzero()) for weight in pruned)
    entries = sum(weight.numel() for weight in pruned)
    rest = held_bytes(model) - 4 * entries
    assert held_bytes(model) == 4 * 61706
    assert held_bytes(encoded_twin(model, "lenet5", "bitmask")) == rest + entries / 8 + 4 * nonzero


@torch.inference_mode()
@pytest.mark.parametrize("samples", [1, 256, 257, 600])
def test_products_in_parts_are_whole(samples):
    """Around the number of samples that are multiplied together; without a bias, with more dimensions."""
    layer = nn.Sequential(nn.Linear(40, 24, bias=False))
    layer[0].weight.masked_fill_(torch.rand(24, 40) < 0.9, 0.0)
    inputs = torch.randn(2, samples, 40)
    expected = layer(inputs)
    use_encoded_(layer, encode(model_weights(layer), "csr", candidates=["0.weight"]))
    assert isinstance(layer[0], CsrLinear)
    torch.testing.assert_close(layer(inputs), expected, rtol=1e-5, atol=1e-5)


def test_a_decoded_weight_does_not_stay():
    """After a forward pass, and after one that raised."""
    twin = encoded_twin(make_model("lenet5"), "lenet5", "bitmask")
    before = held_bytes(twin)
    twin(torch.randn(1, 1, 28, 28))
    with pytest.raises(RuntimeError):
        twin.fc1(torch.randn(1, 3))
    assert not hasattr(twin.fc1.layer, "weight")
    assert held_bytes(twin) == before
