"""The traced peak against the real one, byte by byte as the CPU's allocator has them."""

import functools

import pytest
import torch
from torch import nn

from adamwprune.fit.trace import trace
from adamwprune.models.gpt2 import GPT2
from adamwprune.models.lenet import LeNet5
from adamwprune.models.resnet import resnet18
from adamwprune.training.evaluation import cross_entropy
from tests.helpers.memory import Peak

MIB = 2**20
# Below: what kernels take and give back within one call is not traced; convolutions on a CPU copy operands,
# LeNet-5's of few channels most. Above: one copy of a tied embedding's gradient, which autograd adds
# in place where it can.
BELOW, BELOW_LENET5, ABOVE = 0.04, 0.25, 0.15

SMALL_GPT2 = functools.partial(
    GPT2, vocab_size=4096, block_size=64, n_layer=2, n_head=2, n_embd=64, dropout=0.0
)
GPT2_NANO = functools.partial(
    GPT2, vocab_size=50257, block_size=64, n_layer=4, n_head=4, n_embd=128, dropout=0.0
)
GPT2_124M = functools.partial(
    GPT2, vocab_size=50257, block_size=256, n_layer=12, n_head=12, n_embd=768, dropout=0.0
)
LENET5 = functools.partial(LeNet5, num_classes=10, in_channels=1, image_size=28)
RESNET18 = functools.partial(resnet18, num_classes=10, in_channels=3, image_size=32, stem="cifar", width=64)


def measured(make_model, shape, autocast=None, micro_batches=1, dtype=torch.int64):
    """MiB that forward and backward passes really held at most, the model included."""
    with Peak() as peak:
        model = make_model().train()
        inputs = torch.zeros(shape, dtype=dtype)
        targets = torch.zeros(shape if dtype is torch.int64 else shape[:1], dtype=torch.int64)
        for _ in range(micro_batches):
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                loss = cross_entropy(model(inputs), targets) / micro_batches
            loss.backward()
    return peak.mebibytes


def traced(make_model, shape, autocast=None, micro_batches=1, dtype=torch.int64, on_gpu=False):
    return trace(make_model, shape, dtype, autocast=autocast, on_gpu=on_gpu, micro_batches=micro_batches)


def agree(predicted, real, below):
    """Whether MiB that were predicted are those that were measured, within the tolerance."""
    return (1 - below) * real <= predicted <= (1 + ABOVE) * real


CASES = {
    "gpt2-bf16-accumulated": (SMALL_GPT2, (32, 64), torch.bfloat16, 2),
}
SLOW = {
    "gpt2": (SMALL_GPT2, (32, 64)),
    "lenet5": (LENET5, (512, 1, 28, 28), None, 1, torch.float32),
    "resnet18": (RESNET18, (64, 3, 32, 32), None, 1, torch.float32),
    "resnet18-bf16-accumulated": (RESNET18, (64, 3, 32, 32), torch.bfloat16, 2, torch.float32),
    "gpt2-nano": (GPT2_NANO, (8, 64)),
    "gpt2-124M": (GPT2_124M, (1, 256)),
    "gpt2-124M-accumulated": (GPT2_124M, (2, 256), None, 2),
    "gpt2-124M-bf16": (GPT2_124M, (1, 256), torch.bfloat16, 1),
}


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=name) for name, case in CASES.items()),
        *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in SLOW.items()),
    ],
)
def test_the_peak_is_the_real_one(case):
    """Within the tolerance; the control, the same without its logits or gradients, is not."""
    found, real = traced(*case), measured(*case)
    below = BELOW_LENET5 if case[0] is LENET5 else BELOW
    assert agree(found.peak / MIB, real, below), (found, real)
    left_out = max(found.logits, found.activations, found.gradients)
    assert not agree((found.peak - left_out) / MIB, real, below)


@pytest.mark.slow
def test_tracing_takes_no_memory():
    """A 124M-parameter model at 64 x 256 tokens, whose step would need 20 GB."""
    with Peak() as peak:
        found = traced(GPT2_124M, (64, 256))
    assert found.peak > 15e9
    assert peak.mebibytes < 100


def test_parts_of_a_network_whose_memory_is_known_by_hand():
    """Linear(100, 50), no bias, on 800 samples; the highest moment is the backward pass of the loss."""
    found = traced(lambda: nn.Linear(100, 50, bias=False), (800, 100), None, 2, dtype=torch.float32)
    assert found.weights == found.gradients == 100 * 50 * 4
    # Inputs and targets; a few scalars.
    assert found.activations == pytest.approx(800 * (100 * 4 + 8), abs=64)
    # Log-softmax, its gradient, and the gradient of the logits.
    assert found.logits == 3 * 800 * 50 * 4
    assert found.temporary < 64
    assert found.flops == 2 * 2 * 800 * 100 * 50  # the input needs no gradient
    assert found.recomputed == 0


def test_attention_counts_as_two_products_forward_and_four_backward():
    """As the model's own formula has it."""
    found, model = traced(SMALL_GPT2, (2, 64)), SMALL_GPT2()
    assert found.flops == pytest.approx(model.flops_per_token() * 2 * 64, rel=0.02)


def test_checkpointing_keeps_less_and_computes_again():
    """Of the real model, by its own key."""
    deep = functools.partial(SMALL_GPT2, n_layer=6)
    plain = traced(deep, (8, 64))
    checkpointed = traced(functools.partial(deep, activation_checkpointing=True), (8, 64))
    assert checkpointed.activations < 0.6 * plain.activations
    assert 0 == plain.recomputed < checkpointed.recomputed < checkpointed.flops / 3


@pytest.mark.slow
def test_on_a_gpu_dropout_keeps_a_byte_and_attention_no_matrix():
    """On the CPU the mask has the activations' format, and attention weights are kept."""
    with_dropout = functools.partial(SMALL_GPT2, dropout=0.1)
    parts = {
        (rate > 0, on_gpu): traced(make, (8, 64), on_gpu=on_gpu).activations
        for make, rate in ((SMALL_GPT2, 0.0), (with_dropout, 0.1))
        for on_gpu in (False, True)
    }
    entries = 8 * 64 * 64  # of each of five dropouts (B T C): after the embeddings, two a block
    assert parts[True, True] - parts[False, True] <= 5 * entries * (1 + 4)
    assert parts[True, False] - parts[False, False] > 2 * 8 * 2 * 64 * 64 * 4  # two blocks' (B H T T)


@pytest.mark.slow
def test_on_a_gpu_autocast_computes_softmax_in_float32():
    """Which the CPU does in bfloat16."""

    def attends():
        return nn.Sequential(nn.Linear(8, 1000), nn.Softmax(-1), nn.Linear(1000, 8))

    cpu, gpu = (
        traced(attends, (100, 8), torch.bfloat16, dtype=torch.float32, on_gpu=on_gpu).activations
        for on_gpu in (False, True)
    )
    assert gpu > 1.5 * cpu


def test_a_model_of_a_user_is_followed_and_one_that_looks_at_values_is_not():
    """Nothing but operations matters."""

    class Looks(nn.Linear):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    assert traced(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (2, 4), dtype=torch.float32).peak > 0
    with pytest.raises(Exception, match=r"_local_scalar_dense"):
        traced(lambda: Looks(4, 4), (2, 4), dtype=torch.float32)
