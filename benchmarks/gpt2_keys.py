"""What the keys of a GPT-2 cost: forward and backward pass, and the activations that are kept between them.

    python benchmarks/gpt2_keys.py
    python benchmarks/gpt2_keys.py --model gpt2-nano --batch 8 --rounds 7

    as shipped        flash attention, where the device has it
    math attention    the same as separate products, with a matrix of T x T for each head
    dropout 0.1       model.dropout=0.1: on the CPU that leaves flash attention
    checkpointing     model.activation_checkpointing=true
    padded            model.pad_vocab_to_multiple_of=64

`kept` counts what the graph of a forward pass holds beyond the weights, once for each storage: it is exact,
and equal on every machine that chooses the same kernels. Weights are random, and no optimizer steps.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from measure import (
    argument_parser,
    interleave,
    paired_ratio,
    peak_extra_bytes,
    print_table,
    report,
    spread,
    steady_clock,
    timed,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from adamwprune.command_line import exit_codes
from adamwprune.composition import compose, to_config
from adamwprune.models.gpt2 import GPT2
from adamwprune.targets import build
from adamwprune.training.evaluation import cross_entropy

SHIPPED = "as shipped"
# The keys of each arm; "math attention" is none.
ARMS: dict[str, dict[str, Any]] = {
    SHIPPED: {},
    "math attention": {},
    "dropout 0.1": {"dropout": 0.1},
    "checkpointing": {"activation_checkpointing": True},
    "padded": {"pad_vocab_to_multiple_of": 64},
}


def main() -> None:
    """Interleave the arms, print the table, write the JSON."""
    parser = argument_parser(__doc__, rounds=3)
    parser.add_argument("--model", default="gpt2", help="an option of conf/model (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="sequences (%(default)s)")
    parser.add_argument("--length", type=int, default=512, help="tokens in each (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    steps = build_steps(arguments)
    figures = {name: {"kept_bytes": kept_bytes(*step)} for name, step in steps.items()}
    passes = {name: partial(forward_backward, *step) for name, step in steps.items()}
    for name, run in passes.items():
        run()  # warm up
        figures[name]["peak_extra_bytes"] = peak_extra_bytes(run)
    rounds = interleave({name: partial(timed, run) for name, run in passes.items()}, arguments.rounds)
    clock = steady_clock(arguments.threads, torch.device("cpu"))
    seconds = {name: [getattr(turn, clock) for turn in turns] for name, turns in rounds.items()}
    for name, turns in seconds.items():
        figures[name] |= {"ms": spread(1e3 * turn for turn in turns)}
        figures[name] |= {"ratio": paired_ratio(turns, seconds[SHIPPED])}
    show(figures, clock)
    sizes = {"batch": arguments.batch, "length": arguments.length, "clock": clock}
    report({**sizes, "arms": figures}, model=arguments.model, subject="keys", file=arguments.json)


Step = tuple[GPT2, Tensor, Callable[[], Any]]


def build_steps(arguments: argparse.Namespace) -> dict[str, Step]:
    """For each arm a model, tokens, and the context in which it attends. All have the same weights."""
    config = to_config(compose([f"model={arguments.model}", f"recipe.block_size={arguments.length}"]))
    tokens = torch.randint(config.model["vocab_size"], (arguments.batch, arguments.length))
    models = {name: build({**config.model, **keys}, "model")() for name, keys in ARMS.items()}
    shipped = dict(models[SHIPPED].named_parameters())
    for name, model in models.items():
        if name != "padded":  # whose matrix is another
            model.load_state_dict(models[SHIPPED].state_dict(keep_vars=True), assign=True)
            model.lm_head.weight = model.transformer.wte.weight
    assert models["dropout 0.1"].get_parameter(key := "transformer.wpe.weight") is shipped[key]
    math = partial(sdpa_kernel, SDPBackend.MATH)
    return {
        name: (model, tokens, math if name == "math attention" else nullcontext)
        for name, model in models.items()
    }


def forward_backward(model: GPT2, tokens: Tensor, attention: Callable[[], Any]) -> None:
    """Gradients of one batch, which are dropped, so that each pass has to allocate them."""
    with attention():
        cross_entropy(model(tokens), tokens).backward()
    model.zero_grad()


def kept_bytes(model: GPT2, tokens: Tensor, attention: Callable[[], Any]) -> int:
    """Bytes that are kept for the backward pass beside the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with attention(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = cross_entropy(model(tokens), tokens)  # alive until the end: so no storage is used twice
    return sum(kept.values()) if loss.requires_grad else 0


def show(figures: dict[str, dict[str, Any]], clock: str) -> None:
    """One line an arm."""
    print_table(
        ("arm", "kept MB", "of shipped", "peak extra MB", f"{clock} ms", "of shipped"),
        [
            (
                name,
                f"{arm['kept_bytes'] / 1e6:.1f}",
                f"{arm['kept_bytes'] / figures[SHIPPED]['kept_bytes']:.3f}",
                "?" if arm["peak_extra_bytes"] is None else f"{arm['peak_extra_bytes'] / 1e6:.0f}",
                arm["ms"],
                f"{arm['ratio'].median:.3f}",
            )
            for name, arm in figures.items()
        ],
    )


if __name__ == "__main__":
    with exit_codes():
        main()
