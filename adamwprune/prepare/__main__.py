"""Fetch and prepare a data set, which a run would otherwise do at its first use.

python -m adamwprune.prepare data=finewebedu                               all of its 10 B tokens
python -m adamwprune.prepare data=finewebedu data.max_tokens=1005000000    a tenth of them
python -m adamwprune.prepare data=text data.path=notes                     your own files
python -m adamwprune.prepare experiment=NAME                               what an experiment trains on
python -m adamwprune.prepare data=finewebedu --verify                      read and hash what is prepared

Killed or interrupted, the same command goes on where it was. A run with the same keys finds what was
prepared; data.num_processes may differ.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adamwprune.command_line import Parser, exit_codes, with_config_dir
from adamwprune.composition import complete, compose, trusted
from adamwprune.errors import ConfigError
from adamwprune.explanations import resolver_message
from adamwprune.targets import build, problems

if TYPE_CHECKING:
    from adamwprune.data.base import Data


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        ConfigError: it cannot be read.
    """
    parser = Parser(
        prog="python -m adamwprune.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as train.py takes them")
    parser.add_argument(
        "--verify", action="store_true", help="read every prepared file, also those that were verified before"
    )
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with more options")
    return parser.parse_intermixed_args(arguments)


def data_node(composed: DictConfig, overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`data` of a composed configuration, checked without torch, and the targets that it may name.

    Nothing else of it is resolved: the default model may not fit the data, and need not.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    allowed = trusted(overrides)
    try:
        node = OmegaConf.to_container(composed.data, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(resolver_message(error)) from None
    assert isinstance(node, dict)
    if found := problems(node, "data", allowed):
        raise ConfigError(*found)
    return {str(key): value for key, value in node.items()}, allowed


def main(arguments: list[str]) -> None:
    """Prepare what is not there, and say what there is."""
    given = parse(arguments)
    overrides = complete(with_config_dir(given.overrides, given.config_dir))
    node, allowed = data_node(compose(overrides), overrides)
    started = time.monotonic()
    data = build(node, "data", allowed)()
    if given.verify:
        verify(data)
    print(f"{describe(data)}; {time.monotonic() - started:.1f} s")


def verify(data: "Data") -> None:
    """Read all files of a prepared data set.

    Raises:
        ConfigError: it has none; whatever ships or is fetched is hashed at each use.
        DataError: one is not what its manifest says.
    """
    from adamwprune.data.preparation.shards import verify_shards

    folder = data.facts.get("folder")
    if folder is None or data.facts.get("source") != "shards":
        raise ConfigError(f"--verify: data={data.name} has no prepared files; leave it out")
    shards = verify_shards(Path(folder))
    print(f"{folder}: {len(shards.train) + len(shards.val)} files are what the manifest says")


def describe(data: "Data") -> str:
    """One line: the sizes of its parts, its fingerprint, and the folder if it has one."""
    sizes = [f"{data.facts[f'{part}_{data.unit}']:,} {data.unit} to {verb}" for part, verb in _VERBS.items()]
    where = f", in {data.facts['folder']}" if "folder" in data.facts else ""
    return f"{data.name}: {', '.join(sizes)}, fingerprint {data.fingerprint[:12]}{where}"


_VERBS = {"train": "train on", "val": "validate on"}


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1:])
