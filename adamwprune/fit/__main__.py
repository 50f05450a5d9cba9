"""Predict memory, micro batch, speed and duration of a run, for any hardware; no data are read.

python -m adamwprune.fit model=gpt2 hardware=a10gx4                 one run, with the overrides of train.py
python -m adamwprune.fit model=gpt2 hardware=l4 model.activation_checkpointing=true
python -m adamwprune.fit model=gpt2-medium --all                    a table of all hardware
python -m adamwprune.fit model=gpt2 hardware=a10gx4 --hardware-model    the file of conf/hardware_model

Ends with 8 where not even one sample fits.
"""

import argparse
import json
import sys

from adamwprune.command_line import Parser, exit_codes, with_config_dir
from adamwprune.composition import CONF_DIR, complete, compose, given_keys, to_config
from adamwprune.config import Config
from adamwprune.errors import ConfigError, OutOfMemoryError
from adamwprune.ranges import shown


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line, checked without torch.

    Raises:
        ConfigError: it cannot be read.
    """
    parser = Parser(
        prog="python -m adamwprune.fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--all", action="store_true", help="a table of all hardware whose memory is known")
    form.add_argument("--hardware-model", action="store_true", help="print the file of conf/hardware_model")
    parser.add_argument("--mfu", type=float, help="share of the peak that is assumed, in (0, 1] (0.4)")
    parser.add_argument("--config-dir", help="folder with options of your own")
    given = parser.parse_intermixed_args(arguments)
    if given.mfu is not None and not 0 < given.mfu <= 1:
        raise ConfigError(f"--mfu {shown(given.mfu)}: must be > 0 and at most 1")
    given.overrides = with_config_dir(given.overrides, given.config_dir)
    return given


def composed(overrides: list[str]) -> tuple[Config, dict[str, str]]:
    """The checked configuration, and the options that it is made of."""
    tree = compose(complete(overrides))
    return to_config(tree, overrides), dict(tree.hydra.runtime.choices)


def main(arguments: list[str]) -> None:
    """Print the forecast."""
    given = parse(arguments)
    if given.all:
        print_table(given)
        return
    config, choices = composed(given.overrides)

    from adamwprune.fit import hardware_model
    from adamwprune.fit.forecast import forecast
    from adamwprune.fit.report import smaller, text
    from adamwprune.fit.speed import MFU

    if given.hardware_model:
        print(hardware_model.text(config, choices, given.overrides), end="")
        return
    found = forecast(config, given.mfu or MFU)
    if given.json:
        print(json.dumps({"options": choices, **found.as_dict()}, indent=2))
    else:
        print(text(found, choices))
    if found.device is not None and found.largest is None:
        raise OutOfMemoryError(
            f"hardware={choices['hardware']}: not even one sample fits, {found.memory}; {smaller(found)}"
        )


def print_table(given: argparse.Namespace) -> None:
    """A row for each hardware option whose memory is known, each with its largest micro batch."""
    if "hardware" in given_keys(given.overrides):
        raise ConfigError("--all: takes every hardware; leave hardware= out")

    from adamwprune.fit.forecast import largest_forecast
    from adamwprune.fit.memory import Traces
    from adamwprune.fit.report import row, table
    from adamwprune.fit.speed import MFU

    rows, traces = [], Traces()
    for option in sorted(path.stem for path in (CONF_DIR / "hardware").glob("*.yaml")):
        config, choices = composed([*given.overrides, f"hardware={option}"])
        if config.hardware.memory_gb is None:
            continue
        found = largest_forecast(config, given.mfu or MFU, traces)
        rows.append(row(found, choices))
    print(table(rows, found.unit))


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1:])
