""".defconfig: readable, checked before it is written, and merged with what is given today."""

import pytest

from adamwprune.configure import stored
from adamwprune.errors import ConfigError

CHOICE = ["experiment=gpt2-shakespeare-cpu", "tracker=[wandb,trackio]", "notes='two words, # and more'"]


def test_what_is_written_is_read(tmp_path):
    """One override a line under a head of two lines."""
    file = tmp_path / stored.FILE
    stored.write(file, CHOICE)
    lines = file.read_text().splitlines()
    assert lines[2:] == CHOICE
    assert all(line.startswith("# ") for line in lines[:2])
    assert stored.read(file) == CHOICE


def test_people_may_edit_it(tmp_path):
    """Comments, blank lines and blanks around a line are nothing."""
    file = tmp_path / stored.FILE
    file.write_text("# mine\n\n  seed=2  \n\t# optimizer.lr=1\ntracker=both\r\n")
    assert stored.read(file) == ["seed=2", "tracker=both"]
    assert stored.read(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed=1\nseed\n", ".defconfig:2: seed: not KEY=VALUE"),
        (b"# a\nseed=1\n\nseed=2\n", ".defconfig:4: seed=2: seed is given twice (first seed=1)"),
        (b"-m\n", ".defconfig:1: -m: not KEY=VALUE"),
        (b"~seed\n", ".defconfig:1: ~seed: keys cannot be removed"),
        (b"tracker=[none,wandb]\n", ".defconfig:1: tracker=[none,wandb]: must name each tracker once"),
        (b"\xff\n", ".defconfig: cannot be read"),
    ],
)
def test_a_line_that_is_no_override_is_named(tmp_path, content, words):
    """With the file and the line's number."""
    file = tmp_path / stored.FILE
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        stored.read(file)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("experiment=gpt2-shakespeare", "did you mean gpt2-shakespeare-cpu?"),
        ("optimizer.lrr=1", "did you mean optimizer.lr?"),
        ("trainer.grad_clip=-1", "> 0"),
        ("seed=1,2", "add -m"),
        ("notes='a\nb'", "line break"),
    ],
)
def test_what_cannot_run_is_not_stored(tmp_path, override, words):
    """The file stays as it was, and nothing lies beside it."""
    file = tmp_path / stored.FILE
    file.write_text("seed=5\n")
    with pytest.raises(ConfigError) as caught:
        stored.write(file, [override])
    assert words in str(caught.value)
    assert file.read_text() == "seed=5\n"
    assert list(tmp_path.iterdir()) == [file]


def test_the_command_can_be_pasted_into_a_shell():
    """Lists and spaces are quoted."""
    assert (
        stored.command(["seed=1", "tracker=[wandb,trackio]"])
        == "python train.py seed=1 'tracker=[wandb,trackio]'"
    )


@pytest.mark.parametrize(
    ("old", "new", "merged", "left_out"),
    [
        ("seed=1 tracker=both", "", "seed=1 tracker=both", ""),
        ("", "seed=1", "seed=1", ""),
        ("seed=1 tracker=both", "seed=2 notes=x", "seed=2 tracker=both notes=x", ""),
        ("experiment=a tracker=both seed=2", "experiment=b", "experiment=b", "tracker=both seed=2"),
        ("experiment=a tracker=both", "experiment=a tracker=none", "experiment=a tracker=none", ""),
        ("experiment=a", "resume=d", "resume=d", "experiment=a"),
        ("trainer.max_epochs=4", "trainer.max_steps=9", "trainer.max_steps=9", "trainer.max_epochs=4"),
        ("trainer.max_epochs=4", "trainer.max_steps=null", "trainer.max_epochs=4 trainer.max_steps=null", ""),
        ("optimizer=adamw optimizer.lr=1", "optimizer=sgd", "optimizer=sgd", "optimizer.lr=1"),
        ("optimizer=adamw optimizer.lr=1", "optimizer=adamw", "optimizer=adamw optimizer.lr=1", ""),
        ("optimizer.lr=1", "optimizer=sgd optimizer.lr=2", "optimizer.lr=2 optimizer=sgd", ""),
        (
            "pruning.target_sparsity=.5 pruning/scope=erk",
            "pruning=none",
            "pruning=none",
            "pruning.target_sparsity=.5 pruning/scope=erk",
        ),
        (
            "pruning/scope=nm pruning.scope.n=1",
            "pruning/scope=erk",
            "pruning/scope=erk pruning.scope.n=1",
            "",
        ),
        ("hardware=a10gx4 hardware.threads=2", "hardware=cpu", "hardware=cpu", "hardware.threads=2"),
        (
            "tracker=wandb tracker.wandb.mode=offline",
            "tracker=none",
            "tracker=none",
            "tracker.wandb.mode=offline",
        ),
        (
            "tracker=both tracker.wandb.mode=offline",
            "tracker=wandb",
            "tracker=wandb tracker.wandb.mode=offline",
            "",
        ),
        (
            "tracker=wandb tracker.wandb.mode=offline",
            "tracker=both",
            "tracker=both tracker.wandb.mode=offline",
            "",
        ),
        (
            "tracker=both tracker.wandb.mode=offline tracker.trackio.port=1",
            "tracker=[trackio,mlflow]",
            "tracker=[trackio,mlflow] tracker.trackio.port=1",
            "tracker.wandb.mode=offline",
        ),
        ("+notes=x", "++notes=y", "++notes=y", ""),
    ],
)
def test_what_is_given_replaces_what_it_makes_meaningless(old, new, merged, left_out):
    """Each key once; a tracker that is kept stays offline."""
    assert stored.merge(old.split(), new.split()) == (merged.split(), left_out.split())
