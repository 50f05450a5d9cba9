"""Made-up data: the same bits everywhere, and learnable to a degree that is known."""

import math

import numpy as np
import pytest

from adamwprune.data.synthetic import synthetic_images, synthetic_tokens
from adamwprune.errors import DataError

GREY = {"num_classes": 10, "channels": 1, "image_size": 28}


def everything(dataset):
    return dataset.batch(np.arange(len(dataset)), epoch=0)


@pytest.mark.parametrize("shape", [(1, 28), (3, 32), (2, 5)])
def test_images_have_the_configured_shape(shape):
    """Any number of channels and pixels, also where the pattern's blocks do not fit evenly."""
    channels, image_size = shape
    data = synthetic_images(num_classes=4, channels=channels, image_size=image_size, num_train=40)
    inputs, targets = everything(data.train)
    assert inputs.shape == (40, channels, image_size, image_size)
    assert sorted(set(targets.tolist())) == [0, 1, 2, 3]
    assert (len(data.val), len(data.test)) == (256, 512)


def test_images_are_normalised_by_their_own_statistics():
    """Statistics are kept to 4 digits, hence 1e-3."""
    inputs, _ = everything(synthetic_images(num_classes=3, channels=2, image_size=16).train)
    np.testing.assert_allclose(inputs.mean(dim=(0, 2, 3)).numpy(), 0, atol=1e-3)
    np.testing.assert_allclose(inputs.std(dim=(0, 2, 3)).numpy(), 1, atol=1e-3)


def test_images_can_be_learned():
    """The nearest class mean of the training part names nearly all test images; noise alone, one in ten."""
    data = synthetic_images(**GREY)
    (inputs, targets), (test_inputs, test_targets) = everything(data.train), everything(data.test)
    means = np.stack([inputs[targets == label].numpy().mean(axis=0) for label in range(10)])
    distances = ((test_inputs.numpy()[:, None] - means[None]) ** 2).sum(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == test_targets.numpy()).mean() > 0.95


def test_tokens_have_the_known_entropies():
    """Bigrams carry 1.213 nats, unigrams ln(V), to what 200,000 draws resolve (about 0.01)."""
    data = synthetic_tokens(vocab_size=32, block_size=10, seed=0, num_tokens=200_000)
    inputs, targets = (part.flatten().numpy() for part in everything(data.train))
    pairs = np.bincount(32 * inputs + targets, minlength=32 * 32).reshape(32, 32) / len(inputs)
    assert (np.count_nonzero(pairs, axis=1) == 4).all()
    joint = -(pairs[pairs > 0] * np.log(pairs[pairs > 0])).sum()
    unigram = -(pairs.sum(axis=1) * np.log(pairs.sum(axis=1))).sum()
    assert data.facts["entropy_nats"] == pytest.approx(1.75 * math.log(2))
    assert joint - unigram == pytest.approx(1.75 * math.log(2), abs=0.01)
    assert unigram == pytest.approx(math.log(32), abs=0.01)


def test_content_is_the_same_in_every_release():
    """Golden curves rest on these bits; only raw PCG64 words are used, so no release may change them."""
    assert (
        synthetic_images(**GREY).fingerprint
        == "b370e3a4afbdaeb8fcc2883e09c3570c3b35103bde0f2701e21361ed6467725f"
    )
    assert (
        synthetic_tokens(vocab_size=256, block_size=64, seed=0).fingerprint
        == "b06709e2d4c5bf6189b52f2b51020793ea83fa5c52fe6e990693e1a4251575cc"
    )


def test_content_seed_changes_content_and_the_training_seed_does_not():
    """All runs of a study see the same data."""
    assert synthetic_images(**GREY).fingerprint != synthetic_images(**GREY, content_seed=1).fingerprint
    one, two, other = (
        synthetic_tokens(vocab_size=16, block_size=4, num_tokens=1000, seed=seed, content_seed=content)
        for seed, content in ((1, 0), (2, 0), (1, 1))
    )
    assert one.fingerprint == two.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: synthetic_images(**GREY, num_val=9),
            "synthetic val images has 9 classes, and no image of class 9; .* use 9 if no part has",
        ),
        (lambda: synthetic_tokens(vocab_size=8, block_size=64, seed=0, num_tokens=100), "data.block_size=64"),
        (
            lambda: synthetic_tokens(vocab_size=8, block_size=4, seed=0, val_fraction=0.0),
            "data.val_fraction=0",
        ),
    ],
)
def test_parts_too_small_to_use_are_refused(make, message):
    """Nothing is rounded up to make it fit."""
    with pytest.raises(DataError, match=message):
        make()
