"""Pruning during training: criterion x schedule x scope x exact selection, in any loop."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamwprune.pruning.pruner import Dense, Pruner

__all__ = ["Dense", "Pruner"]


def __getattr__(name: str) -> Any:
    # Lazily: whoever checks a configuration imports this package before torch.
    if name in __all__:
        from adamwprune.pruning import pruner

        return getattr(pruner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
