"""Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv:1708.07747): clothes, 28 x 28 grey pixels, 10 classes."""

from adamwprune.data.base import Data
from adamwprune.data.images import Normalisation, Shape
from adamwprune.data.shipped import shipped_images
from adamwprune.ranges import Fraction, PositiveInt, Seed

# Of the 60,000 training images; a subset is normalised like the whole.
NORMALISATION = Normalisation(mean=(0.2860,), std=(0.3530,))


def fashion3k(
    *,
    num_classes: PositiveInt,
    channels: PositiveInt,
    image_size: PositiveInt,
    val_fraction: Fraction = 0.1,
    split_seed: Seed = 0,
) -> Data:
    """2,500 images to train and validate on, 500 to test, from the package's own file.

    Raises:
        DataError: the file is damaged, or a key does not fit it.
    """
    shape = Shape(num_classes, channels, image_size)
    return shipped_images("fashion3k", shape, NORMALISATION, val_fraction=val_fraction, split_seed=split_seed)
