"""Rows of numbers: made plain once, before the ledger and every tracker see them."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from adamwprune.callbacks.base import Row


def sanitise(metrics: Mapping[str, Any], dropped: Counter[str] | None = None) -> Row:
    """Plain Python values under text keys: tensors and NumPy numbers of one element become numbers.

    Nested mappings flatten with `/`. Integers beyond 64 bits become floats. What is no number,
    text or None is left out, and counted under its key in `dropped`.
    """
    dropped = Counter() if dropped is None else dropped
    row: Row = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            row.update({f"{key}/{inner}": plain for inner, plain in sanitise(value, dropped).items()})
            continue
        if getattr(value, "size", None) == 1 or (
            callable(getattr(value, "numel", None)) and value.numel() == 1
        ):
            value = value.item()
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
            value = _as_float(value)
        if value is None or isinstance(value, bool | int | float | str):
            row[str(key)] = value
        else:
            dropped[str(key)] += 1
    return row


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:  # beyond 1.8e308
        return math.inf if value > 0 else -math.inf


def json_row(row: Row) -> dict[str, Any]:
    """The row as JSON holds it: NaN and infinities as the texts NaN, Infinity, -Infinity."""
    return {key: _json_value(value) for key, value in row.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
