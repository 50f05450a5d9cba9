"""Choosing the weights that go: scores |w| * v^(1/4), the threshold, and a mask of all weights.

    python benchmarks/mask_selection.py                       a million, ten million, GPT-2's 124 million
    python benchmarks/mask_selection.py --sizes 1e6 --sparsity 0.9
    python benchmarks/mask_selection.py --device cuda

One tensor, so that none has to concatenate. Arms, all with the scores of one function:

    ours             as a mask update does it: scores, keys and masks for a chunk at a time
    ours, threshold  the same up to where the threshold is known; no mask is written
    sort             torch.sort, stable; the lowest in its order: also the oracle of all others
    topk             torch.topk; the lowest as it gives them, as torch.nn.utils.prune does
    kthvalue         torch.kthvalue; what is above it stays
    partition        numpy.partition; what is above the value stays
    sample           torch.kthvalue of a random 2 %; what is above it stays

`wrong` counts weights whose mask is not the oracle's; `off` says how far the sparsity is from the one
asked for, in points, 100 times the share. The first size comes a second time with weights and v rounded
to bfloat16, where scores tie. `limit` is the time to read 8 bytes a weight once and to write 1, at the speed
of a multiplication in place. `peak` is the memory that comes and goes; masks are there before.
What takes more than five seconds is measured once, and then without a warm-up.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import (
    Seconds,
    argument_parser,
    interleave,
    peak_extra_bytes,
    print_table,
    report,
    spread,
    steady_clock,
    timed,
)
from torch import Tensor

from adamwprune.command_line import exit_codes
from adamwprune.pruning.criteria.state import state
from adamwprune.pruning.scoring import TensorScores
from adamwprune.pruning.selection.streaming import locate, streaming

SIZES = (1_000_000, 10_000_000, 124_439_808)
SPARSITIES = (0.5, 0.9)
SAMPLE = 0.02
PATIENCE = 5.0  # seconds
SEED = 0
GOAL = 0.3  # seconds on one thread, of 124 million weights


class Weights(NamedTuple):
    """What is scored, and the mask to write: all flat."""

    weight: Tensor
    exp_avg_sq: Tensor
    mask: Tensor

    def scores(self) -> Tensor:
        """Of all weights at once."""
        return state(self.weight, self.exp_avg_sq)

    def ranked(self) -> list[TensorScores]:
        """As the pruner hands them to a selection."""
        sources = {"weight": self.weight, "exp_avg_sq": self.exp_avg_sq}
        return [TensorScores("weight", self.mask, state, sources)]


def draw(size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Weights:
    """Normal weights with the second moments of normal gradients of many scales; rounded to a type."""
    generator = torch.Generator(device).manual_seed(SEED)
    weight = torch.empty(size, device=device).normal_(generator=generator)
    moment = torch.empty(size, device=device).log_normal_(mean=-18.0, std=2.0, generator=generator)
    weight, moment = (tensor.to(dtype).float() for tensor in (weight, moment))
    return Weights(weight, moment, torch.ones(size, dtype=torch.bool, device=device))


# ------------------------------------------------------------------------------------- the arms


def ours(weights: Weights, count: int) -> None:
    """Masks for the lowest `count`."""
    streaming(weights.ranked(), count)


def ours_threshold(weights: Weights, count: int) -> None:
    """An interval of keys in which the threshold lies, as narrow as the masks need it."""
    locate(weights.ranked(), count)


def by_sort(weights: Weights, count: int) -> None:
    """Equal scores in the order of their places."""
    order = torch.sort(weights.scores(), stable=True).indices
    weights.mask[order[:count]] = False


def by_topk(weights: Weights, count: int) -> None:
    """Equal scores in any order."""
    weights.mask[torch.topk(weights.scores(), count, largest=False, sorted=False).indices] = False


def by_kthvalue(weights: Weights, count: int) -> None:
    """Scores that equal the threshold go, however many there are."""
    scores = weights.scores()
    torch.gt(scores, torch.kthvalue(scores, count).values, out=weights.mask)


def by_partition(weights: Weights, count: int) -> None:
    """The same in NumPy."""
    scores = weights.scores().numpy()
    np.greater(scores, np.partition(scores, count - 1)[count - 1], out=weights.mask.numpy())


def by_sample(weights: Weights, count: int) -> None:
    """The threshold of a sample, drawn with replacement."""
    scores = weights.scores()
    size = int(SAMPLE * scores.numel())
    sample = scores[torch.randint(scores.numel(), (size,), device=scores.device)]
    torch.gt(scores, torch.kthvalue(sample, round(count * SAMPLE)).values, out=weights.mask)


# `sort` first: what it does is what the others are compared with.
ARMS: Mapping[str, Callable[[Weights, int], None]] = {
    "sort": by_sort,
    "ours": ours,
    "ours, threshold": ours_threshold,
    "topk": by_topk,
    "kthvalue": by_kthvalue,
    "partition": by_partition,
    "sample": by_sample,
}
WRITES_NO_MASK = ("ours, threshold",)


# -------------------------------------------------------------------------------------- timing


def main() -> None:
    """Measure each case, print its table, write the JSON."""
    parser = argument_parser(__doc__, rounds=7)
    parser.add_argument(
        "--sizes", type=lambda text: int(float(text)), nargs="+", default=SIZES, help="numbers of weights"
    )
    parser.add_argument(
        "--sparsity", type=float, nargs="+", default=SPARSITIES, dest="sparsities", help="shares that go"
    )
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    arms = [name for name in ARMS if name != "partition" or arguments.device.type == "cpu"]
    for name in arms:  # code that is used for the first time takes memory of its own
        ARMS[name](draw(1 << 20, arguments.device), 1 << 19)
    cases = {}
    for size, dtype in [(arguments.sizes[0], torch.bfloat16), *((n, torch.float32) for n in arguments.sizes)]:
        weights = draw(size, arguments.device, dtype)
        label = f"{size:,}{'' if dtype == torch.float32 else ', ties'}"
        for sparsity in arguments.sparsities:
            name = f"{label}, {sparsity:.0%}"
            cases[name] = measure_case(weights, sparsity, arms, arguments)
            show(name, cases[name])
    print(f"goal: ours <= {GOAL} s for 124 million weights on one thread, none wrong, time linear")
    figures = {"arms": arms, "cases": cases}
    report(figures, model="weights", subject=f"mask-selection-{arguments.threads}t", file=arguments.json)


def measure_case(
    weights: Weights, sparsity: float, arms: list[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Figures of all arms for some weights and a sparsity."""
    size = weights.weight.numel()
    count = round(sparsity * size)
    turns = {name: partial(turn, weights, partial(ARMS[name], weights, count)) for name in arms}
    firsts, figures = first_turns(turns, weights.mask, count)
    quick = {name: work for name, work in turns.items() if firsts[name].wall < PATIENCE}
    passes = {"in place": partial(timed, lambda: weights.weight.mul_(1.0))}
    rounds = {name: [seconds] for name, seconds in firsts.items()}
    rounds |= interleave(quick | passes, arguments.rounds)
    clock = steady_clock(arguments.threads, arguments.device)
    speed = spread(8e-9 * size / getattr(seconds, clock) for seconds in rounds.pop("in place"))
    for name, times in rounds.items():
        figures[name] |= summarise(times, size, clock)
    return {
        "size": size,
        "sparsity": sparsity,
        "clock": clock,
        "memory_gb_per_second": speed,
        "limit_ms": 9e-6 * size / speed.median,
        "arms": figures,
    }


def first_turns(
    turns: Mapping[str, Callable[[], Seconds]], mask: Tensor, count: int
) -> tuple[dict[str, Seconds], dict[str, dict[str, Any]]]:
    """Seconds and memory of each arm's first time, and how its mask compares with that of the first arm."""
    seconds: dict[str, Seconds] = {}
    figures: dict[str, dict[str, Any]] = {}
    oracle = None
    for name, work in turns.items():
        peak = peak_extra_bytes(lambda name=name, work=work: seconds.update({name: work()}))
        figures[name] = {"peak_extra_bytes": peak}
        if name not in WRITES_NO_MASK:
            oracle = mask.clone() if oracle is None else oracle
            figures[name] |= compare(mask, oracle, count)
    return seconds, figures


def turn(weights: Weights, work: Callable[[], Any]) -> Seconds:
    """One choice, from masks that keep everything."""
    weights.mask.fill_(True)
    return timed(work)


def compare(mask: Tensor, oracle: Tensor, count: int) -> dict[str, Any]:
    """How many weights a mask gets wrong, and how far it is from the sparsity."""
    pruned = mask.numel() - int(mask.count_nonzero())
    return {
        "wrong": int((mask != oracle).count_nonzero()),
        "off_points": 100 * (pruned - count) / mask.numel(),
    }


def summarise(times: list[Seconds], size: int, clock: str) -> dict[str, Any]:
    """Milliseconds of a choice, and nanoseconds a weight."""
    wall, cpu = zip(*times, strict=True)
    return {
        "rounds": len(times),
        "wall_ms": spread(1e3 * seconds for seconds in wall),
        "cpu_ms": spread(1e3 * seconds for seconds in cpu),
        "ns_per_weight": spread(1e9 * getattr(seconds, clock) / size for seconds in times),
    }


def show(label: str, case: Mapping[str, Any]) -> None:
    """The table of one case."""
    print(f"{label}: limit {case['limit_ms']:.2f} ms at {case['memory_gb_per_second'].median:.1f} GB/s\n")
    reference = case["arms"]["ours"]["ns_per_weight"].median
    print_table(
        ("arm", "wall ms", "CPU ms", "of ours", "ns a weight", "wrong", "off, points", "peak MB"),
        [
            (
                name,
                arm["wall_ms"],
                arm["cpu_ms"],
                f"{arm['ns_per_weight'].median / reference:.2f}",
                f"{arm['ns_per_weight'].median:.2f}",
                f"{arm['wrong']:,}" if "wrong" in arm else "",
                f"{arm['off_points']:.4f}" if "wrong" in arm else "",
                "?" if arm["peak_extra_bytes"] is None else f"{arm['peak_extra_bytes'] / 1e6:.1f}",
            )
            for name, arm in case["arms"].items()
        ],
    )
    print(flush=True)


if __name__ == "__main__":
    with exit_codes():
        main()
