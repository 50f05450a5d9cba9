"""Images: split, normalised and gathered; wrong shapes and labels refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adamwprune.data.imaging.images import (
    ImageDataset,
    LabelledImages,
    Normalisation,
    Shape,
    split_image_data,
    stratified_split,
)
from adamwprune.errors import DataError

GREY = Normalisation(mean=(0.25,), std=(0.5,))


def images_of(labels, source="file", size=4):
    labels = np.asarray(labels)
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 1, size, size), dtype=np.uint8)
    return LabelledImages(pixels, labels, source)


def make(content=None, test=None, **changes):
    shape = {"num_classes": 3, "channels": 1, "image_size": 4}
    shape |= {key: changes.pop(key) for key in shape.keys() & changes.keys()}
    return split_image_data(
        name="made up",
        content=content or images_of([0, 1, 2] * 8),
        test=test or images_of([0, 1, 2]),
        normalisation=GREY,
        shape=Shape(**shape),
        facts={},
        **{"val_fraction": 0.25, "split_seed": 0, **changes},
    )


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_split_is_disjoint_complete_and_stratified(counts, fraction, seed):
    """Every image is in one part, and of each class the nearest whole number is in validation."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    train, val = stratified_split(labels, fraction, seed)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(len(labels)))
    drawn = np.bincount(labels[val], minlength=len(counts))
    assert drawn.tolist() == [round(fraction * count) for count in counts]


def test_split_depends_on_its_seed_alone():
    """No generator that training seeds has a part in it, in numpy or torch."""
    labels = np.repeat(np.arange(10), 40)
    np.random.seed(1)
    torch.manual_seed(1)
    first = stratified_split(labels, 0.1, split_seed=0)
    np.random.seed(2)
    torch.manual_seed(2)
    again, other = stratified_split(labels, 0.1, split_seed=0), stratified_split(labels, 0.1, split_seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])
    # PCG64's raw words are guaranteed; were they to change, every published split would.
    assert first[1][:8].tolist() == [3, 11, 13, 20, 48, 53, 59, 62]


def test_batch_is_the_normalised_image():
    """Against float64 arithmetic; float32 has 24 bits, values are below 4, so 1e-6 is the rounding."""
    content = images_of([0, 1, 2, 1])
    inputs, targets = ImageDataset(content, GREY).batch(np.array([2, 0, 2]), epoch=0)
    oracle = (content.images[[2, 0, 2]].astype(np.float64) / 255 - 0.25) / 0.5
    assert inputs.dtype == torch.float32
    assert targets.dtype == torch.int64
    np.testing.assert_allclose(inputs.numpy(), oracle, atol=1e-6)
    assert targets.tolist() == [2, 0, 2]


def test_channels_are_normalised_each_with_its_own_statistics():
    """Three channels of one value each."""
    content = LabelledImages(np.full((1, 3, 2, 2), 51, dtype=np.uint8), np.array([0]), "file")
    inputs, _ = ImageDataset(content, Normalisation((0.2, 0.1, 0.0), (1.0, 0.5, 0.25))).batch(
        np.array([0]), 0
    )
    np.testing.assert_allclose(inputs[0, :, 0, 0].numpy(), [0, 0.2, 0.8], atol=1e-6)


def test_batch_is_pure_and_does_not_hand_out_the_data():
    """Epochs, order and grouping change nothing; spoiling a batch spoils no other."""
    dataset = ImageDataset(images_of(range(10)), GREY)
    indices = np.array([7, 3, 3])
    first, labels = dataset.batch(indices, epoch=0)
    kept = first.clone()
    first.zero_()
    labels.zero_()
    again, labels = dataset.batch(indices, epoch=3)
    assert torch.equal(again, kept)
    assert labels.tolist() == [7, 3, 3]
    assert torch.equal(torch.cat([dataset.batch(indices[i : i + 1], 0)[0] for i in range(3)]), kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 3}, "data.channels=3: .* have 1; use 1"),
        ({"image_size": 28}, "data.image_size=28: .* have 4; use 4"),
        (
            {"num_classes": 4},
            "data.num_classes=4: file has 3 classes, and no image of class 3; .* or use 3 if",
        ),
        ({"num_classes": 2}, "data.num_classes=2: file has label 2 at index 2"),
        ({"content": images_of([0, 1, -1])}, "file has label -1 at index 2"),
        ({"content": images_of([1] * 8)}, "file has 1 classes, and no image of class 0; add images of it$"),
        ({"test": images_of([0, 1, 5], "other")}, "other has label 5 at index 2"),
        ({"test": images_of([])}, "0 images with 0 labels"),
        ({"val_fraction": 0.0}, "data.val_fraction=0.0: leaves class 0 without a validation image"),
        ({"val_fraction": 0.99}, "leaves class 0 without a training image"),
    ],
)
def test_content_that_is_not_as_configured_is_refused(changes, message):
    """The key, both numbers and the file are in the message; `make()` without changes is the control."""
    make()
    with pytest.raises(DataError, match=message):
        make(**changes)


def test_fingerprint_changes_with_any_pixel_label_and_the_split():
    """Equal data, equal fingerprint; one changed byte anywhere, another."""
    content, test = images_of([0, 1, 2] * 8), images_of([0, 1, 2])
    same = make(content, test).fingerprint
    assert make(images_of([0, 1, 2] * 8), images_of([0, 1, 2])).fingerprint == same
    brighter = content.images.copy()
    brighter[5, 0, 1, 1] ^= 1
    relabelled = content.labels.copy()
    relabelled[[0, 1]] = relabelled[[1, 0]]
    backwards = LabelledImages(content.images[::-1], content.labels[::-1], "file")
    others = [
        make(LabelledImages(brighter, content.labels, "file"), test),
        make(LabelledImages(content.images, relabelled, "file"), test),
        make(backwards, test),
        make(content, LabelledImages(brighter[5:8], test.labels, "file")),
        make(content, test, split_seed=1),
        make(content, test, val_fraction=0.5),
    ]
    assert len({same, *(data.fingerprint for data in others)}) == 7


def test_facts_are_plain_counts_and_settings():
    """What the run record keeps can be written as JSON."""
    assert make().facts == {
        "val_fraction": 0.25,
        "split_seed": 0,
        "mean": [0.25],
        "std": [0.5],
        "augmentation": None,
        "train_images": 18,
        "val_images": 6,
        "test_images": 3,
    }
