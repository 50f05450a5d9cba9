"""`make menuconfig`: edit the stored choice in a terminal. Textual is needed here and nowhere else."""

import importlib.util
import sys
from pathlib import Path

from adamwprune.composition import CONF_DIR
from adamwprune.configure import stored
from adamwprune.configure.tree import build
from adamwprune.errors import ConfigError

REQUIREMENT = "textual>=8,<9"


def run_menu(file: Path, conf_dir: Path = CONF_DIR) -> None:
    """Show the choice in `file`, or what `make` runs without one, and store what it is changed to.

    Raises:
        ConfigError: Textual is not installed, there is no terminal, or the file cannot be read.
    """
    if importlib.util.find_spec("textual") is None:
        raise ConfigError(f"menu: needs Textual, which is not installed; pip install '{REQUIREMENT}'")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("menu: needs a terminal; make defconfig DEFCONFIG=NAME needs none")
    overrides = stored.read(file) if file.exists() else stored.DEFAULT
    tree = build(overrides, conf_dir)
    if tree.dropped:
        message = "; ".join(f"dropped {reason}" for _, reason in tree.dropped)
    else:
        message = "" if file.exists() else f"there is no {file.name} yet: this is what make runs"
    from adamwprune.configure.app import MenuApp

    if result := MenuApp(tree, file, overrides, message).run():
        print(result)
