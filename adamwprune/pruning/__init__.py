"""Pruning during training: criterion x schedule x scope x selection x mode, in any loop."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamwprune.pruning.dense import Dense
    from adamwprune.pruning.pruner import Pruner

__all__ = ["Dense", "Pruner"]


def __getattr__(name: str) -> Any:
    # Lazily: whoever checks a configuration imports this package before torch.
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{name.lower()}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
