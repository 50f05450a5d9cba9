"""What a pruned network costs to run: dense, and computing with each encoding that adamwprune.export writes.

    python benchmarks/inference.py outputs/DATE/RUN                          the newest checkpoint of a run
    python benchmarks/inference.py --model lenet5 --sparsity 0.9             random masks, a tensor each
    python benchmarks/inference.py --model gpt2-nano --sparsity 2:4          two random zeros in every four

Batches of 1, 32 and 128 images, or one text of 512 and of 1024 tokens where the model takes that many.
`dense` is also what every file costs once it is loaded: the other arms keep weights encoded in memory and
decode them, or multiply with them, in each forward pass (adamwprune/export/inference.py). In a round each
arm does `--calls` passes; p50 and p95 are of those, medians over rounds with least and most.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import (
    Spread,
    argument_parser,
    interleave,
    paired_ratio,
    peak_extra_bytes,
    print_table,
    report,
    spread,
    timed,
)
from torch import Tensor, nn

from adamwprune.command_line import exit_codes
from adamwprune.composition import compose, to_config
from adamwprune.errors import ConfigError
from adamwprune.export.encodings import ENCODINGS
from adamwprune.export.files import DENSE, encode
from adamwprune.export.inference import EncodedLayer, build_model, held_bytes, use_encoded_
from adamwprune.export.run import open_run
from adamwprune.pruning.prunable import find_prunable
from adamwprune.targets import build
from adamwprune.training.checkpoint import model_weights

BATCHES = (1, 32, 128)
LENGTHS = (512, 1024)
SEED = 0  # of weights, masks and inputs


class Subject(NamedTuple):
    """A network to run: nodes of its configuration, weights with zeros, names of those that were pruned."""

    name: str
    model: dict[str, Any]
    data: dict[str, Any]
    weights: dict[str, Tensor]
    prunable: list[str]


class Pattern(NamedTuple):
    """A share `sparsity` of zeros, of every `group` inputs of a row or, where that is None, of a tensor."""

    sparsity: float
    group: int | None = None

    def __str__(self) -> str:
        return f"{self.sparsity}" if self.group is None else "2-4"


def pattern(text: str) -> Pattern:
    """What --sparsity says."""
    if text == "2:4":
        return Pattern(0.5, group=4)
    if not 0 <= float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be in [0, 1), or 2:4")
    return Pattern(float(text))


def main() -> None:
    """Interleave the arms for each input, print the tables, write the JSON."""
    parser = argument_parser(__doc__, rounds=7)
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="folder of a run")
    parser.add_argument("--model", help="instead of a run: an option of conf/model, with random weights")
    parser.add_argument(
        "--sparsity", type=pattern, default="0.9", help="of --model: in [0, 1), or 2:4 (%(default)s)"
    )
    parser.add_argument("--calls", type=int, default=20, help="forward passes a round (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    subject = choose(arguments)
    arms = build_arms(subject)
    figures = {"arms": {name: describe(arm, arms[DENSE], subject) for name, arm in arms.items()}}
    figures["inputs"] = {
        label: measure_arms(arms, inputs, arguments) for label, inputs in make_inputs(subject.data).items()
    }
    show(figures)
    zeros = "" if arguments.model is None else f"-{arguments.sparsity}"
    report(figures, model=subject.name, subject=f"inference{zeros}", file=arguments.json)


# ---------------------------------------------------------------------------------- the network


def choose(arguments: argparse.Namespace) -> Subject:
    """The run's network, or the one named by --model.

    Raises:
        ConfigError: both were given, or neither.
        CheckpointError: no such run.
    """
    if (arguments.run is None) == (arguments.model is None):
        raise ConfigError("give the folder of a run, or --model, and not both")
    if arguments.model is not None:
        return draw(arguments.model, arguments.sparsity)
    source = open_run(arguments.run)
    config = source.record["config"]
    name = source.record["name"].partition("_")[0]
    return Subject(name, config["model"], config["data"], source.weights, source.prunable)


def draw(name: str, zeros: Pattern) -> Subject:
    """A network with its initial weights and random masks; no data are read."""
    config = to_config(compose([f"model={name}", f"recipe.block_size={max(LENGTHS)}"]))
    model = build(config.model, "model")()
    prunable, _ = find_prunable(model)
    for parameter in prunable.values():
        # Not by multiplication: -0.0 has a bit set, and would not count as a zero.
        parameter.data.masked_fill_(random_zeros(parameter.shape, zeros), 0.0)
    return Subject(name, config.model, config.data, model_weights(model), list(prunable))


def random_zeros(shape: torch.Size, zeros: Pattern) -> Tensor:
    """True in random places; where groups do not divide the inputs, of the whole tensor."""
    moved = torch.Size((shape[0], *shape[2:], shape[1]))  # a group's members follow each other
    is_divided = zeros.group is not None and shape[1] % zeros.group == 0
    group = zeros.group if is_divided else shape.numel()
    ranks = torch.rand(shape.numel() // group, group).argsort(dim=1).argsort(dim=1)
    return (ranks < round(zeros.sparsity * group)).view(moved).movedim(-1, 1)


def make_inputs(data: dict[str, Any]) -> dict[str, Tensor]:
    """Random inputs by label."""
    if "image_size" in data:
        side = data["image_size"]
        return {f"batch {n}": torch.randn(n, data["channels"], side, side) for n in BATCHES}
    longest = data["block_size"]
    lengths = [length for length in LENGTHS if length <= longest] or [longest]
    return {f"1 x {n} tokens": torch.randint(data["vocab_size"], (1, n)) for n in lengths}


# ------------------------------------------------------------------------------------- the arms


def build_arms(subject: Subject) -> dict[str, nn.Module]:
    """Models by encoding: dense, and all encodings that make some tensor smaller."""
    arms = {}
    for name in (DENSE, *ENCODINGS):
        export = encode(subject.weights, name, candidates=subject.prunable)
        if name == DENSE or export.encoded:
            arms[name] = use_encoded_(build_model(subject.model, export), export)
    return arms


def describe(arm: nn.Module, dense: nn.Module, subject: Subject) -> dict[str, Any]:
    """Bytes of the weights that an arm holds, and how far its logits are from the dense ones."""
    inputs = next(iter(make_inputs(subject.data).values()))
    with torch.inference_mode():
        difference = float((arm(inputs) - dense(inputs)).abs().max())
    encoded = sum(isinstance(layer, EncodedLayer) for layer in arm.modules())
    return {"held_bytes": held_bytes(arm), "encoded_layers": encoded, "largest_difference": difference}


# -------------------------------------------------------------------------------------- timing


@torch.inference_mode()
def measure_arms(
    arms: dict[str, nn.Module], inputs: Tensor, arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Milliseconds of a forward pass and extra memory in it, of each arm for these inputs."""
    passes = {name: partial(arm, inputs) for name, arm in arms.items()}
    peaks = {}
    for name, run in passes.items():
        run()  # warm up
        peaks[name] = peak_extra_bytes(run)
    rounds = interleave(
        {name: partial(time_calls, run, arguments.calls) for name, run in passes.items()}, arguments.rounds
    )
    return {
        name: summarise(calls, rounds[DENSE]) | {"peak_extra_bytes": peaks[name]}
        for name, calls in rounds.items()
    }


def time_calls(run: Callable[[], Any], calls: int) -> np.ndarray:
    """(2, calls) milliseconds: wall and CPU of each call."""
    return 1e3 * np.array([timed(run) for _ in range(calls)]).T


def summarise(rounds: list[np.ndarray], dense: list[np.ndarray]) -> dict[str, Spread]:
    """Spreads over rounds of what each round's calls took."""
    (wall, cpu), (_, dense_cpu) = np.median(rounds, axis=2).T, np.median(dense, axis=2).T
    return {
        "wall_p50_ms": spread(wall),
        "wall_p95_ms": spread(np.percentile(rounds, 95, axis=2)[:, 0]),
        "cpu_p50_ms": spread(cpu),
        "cpu_ratio": paired_ratio(cpu, dense_cpu),
    }


# -------------------------------------------------------------------------------------- report


def show(figures: dict[str, Any]) -> None:
    """Two tables: what an arm is, and what it takes."""
    dense = figures["arms"][DENSE]["held_bytes"]
    print_table(
        ("arm", "weights held, bytes", "of dense", "encoded layers", "largest difference of a logit"),
        [
            (
                name,
                f"{arm['held_bytes']:,}",
                f"{arm['held_bytes'] / dense:.3f}",
                arm["encoded_layers"],
                f"{arm['largest_difference']:.1e}",
            )
            for name, arm in figures["arms"].items()
        ],
    )
    print()
    print_table(
        ("inputs, arm", "wall p50 ms", "wall p95 ms", "CPU p50 ms", "CPU, of dense", "peak extra MB"),
        [
            (
                f"{label}, {name}",
                arm["wall_p50_ms"],
                arm["wall_p95_ms"],
                arm["cpu_p50_ms"],
                f"{arm['cpu_ratio'].median:.2f}",
                "?" if arm["peak_extra_bytes"] is None else f"{arm['peak_extra_bytes'] / 1e6:.1f}",
            )
            for label, arms in figures["inputs"].items()
            for name, arm in arms.items()
        ],
    )


if __name__ == "__main__":
    with exit_codes():
        main()
