"""CIFAR from archives, folders and the hub's parquet, made of the 40 real images that ship."""

import dataclasses
import gzip
import hashlib
import io
import pickle
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from adamwprune.data import cifar
from adamwprune.data.files.assets import read_asset
from adamwprune.errors import DataError
from tests.helpers.image_sets import write_hub
from tests.helpers.python2_pickle import Python2Pickler

SHAPE = {"channels": 3, "image_size": 32}


@pytest.fixture(scope="module")
def samples():
    """Images (20, 3, 32, 32) and labels by name of the set."""
    with np.load(io.BytesIO(read_asset("cifar_samples20.npz")), allow_pickle=False) as arrays:
        return {
            name: (arrays[f"x_{name}"].transpose(0, 3, 1, 2), arrays[f"y_{name}"].astype(np.int64))
            for name in ("cifar10", "cifar100")
        }


def batches(form, images, labels):
    """The samples as the files of a form: all but the last four to train on, each class being renumbered."""
    pieces = np.array_split(np.arange(16), len(form.train))
    parts = dict(zip(form.train, pieces, strict=True)) | {form.test: np.arange(16, 20)}
    for name, chosen in parts.items():
        pixels = images[chosen].reshape(len(chosen), -1)
        if name.endswith(".bin"):
            coarse = [labels[chosen, None] // 5] if len(form.train) == 1 else []
            yield (
                name,
                np.concatenate([*coarse, labels[chosen, None], pixels], axis=1).astype(np.uint8).tobytes(),
            )
        else:
            key = b"fine_labels" if len(form.train) == 1 else b"labels"
            batch = {b"batch_label": b"a batch", key: labels[chosen].tolist(), b"data": pixels}
            stream = io.BytesIO()
            Python2Pickler(stream, protocol=2).dump(batch)
            yield name, stream.getvalue()


def write_archive(file, folder, files):
    with tarfile.open(file, "w:gz") as archive:
        for name, content in files:
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture(params=["cifar10", "cifar100"])
def small(request, samples, tmp_path, monkeypatch):
    """A set of 16 + 4 images in every place, and its hashes in the place of the published ones."""
    name = request.param
    whole = getattr(cifar, name.upper())
    images, labels = samples[name]
    # Two classes, both in every part.
    labels = np.arange(20) % 2
    forms = []
    for form in whole.forms:
        files = dict(batches(form, images, labels))
        folder = tmp_path / form.folder
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        archive = write_archive(tmp_path / form.archive, form.folder, files.items())
        hashes = {file: md5(content) for file, content in files.items()} if form.file_md5 else {}
        forms.append(dataclasses.replace(form, md5=md5(archive.read_bytes()), file_md5=hashes))
    parts = {"train": (images[:16], labels[:16]), "test": (images[16:], labels[16:])}
    hub = dataclasses.replace(whole.hub, sha256={})
    other = {"coarse_label": lambda labels: labels // 5} if name == "cifar100" else {}
    write_hub(tmp_path / "hub", hub, parts, split_files=2, **other)
    small = dataclasses.replace(whole, forms=tuple(forms), hub=hub, counts=(16, 4))
    monkeypatch.setattr(cifar, name.upper(), small)
    return small


def make(small, path, source="folder", **keys):
    function = getattr(cifar, small.name)
    return function(num_classes=2, **SHAPE, source=source, path=str(path), val_fraction=0.25, **keys)


def test_every_form_gives_the_same_data(small, tmp_path):
    """Archives and folders, binary and Python, and the hub's parquet: the same pixels, labels and split."""
    pytest.importorskip("datasets")
    places = [form.archive for form in small.forms] + [form.folder for form in small.forms]
    data = [make(small, tmp_path / place) for place in places]
    data += [make(small, tmp_path), make(small, tmp_path / "hub", source="hub")]
    assert len({one.fingerprint for one in data}) == 1
    assert (len(data[0].train), len(data[0].val), len(data[0].test)) == (12, 4, 4)
    assert "md5" in data[0].facts["source"]
    assert "no hash is published" in data[2].facts["source"]


def test_pixels_and_labels_are_those_of_the_real_images(small, samples, tmp_path):
    """Against the shipped arrays, which were decoded from PNG by others; planes are R, G, B."""
    images, _ = samples[small.name]
    data = make(small, tmp_path / small.forms[0].archive, crop_padding=0, horizontal_flip=0.0)
    inputs, targets = data.test.batch(np.arange(4), 0)
    mean, std = (np.array(data.facts[key])[:, None, None] for key in ("mean", "std"))
    np.testing.assert_allclose(inputs.numpy(), (images[16:] / 255 - mean) / std, atol=1e-5)
    assert targets.tolist() == [0, 1, 0, 1]


def test_fine_labels_are_taken(samples):
    """Of CIFAR-100's two labels the second, by the real ones of the samples."""
    images, labels = samples["cifar100"]
    form = cifar.CIFAR100.forms[0]
    files = dict(batches(form, images, labels))
    assert form.read(files["train.bin"], "train.bin")[1].tolist() == labels[:16].tolist()
    assert labels[:3].tolist() == [49, 33, 72]


def test_other_content_under_the_name_is_refused(small, tmp_path):
    """An archive and a pickled file with another hash; the control are the tests above."""
    binary, python = small.forms
    file = tmp_path / binary.archive
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(DataError, match=f"md5 is .*, of the published archives {binary.md5} or {python.md5}"):
        make(small, file)
    pickled = tmp_path / python.folder / python.test
    pickled.write_bytes(pickled.read_bytes() + b"\0")
    with pytest.raises(DataError, match=f"{python.test}: md5 is .*, of the published file"):
        make(small, tmp_path / python.folder)


def test_files_without_a_published_hash_must_at_least_be_whole(small, tmp_path):
    """A file cut within a record, and one cut between two."""
    folder = tmp_path / small.forms[0].folder
    file = folder / small.forms[0].test
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match="must be a multiple of 307"):
        make(small, folder)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="2 images, must be 4"):
        make(small, folder)
    file.unlink()
    with pytest.raises(DataError, match=f"{file.name}: cannot be read"):
        make(small, folder)


class Hostile:
    """Unpickled by Python as it stands, it would create a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        """The call that a pickle makes when it is opened."""
        return Path.touch, (self.file,)


def test_hostile_pickle_runs_nothing(small, tmp_path, monkeypatch):
    """Even with the right hash; the control, pickle itself, runs it."""
    form = small.forms[1]
    content = pickle.dumps({"data": Hostile(tmp_path / "proof")})
    (tmp_path / form.folder / form.train[0]).write_bytes(content)
    hashes = {**form.file_md5, form.train[0]: md5(content)}
    changed = (small.forms[0], dataclasses.replace(form, file_md5=hashes))
    monkeypatch.setattr(cifar, small.name.upper(), dataclasses.replace(small, forms=changed))
    with pytest.raises(DataError, match=f"{form.train[0]}: a pickle that names .* is refused"):
        make(small, tmp_path / form.folder)
    assert not (tmp_path / "proof").exists()
    pickle.loads(content)
    assert (tmp_path / "proof").exists()


def test_hostile_archive_writes_nothing(small, tmp_path, monkeypatch):
    """Members that lead out of the folder, links and devices are passed over: nothing is unpacked at all."""
    form = small.forms[0]
    folder = tmp_path / form.folder
    files = [(name, (folder / name).read_bytes()) for name in (*form.train, form.test)]
    hostile = tmp_path / "hostile" / form.archive
    hostile.parent.mkdir()
    with tarfile.open(hostile, "w:gz") as archive:
        for name in ("../outside", "/tmp/outside", f"{form.folder}/../../outside"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
        link = tarfile.TarInfo(f"{form.folder}/{form.test}")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name, content in files:
            member = tarfile.TarInfo(f"{form.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    changed = (dataclasses.replace(form, md5=md5(hostile.read_bytes())), small.forms[1])
    expected = make(small, folder).fingerprint
    monkeypatch.setattr(cifar, small.name.upper(), dataclasses.replace(small, forms=changed))
    before = sorted(tmp_path.rglob("*"))
    assert make(small, hostile).fingerprint == expected
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_archive_is_one_line(small, tmp_path, monkeypatch):
    """A member missing, a truncated archive, something else altogether, each with the right hash."""
    form = small.forms[0]
    contents = {
        "has no": write_archive(tmp_path / "empty", form.folder, []).read_bytes(),
        "cannot be read": gzip.compress(b"x" * 3000),
    }
    whole = (tmp_path / form.archive).read_bytes()
    contents["damaged.*cannot be read"] = whole[: len(whole) // 2]
    file = tmp_path / "damaged"
    for message, content in contents.items():
        file.write_bytes(content)
        changed = (dataclasses.replace(form, md5=md5(content)), small.forms[1])
        monkeypatch.setattr(cifar, small.name.upper(), dataclasses.replace(small, forms=changed))
        with pytest.raises(DataError, match=message):
            make(small, file)


@pytest.mark.parametrize("source", ["hub", "folder"])
def test_what_is_not_there_is_one_line_in_seconds(source, tmp_path, monkeypatch):
    """What is missing, how large, the command, what works instead; a dead hub costs 23 s unprobed."""
    constants = pytest.importorskip("huggingface_hub.constants")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        cifar.cifar10(num_classes=10, **SHAPE, source=source, data_dir=str(tmp_path))
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert "\n" not in message
    assert "data=fashion3k needs no download" in message
    words = {
        "hub": ("uoft-cs/cifar10 (144 MB)", "127.0.0.1:9 does not answer", "hf download", "data.path=DIR"),
        "folder": (str(tmp_path / "cifar10"), "cifar-10-binary.tar.gz nor cifar-10-python.tar.gz"),
    }
    assert all(part in message for part in words[source])
