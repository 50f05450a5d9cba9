"""A run on a full disk: what is told, and what a continued run goes on from."""

import pytest

from adamwprune.errors import DiskError
from adamwprune.run_directory import SUMMARY
from adamwprune.training import checkpoint, saver
from adamwprune.training import run as run_module
from adamwprune.training.run import train
from tests.helpers.runs import IMAGES, start

FEW_STEPS = (*IMAGES, "trainer.max_steps=4", "trainer.eval_every=2")


def refuse_saves(monkeypatch):
    """No checkpoint can be written."""

    def save(*_, **__):
        raise DiskError("step 2 is not saved, 1 MiB needed")

    monkeypatch.setattr(saver, "save", save)


def refuse_summaries(monkeypatch):
    """Nor can summary.json."""
    write = run_module.write_json

    def write_json(file, content):
        if file.name == SUMMARY:
            raise DiskError("no summary")
        write(file, content)

    monkeypatch.setattr(run_module, "write_json", write_json)


def test_what_ended_the_run_is_told_where_its_summary_cannot_be_written_either(tmp_path, monkeypatch):
    """The first error has the numbers; the second would hide it."""
    config, directory = start(tmp_path / "run", *FEW_STEPS)
    refuse_saves(monkeypatch)
    refuse_summaries(monkeypatch)
    with pytest.raises(DiskError, match="1 MiB needed"):
        train(config, directory)


def test_a_summary_that_cannot_be_written_ends_a_run_that_nothing_else_did(tmp_path, monkeypatch):
    """Control: alone, it is told."""
    config, directory = start(tmp_path / "run", *FEW_STEPS)
    refuse_summaries(monkeypatch)
    with pytest.raises(DiskError, match="no summary"):
        train(config, directory)


def test_a_state_of_another_step_is_passed_over_with_both_names(tmp_path, caplog):
    """Checksums are right, but folder, manifest and state do not agree."""
    config, directory = start(tmp_path / "run", *FEW_STEPS, "trainer.stop_step=2")
    with pytest.raises(Exception, match="stop"):
        train(config, directory)
    root = directory / "checkpoints"
    whole = checkpoint.load_newest(root)
    checkpoint.save(root, 3, whole.weights, whole.state)
    config.trainer.stop_step = None
    train(config, directory)
    assert (
        "skipped checkpoint step_00000003: its state is that of step 2; trying step_00000002" in caplog.text
    )
