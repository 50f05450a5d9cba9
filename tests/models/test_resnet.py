"""ResNets: torchvision's names, the papers' sizes and strides."""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adamwprune.errors import ConfigError
from adamwprune.models.resnet import resnet18, resnet50

GOLDEN = Path(__file__).parent / "golden"
IMAGENET = {"num_classes": 1000, "in_channels": 3, "image_size": 224, "stem": "imagenet"}
CIFAR10 = {"num_classes": 10, "in_channels": 3, "image_size": 32, "stem": "cifar"}


def golden_shapes(name: str) -> dict[str, tuple[int, ...]]:
    lines = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    entries = (line.split() for line in lines if not line.startswith("#"))
    return {key: tuple(map(int, shape)) for key, *shape in entries}


@pytest.mark.parametrize("factory", [resnet18, resnet50])
def test_state_dict_equals_torchvision(factory):
    """Names, shapes and order, against a committed list: torchvision's weights must load."""
    with torch.device("meta"):
        state = factory(**IMAGENET).state_dict()
    shapes = [(key, tuple(tensor.shape)) for key, tensor in state.items()]
    assert shapes == list(golden_shapes(factory.__name__).items())


def in_transformers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's names to those of transformers' ResNetForImageClassification."""

    def renamed(name: str) -> str:
        name = re.sub(r"^conv1\.", "resnet.embedder.embedder.convolution.", name)
        name = re.sub(r"^bn1\.", "resnet.embedder.embedder.normalization.", name)
        name = re.sub(r"^fc\.", "classifier.1.", name)
        stage = r"^layer(\d)\.(\d)\."
        place = re.match(stage, name)
        if place is None:
            return name
        inner = re.sub(stage, "", name)
        inner = re.sub(r"^conv(\d)", lambda m: f"layer.{int(m[1]) - 1}.convolution", inner)
        inner = re.sub(r"^bn(\d)", lambda m: f"layer.{int(m[1]) - 1}.normalization", inner)
        inner = inner.replace("downsample.0", "shortcut.convolution").replace(
            "downsample.1", "shortcut.normalization"
        )
        return f"resnet.encoder.stages.{int(place[1]) - 1}.layers.{place[2]}.{inner}"

    return {renamed(name): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("factory", "kind", "depths", "expansion"),
    [(resnet18, "basic", [2, 2, 2, 2], 1), (resnet50, "bottleneck", [3, 4, 6, 3], 4)],
)
def test_logits_and_gradients_equal_transformers(factory, kind, depths, expansion):
    """An independent implementation with the same random weights and statistics; 1e-5 for the order of sums.

    Bottlenecks stride in the 3x3 convolution there too. Training mode: batch statistics and their update.
    """
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8 * expansion * 2**stage for stage in range(4)],
        depths=depths,
        layer_type=kind,
        num_labels=10,
    )
    theirs = transformers.ResNetForImageClassification(config)
    ours = factory(**{**IMAGENET, "num_classes": 10, "image_size": 64}, width=8)
    with torch.no_grad():
        for tensor in (*ours.parameters(), *ours.buffers()):
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
    theirs.load_state_dict(in_transformers_names(ours.state_dict()))
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([1, 2, 3, 4])
    with torch.no_grad():
        expected = theirs.eval()(images).logits
        torch.testing.assert_close(ours.eval()(images), expected, rtol=1e-5, atol=1e-5)
    for logits in (theirs.train()(images).logits, ours.train()(images)):
        F.cross_entropy(logits, labels).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    own = in_transformers_names({name: parameter.grad for name, parameter in ours.named_parameters()})
    torch.testing.assert_close(own, gradients, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        in_transformers_names(ours.state_dict()), theirs.state_dict(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("factory", "sizes", "parameters"),
    [
        (resnet18, IMAGENET, 11_689_512),
        (resnet50, IMAGENET, 25_557_032),
        (resnet18, CIFAR10, 11_173_962),
        (resnet50, CIFAR10, 23_520_842),
    ],
)
def test_parameter_count(factory, sizes, parameters):
    """The published counts; on meta, where 25 million weights cost nothing."""
    with torch.device("meta"):
        model = factory(**sizes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("factory", "sizes", "expected"),
    [
        (resnet18, IMAGENET, [(64, 56), (128, 28), (256, 14), (512, 7)]),
        (resnet50, IMAGENET, [(256, 56), (512, 28), (1024, 14), (2048, 7)]),
        (resnet18, CIFAR10, [(64, 32), (128, 16), (256, 8), (512, 4)]),
    ],
)
def test_stages_have_the_shapes_of_the_paper(factory, sizes, expected):
    """Channels and resolution after each stage: table 1 of arXiv:1512.03385."""
    seen = []
    with torch.device("meta"):
        model = factory(**sizes)
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            stage.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:3])))
        assert model(torch.empty(2, 3, sizes["image_size"], sizes["image_size"])).shape[0] == 2
    assert seen == expected


def test_bottlenecks_stride_in_the_3x3_convolution():
    """Shapes and parameters cannot tell v1.5 from the original, accuracy can."""
    with torch.device("meta"):
        model = resnet50(**IMAGENET)
    for stage in (model.layer2, model.layer3, model.layer4):
        assert (stage[0].conv1.stride, stage[0].conv2.stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize("factory", [resnet18, resnet50])
def test_zero_init_residual_starts_blocks_as_the_identity(factory):
    """Bitwise where nothing is projected or negative. Only the last scale is 0: earlier ones would stall."""
    activations = torch.rand(2, 32 if factory is resnet50 else 8, 5, 5)
    for zero in (True, False):
        block = factory(**CIFAR10, width=8, zero_init_residual=zero).layer1[1]
        assert torch.equal(block(activations), activations) == zero
        scales = [norm.weight.mean().item() for norm in block.children() if isinstance(norm, nn.BatchNorm2d)]
        assert scales == [1.0] * (len(scales) - 1) + [1.0 - zero]


def test_convolutions_start_with_the_variance_that_keeps_gradients():
    """Std sqrt(2 / fan-out), fan-out not fan-in; 73,728 draws are exact to 0.26 %, 1 % is four sigma."""
    torch.manual_seed(0)
    weight = resnet18(**CIFAR10).layer2[0].conv1.weight  # 64 -> 128 channels
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.01)


def test_channels_last_is_kept_and_changes_nothing():
    """A silent return to the default layout would cost two copies a layer; sums differ by order."""
    model = resnet18(**CIFAR10, width=8).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    layouts = []
    model.layer4.register_forward_hook(
        lambda module, inputs, output: layouts.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    model = model.to(memory_format=torch.channels_last)
    actual = model(images.to(memory_format=torch.channels_last))
    assert layouts == [True]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_block_equals_its_equation():
    """y = relu(x + bn2(conv2(relu(bn1(conv1(x)))))), written without the module's in-place steps."""
    block = resnet18(**CIFAR10, width=8).layer2[0].eval()
    x = torch.randn(2, 8, 6, 6)
    branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    assert torch.equal(block(x), F.relu(branch + block.downsample(x)))


@pytest.mark.parametrize(
    ("stem", "least", "fix"), [("imagenet", 32, "stem=cifar"), ("cifar", 8, "larger images")]
)
def test_images_below_the_total_stride_are_refused(stem, least, fix):
    """One line with key, value and fix; the smallest allowed size passes."""
    sizes = {"num_classes": 10, "in_channels": 1, "stem": stem, "width": 4}
    logits = resnet18(**sizes, image_size=least).eval()(torch.zeros(1, 1, least, least))
    assert logits.shape == (1, 10)
    with pytest.raises(ConfigError, match=rf"^data\.image_size={least - 1}: .*{least} or more; .*{fix}.*$"):
        resnet18(**sizes, image_size=least - 1)


def test_unknown_stem_is_refused():
    """Never guessed: a typo must not train the other network."""
    with pytest.raises(ConfigError, match=r"^model\.stem=cifar10: must be one of cifar, imagenet$"):
        resnet18(**{**CIFAR10, "stem": "cifar10"})
