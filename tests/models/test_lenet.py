"""LeNet-5: sizes, both image sizes, and the paper's order of operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adamwprune.errors import ConfigError
from adamwprune.models.lenet import LeNet5, LeNet5Caffe


@pytest.mark.parametrize(
    ("model", "image_size", "parameters"),
    [(LeNet5, 28, 61_706), (LeNet5, 32, 61_706), (LeNet5Caffe, 28, 431_080)],
)
def test_parameter_count(model, image_size, parameters):
    """The published counts, 10 classes and 1 channel."""
    network = model(num_classes=10, in_channels=1, image_size=image_size)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_28_pixels_are_32_pixels_with_a_border_of_zeros():
    """The paper's padding. Exact up to the order in which a convolution adds: 1e-6."""
    small = LeNet5(num_classes=10, in_channels=1, image_size=28)
    large = LeNet5(num_classes=10, in_channels=1, image_size=32)
    large.load_state_dict(small.state_dict())
    images = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(small(images), large(F.pad(images, (2, 2, 2, 2))), rtol=0, atol=1e-6)


def test_relu_after_the_pool_equals_relu_before_it():
    """Logits and gradients, bitwise: max and ReLU commute, only the work differs."""
    model = LeNet5(num_classes=10, in_channels=1, image_size=32)
    textbook = nn.Sequential(
        *(model.conv1, nn.ReLU(), nn.MaxPool2d(2), model.conv2, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(model.fc1, nn.ReLU(), model.fc2, nn.ReLU(), model.fc3),
    )
    images = torch.randn(3, 1, 32, 32)
    results = []
    for network in (model, textbook):
        network.zero_grad()
        logits = network(images)
        logits.square().sum().backward()
        results.append([logits, *(parameter.grad.clone() for parameter in model.parameters())])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


@pytest.mark.parametrize(("model", "image_size"), [(LeNet5, 30), (LeNet5, 224), (LeNet5Caffe, 32)])
def test_other_image_sizes_are_refused(model, image_size):
    """One line with the key and the value; 30 would even fit by arithmetic."""
    message = rf"^data\.image_size={image_size}: {model.__name__} takes 28( or 32)?; use model=resnet18$"
    with pytest.raises(ConfigError, match=message):
        model(num_classes=10, in_channels=1, image_size=image_size)
