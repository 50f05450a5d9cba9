"""The targets of make that are commands of adamwprune.track, and the variables that each takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from adamwprune import targets
from adamwprune.configure.variables import only
from adamwprune.errors import ConfigError


@dataclass(frozen=True)
class Target:
    """One target.

    Args:
        words: the command.
        flags: variable -> the flag that it is; "" for the command's own argument.
        environment: variables that the command reads from its environment.
    """

    words: tuple[str, ...]
    flags: Mapping[str, str] = field(default_factory=dict)
    environment: tuple[str, ...] = ()


_DASHBOARD = Target(("dashboard",), {"PROJECT": "--project", "TRACKIO_PORT": "--port"})
TARGETS = {
    "dashboard": _DASHBOARD,
    "trackio-show": _DASHBOARD,  # what it was called
    "metrics": Target(("metrics",), {"RUN": ""}),
    "wandb-sync": Target(("sync",), {"RUN": ""}),
    "wandb-test": Target(("test", "wandb"), environment=("WANDB_ONLINE",)),
    "trackio-test": Target(("test", "trackio")),
}


def arguments(name: str, settings: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments of adamwprune.track, and what its environment gets.

    Raises:
        ConfigError: no such target, or a variable that it does not take.
    """
    if name not in TARGETS:
        raise ConfigError(f"{name}: no such target; {targets.nearest(name, TARGETS)}")
    target = TARGETS[name]
    given = only(settings, *target.flags, *target.environment)
    words = [
        f"{flag}={given[key]}" if flag else given[key] for key, flag in target.flags.items() if key in given
    ]
    return [*target.words, *words], {key: given[key] for key in target.environment if key in given}
