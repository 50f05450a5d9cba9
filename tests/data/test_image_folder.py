"""Folders of images: classes, parts, splits, the index of what is in them, and everything that is refused."""

import os
import threading

import numpy as np
import pytest
import torch

from adamwprune.data import image_folder
from adamwprune.data.image_folder import images
from adamwprune.data.imaging import file_index
from adamwprune.data.imaging.decoded_images import decoding_threads
from adamwprune.data.imaging.shipped import read_images
from adamwprune.errors import ConfigError, DataError, Preempted
from adamwprune.training.run import train
from tests.helpers.image_sets import encoded
from tests.helpers.runs import final_weights, run, start

pytest.importorskip("PIL")

CLASSES = ("cat", "dog", "eel")


@pytest.fixture
def pictures():
    """Thirty real images in three classes: (1, 28, 28) each."""
    train, _ = read_images("fashion3k.npz")
    return [train.images[np.flatnonzero(train.labels == label)[:10]] for label in range(3)]


def write(root, pictures, extension="png"):
    for name, group in zip(CLASSES, pictures, strict=True):
        (root / name).mkdir(parents=True)
        for number, picture in enumerate(group):
            (root / name / f"{number:02d}.{extension}").write_bytes(encoded(picture))
    return root


def make(path, tmp_path, **keys):
    standard = {
        "num_classes": 3,
        "channels": 1,
        "image_size": 28,
        "mean": [0.0],
        "std": [1.0],
        "path": path if path is None else str(path),
        "data_dir": str(tmp_path / "data"),
        "val_fraction": 0.2,
    }
    return images(**{**standard, **keys})


def everything(dataset, epoch=0):
    return dataset.batch(np.arange(len(dataset)), epoch)


def test_classes_are_sub_folders_and_images_are_theirs(pictures, tmp_path):
    """Every image is in one part, with its own pixels and label; without a test folder there is no test."""
    data = make(write(tmp_path / "photos", pictures), tmp_path)
    assert (len(data.train), len(data.val), data.test) == (24, 6, None)
    assert data.facts["classes"] == list(CLASSES)
    seen = set()
    for part in (data.train, data.val):
        inputs, targets = everything(part)
        for pixels, label in zip((inputs * 255).round().byte().numpy(), targets.tolist(), strict=True):
            (number,) = [i for i, picture in enumerate(pictures[label]) if np.array_equal(picture, pixels)]
            seen.add((label, number))
    assert len(seen) == 30
    assert np.bincount(everything(data.val)[1]).tolist() == [2, 2, 2]


def test_parts_that_have_folders_are_taken(pictures, tmp_path):
    """With val nothing is split off; test is the test part."""
    for part, chosen in (("train", slice(0, 6)), ("val", slice(6, 8)), ("test", slice(8, 10))):
        write(tmp_path / "photos" / part, [group[chosen] for group in pictures])
    data = make(tmp_path / "photos", tmp_path, val_fraction=None)
    assert (len(data.train), len(data.val), len(data.test)) == (18, 6, 6)
    inputs, targets = everything(data.test)
    assert np.array_equal((inputs[0] * 255).round().byte().numpy(), pictures[0][8])
    assert targets.tolist() == [0, 0, 1, 1, 2, 2]
    for keys in ({"val_fraction": 0.1}, {"val_fraction": None, "split_seed": 0}):
        with pytest.raises(ConfigError, match=r"data\.\w+=0.*: .*photos has a folder val, which validates"):
            make(tmp_path / "photos", tmp_path, **keys)


def test_copies_of_an_image_are_in_one_part(pictures, tmp_path, caplog):
    """Whatever their names and classes, of any draw; the split without copies is that of all images."""
    copied = [np.concatenate([group, group[:4]]) for group in pictures]
    copied[2][-1] = pictures[0][0]
    root = write(tmp_path / "photos", copied)
    for split_seed in range(5):
        data = make(root, tmp_path, split_seed=split_seed)
        train, val = (
            {image.numpy().tobytes() for image in everything(part)[0]} for part in (data.train, data.val)
        )
        assert not train & val
        assert (len(train) + len(val), len(data.train) + len(data.val)) == (30, 42)
    assert "12 of 42 images are copies" in caplog.text
    assert make(root, tmp_path, val_fraction=None, split_seed=None).facts["val_fraction"] == 0.1


@pytest.mark.parametrize(
    ("one", "other", "words"), [("train", "val", "training"), ("val", "test", "validation")]
)
def test_copies_in_two_folders_are_refused(pictures, tmp_path, one, other, words):
    """With both files, and how many there are."""
    for part, chosen in (("train", slice(0, 4)), ("val", slice(4, 7)), ("test", slice(7, 10))):
        write(tmp_path / "photos" / part, [group[chosen] for group in pictures])
    for number in (0, 1):
        copy = (tmp_path / "photos" / one / "dog" / f"0{number}.png").read_bytes()
        (tmp_path / "photos" / other / "cat" / f"copy{number}.png").write_bytes(copy)
    message = (
        rf"{other}/cat/copy0.png: is the {words} image .*{one}/dog/00.png; .*\(2 of 1[14] images of {other} "
    )
    with pytest.raises(DataError, match=message):
        make(tmp_path / "photos", tmp_path, val_fraction=None)


def test_class_without_an_image_in_one_part(pictures, tmp_path):
    """What the other parts have is not advised away."""
    write(tmp_path / "photos" / "train", [group[:5] for group in pictures])
    for name, group in zip(CLASSES[1:], pictures[1:], strict=True):
        (tmp_path / "photos" / "val" / name).mkdir(parents=True)
        (tmp_path / "photos" / "val" / name / "a.png").write_bytes(encoded(group[9]))
    with pytest.raises(
        DataError, match=r"val part .* has 2 classes, and no image of class 0; add images of it$"
    ):
        make(tmp_path / "photos", tmp_path, val_fraction=None)


def test_link_that_leads_nowhere_is_named(pictures, tmp_path):
    """As is a file that vanished while the folder was listed; a link to a file is one."""
    root = write(tmp_path / "photos", pictures)
    (root / "cat" / "link.png").symlink_to(tmp_path / "there.png")
    (tmp_path / "there.png").write_bytes(encoded(pictures[0][0][:, :20]))
    assert len(make(root, tmp_path).train) + len(make(root, tmp_path).val) == 31
    (tmp_path / "there.png").unlink()
    with pytest.raises(DataError, match=r"cat/link.png: cannot be read \(No such file"):
        make(root, tmp_path)


def test_batches_are_pure_whatever_the_threads(pictures, tmp_path):
    """Order, composition, repetition and two threads at once change nothing; epochs do, of training only."""
    root = write(tmp_path / "photos", pictures)
    data = make(root, tmp_path, random_resized_crop=[0.3, 1.0], horizontal_flip=0.5, image_size=12, seed=3)
    whole, labels = everything(data.train, 1)
    order = np.random.default_rng(0).permutation(24)
    inputs, targets = data.train.batch(order, 1)
    assert torch.equal(inputs, whole[order])
    assert torch.equal(targets, labels[order])
    again = make(root, tmp_path, random_resized_crop=[0.3, 1.0], horizontal_flip=0.5, image_size=12, seed=3)
    results = {}
    callers = [
        threading.Thread(target=lambda i=i: results.update({i: again.train.batch(np.array([i, 5]), 1)[0]}))
        for i in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(torch.equal(inputs, whole[[i, 5]]) for i, inputs in results.items())
    assert not torch.equal(everything(data.train, 2)[0], whole)
    assert torch.equal(everything(data.val, 1)[0], everything(data.val, 2)[0])


def test_fingerprint_is_of_content_split_and_size_and_not_of_seed_or_place(pictures, tmp_path):
    """Moved and touched files are the same data; a changed pixel, name, label, split, size is not."""
    root = write(tmp_path / "photos", pictures)
    first = make(root, tmp_path).fingerprint
    same = [
        make(root, tmp_path, seed=5, horizontal_flip=0.5, random_resized_crop=[0.5, 1.0]),
        make(write(tmp_path / "copy", pictures), tmp_path),
    ]
    assert {data.fingerprint for data in same} == {first}
    changed = [group.copy() for group in pictures]
    changed[1][4, 0, 3, 3] ^= 1
    os.rename(
        write(tmp_path / "renamed", pictures) / "cat" / "00.png", tmp_path / "renamed" / "cat" / "0x.png"
    )
    os.rename(write(tmp_path / "moved", pictures) / "cat" / "09.png", tmp_path / "moved" / "dog" / "0y.png")
    others = [
        make(write(tmp_path / "changed", changed), tmp_path),
        make(tmp_path / "renamed", tmp_path),
        make(tmp_path / "moved", tmp_path),
        make(root, tmp_path, split_seed=1),
        make(root, tmp_path, image_size=24),
        make(root, tmp_path, center_crop=0.5),
    ]
    assert len({first, *(data.fingerprint for data in others)}) == 7
    assert same[0].facts["augmentation"] == {
        "random_resized_crop": [0.5, 1.0],
        "horizontal_flip": 0.5,
        "seed": 5,
    }


def test_files_are_read_once_until_they_change(pictures, tmp_path, monkeypatch):
    """The index knows them by size and time; one new, one changed: two are read. Without index: all."""
    inspected = []
    inspect = image_folder.inspect
    monkeypatch.setattr(image_folder, "inspect", lambda file: inspected.append(file.name) or inspect(file))
    root = write(tmp_path / "photos", pictures)
    first = make(root, tmp_path)
    assert len(inspected) == 30
    inspected.clear()
    assert make(root, tmp_path).fingerprint == first.fingerprint
    assert inspected == []
    (root / "cat" / "new.png").write_bytes(encoded(pictures[0][0]))
    (root / "dog" / "03.png").write_bytes(encoded(pictures[1][9]))
    os.utime(root / "dog" / "03.png", ns=(1, 1))
    assert make(root, tmp_path).fingerprint != first.fingerprint
    assert sorted(inspected) == ["03.png", "new.png"]
    inspected.clear()
    (index,) = (tmp_path / "data").glob("index-*.npz")
    for damage in (b"", b"not an index", index.read_bytes()[:300]):
        index.write_bytes(damage)
        make(root, tmp_path)
        assert len(inspected) == 31
        inspected.clear()


def test_interrupted_index_goes_on(pictures, tmp_path, monkeypatch):
    """What was saved before the failure is not read again."""
    monkeypatch.setattr(file_index, "CHUNK", 10)
    monkeypatch.setattr(file_index, "SAVE_SECONDS", -1.0)
    root = write(tmp_path / "photos", pictures)
    inspected = []
    inspect = image_folder.inspect

    def stops(file):
        if file.parent.name == "eel":
            raise KeyboardInterrupt
        inspected.append(file)
        return inspect(file)

    monkeypatch.setattr(image_folder, "inspect", stops)
    with pytest.raises(KeyboardInterrupt):
        make(root, tmp_path)
    assert len(inspected) == 20
    inspected.clear()
    monkeypatch.setattr(image_folder, "inspect", lambda file: inspected.append(file) or inspect(file))
    make(root, tmp_path)
    assert {file.parent.name for file in inspected} == {"eel"}


def test_other_files_are_counted_and_hidden_ones_ignored(pictures, tmp_path):
    """A text among the images is no image, a folder below a class belongs to it."""
    root = write(tmp_path / "photos", pictures)
    first = make(root, tmp_path)
    (root / "cat" / "notes.txt").write_text("hello")
    (root / "cat" / ".hidden.png").write_bytes(b"x")
    (root / ".git").mkdir()
    assert make(root, tmp_path).fingerprint == first.fingerprint
    assert make(root, tmp_path).facts["other_files"] == 1
    (root / "cat" / "more").mkdir()
    (root / "cat" / "more" / "UPPER.PNG").write_bytes(encoded(pictures[0][0]))
    assert len(make(root, tmp_path).train) == 25


def test_damaged_image_is_named_before_the_run(pictures, tmp_path):
    """A truncated JPEG; no other image stands in for it."""
    root = write(tmp_path / "photos", pictures)
    content = encoded(pictures[2][0], "JPEG")
    (root / "eel" / "bad.jpg").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(
        DataError, match=r"eel/bad.jpg: cannot be decoded \(image file is truncated"
    ) as caught:
        make(root, tmp_path)
    assert caught.value.exit_code == 3


def batch_with(name, data):
    """The images of both parts that a file of this name gives."""
    for part in (data.train._part, data.val._part):
        files = [str(part.encoded.files.path(index)) for index in part.indices]
        chosen = np.flatnonzero([file.endswith(name) for file in files])
        (data.train if part is data.train._part else data.val).batch(chosen, 0)


def test_image_that_is_damaged_or_lost_later_is_named(pictures, tmp_path):
    """In the batch that wanted it."""
    root = write(tmp_path / "photos", pictures)
    data = make(root, tmp_path)
    (root / "cat" / "05.png").write_bytes(b"gone")
    (root / "eel" / "05.png").unlink()
    for name, words in (("cat/05.png", "cannot be decoded"), ("eel/05.png", "cannot be read")):
        with pytest.raises(DataError, match=f"{name}: {words}"):
            batch_with(name, data)


def test_what_does_not_fit_is_refused(pictures, tmp_path):
    """Keys before files are read; folders by name; each with what to type."""
    root = write(tmp_path / "photos", pictures)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "both" / "train", pictures)
    (tmp_path / "both" / "cat").mkdir()
    write(tmp_path / "other" / "train", pictures)
    (tmp_path / "other" / "val" / "fox").mkdir(parents=True)
    write(tmp_path / "bare", pictures)
    (tmp_path / "bare" / "fish").mkdir()
    cases = [
        ({"path": None}, ConfigError, "data.path=null: .* data.path=FOLDER"),
        ({"channels": 3}, ConfigError, r"data.mean=\[0.0\]: must have 3"),
        ({"channels": 2}, ConfigError, "data.channels=2: must be 1 .* or 3"),
        ({"random_resized_crop": [0.9, 0.2]}, ConfigError, "data.random_resized_crop"),
        ({"num_classes": 10}, DataError, "data.num_classes=10: .* has 3 sub-folders, each a class; use 3"),
        ({"path": str(tmp_path / "nowhere")}, DataError, "nowhere: no such folder"),
        ({"path": str(tmp_path / "empty")}, DataError, "must have a sub-folder of images for each class"),
        ({"path": str(tmp_path / "both")}, DataError, "has train and cat"),
        (
            {"path": str(tmp_path / "other"), "val_fraction": None},
            DataError,
            "fox: the training part has no such class",
        ),
        ({"path": str(tmp_path / "bare"), "num_classes": 4}, DataError, "fish: has no image"),
        ({"val_fraction": 0.01}, DataError, "leaves class 0 without a validation image"),
    ]
    for keys, error, message in cases:
        with pytest.raises(error, match=message):
            make(**{"path": root, "tmp_path": tmp_path, **keys})


def test_threads_are_the_process_share_of_the_cores(monkeypatch):
    """With several ranks on a machine each takes its part, and at least one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert decoding_threads()._max_workers == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert decoding_threads()._max_workers == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert decoding_threads()._max_workers == 1


@pytest.mark.slow
def test_resumed_run_sees_the_same_images(pictures, tmp_path):
    """Augmented, stopped within an epoch, loaded by two threads: to the bit an unbroken run's weights."""
    root = write(tmp_path / "photos", pictures)
    keys = (
        "data=images",
        f"data.path={root}",
        f"data.data_dir={tmp_path / 'data'}",
        "data.num_classes=3",
        "data.channels=1",
        "data.image_size=28",
        "data.mean=[0.28]",
        "data.std=[0.35]",
        "data.val_fraction=0.2",
        "trainer.global_batch_size=8",
        "trainer.max_epochs=null",
        "trainer.max_steps=10",
        "hardware.num_workers=2",
    )
    whole = run(tmp_path / "whole", *keys)
    config, directory = start(tmp_path / "stopped", *keys, "trainer.stop_step=4")
    with pytest.raises(Preempted):
        train(config, directory)
    config.trainer.stop_step = None
    train(config, directory)
    other = run(tmp_path / "other", *keys, "data.seed=9")
    expected, resumed, different = map(final_weights, (whole, directory, other))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())
    assert not all(torch.equal(different[name], tensor) for name, tensor in expected.items())
