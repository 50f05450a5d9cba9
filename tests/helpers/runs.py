"""Whole runs in this process: small, real, and readable afterwards."""

import copy
import functools
import json
from pathlib import Path

from safetensors.torch import load_file

from adamwprune import run_directory
from adamwprune.composition import complete, compose, to_config
from adamwprune.config import Config, to_plain
from adamwprune.training.checkpoint import load_newest
from adamwprune.training.ledger import VOLATILE, read_rows
from adamwprune.training.run import train

# 256 images, batches of 16: 16 steps an epoch, a few milliseconds each.
IMAGES = (
    "data=synthetic_images",
    "data.num_train=256",
    "data.num_val=64",
    "data.num_test=64",
    "trainer.global_batch_size=16",
)
# A GPT-2 of two blocks and width 16 on a Markov chain, with dropout: it uses the random generators.
TOKENS = (
    "model=gpt2-nano",
    "data=synthetic_tokens",
    "data.num_tokens=8192",
    "data.vocab_size=32",
    "recipe.block_size=16",
    "model.n_layer=2",
    "model.n_embd=16",
    "model.n_head=2",
    "model.dropout=0.1",
    "trainer.global_batch_size=8",
)
# What makes every step of a short run count: rows, masks and checkpoints at odd intervals.
BUSY = ("trainer.log_every=3", "trainer.eval_every=7", "lr_schedule.warmup_steps=3")


def configure(*overrides: str) -> Config:
    """The checked configuration of some overrides; of a key given twice the last counts."""
    last = {override.partition("=")[0]: override for override in (*overrides, "hardware.threads=1")}
    return copy.deepcopy(_composed(tuple(last.values())))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Config:
    """Composed once: a tiny run trains in less time."""
    return to_config(compose(complete(list(overrides))))


def start(directory: Path, *overrides: str) -> tuple[Config, Path]:
    """A claimed run folder with its record, ready to train."""
    config = configure(*overrides)
    directory = run_directory.claim(directory)
    names = {"name": config.run_name, "project": config.project, "group": config.group}
    record = run_directory.new_record(to_plain(config), list(overrides), names)
    run_directory.write_json(directory / run_directory.RECORD, record)
    return config, directory


def run(directory: Path, *overrides: str) -> Path:
    """Train from the beginning to the end."""
    config, directory = start(directory, *overrides)
    train(config, directory)
    return directory


def rows(directory: Path, name: str = run_directory.METRICS) -> list[dict]:
    """Rows of a run without what is measured."""
    return [
        {key: value for key, value in row.items() if not key.startswith(VOLATILE)}
        for row in read_rows(directory / name)
    ]


def mask_updates(directory: Path) -> list[dict]:
    """Mask updates of a run without what is measured."""
    return rows(directory, run_directory.MASK_UPDATES)


def summary(directory: Path) -> dict:
    """summary.json of a run."""
    return json.loads((directory / run_directory.SUMMARY).read_text())


def final_weights(directory: Path) -> dict:
    """Weights of the newest checkpoint."""
    return load_file(load_newest(directory / "checkpoints").directory / "model.safetensors")


def final_state(directory: Path) -> dict:
    """Everything else of the newest checkpoint."""
    return load_newest(directory / "checkpoints").state
