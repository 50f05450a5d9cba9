"""Augmentation: a pure function of (seed, epoch, index), and the changes that it says it makes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adamwprune.data.fashion_mnist import fashion3k
from adamwprune.data.imaging.augment import (
    ATTEMPTS,
    CROP,
    CentreCrop,
    CropFlip,
    RandomFlip,
    RandomResizedCrop,
    as_fraction,
    below,
    philox,
    random_words,
)
from adamwprune.data.imaging.images import ImageDataset, LabelledImages, Normalisation, Shape, image_data
from adamwprune.data.mnist import mnist5k
from adamwprune.errors import ConfigError

PLAIN = Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
seeds = st.integers(0, 2**32 - 1)


def pixels(count=16, size=8):
    return np.random.default_rng(0).integers(1, 256, (count, 3, size, size), dtype=np.uint8)


def dataset(augment, images=None):
    images = pixels() if images is None else images
    return ImageDataset(LabelledImages(images, np.arange(len(images)), "file"), PLAIN, augment)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, answer):
    """The three known answers of Random123, its authors' own code."""
    words = philox(tuple(np.array([word], dtype=np.uint64) for word in counter), tuple(key))
    assert [int(word[0]) for word in words] == answer


@given(
    seed=seeds,
    epoch=st.integers(0, 2**32 - 1),
    indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=9),
)
@settings(max_examples=25, deadline=None)
def test_words_of_an_index_are_its_own(seed, epoch, indices):
    """Alone, in a batch, in any order: the same; another seed, epoch, index or purpose: others."""
    indices = np.array(indices)
    words = random_words(seed, epoch, indices, 6, CROP)
    alone = [random_words(seed, epoch, indices[i : i + 1], 6, CROP)[0] for i in range(len(indices))]
    assert np.array_equal(words, np.stack(alone))
    assert (words < 2**32).all()
    for other in (
        random_words(seed ^ 1, epoch, indices, 6, CROP),
        random_words(seed, epoch ^ 1, indices, 6, CROP),
        random_words(seed, epoch, indices ^ 1, 6, CROP),
        random_words(seed, epoch, indices, 6, CROP + 1),
    ):
        assert not np.array_equal(other, words)


def test_draws_are_uniform():
    """Each of 9 shifts of 90,000 in [9,500, 10,500] (five deviations are 471); fractions in [0, 1)."""
    words = random_words(3, 0, np.arange(90_000), 2, CROP)
    for column in below(words, 9).T:
        counts = np.bincount(column, minlength=9)
        assert len(counts) == 9
        assert counts.min() > 9_500
        assert counts.max() < 10_500
    fractions = as_fraction(words)
    assert fractions.min() >= 0
    assert fractions.max() < 1
    assert abs(np.corrcoef(fractions.T)[0, 1]) < 0.02


@given(seed=seeds, epoch=st.integers(0, 1000), order=st.permutations(range(16)), cut=st.integers(0, 16))
@settings(max_examples=25, deadline=None)
def test_image_looks_the_same_in_every_batch(seed, epoch, order, cut):
    """Batches of any composition, before and after others: the bits depend on (seed, epoch, index)."""
    data = dataset(CropFlip(2, 0.5, 3, seed))
    whole, labels = data.batch(np.arange(16), epoch)
    order = np.array(order)
    parts = [data.batch(part, epoch) for part in (order[:cut], order[cut:]) if len(part)]
    assert torch.equal(torch.cat([inputs for inputs, _ in parts]), whole[torch.from_numpy(order)])
    assert labels.tolist() == list(range(16))


def test_epochs_and_seeds_differ_and_global_generators_do_not_matter():
    """The same seed and epoch gives the same bits whatever else was drawn."""
    indices = np.arange(16)
    first = dataset(CropFlip(2, 0.5, 0, 1)).batch(indices, 0)[0]
    torch.manual_seed(5)
    np.random.seed(5)
    assert torch.equal(dataset(CropFlip(2, 0.5, 0, 1)).batch(indices, 0)[0], first)
    assert not torch.equal(dataset(CropFlip(2, 0.5, 0, 1)).batch(indices, 1)[0], first)
    assert not torch.equal(dataset(CropFlip(2, 0.5, 0, 2)).batch(indices, 0)[0], first)


def test_crops_are_windows_of_the_framed_image_and_all_occur():
    """Found by search among all windows of the image with a black frame, flipped or not."""
    images = pixels(count=400, size=5)
    inputs, _ = dataset(CropFlip(2, 0.5, 0, 0), images).batch(np.arange(400), 0)
    shown = (inputs * 255).round().numpy().astype(np.uint8)
    seen = set()
    for image, result in zip(images, shown, strict=True):
        framed = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        matches = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if np.array_equal(framed[:, top : top + 5, left : left + 5][..., :: -1 if flip else 1], result)
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 50


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_as_many_images_are_mirrored_as_asked_for(probability):
    """Of 4,000, within five standard deviations."""
    images = pixels(count=4000, size=2)
    inputs, _ = dataset(CropFlip(0, probability, 0, 0), images).batch(np.arange(4000), 0)
    shown = (inputs * 255).round().numpy().astype(np.uint8)
    mirrored = (shown == images[..., ::-1]).all(axis=(1, 2, 3)) & (shown != images).any(axis=(1, 2, 3))
    assert np.array_equal(np.where(mirrored[:, None, None, None], images[..., ::-1], images), shown)
    tolerance = 5 * math.sqrt(probability * (1 - probability) / 4000)
    symmetric = (images == images[..., ::-1]).all(axis=(1, 2, 3)).mean()
    assert abs(mirrored.mean() - probability) <= tolerance + symmetric


def test_cutout_is_one_square_of_the_mean():
    """0 after normalisation; inside the image it is whole, at the border less; everywhere in turn."""
    images = np.full((300, 3, 8, 8), 255, dtype=np.uint8)
    inputs, _ = dataset(CropFlip(0, 0.0, 3, 0), images).batch(np.arange(300), 0)
    gone = (inputs == 0).numpy()
    assert (gone == gone[:, :1]).all()  # all channels alike
    for mask in gone[:, 0]:
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        assert np.array_equal(mask, rows[:, None] & columns[None])
        for side in (rows, columns):
            places = np.flatnonzero(side)
            assert np.array_equal(places, np.arange(places[0], places[-1] + 1))
            assert len(places) == 3 or (len(places) == 2 and {0, 7} & set(places.tolist()))
    assert gone.any(axis=0).all()


@pytest.mark.parametrize("make", [mnist5k, fashion3k])
def test_off_is_the_same_to_the_bit_and_on_changes_training_images_only(make):
    """Also in the fingerprint, which is of what is stored; the facts have the settings."""
    shape = {"num_classes": 10, "channels": 1, "image_size": 28}
    plain, off = make(**shape), make(**shape, crop_padding=0, horizontal_flip=0.0, cutout=0, seed=7)
    on = make(**shape, crop_padding=3, horizontal_flip=0.5, cutout=4, seed=7)
    indices = np.arange(0, 90)
    for part in ("train", "val", "test"):
        expected = getattr(plain, part).batch(indices, 1)[0]
        assert torch.equal(getattr(off, part).batch(indices, 1)[0], expected)
        assert torch.equal(getattr(on, part).batch(indices, 1)[0], expected) == (part != "train")
    assert plain.fingerprint == off.fingerprint == on.fingerprint
    assert (plain.facts["augmentation"], off.facts["augmentation"]) == (None, None)
    assert on.facts["augmentation"] == {"crop_padding": 3, "horizontal_flip": 0.5, "cutout": 4, "seed": 7}


def test_augmenting_leaves_the_stored_images_alone():
    """Otherwise the second epoch would see the first one's changes."""
    images = pixels()
    kept = images.copy()
    data = dataset(CropFlip(2, 1.0, 3, 0), images)
    data.batch(np.arange(16), 0)
    data.batch(np.arange(16), 1)
    assert np.array_equal(images, kept)


@pytest.mark.parametrize("keys", [(8, 0.0, 0), (0, 0.0, 8)])
def test_more_than_the_image_is_refused(keys):
    """Before anything is trained on blanks."""
    part = LabelledImages(pixels(), np.arange(16) % 2, "file")
    with pytest.raises(ConfigError, match=r"data\.(crop_padding|cutout)=8: must be below data.image_size=8"):
        image_data(
            name="made up",
            train=part,
            val=part,
            test=part,
            shape=Shape(2, 3, 8),
            normalisation=PLAIN,
            facts={},
            augment=CropFlip(*keys, seed=0),
        )


# --- views of images of any size ---


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), seed=seeds, index=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_random_crop_lies_in_the_image_and_has_an_allowed_shape(width, height, seed, index):
    """Ratio and area within the rounding of a pixel, unless all attempts failed and it is the centre."""
    (cut,) = RandomResizedCrop((0.08, 1.0), seed).cuts(np.array([index]), 3)
    (left, top, right, bottom), mirrored = cut(width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert not mirrored
    wide, high = right - left, bottom - top
    assert (wide - 1) / (high + 1) <= 4 / 3
    assert (wide + 1) / (high - 1 or 0.5) >= 3 / 4


def test_random_crops_cover_areas_evenly():
    """Of a square image: shares of the area are uniform, within the rounding and the failures."""
    cuts = RandomResizedCrop((0.2, 0.6), 0).cuts(np.arange(4000), 0)
    boxes = np.array([cut(400, 400)[0] for cut in cuts])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 160_000
    assert areas.min() > 0.195
    assert areas.max() < 0.605
    counts, _ = np.histogram(areas, 4, (0.2, 0.6))
    assert counts.min() > 850
    ratios = np.log((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]))
    assert abs(ratios.mean()) < 0.02
    assert ATTEMPTS == 10


def test_views_are_pure_and_the_centre_is_fixed():
    """Cuts of an index do not depend on the batch; evaluation's on nothing at all."""
    view = RandomFlip(RandomResizedCrop((0.1, 1.0), 5), 0.5, 5)
    together = [cut(300, 200) for cut in view.cuts(np.array([4, 9, 2]), 1)]
    alone = [view.cuts(np.array([index]), 1)[0](300, 200) for index in (4, 9, 2)]
    assert together == alone
    assert together != [cut(300, 200) for cut in view.cuts(np.array([4, 9, 2]), 2)]
    assert {cut(300, 200) for cut in CentreCrop(0.5).cuts(np.arange(3), 8)} == {
        ((100.0, 50.0, 200.0, 150.0), False)
    }
    flips = [cut(9, 9)[1] for cut in RandomFlip(CentreCrop(1.0), 0.25, 0).cuts(np.arange(2000), 0)]
    assert abs(np.mean(flips) - 0.25) < 0.05
