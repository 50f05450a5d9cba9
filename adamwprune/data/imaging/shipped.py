"""Labelled images that ship with the package, as .npz files."""

import io

import numpy as np

from adamwprune.data.base import Data
from adamwprune.data.files.assets import SHA256, read_asset
from adamwprune.data.imaging.augment import CropFlip
from adamwprune.data.imaging.images import LabelledImages, Normalisation, Shape, split_image_data


def shipped_images(
    name: str,
    shape: Shape,
    normalisation: Normalisation,
    *,
    val_fraction: float,
    split_seed: int,
    augment: CropFlip,
) -> Data:
    """The `Data` of the asset {name}.npz.

    Raises:
        DataError: the file is damaged, or a key does not fit it.
    """
    asset = f"{name}.npz"
    content, test = read_images(asset)
    return split_image_data(
        name=name,
        content=content,
        test=test,
        shape=shape,
        normalisation=normalisation,
        val_fraction=val_fraction,
        split_seed=split_seed,
        facts={"source": f"asset {asset}", "source_sha256": SHA256[asset]},
        augment=augment,
    )


def read_images(asset: str) -> tuple[LabelledImages, LabelledImages]:
    """The training and the test part of an asset with x_train, y_train, x_test, y_test in grey."""
    with np.load(io.BytesIO(read_asset(asset)), allow_pickle=False) as arrays:
        train, test = (
            LabelledImages(arrays[f"x_{part}"][:, None], arrays[f"y_{part}"], f"{asset}, {part}")
            for part in ("train", "test")
        )
    return train, test
