"""ImageNet as folders and as the hub's parquet, both read by the real code, here with 24 + 8 images."""

import numpy as np
import pytest
import torch

from adamwprune.data import imagenet
from adamwprune.data.imaging.shipped import read_images
from adamwprune.errors import ConfigError, DataError, DiskError
from tests.helpers.image_sets import encoded, write_hub

pytest.importorskip("PIL")


@pytest.fixture(autouse=True)
def small_imagenet(monkeypatch):
    """The sizes that are held to be published, here those of `photographs`."""
    monkeypatch.setattr(imagenet, "NUM_CLASSES", 2)
    monkeypatch.setattr(imagenet, "PUBLISHED", {"training": 24, "validation": 8})


@pytest.fixture(scope="module")
def photographs():
    """Colour images (N, 3, 56, 56) of two classes by part, sorted by class as folders are."""
    train, _ = read_images("fashion3k.npz")
    parts = {}
    for part, chosen in (("train", slice(0, 12)), ("test", slice(12, 16))):
        grey = np.concatenate(
            [train.images[np.flatnonzero(train.labels == label)[chosen]] for label in (0, 1)]
        )
        colour = np.repeat(grey.repeat(2, axis=2).repeat(2, axis=3), 3, axis=1)
        colour[:, 1] //= 2
        parts[part] = (colour, np.repeat([0, 1], len(grey) // 2))
    return parts


def write_folder(root, photographs):
    for part, name in (("train", "train"), ("test", "val")):
        for number, (image, label) in enumerate(zip(*photographs[part], strict=True)):
            folder = root / name / f"n0000000{label}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:02d}.JPEG").write_bytes(encoded(image, "JPEG"))
    return root


def make(tmp_path, **keys):
    standard = {
        "num_classes": 2,
        "channels": 3,
        "image_size": 32,
        "data_dir": str(tmp_path / "data"),
        "val_fraction": 0.25,
    }
    return imagenet.imagenet(**{**standard, **keys})


def test_folder_and_parquet_show_the_same_images(photographs, tmp_path):
    """Bit for bit, also augmented; the published validation part is the test, validation is split off."""
    pytest.importorskip("datasets")
    folder = make(tmp_path, path=str(write_folder(tmp_path / "folder", photographs)))
    hub = write_hub(tmp_path / "hub", imagenet.HUB, photographs, split_files=3, format="JPEG")
    parquet = make(tmp_path, source="hub", path=str(hub))
    for data in (folder, parquet):
        assert (len(data.train), len(data.val), len(data.test)) == (18, 6, 8)
    for part in ("train", "val", "test"):
        one, other = getattr(folder, part), getattr(parquet, part)
        indices = np.arange(len(one))[::-1].copy()
        for (inputs, targets), (same, labels) in [(one.batch(indices, 4), other.batch(indices, 4))]:
            assert torch.equal(inputs, same)
            assert torch.equal(targets, labels)
    assert folder.facts["augmentation"] == {
        "random_resized_crop": [0.08, 1.0],
        "horizontal_flip": 0.5,
        "seed": 0,
    }
    assert parquet.facts["source"].startswith("hub ILSVRC/imagenet-1k@49e2ee26")
    assert make(tmp_path, source="hub", path=str(hub), seed=1).fingerprint == parquet.fingerprint


def test_evaluation_shows_the_centre(photographs, tmp_path, monkeypatch):
    """7/8 of the shorter side, resized, against pillow's resize and crop of an image without edges."""
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8), (3, 64, 64))
    monkeypatch.setitem(imagenet.PUBLISHED, "validation", 2)
    root = write_folder(tmp_path / "folder", {**photographs, "test": (np.stack([ramp, ramp]), [0, 1])})
    inputs, _ = make(tmp_path, path=str(root)).test.batch(np.array([0]), 0)
    row = (inputs[0, 0, 16] * imagenet.NORMALISATION.std[0] + imagenet.NORMALISATION.mean[0]) * 255
    expected = np.linspace(0, 255, 64)[4:60].reshape(-1, 7).mean(axis=1)
    # Eight groups of 7 pixels are what 32 new pixels in fours cover.
    np.testing.assert_allclose(row.reshape(-1, 4).mean(dim=1).numpy(), expected, atol=3)


def test_what_is_missing_is_one_line(photographs, tmp_path):
    """No folders; a flat val; a file of the hub's missing; a column renamed; each with the way out."""
    pytest.importorskip("datasets")
    with pytest.raises(
        DataError, match=r"data=imagenet: folder: .*imagenet/train: no such folder; .*data=images"
    ):
        make(tmp_path)
    root = write_folder(tmp_path / "folder", photographs)
    for name in ("n00000000", "n00000001"):
        for file in (root / "val" / name).iterdir():
            file.rename(root / "val" / file.name)
        (root / "val" / name).rmdir()
    with pytest.raises(
        DataError, match="val: must have the sub-folders of train, each a class; it has no folder"
    ):
        make(tmp_path, path=str(root))
    hub = write_hub(tmp_path / "hub", imagenet.HUB, photographs, split_files=2, format="JPEG")
    (hub / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(
        DataError, match=r"has 1 of 2 files data/train-\*.parquet; where there is a network: hf download"
    ):
        make(tmp_path, source="hub", path=str(hub))


def test_another_set_is_not_called_imagenet(photographs, tmp_path, monkeypatch):
    """By its classes and counts, from folders and from parquet; with what takes it."""
    pytest.importorskip("datasets")
    folder = write_folder(tmp_path / "folder", photographs)
    hub = write_hub(tmp_path / "hub", imagenet.HUB, photographs, format="JPEG")
    with pytest.raises(ConfigError, match=r"data.num_classes=3: ImageNet has 2; .* data=images"):
        make(tmp_path, path=str(folder), num_classes=3)
    for part, words in (("training", "24 training"), ("validation", "8 validation")):
        with monkeypatch.context() as patch:
            patch.setitem(imagenet.PUBLISHED, part, 50_000)
            for keys in ({"path": str(folder)}, {"path": str(hub), "source": "hub"}):
                with pytest.raises(DataError, match=rf"has {words} images, ImageNet 50,000; .* data=images"):
                    make(tmp_path, **keys)


def test_room_for_the_second_copy_is_checked_first(photographs, tmp_path, monkeypatch):
    """Before anything is written."""
    pytest.importorskip("datasets")
    hub = write_hub(tmp_path / "hub", imagenet.HUB, photographs, format="JPEG")
    monkeypatch.setattr(imagenet.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(
        DiskError, match=r"imagenet-arrow: needs .* choose another place with data.data_dir=DIR"
    ):
        make(tmp_path, source="hub", path=str(hub))
    assert not (tmp_path / "data" / "imagenet-arrow").exists()


def test_damaged_row_is_named(photographs, tmp_path, monkeypatch):
    """By part and row."""
    pytest.importorskip("datasets")
    monkeypatch.setattr(
        "tests.helpers.image_sets.encoded", lambda image, format: encoded(image, format)[:-200]
    )
    hub = write_hub(tmp_path / "hub", imagenet.HUB, photographs, format="JPEG")
    data = make(tmp_path, source="hub", path=str(hub))
    with pytest.raises(DataError, match=r"ILSVRC/imagenet-1k, test, row \d: cannot be decoded"):
        data.test.batch(np.array([2]), 0)
