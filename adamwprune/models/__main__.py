"""What each model is: parameters, prunable weights, floating-point operations, data.

python -m adamwprune.models                                             every option of model=
python -m adamwprune.models model=resnet50 data=imagenet model.stem=imagenet    one, with other keys

Nothing is trained, loaded or downloaded: models are built and called without memory. GFLOPs are those of a
forward pass, counted in its matrix products, convolutions and attention (2 for a multiplication and its
addition); training takes three times as many. For GPT-2 they are those of one token in a full block.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from typing import Any

from adamwprune.command_line import Parser, exit_codes
from adamwprune.composition import CONF_DIR, complete, compose, to_config
from adamwprune.config import Config

HEADINGS = ("model", "parameters", "prunable", "GFLOPs", "of one", "input", "data")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    parameters: int
    prunable: int
    flops: float  # of a forward pass, one image or token
    unit: str
    shape: tuple[int, ...]  # of an input
    data: str

    def cells(self) -> list[str]:
        """As printed."""
        counts = [f"{self.parameters:,}", f"{self.prunable:,}", f"{self.flops / 1e9:.4g}"]
        return [self.model, *counts, self.unit, " x ".join(map(str, self.shape)), self.data]


def describe(overrides: list[str]) -> Row:
    """The model of a configuration."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from adamwprune.export.inference import without_weights
    from adamwprune.pruning.prunable import find_prunable
    from adamwprune.targets import build

    composed = compose(complete(overrides))
    config = to_config(composed, overrides)
    shape = input_shape(config)
    is_text = "vocab_size" in config.model
    with torch.device("meta"):
        model = build(without_weights(config.model), "model", config.allow_targets)().eval()
        sample = torch.zeros(1, *shape, dtype=torch.int64 if is_text else torch.float32)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(sample)
    prunable, _ = find_prunable(model)
    return Row(
        model=composed.hydra.runtime.choices.model,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        prunable=sum(parameter.numel() for parameter in prunable.values()),
        flops=counter.get_total_flops() / (math.prod(shape) if is_text else 1),
        unit="token" if is_text else "image",
        shape=shape,
        data=composed.hydra.runtime.choices.data,
    )


def input_shape(config: Config) -> tuple[int, ...]:
    """A block of tokens, or channels and pixels of an image."""
    model: dict[str, Any] = config.model
    if "block_size" in model:
        return (model["block_size"],)
    return (model["in_channels"], model["image_size"], model["image_size"])


def print_table(rows: list[Row]) -> None:
    """Columns as wide as they must be."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.rjust(width) if 1 <= column <= 3 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = Parser(
        prog="python -m adamwprune.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py; none: all models")
    overrides = parser.parse_args(arguments).overrides
    names = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))
    choices = [overrides] if overrides else [[f"model={name}"] for name in names]
    print_table([describe(choice) for choice in choices])


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1:])
