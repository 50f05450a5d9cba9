"""Whether two runs are the same to the bit: rows, masks, weights, optimizer, random state, data position."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from adamwprune.training.checkpoint import Checkpoint, load_newest
from tests.helpers.runs import mask_updates, rows, summary

# In a checkpoint's state: what is measured, bytes of rows (times and rates have digits), where it was done.
MEASURED = {"seconds", "records", "environment"}
NUMBERS = ("status", "exit_code", "steps", "total_steps", "sparsity", "parameters", "exact")


def equal(first: Any, second: Any) -> bool:
    """Deep bitwise equality of checkpoint states; NaN equals itself where its bits do."""
    if isinstance(first, torch.Tensor):
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        return torch.equal(_bits(first), _bits(second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Bytes, so that -0.0 is not 0.0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def differences(first: Path, second: Path) -> list[str]:
    """What differs between two finished runs, a word or two each; empty where they are the same run."""
    one, two = load_newest(first / "checkpoints"), load_newest(second / "checkpoints")
    return [*_of_records(first, second), *of_checkpoints(one, two)]


def _of_records(first: Path, second: Path) -> Iterator[str]:
    """Files in which a run tells of itself."""
    if at := first_difference(rows(first), rows(second)):
        yield f"metrics.jsonl: {at}"
    if at := first_difference(mask_updates(first), mask_updates(second)):
        yield f"mask_updates.jsonl: {at}"
    one, two = summary(first), summary(second)
    for name in NUMBERS:
        if one[name] != two[name]:
            yield f"summary.json: {name} {one[name]} and {two[name]}"
    for name in ("final", "best"):
        values, others = (_unmeasured(numbers["metrics"][name]) for numbers in (one, two))
        if values != others:
            yield f"summary.json: {name} {values} and {others}"


def _unmeasured(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if not key.startswith(("perf/", "memory/"))}


def of_checkpoints(one: Checkpoint, two: Checkpoint) -> list[str]:
    """What differs between two checkpoints."""
    found = [] if one.step == two.step else [f"step {one.step} and {two.step}"]
    names = one.weights.keys() | two.weights.keys()
    found += [f"weights {name}" for name in sorted(names) if not _same(one.weights, two.weights, name)]
    keys = one.state.keys() | two.state.keys()
    return found + [f"state {key}" for key in sorted(keys - MEASURED) if not _same(one.state, two.state, key)]


def _same(first: dict[str, Any], second: dict[str, Any], key: str) -> bool:
    return key in first and key in second and equal(first[key], second[key])


def first_difference(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> str:
    """The first row and key in which two ledgers differ; empty where they are equal."""
    for one, two in zip(first, second, strict=False):
        for key in sorted(one.keys() | two.keys()):
            if one.get(key) != two.get(key):
                return f"step {one['step']} {key} {one.get(key)} and {two.get(key)}"
    return "" if len(first) == len(second) else f"{len(first)} and {len(second)} rows"


def assert_same_run(first: Path, second: Path) -> None:
    """Raise AssertionError naming what differs."""
    assert differences(first, second) == []
