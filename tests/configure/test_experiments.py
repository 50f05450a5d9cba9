"""Saved experiments compose to what was stored, say only what differs, and explain each key."""

import re
import shutil

import pytest
import yaml

from adamwprune.composition import CONF_DIR, complete, compose, to_config
from adamwprune.config import flatten, to_plain
from adamwprune.configure import experiments
from adamwprune.errors import ConfigError


@pytest.fixture(scope="module")
def conf_dir(tmp_path_factory):
    """A copy of conf/ to save into."""
    return shutil.copytree(CONF_DIR, tmp_path_factory.mktemp("project") / "conf")


def resolved(overrides, conf_dir):
    """Every key with its value."""
    return dict(flatten(to_plain(to_config(compose(complete(overrides), conf_dir)))))


SAVED = {
    "overridden": (
        "experiment=gpt2-shakespeare-cpu optimizer=sgd pruning=magnitude "
        "optimizer.lr=3e-4 trainer.max_epochs=2 seed=7",
        {"optimizer.lr", "trainer.max_epochs", "trainer.max_steps", "seed"}
        | {"data.remap_vocab", "data.vocab_size"},
    ),
    "trackers": (
        "experiment=lenet5-mnist5k tracker=[wandb,trackio] tracker.wandb.mode=offline "
        "tags=[a,'1e3'] notes='a: b'",
        {"tracker.wandb.mode", "tags", "notes"},
    ),
    "dense": (
        "experiment=resnet18-fashion3k-cpu optimizer=adamwprune pruning=none",
        {"model.width", "recipe.adam_lr", "recipe.weight_decay"}
        | {"trainer.global_batch_size", "trainer.max_epochs"},
    ),
    "parts": (
        "optimizer=muon pruning=magnitude pruning/scope=nm pruning/schedule=oneshot lr_schedule=step "
        "pruning.exclude=['conv*'] hardware.precision=bf16 pruning.scope.n=1 pruning.target_sparsity=0.75",
        {"pruning.exclude", "hardware.precision", "pruning.scope.n", "pruning.target_sparsity"},
    ),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_experiment_composes_to_the_same_configuration(name, conf_dir):
    """Under its name alone, key by key; it holds the deltas and no others, each under a comment."""
    line, deltas = SAVED[name]
    overrides = re.findall(r"(?:'[^']*'|\S)+", line)
    file = experiments.save(name, overrides, conf_dir)
    assert file == conf_dir / "experiment" / f"{name}.yaml"
    assert resolved([f"experiment={name}"], conf_dir) == resolved(overrides, conf_dir)
    lines = file.read_text().splitlines()
    assert lines[:3] == ["# @package _global_", f"# python train.py experiment={name}", "#"]
    content = {key: value for key, value in yaml.safe_load(file.read_text()).items() if key != "defaults"}
    assert {key for key, _ in flatten(content)} - {""} == deltas
    keys = [n for n, text in enumerate(lines) if re.match(r" *\w+: \S", text)]
    assert all(lines[n - 1].lstrip().startswith("# ") for n in keys), lines


def test_options_are_named_and_the_trackers_are_a_list(conf_dir):
    """What it is about always, the rest where it differs; none of what comes with an option."""

    def chosen(name):
        defaults = yaml.safe_load((conf_dir / "experiment" / f"{name}.yaml").read_text())["defaults"]
        return {
            group.removeprefix("override /"): option for item in defaults for group, option in item.items()
        }

    about = {"data": "mnist5k", "model": "lenet5", "optimizer": "adamwprune", "hardware": "cpu"}
    assert chosen("trackers") == {**about, "tracker": ["wandb", "trackio"]}
    assert chosen("parts") == {
        **about,
        "optimizer": "muon",
        "pruning": "magnitude",
        "lr_schedule": "step",
        "pruning/scope": "nm",
        "pruning/schedule": "oneshot",
    }


def test_comments_hold_for_the_value_that_is_saved(conf_dir):
    """That of a model's budget, which explains the model's number, is not repeated above another."""
    text = (conf_dir / "experiment" / "overridden.yaml").read_text()
    assert "# Passes over the training data.\n  max_epochs: 2.0\n" in text
    assert "# Peak learning rate, > 0; the model's recipe suggests it.\n  lr: 0.0003\n" in text
    assert "1,500" not in text
    assert "1,500" in (conf_dir / "model" / "gpt2-nano.yaml").read_text()  # control


def test_saved_and_shipped_experiments_are_listed_with_what_they_are(conf_dir):
    """By their first words, not by their command."""
    found = dict(experiments.listed(conf_dir))
    assert found["lenet5-mnist5k"].startswith("LeNet-5 on 5,000 real MNIST digits")
    assert found["overridden"].startswith(
        "Saved from `python train.py experiment=gpt2-shakespeare-cpu optimizer=sgd"
    )
    assert sorted(found) == list(found)
    assert dict(experiments.listed()).keys() == {
        file.stem for file in (CONF_DIR / "experiment").glob("*.yaml")
    }


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("lenet5-mnist5k", "seed=2", "already in conf/experiment"),
        ("../x", "seed=2", "must be 1 to 64"),
        ("a b", "seed=2", "must be 1 to 64"),
        (".x", "seed=2", "must be 1 to 64"),
        ("null", "seed=2", "nor a word such as null"),
        ("1e3", "seed=2", "neither a number"),
        ("x.yaml", "seed=2", "must be 1 to 64"),
        ("x", "hydra.run.dir=d", "belongs to one command"),
        ("x", "sweep=seeds", "belongs to one command"),
        ("x", "resume=d", "belongs to one command"),
        ("x", "allow_targets=[os.system]", "belongs to one command"),
        ("x", "seed=1,2", "add -m"),
        ("x", "optimizer.lrr=1", "did you mean optimizer.lr?"),
        ("x", "trainer.grad_clip=0", "> 0"),
    ],
)
def test_what_cannot_be_saved_is_refused(name, override, words, conf_dir):
    """In one line, and no file is left."""
    before = sorted(conf_dir.glob("**/*"))
    with pytest.raises(ConfigError) as caught:
        experiments.save(name, [override], conf_dir)
    assert words in str(caught.value)
    assert sorted(conf_dir.glob("**/*")) == before


def test_a_file_that_composes_to_something_else_does_not_stay(conf_dir, monkeypatch):
    """Control of the comparison: a writer that forgets a key."""
    monkeypatch.setattr(experiments, "_differences", lambda target, bare: {})
    with pytest.raises(ConfigError, match=r"NAME=wrong: no experiment can say data\.seed, seed"):
        experiments.save("wrong", ["seed=3"], conf_dir)
    assert not (conf_dir / "experiment" / "wrong.yaml").exists()
