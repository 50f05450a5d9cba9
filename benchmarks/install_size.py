"""What each tracker adds to an installation: packages and bytes beside those that the project needs anyway.

    python benchmarks/install_size.py

Counts the files of installed distributions, compiled bytecode included, along their requirements. Nothing is
timed, and nothing is imported.
"""

import importlib.metadata as metadata
import re
from collections.abc import Iterable
from pathlib import Path

from measure import argument_parser, print_table, report
from packaging.requirements import Requirement

EXTRAS = ("trackio", "wandb", "tensorboard", "mlflow", "menu")


def name_of(text: str) -> str:
    """A distribution's name as it is compared."""
    return re.sub(r"[-_.]+", "-", text).lower()


def closure(project: str, extras: Iterable[str] = ()) -> dict[str, metadata.Distribution]:
    """The installed distributions that `project[extras]` requires, however far away, and itself."""
    installed = {name_of(found.metadata["Name"]): found for found in metadata.distributions()}
    needed: dict[str, metadata.Distribution] = {}
    queue = [(name_of(project), frozenset(extras))]
    seen = set()
    while queue:
        name, asked = queue.pop()
        if (name, asked) in seen or name not in installed:
            continue
        seen.add((name, asked))
        needed[name] = installed[name]
        for text in installed[name].requires or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *asked)):
                queue.append((name_of(requirement.name), frozenset(requirement.extras)))
    return needed


def size(found: metadata.Distribution) -> int:
    """Bytes of a distribution's files."""
    files = (Path(str(found.locate_file(file))) for file in found.files or [])
    return sum(file.stat().st_size for file in files if file.is_file())


def main() -> None:
    """Print the table, write the JSON."""
    arguments = argument_parser(__doc__, rounds=1).parse_args()
    base = closure("adamwprune")
    arms = {}
    for extra in EXTRAS:
        added = closure("adamwprune", [extra]).keys() - base.keys()
        found = {name: size(metadata.distribution(name)) for name in added}
        arms[extra] = {"packages": len(found), "bytes": sum(found.values()), "each": found}
    print_table(
        ("extra", "packages", "MB", "largest"),
        [
            (
                extra,
                arm["packages"],
                f"{arm['bytes'] / 1e6:.0f}",
                ", ".join(sorted(arm["each"], key=arm["each"].get, reverse=True)[:3]),
            )
            for extra, arm in arms.items()
        ],
    )
    report({"arms": arms}, model="packages", subject="install-size", file=arguments.json)


if __name__ == "__main__":
    main()
