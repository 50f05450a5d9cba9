"""Checkpoints: atomic, verified, kept, and never trusted without their checksums."""

import logging
import random

import pytest
import torch
from torch import nn

from adamwprune.errors import CheckpointError, DiskError
from adamwprune.training import checkpoint as cp

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
STATE = {"step": 1, "nested": {"x": [1, 2.5, "t", None], "t": torch.arange(3)}, "python": random.getstate()}


def save(root, step):
    return cp.save(root, step, {k: v + step for k, v in WEIGHTS.items()}, {**STATE, "step": step})


def test_round_trip(tmp_path):
    """Weights and state come back equal, by the safe loader."""
    save(tmp_path, 7)
    loaded = cp.load_newest(tmp_path)
    assert loaded.step == loaded.state["step"] == 7
    assert all(torch.equal(loaded.weights[name], WEIGHTS[name] + 7) for name in WEIGHTS)
    assert loaded.state["python"] == STATE["python"]


@pytest.mark.parametrize("name", [cp.WEIGHTS, cp.STATE, cp.MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "zero"])
def test_every_damage_is_found_and_the_older_checkpoint_taken(tmp_path, caplog, name, damage):
    """One bit, a cut, a missing file, a zeroed page: skipped with a warning that names both."""
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "zero":
        data[: min(4096, len(data))] = bytes(min(4096, len(data)))
    file.write_bytes(data) if damage != "remove" else file.unlink()
    with caplog.at_level(logging.WARNING):
        assert cp.load_newest(tmp_path).step == 1
    assert "step_00000002" in caplog.text
    assert "step_00000001" in caplog.text


def test_flipped_bits_pass_torch_and_safetensors_without_our_checksum(tmp_path):
    """Control: why the manifest exists. The plain loaders take the damaged file without a word."""
    directory = save(tmp_path, 1)
    file = directory / cp.WEIGHTS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    loaded = cp.load(directory, 1)
    assert not all(torch.equal(loaded.weights[name], WEIGHTS[name] + 1) for name in WEIGHTS)
    assert cp.find_problem(directory) is not None


def test_none_valid_is_exit_5(tmp_path):
    """An empty folder, and one with a broken checkpoint alone."""
    with pytest.raises(CheckpointError, match="none was written"):
        cp.load_newest(tmp_path)
    (save(tmp_path, 1) / cp.MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        cp.load_newest(tmp_path)


def test_keeps_the_newest_and_the_best(tmp_path):
    """keep=2 and best=10 of 10, 20, 30, 40."""
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
        cp.remove_old(tmp_path, keep=2, best_step=10)
    assert [step for step, _ in cp.steps_on_disk(tmp_path)] == [40, 30, 10]


def test_foreign_names_are_ignored(tmp_path):
    """Leftovers of a kill and files of others are no checkpoints."""
    save(tmp_path, 5)
    for name in (".tmp-step_00000009-123", "step_9", "step_00000009x", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_00000099").write_text("a file")
    assert cp.load_newest(tmp_path).step == 5


def test_a_failing_write_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    """A full disk while the state is written: exit 9, no half checkpoint, the old one valid."""
    save(tmp_path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DiskError, match=r"MiB needed, [\d,.]+ MiB free; the checkpoint of step 1 is kept"):
        save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001"]
    assert cp.load_newest(tmp_path).step == 1


def test_hostile_pickle_is_refused(tmp_path):
    """A state file that would run code loads nothing and runs nothing."""
    import hashlib
    import json
    import pickle

    flag = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(flag), "w"))

    directory = save(tmp_path, 1)
    file = directory / cp.STATE
    file.write_bytes(pickle.dumps(Evil()))
    manifest = json.loads((directory / cp.MANIFEST).read_text())
    manifest["files"][cp.STATE] = {
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    (directory / cp.MANIFEST).write_text(json.dumps(cp.sealed(manifest)))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        cp.load_newest(tmp_path)
    assert not flag.exists()


def test_tied_weights_are_stored_once_and_come_back_tied():
    """Two names, one tensor."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    weights = cp.model_weights(model)
    assert list(weights) == ["0.weight"]
    other = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    other[1].weight = other[0].weight
    cp.load_weights_(other, weights)
    assert torch.equal(other[1].weight, model[0].weight)
    assert other[1].weight is other[0].weight


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"weight": torch.zeros(2, 3)}, "bias is missing"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "x": torch.zeros(1)}, "x is unknown"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"weight is \(3, 2\)"),
        ({"weight": torch.zeros(2, 3, dtype=torch.float64), "bias": torch.zeros(2)}, "float64"),
    ],
)
def test_weights_of_another_model_are_refused_before_any_copy(weights, words):
    """Nothing of the model has changed after the refusal."""
    model = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        cp.load_weights_(model, weights)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
