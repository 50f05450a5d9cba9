"""Saving beside the training: what is written is what was given, and a failure is heard of."""

import os
import threading

import psutil
import pytest
import torch

from adamwprune.errors import DiskError
from adamwprune.training import saver as saver_module
from adamwprune.training.checkpoint import load_newest, steps_on_disk
from adamwprune.training.saver import Saver, Snapshot, copied


@pytest.fixture
def make(tmp_path):
    savers = []

    def new(keep=2):
        saver = Saver(tmp_path, keep=keep, identity={"config": "c"}, sync_records=lambda: None)
        savers.append(saver)
        return saver

    yield new
    for saver in savers:
        saver.close()


def start(saver, step, weight, best_step=None):
    saver.start(Snapshot(step, {"w": weight}, {"step": step, "moments": {"v": weight}}, "m", best_step))


@pytest.fixture
def held(monkeypatch):
    """Saves wait for this event."""
    go, real = threading.Event(), saver_module.save

    def later(*arguments, **options):
        assert go.wait(20)
        return real(*arguments, **options)

    monkeypatch.setattr(saver_module, "save", later)
    yield go
    go.set()


def test_what_changes_after_the_start_is_not_in_the_checkpoint(make, tmp_path, held):
    """Training writes on while the disk is busy: the checkpoint has the step that it names."""
    saver, weight = make(), torch.arange(5.0)
    start(saver, 3, weight)
    weight.add_(100)
    held.set()
    assert saver.wait() == (3, tmp_path / "step_00000003")
    loaded = load_newest(tmp_path)
    assert torch.equal(loaded.weights["w"], torch.arange(5.0))
    assert torch.equal(loaded.state["moments"]["v"], torch.arange(5.0))


def test_without_the_copy_it_would_be(make, tmp_path, held, monkeypatch):
    """Control: the same without a copy stores the later weights."""
    monkeypatch.setattr(saver_module, "copied", lambda tree, _: tree)
    saver, weight = make(), torch.arange(5.0)
    start(saver, 3, weight)
    weight.add_(100)
    held.set()
    saver.wait()
    assert torch.equal(load_newest(tmp_path).weights["w"], torch.arange(5.0) + 100)


def test_without_memory_for_a_copy_training_waits(make, tmp_path, monkeypatch):
    """The checkpoint is on the disk before start() returns."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: _Memory)
    monkeypatch.setattr(saver_module, "copied", None)  # not called
    start(make(), 3, torch.ones(5))
    assert load_newest(tmp_path).step == 3


class _Memory:
    available = 10


def test_a_failed_save_is_heard_of(make, tmp_path):
    """By has_failed at once, as DiskError at the wait, and the next save is free to try again."""
    saver = make()
    start(saver, 1, torch.ones(5))
    saver.wait()
    (tmp_path / f".tmp-step_00000002-{os.getpid()}").write_text("in the way")
    start(saver, 2, torch.ones(5))
    saver._under_way.exception()
    assert saver.has_failed
    with pytest.raises(DiskError, match=r"not saved.*the checkpoint of step 1 is kept"):
        saver.wait()
    (tmp_path / f".tmp-step_00000002-{os.getpid()}").unlink()
    start(saver, 2, torch.ones(5))
    assert saver.wait()[0] == 2
    assert not saver.has_failed


def test_old_ones_go_only_when_the_new_one_is_there(make, tmp_path, held):
    """And the best stays."""
    held.set()
    saver = make(keep=1)
    for step in (1, 2):
        start(saver, step, torch.ones(5), best_step=1)
        saver.wait()
    assert [step for step, _ in steps_on_disk(tmp_path)] == [2, 1]
    held.clear()
    start(saver, 3, torch.ones(5), best_step=1)
    assert [step for step, _ in steps_on_disk(tmp_path)] == [2, 1]
    held.set()
    saver.wait()
    assert [step for step, _ in steps_on_disk(tmp_path)] == [3, 1]


def test_a_copy_over_an_earlier_one_is_the_same():
    """Equal where shapes fit, new where they do not; the memory of the first is used again."""
    first = copied({"a": torch.ones(3), "b": [torch.ones(2)], "c": 1})
    tree = {"a": torch.arange(3.0), "b": [torch.arange(5)], "d": (torch.zeros(1),)}
    second = copied(tree, first)
    assert second["a"] is first["a"]
    assert torch.equal(second["a"], tree["a"])
    assert second["b"][0].dtype == torch.int64
    assert torch.equal(second["b"][0], tree["b"][0])
    assert second.keys() == tree.keys()
    assert second["d"][0] is not tree["d"][0]


def test_a_copy_shares_nothing():
    """Nested, mutable, or on another layout."""
    tree = {"a": [torch.ones(2), {"b": (torch.zeros(3, 4).t(), 1)}], "best": {"x": {"value": 1.0}}}
    copy = copied(tree)
    tree["a"][0].add_(1)
    tree["a"][1]["b"][0].add_(1)
    tree["best"]["x"]["value"] = 2.0
    assert torch.equal(copy["a"][0], torch.ones(2))
    assert torch.equal(copy["a"][1]["b"][0], torch.zeros(4, 3))
    assert copy["best"]["x"]["value"] == 1.0
