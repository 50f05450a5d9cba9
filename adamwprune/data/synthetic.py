"""Data sets made up from a seed, for tests and benchmarks: any shape, no file, something to learn.

All randomness is raw words of PCG64, which numpy guarantees never to change; the same keys give
the same bits on every machine, and golden curves stay golden.
"""

from typing import Annotated

import numpy as np

from adamwprune.data.base import Data
from adamwprune.data.imaging.augment import CropFlip
from adamwprune.data.imaging.images import LabelledImages, Normalisation, Shape, image_data
from adamwprune.data.tokens import TokenArray
from adamwprune.data.windows import token_data
from adamwprune.errors import DataError
from adamwprune.ranges import Fraction, NonNegativeInt, PositiveInt, Range, Seed, UnitInterval

# A pattern has blocks of this many pixels a side, so that small convolutions can see it.
BLOCK = 4

# Probability of each of a token's four successors, and the bytes (of 256) that choose them.
SUCCESSORS = (0.5, 0.25, 0.125, 0.125)
THRESHOLDS = np.cumsum(SUCCESSORS)[:-1] * 256


def synthetic_images(
    *,
    num_classes: Annotated[int, Range(least=2, most=1000)],
    channels: PositiveInt,
    image_size: PositiveInt,
    num_train: PositiveInt = 2048,
    num_val: PositiveInt = 256,
    num_test: PositiveInt = 512,
    noise: Fraction = 0.75,
    content_seed: Seed = 0,
    crop_padding: NonNegativeInt = 0,
    horizontal_flip: UnitInterval = 0.0,
    cutout: NonNegativeInt = 0,
    seed: Seed = 0,
) -> Data:
    """Each class has its own pattern of blocks; an image is that pattern under uniform noise.

    pixel = (1 - noise) * pattern + noise * random byte. Labels go round, 0, 1, 2, ..., so every
    part has as many images of each class, to within one.

    `content_seed` is not the training seed: all runs of a study see the same images. The last four
    keys are `CropFlip`'s.

    Raises:
        DataError: a part has fewer images than there are classes.
    """
    side = -(-image_size // BLOCK)
    patterns = _random_bytes((content_seed, 0), (num_classes, channels, side, side))
    patterns = patterns.repeat(BLOCK, axis=2).repeat(BLOCK, axis=3)[:, :, :image_size, :image_size]
    counts = {"train": num_train, "val": num_val, "test": num_test}
    # In 256ths: sums of floats, rounded, might not be the same bits everywhere.
    weight = np.uint16(256 * noise)
    parts = {}
    for stream, (part, count) in enumerate(counts.items(), start=1):
        labels = np.arange(count) % num_classes
        random = _random_bytes((content_seed, stream), (count, channels, image_size, image_size))
        images = ((256 - weight) * patterns[labels] + weight * random) >> 8
        parts[part] = LabelledImages(images.astype(np.uint8), labels, f"synthetic {part} images")
    pixels = parts["train"].images.astype(np.float64) / 255
    return image_data(
        name="synthetic_images",
        **parts,
        shape=Shape(num_classes, channels, image_size),
        normalisation=Normalisation(
            mean=tuple(pixels.mean(axis=(0, 2, 3)).round(4).tolist()),
            std=tuple(pixels.std(axis=(0, 2, 3)).round(4).tolist()),
        ),
        facts={"source": "synthetic", "content_seed": content_seed, "noise": noise},
        augment=CropFlip(crop_padding, horizontal_flip, cutout, seed),
    )


def synthetic_tokens(
    *,
    vocab_size: Annotated[int, Range(least=4, most=65536)],
    block_size: PositiveInt,
    seed: Seed,
    num_tokens: PositiveInt = 131072,
    val_fraction: Fraction = 0.1,
    content_seed: Seed = 0,
) -> Data:
    """A Markov chain: each token is followed by one of four, with probabilities 1/2, 1/4, 1/8, 1/8.

    Known by construction, in nats a token: what one can reach by knowing the chain is its entropy
    rate, 1.75 ln 2 = 1.213; by knowing only how often each token occurs, ln(vocab_size). A model's
    loss between the two says how much of the structure it has learned.

    `seed` moves the training windows from epoch to epoch. `content_seed`, of the chain, is not the
    training seed: all runs of a study see the same tokens.

    Raises:
        DataError: fewer tokens than a window needs.
    """
    # Four distinct successors, each token being as often a successor as any other: so all tokens
    # occur equally often. `order` puts them on a ring; its neighbours ahead are the successors.
    order = np.argsort(_random_words((content_seed, 0), vocab_size), kind="stable")
    successors = np.empty((vocab_size, len(SUCCESSORS)), dtype=np.int64)
    for step in range(len(SUCCESSORS)):
        successors[order, step] = np.roll(order, -1 - step)
    choices = np.searchsorted(THRESHOLDS, _random_bytes((content_seed, 1), (num_tokens,)), side="right")
    ids = _walk(successors.tolist(), choices.tolist())
    train_tokens = num_tokens - round(val_fraction * num_tokens)
    if train_tokens == num_tokens:
        raise DataError(f"data.val_fraction={val_fraction}: leaves none of {num_tokens} tokens; use 0.1")
    return token_data(
        name="synthetic_tokens",
        train=[TokenArray.of(ids[:train_tokens])],
        val=[TokenArray.of(ids[train_tokens:])],
        vocab_size=vocab_size,
        block_size=block_size,
        seed=seed,
        tokenizer=None,
        vocab_fix="a larger one",
        facts={
            "source": "synthetic",
            "content_seed": content_seed,
            "entropy_nats": float(-np.dot(SUCCESSORS, np.log(SUCCESSORS))),
        },
    )


def _walk(successors: list[list[int]], choices: list[int]) -> np.ndarray:
    """Plain lists: a chain cannot be vectorised, and indexing numpy in a loop is ten times slower."""
    state, states = 0, []
    for choice in choices:
        state = successors[state][choice]
        states.append(state)
    return np.array(states, dtype=np.uint16)


def _random_words(stream: tuple[int, int], count: int) -> np.ndarray:
    return np.random.PCG64(stream).random_raw(count)


def _random_bytes(stream: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    words = _random_words(stream, -(-count // 8))
    return words.astype("<u8").view(np.uint8)[:count].reshape(shape)
