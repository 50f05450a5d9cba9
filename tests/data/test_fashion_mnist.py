"""All of Fashion-MNIST: Debian's package, the published files, the hub's parquet, with 40 + 20 images."""

import dataclasses
import gzip
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from adamwprune.data import fashion_mnist
from adamwprune.data.imaging import idx
from adamwprune.data.imaging.shipped import read_images
from adamwprune.errors import DataError
from tests.helpers.image_sets import write_hub

SHAPE = {"num_classes": 10, "channels": 1, "image_size": 28}


@pytest.fixture
def small(monkeypatch):
    """Arrays by IDX name, whose hashes are now Fashion-MNIST's."""
    train, test = read_images("fashion3k.npz")
    chosen = [
        part.subset(np.concatenate([np.flatnonzero(part.labels == label)[:count] for label in range(10)]))
        for part, count in ((train, 4), (test, 2))
    ]
    arrays = dict(
        zip(idx.NAMES, [array for part in chosen for array in (part.images[:, 0], part.labels)], strict=True)
    )
    md5 = {name: hashlib.md5(idx.encode(array)).hexdigest() for name, array in arrays.items()}
    monkeypatch.setattr(fashion_mnist, "IDX_MD5", md5)
    return arrays


def write_files(arrays, folder):
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx.encode(array)))
    return folder


def write_package(arrays, root, file):
    """As Debian packs it, by dpkg-deb itself."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb")
    write_files(arrays, root / fashion_mnist.PACKAGE.folder)
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN" / "control").write_text(
        "Package: dataset-fashion-mnist\nVersion: 0\nArchitecture: all\nMaintainer: nobody\n"
        "Description: a test\n"
    )
    subprocess.run(["dpkg-deb", "--build", "-Znone", str(root), str(file)], check=True, capture_output=True)
    return file


def put_on_path(folder, name, script, monkeypatch):
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def make(tmp_path, **keys):
    standard = {"val_fraction": 0.25, "data_dir": str(tmp_path / "data")}
    return fashion_mnist.fashion_mnist(**SHAPE, **{**standard, **keys})


def test_all_sources_give_the_same_data(small, tmp_path):
    """Package, files, parquet: one fingerprint."""
    pytest.importorskip("datasets")
    package = write_package(small, tmp_path / "root", tmp_path / "package.deb")
    folder = write_files(small, tmp_path / "folder")
    images, labels, test_images, test_labels = small.values()
    parts = {"train": (images[:, None], labels), "test": (test_images[:, None], test_labels)}
    write_hub(tmp_path / "hub", fashion_mnist.HUB, parts)
    data = [
        make(tmp_path, source="package", path=str(package)),
        make(tmp_path, source="folder", path=str(folder)),
        make(tmp_path, source="hub", path=str(tmp_path / "hub")),
    ]
    assert len({one.fingerprint for one in data}) == 1
    assert (len(data[0].train), len(data[0].val), len(data[0].test)) == (30, 10, 20)
    assert data[0].facts["source"] == "package dataset-fashion-mnist"


def test_package_is_fetched_once_with_apt(small, tmp_path, monkeypatch):
    """Into data_dir, whatever its version is; then no apt-get is needed."""
    package = write_package(small, tmp_path / "root", tmp_path / "dataset-fashion-mnist_9_all.deb")
    put_on_path(
        tmp_path / "bin",
        "apt-get",
        f'case "$*" in *"download dataset-fashion-mnist") cp {package} .;; esac',
        monkeypatch,
    )
    first = make(tmp_path)
    put_on_path(tmp_path / "bin", "apt-get", "exit 1", monkeypatch)
    assert make(tmp_path).fingerprint == first.fingerprint
    assert {file.name for file in (tmp_path / "data").iterdir()} == {
        "dataset-fashion-mnist.deb",
        "dataset-fashion-mnist.deb.lock",
    }


def test_refused_download_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    """With apt-get's own last words, the command, and what works instead."""
    put_on_path(tmp_path / "bin", "apt-get", "echo 'E: Unable to locate package' >&2; exit 100", monkeypatch)
    with pytest.raises(DataError) as caught:
        make(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for words in (
        "30.9 MB",
        "E: Unable to locate package",
        "apt-get download",
        "data=fashion3k needs no download",
    ):
        assert words in message
    assert {file.name for file in (tmp_path / "data").iterdir()} == {"dataset-fashion-mnist.deb.lock"}


def test_machine_without_apt_says_so(tmp_path, monkeypatch):
    """A path without apt-get, as on other systems."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="there is no apt-get"):
        make(tmp_path)


def test_other_content_and_no_package_are_refused(small, tmp_path):
    """A package with other images; a file that is none; one without the files."""
    changed = {name: array ^ np.uint8(1) if name == idx.NAMES[2] else array for name, array in small.items()}
    package = write_package(changed, tmp_path / "root", tmp_path / "changed.deb")
    with pytest.raises(DataError, match=f"md5 of {idx.NAMES[2]} is"):
        make(tmp_path, path=str(package))
    (tmp_path / "no.deb").write_bytes(b"!<arch>\nhello")
    with pytest.raises(DataError, match=r"no.deb: not a Debian package"):
        make(tmp_path, path=str(tmp_path / "no.deb"))
    empty = write_package({}, tmp_path / "other", tmp_path / "empty.deb")
    with pytest.raises(DataError, match=f"has no {idx.NAMES[0]}"):
        make(tmp_path, path=str(empty))


def test_first_hash_digits_of_the_hubs_files_are_checked(small, tmp_path, monkeypatch):
    """Where they are known; the control is the right one."""
    pytest.importorskip("datasets")
    images, labels, test_images, test_labels = small.values()
    parts = {"train": (images[:, None], labels), "test": (test_images[:, None], test_labels)}
    write_hub(tmp_path / "hub", fashion_mnist.HUB, parts)
    (file,) = (tmp_path / "hub").glob(fashion_mnist.HUB.files["train"])
    right = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    monkeypatch.setattr(fashion_mnist, "HUB", dataclasses.replace(fashion_mnist.HUB, sha256={"train": right}))
    make(tmp_path, source="hub", path=str(tmp_path / "hub"))
    wrong = dataclasses.replace(fashion_mnist.HUB, sha256={"train": "0" * 16})
    monkeypatch.setattr(fashion_mnist, "HUB", wrong)
    with pytest.raises(DataError, match=r"sha256 is .* must begin with 0000"):
        make(tmp_path, source="hub", path=str(tmp_path / "hub"))


def test_hubs_columns_and_missing_files_are_named(small, tmp_path, monkeypatch):
    """A renamed column with those that there are; one file of three missing; a file that is no parquet."""
    pytest.importorskip("datasets")
    images, labels, test_images, test_labels = small.values()
    parts = {"train": (images[:, None], labels), "test": (test_images[:, None], test_labels)}
    hub = tmp_path / "hub"
    write_hub(hub, fashion_mnist.HUB, parts, split_files=3)
    renamed = dataclasses.replace(fashion_mnist.HUB, label="fine_label")
    with monkeypatch.context() as patch:
        patch.setattr(fashion_mnist, "HUB", renamed)
        with pytest.raises(DataError, match="no column fine_label; it has image, label"):
            make(tmp_path, source="hub", path=str(hub))
    files = sorted(hub.glob(fashion_mnist.HUB.files["train"]))
    files[0].write_bytes(b"PAR1 and so on")
    with pytest.raises(DataError, match=f"{files[0].name}: cannot be read"):
        make(tmp_path, source="hub", path=str(hub))
    files[1].unlink()
    with pytest.raises(DataError, match="has 2 of 3 files"):
        make(tmp_path, source="hub", path=str(hub))


@pytest.mark.slow
def test_whole_fashion_mnist_is_the_original():
    """Debian's package has the published files (MD5 is checked on reading); fashion3k is cut from them."""
    data_dir = Path(os.environ.get("ADAMWPRUNE_DATA", "~/.cache/adamwprune")).expanduser()
    if not (data_dir / "dataset-fashion-mnist.deb").exists():
        pytest.skip(f"no package in {data_dir}; python train.py data=fashion_mnist fetches it")
    data = fashion_mnist.fashion_mnist(**SHAPE, data_dir=str(data_dir))
    assert (len(data.train), len(data.val), len(data.test)) == (54_000, 6_000, 10_000)
    train, test, _ = fashion_mnist.read_package(None, data_dir)
    for whole, part in zip((train, test), read_images("fashion3k.npz"), strict=True):
        images = {image.tobytes() for image in whole.images}
        assert all(image.tobytes() in images for image in part.images)
