"""Saving step by step: its places in their order, broken checkpoints in the way, what messages say."""

import json
import logging
import shutil

import pytest
import torch

from adamwprune.errors import CheckpointError, DiskError
from adamwprune.fault_points import SAVE_POINTS
from adamwprune.training import checkpoint as cp

WEIGHTS = {"a": torch.arange(6.0)}
STATE = {"moments": torch.zeros(4000)}


def damage(directory):
    (directory / cp.WEIGHTS).write_bytes(b"not this")


def test_saving_passes_its_fault_points_in_their_order(tmp_path, monkeypatch):
    """Each by its name: the harness kills there (python -m tests.faults)."""
    passed = []
    monkeypatch.setattr(cp, "reached", passed.append)
    cp.save(tmp_path, 1, WEIGHTS, STATE)
    cp.save(tmp_path, 2, WEIGHTS, STATE)
    del passed[:7]
    cp.remove_old(tmp_path, keep=1, best_step=None)
    assert passed == list(SAVE_POINTS)


def test_a_broken_checkpoint_is_put_aside_and_written_anew(tmp_path, caplog):
    """A whole one is kept as it is: its files are not touched."""
    final = cp.save(tmp_path, 1, WEIGHTS, STATE)
    before = (final / cp.STATE).stat().st_mtime_ns
    assert cp.save(tmp_path, 1, {"a": torch.ones(6)}, {}) == final
    assert (final / cp.STATE).stat().st_mtime_ns == before
    damage(final)
    with caplog.at_level(logging.WARNING):
        cp.save(tmp_path, 1, WEIGHTS, STATE)
    assert caplog.messages == [
        f"step_00000001 was broken ({cp.WEIGHTS} does not match its checksum) and is written anew"
    ]
    assert torch.equal(cp.load_newest(tmp_path).weights["a"], WEIGHTS["a"])
    (aside,) = tmp_path.glob(".bad-step_00000001-*")
    assert (aside / cp.WEIGHTS).read_bytes() == b"not this"


def test_the_caller_may_reject_one_checkpoint_after_the_other(tmp_path, caplog):
    """Damaged ones between are named with what is tried in their place; at the end all reasons are told."""
    for step in range(1, 6):
        cp.save(tmp_path, step, WEIGHTS, STATE)
    for step in (1, 3, 5):
        damage(tmp_path / f"step_{step:08d}")
    found = cp.newest_first(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert [next(found).step, next(found).step] == [4, 2]
        with pytest.raises(CheckpointError, match=r"no valid checkpoint \(step_00000001: .* checksum\)"):
            next(found)
    reason = f"{cp.WEIGHTS} does not match its checksum"
    assert caplog.messages == [
        f"skipped checkpoint step_00000005: {reason}; trying step_00000004",
        f"skipped checkpoint step_00000003: {reason}; trying step_00000002",
    ]


@pytest.mark.parametrize("kept", [None, 3])
def test_a_full_disk_is_said_with_numbers_and_what_is_left(tmp_path, monkeypatch, kept):
    """Room for all but one byte is not enough, exactly enough is (control)."""
    root = tmp_path / "checkpoints"
    if kept:
        cp.save(root, kept, WEIGHTS, STATE)
    needed = cp.nbytes(WEIGHTS) + cp.nbytes(STATE) + cp.MARGIN
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: place.stat() and usage._replace(free=needed - 1))
    left = "the checkpoint of step 3 is kept" if kept else "none was saved before"
    mebibytes = f"{needed / 2**20:,.2f}"
    with pytest.raises(DiskError) as error:
        cp.save(root, 7, WEIGHTS, STATE)
    assert str(error.value) == (
        f"{root / 'step_00000007'}: not saved (disk full); {mebibytes} MiB needed, {mebibytes} MiB free; "
        f"{left}; free some space, then resume"
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=needed))
    cp.save(root, 7, WEIGHTS, STATE)


def test_a_disk_that_does_not_keep_what_it_is_given_is_told(tmp_path, monkeypatch):
    """What is read back differs; the message names an older checkpoint, never the new one."""
    cp.save(tmp_path, 1, WEIGHTS, STATE)
    honest = cp.find_problem
    monkeypatch.setattr(cp, "find_problem", lambda d: "a bit differs" if d.name.endswith("2") else honest(d))
    with pytest.raises(
        DiskError, match=r"a bit differs right after writing.*the checkpoint of step 1 is kept"
    ):
        cp.save(tmp_path, 2, WEIGHTS, STATE)


def test_an_old_checkpoint_that_cannot_be_removed_only_warns(tmp_path, monkeypatch, caplog):
    for step in (1, 2):
        cp.save(tmp_path, step, WEIGHTS, STATE)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with caplog.at_level(logging.WARNING):
        cp.remove_old(tmp_path, keep=1, best_step=None)
    assert caplog.messages == [
        f"old checkpoint {tmp_path / 'step_00000001'} was not removed: [Errno 13] Permission denied"
    ]
    assert [step for step, _ in cp.steps_on_disk(tmp_path)] == [2]


@pytest.mark.parametrize("name", [".tmp-step_00000009-1", ".del-step_00000001-1"])
def test_what_a_dead_process_left_is_cleared_and_nothing_else(tmp_path, name):
    """A link of that name and a foreign folder stay."""
    for folder in (name, "mine", ".bad-step_00000001-1"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("x")
    (tmp_path / ".tmp-step_00000008-1").symlink_to(tmp_path / "mine")
    cp.save(tmp_path, 2, WEIGHTS, STATE)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"mine", ".bad-step_00000001-1", ".tmp-step_00000008-1", "step_00000002"}
    assert (tmp_path / "mine" / "file").exists()


def rewrite(directory, **changed):
    """The manifest with other values, and its own checksum right."""
    manifest = json.loads((directory / cp.MANIFEST).read_text())
    (directory / cp.MANIFEST).write_text(json.dumps(cp.sealed({**manifest, **changed})))


def test_a_manifest_of_another_format_or_step_is_told(tmp_path):
    first, second = (cp.save(tmp_path, step, WEIGHTS, STATE) for step in (1, 2))
    rewrite(first, schema=cp.SCHEMA + 1)
    assert cp.find_problem(first) == f"format {cp.SCHEMA + 1}, this version reads {cp.SCHEMA}"
    rewrite(second, step=1)
    assert cp.find_problem(second) == f"{cp.MANIFEST} is that of step 1"
    elsewhere = second.rename(tmp_path / "another name")
    assert cp.find_problem(elsewhere) == f"{cp.MANIFEST} is that of step 1"


def test_the_fault_points_within_the_state_are_its_quarters(tmp_path, monkeypatch):
    """Give or take the pieces that torch writes it in."""
    sizes, state = {}, {str(i): torch.zeros(2000) for i in range(40)}
    monkeypatch.setattr(cp, "reached", lambda point: sizes.update({point: written()}))

    def written():
        return sum(file.stat().st_size for file in tmp_path.glob(f".tmp-*/{cp.STATE}"))

    total = (cp.save(tmp_path, 1, WEIGHTS, state) / cp.STATE).stat().st_size
    for quarter in (1, 2, 3):
        assert sizes[f"write_{25 * quarter}"] / total == pytest.approx(quarter / 4, abs=0.06)
