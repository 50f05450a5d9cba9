"""Export the weights of a run: dense, and in encodings that leave the zeros out.

python -m adamwprune.export outputs/DATE/RUN                            every format
python -m adamwprune.export outputs/DATE/RUN --format bitmask           one of them
python -m adamwprune.export outputs/DATE/RUN --format huggingface       a GPT-2 for transformers
python -m adamwprune.export outputs/DATE/RUN --checkpoint 1000          an earlier checkpoint
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from adamwprune.command_line import Parser, exit_codes
from adamwprune.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from adamwprune.export.run import Row, Source

FORMATS = ("dense", "bitmask", "csr", "2:4")
HUGGING_FACE = "huggingface"


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line, checked without torch.

    Raises:
        ConfigError: it cannot be read.
        CheckpointError: there is no such folder.
    """
    parser = Parser(
        prog="python -m adamwprune.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--format",
        choices=("all", *FORMATS, HUGGING_FACE),
        default="all",
        help="what to write (%(default)s: each but huggingface)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for the files (RUN/export/step_STEP)"
    )
    parser.add_argument(
        "--checkpoint", type=int, metavar="STEP", help="step of the checkpoint (the newest that is whole)"
    )
    given = parser.parse_args(arguments)
    if not given.run.is_dir():
        raise CheckpointError(f"{given.run}: there is no such folder; give one like outputs/DATE/TIME_NAME")
    return given


def main(arguments: list[str]) -> None:
    """Write the files, print the table."""
    given = parse(arguments)

    from adamwprune.export.run import export, open_run

    formats = FORMATS if given.format == "all" else (given.format,)
    source = open_run(given.run, given.checkpoint)
    folder = given.output or given.run / "export" / source.checkpoint.directory.name
    if given.format == HUGGING_FACE:
        write_hugging_face(source, given.output or folder / HUGGING_FACE)
        return
    rows = export(source, formats, folder)
    if given.format != "all" and rows[0].size is None:
        raise ConfigError(
            f"--format {given.format}: makes no tensor smaller ({rows[0].note}); nothing written"
        )
    print_table(source, rows, folder)


def write_hugging_face(source: "Source", folder: Path) -> None:
    """Write the two files, print what they hold and how they are loaded."""
    from adamwprune.export.hugging_face import export_hugging_face

    config = export_hugging_face(source, folder)
    sizes = ", ".join(f"{key} {config[key]:,}" for key in ("vocab_size", "n_positions", "n_layer", "n_embd"))
    print(f"{source.record['name']}, step {source.checkpoint.step}: GPT-2 with {sizes}")
    print(f'transformers.GPT2LMHeadModel.from_pretrained("{folder}") loads it')


def print_table(source: "Source", rows: list["Row"], folder: Path) -> None:
    """Bytes of the files, measured, beside those of the checkpoint's own."""
    from adamwprune.training.checkpoint import WEIGHTS

    counts = source.counts()
    dense = (source.checkpoint.directory / WEIGHTS).stat().st_size
    print(
        f"{counts['run']}, step {counts['step']}: sparsity {counts['sparsity']:.4f} of the prunable weights,"
    )
    print(
        f"{counts['nonzero']:,} of all {counts['entries']:,} entries not zero; {WEIGHTS} has {dense:,} bytes"
    )
    print(f"{'format':8} {'bytes':>13} {'ratio':>6} {'tensors':>10}  note")
    for row in rows:
        size, ratio = ("-", "-") if row.size is None else (f"{row.size:,}", f"{row.size / dense:.3f}")
        tensors = f"{row.encoded} of {row.tried}" if row.tried else "-"
        print(f"{row.format:8} {size:>13} {ratio:>6} {tensors:>10}  {row.note}".rstrip())
    print(f"in {folder}")


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1:])
