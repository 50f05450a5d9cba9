"""Clipping to norm 1 and an AdamW step: what pruning adds to them between mask updates, ours and other ways.

    python benchmarks/optimizer_step.py                  GPT-2 124M on one thread: compare CPU seconds
    python benchmarks/optimizer_step.py --threads 2      compare wall seconds
    python benchmarks/optimizer_step.py --device cuda

An arm clips and steps all tensors of a network, with half of each prunable weight masked. Arms:

    torch, dense            clip_grad_norm_ and fused AdamW, no pruning: the reference of all ratios
    ours, dense             the norm; clipping rides in the fused step
    ours, hard              the same with masks in force, Pruner.mask_and_norm_grads_
    bool pass, float pass   gradients times masks in a pass of their own, then the reference
    four passes             the ancestor's: gradients before the reference, weights and moments after
                            it, each times mask.to(dtype)
    torch.nn.utils.prune    its hook before each forward pass, w * mask, the backward pass through that
                            product, then the reference
    torch.ao.pruning        the same of the parametrization that its sparsifiers register
    for-loop                the reference with AdamW as torch chooses it by itself on a CPU

Not in it: forward and backward pass of the layers, mask updates. Gradients have norm 1/2 or, where an arm's
name says clipping, 2; torch multiplies by the scale in both cases, so other ways are measured in one.
All arms work on the same tensors: where those lie in memory favours none.

`moved` counts bytes that passes read and write. `limit` is the time for these at the speed of the faster of
two passes over all weights, a copy and a multiplication in place. `held` is the memory that an arm keeps
between steps, in bytes a prunable weight; a step takes `peak` on top.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from measure import (
    Seconds,
    Spread,
    argument_parser,
    interleave,
    paired_ratio,
    peak_extra_bytes,
    print_table,
    report,
    spread,
    steady_clock,
    tensor_bytes,
    timed,
)
from torch import Tensor, nn
from torch.ao.pruning.sparsifier.utils import FakeSparsity
from torch.nn.utils import clip_grad_norm_, get_total_norm, parametrize, prune

from adamwprune.command_line import exit_codes
from adamwprune.composition import compose, to_config
from adamwprune.optim.param_groups import param_groups
from adamwprune.pruning import Dense, Pruner
from adamwprune.pruning.criteria.magnitude import magnitude
from adamwprune.pruning.schedules import constant
from adamwprune.targets import build
from adamwprune.training.clipping import clipped

SPARSITY = 0.5
LARGEST = 1.0  # norm that is not clipped
IDLE, CLIPPING = 0.5, 2.0  # norms that leave clipping nothing to do, and something
SEED = 0
GOAL, AIM = 1.05, 1.02

Step = Callable[[], Any]


class Subject:
    """A network after one step of AdamW, with random gradients that can be dealt anew."""

    def __init__(self, name: str, device: torch.device) -> None:
        config = to_config(compose([f"model={name}"]))
        self.model: nn.Module = build(config.model, "model")().to(device)
        self.parameters = list(self.model.parameters())
        self.prunable = list(Dense(self.model).prunable.values())
        self.weights = sum(parameter.numel() for parameter in self.parameters)
        self.prunable_weights = sum(parameter.numel() for parameter in self.prunable)
        self.random = [torch.randn_like(parameter) for parameter in self.parameters]
        self._norm = float(get_total_norm(self.random))
        self.gradients = [torch.empty_like(parameter) for parameter in self.parameters]
        self.optimizer = self.adamw(fused=True)
        self.deal_(LARGEST)
        self.optimizer.step()

    def adamw(self, **kernel: bool) -> torch.optim.AdamW:
        """AdamW in two groups, as nanoGPT has it; so small a rate that no round changes the weights."""
        groups = param_groups(self.model, weight_decay=0.1, decay_embeddings=False)
        return torch.optim.AdamW(groups, lr=1e-9, betas=(0.9, 0.95), **kernel)

    @torch.no_grad()
    def deal_(self, norm: float) -> None:
        """Give every parameter the gradient that it had at first, scaled to this norm of all together."""
        for parameter, random, gradient in zip(self.parameters, self.random, self.gradients, strict=True):
            parameter.grad = torch.mul(random, norm / self._norm, out=gradient)

    def masks(self) -> list[Tensor]:
        """New random bool masks of the prunable weights."""
        return [torch.rand_like(parameter) >= SPARSITY for parameter in self.prunable]

    def clip_and_step(self) -> None:
        """The reference."""
        clip_grad_norm_(self.parameters, LARGEST)
        self.optimizer.step()


# ------------------------------------------------------------------------------------- the arms


def torch_dense(subject: Subject) -> Step:
    """clip_grad_norm_ and fused AdamW, without pruning."""
    return subject.clip_and_step


def ours_dense(subject: Subject) -> Step:
    """The project's step without pruning."""
    return partial(clip_and_step, subject, Dense(subject.model))


def ours_hard(subject: Subject) -> Step:
    """The project's step with masks in force."""
    plan = {"start_step": 0, "end_step": 0, "update_every": 1, "schedule": constant}
    pruner = Pruner(subject.model, subject.optimizer, criterion=magnitude, target_sparsity=SPARSITY, **plan)
    pruner.after_step(0)
    return partial(clip_and_step, subject, pruner)


def clip_and_step(subject: Subject, pruner: Pruner | Dense) -> None:
    """As adamwprune/training/loop.py does it."""
    norm = float(pruner.mask_and_norm_grads_())
    with clipped(subject.optimizer, norm, LARGEST):
        subject.optimizer.step()


def one_pass(subject: Subject, dtype: torch.dtype) -> Step:
    """Masks of a type, and a pass over the gradients."""
    masks = [mask.to(dtype) for mask in subject.masks()]

    def step() -> None:
        for parameter, mask in zip(subject.prunable, masks, strict=True):
            parameter.grad.mul_(mask)
        subject.clip_and_step()

    return step


def four_passes(subject: Subject) -> Step:
    """The ancestor's way."""
    masks = subject.masks()

    @torch.no_grad()
    def step() -> None:
        for parameter, mask in zip(subject.prunable, masks, strict=True):
            parameter.grad.mul_(mask.to(parameter.dtype))
        subject.clip_and_step()
        for parameter, mask in zip(subject.prunable, masks, strict=True):
            state = subject.optimizer.state[parameter]
            for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"]):
                tensor.mul_(mask.to(tensor.dtype))

    return step


class Weight(nn.Module):
    """A layer that hands out its weight and does nothing else, so that only masking takes time."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self) -> Tensor:
        """The weight as a layer would use it."""
        return self.weight


def torch_prune(subject: Subject) -> Step:
    """torch.nn.utils.prune."""
    layers = [Weight(parameter) for parameter in subject.prunable]
    for layer in layers:
        prune.l1_unstructured(layer, "weight", amount=SPARSITY)
    return partial(step_through, subject, layers)


def torch_sparsifier(subject: Subject) -> Step:
    """torch.ao.pruning."""
    layers = [Weight(parameter) for parameter in subject.prunable]
    for layer, mask in zip(layers, subject.masks(), strict=True):
        parametrize.register_parametrization(layer, "weight", FakeSparsity(mask.float()))
    return partial(step_through, subject, layers)


def step_through(subject: Subject, layers: list[Weight]) -> None:
    """Mask weights for one forward pass, and take gradients of what it used back to the parameters."""
    used = [layer() for layer in layers]
    gradients = [parameter.grad for parameter in subject.prunable]
    for parameter in subject.prunable:
        parameter.grad = None
    torch.autograd.backward(used, gradients)
    subject.clip_and_step()


def for_loop(subject: Subject) -> Step:
    """AdamW without a choice of kernel, on the same state."""
    optimizer = subject.adamw()
    optimizer.state = subject.optimizer.state

    def step() -> None:
        clip_grad_norm_(subject.parameters, LARGEST)
        optimizer.step()

    return step


class Arm(NamedTuple):
    """A way to clip and step, the bytes that it moves for a float32 weight, and those for a prunable one."""

    prepare: Callable[[Subject], Step]
    moved: int
    moved_if_prunable: int
    norm: float = IDLE  # of the gradients


# The norm reads 4, torch's clip reads and writes 8. Fused AdamW reads w, g, m, v and writes w, m, v: 28;
# where it divides by a scale, it writes g too.
ARMS = {
    "torch, dense": Arm(torch_dense, 40, 0),
    "ours, dense": Arm(ours_dense, 32, 0),
    "ours, hard": Arm(ours_hard, 32, 5),  # the mask is read and the gradient written
    "torch, dense, clipping": Arm(torch_dense, 40, 0, CLIPPING),
    "ours, dense, clipping": Arm(ours_dense, 36, 0, CLIPPING),
    "ours, hard, clipping": Arm(ours_hard, 36, 5, CLIPPING),
    "bool pass": Arm(partial(one_pass, dtype=torch.bool), 40, 9),
    "float pass": Arm(partial(one_pass, dtype=torch.float32), 40, 12),
    "four passes": Arm(four_passes, 40, 4 * (5 + 12)),  # each converts the mask and multiplies
    "torch.nn.utils.prune": Arm(torch_prune, 40, 2 * 12),  # two products into new tensors
    "torch.ao.pruning": Arm(torch_sparsifier, 40, 2 * 12),
    "for-loop": Arm(for_loop, 12 + 80, 0),
}
REFERENCES = {IDLE: "torch, dense", CLIPPING: "torch, dense, clipping"}


def memory_passes(subject: Subject) -> dict[str, Step]:
    """Passes over all weights that read 4 bytes and write 4, and compute next to nothing."""
    return {
        "copy": lambda: torch._foreach_copy_(subject.gradients, subject.random),
        "in place": lambda: torch._foreach_mul_(subject.gradients, 1.0),
    }


# -------------------------------------------------------------------------------------- timing


def main() -> None:
    """Interleave the arms, print the table, write the JSON."""
    parser = argument_parser(__doc__, rounds=15)
    parser.add_argument("--model", default="gpt2", help="an option of conf/model (%(default)s)")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    subject = Subject(arguments.model, arguments.device)
    figures = {
        "tensors": len(subject.parameters),
        "weights": subject.weights,
        "prunable_tensors": len(subject.prunable),
        "prunable_weights": subject.prunable_weights,
    } | measure_arms(subject, arguments)
    show(figures)
    report(
        figures, model=arguments.model, subject=f"optimizer-step-{arguments.threads}t", file=arguments.json
    )


def measure_arms(subject: Subject, arguments: argparse.Namespace) -> dict[str, Any]:
    """Speed of memory, and figures of each arm."""
    steps, arms = set_up(subject)
    turns = {name: partial(turn, subject, ARMS[name].norm, step) for name, step in steps.items()}
    passes = {name: partial(timed, work) for name, work in memory_passes(subject).items()}
    rounds = interleave(turns | passes, arguments.rounds)
    clock = steady_clock(arguments.threads, arguments.device)
    speeds = {
        name: spread(8e-9 * subject.weights / getattr(seconds, clock) for seconds in rounds[name])
        for name in passes
    }
    fastest = max(speed.median for speed in speeds.values())
    for name, figures in arms.items():
        figures |= summarise(rounds[name], rounds[REFERENCES[ARMS[name].norm]], clock)
        figures["moved_bytes"] = moved_bytes(ARMS[name], subject)
        figures["limit_ms"] = figures["moved_bytes"] / fastest / 1e6
    return {"clock": clock, "memory_gb_per_second": speeds, "arms": arms}


def set_up(subject: Subject) -> tuple[dict[str, Step], dict[str, dict[str, Any]]]:
    """A step of each arm; the share of weights that it masked at the first time, and memory."""
    steps, figures = {}, {}
    before = tensor_bytes()
    for name, arm in ARMS.items():
        steps[name] = arm.prepare(subject)
        turn(subject, arm.norm, steps[name])
        zeros = sum(p.numel() - int(p.grad.count_nonzero()) for p in subject.prunable)
        subject.deal_(arm.norm)
        peak = peak_extra_bytes(steps[name])
        subject.deal_(arm.norm)  # frees gradients that are not the subject's
        after = tensor_bytes()
        figures[name] = {
            "masked": zeros / subject.prunable_weights,
            "held_bytes_per_weight": (after - before) / subject.prunable_weights,
            "peak_extra_bytes": peak,
        }
        before = after
    return steps, figures


def moved_bytes(arm: Arm, subject: Subject) -> int:
    """What an arm reads and writes in a step."""
    return arm.moved * subject.weights + arm.moved_if_prunable * subject.prunable_weights


def turn(subject: Subject, norm: float, step: Step) -> Seconds:
    """One step, from gradients of a norm."""
    subject.deal_(norm)
    return timed(step)


def summarise(times: list[Seconds], base: list[Seconds], clock: str) -> dict[str, Spread]:
    """Milliseconds of a step, and the ratio to the reference of the same round."""
    (wall, cpu), base = zip(*times, strict=True), [getattr(seconds, clock) for seconds in base]
    return {
        "wall_ms": spread(1e3 * seconds for seconds in wall),
        "cpu_ms": spread(1e3 * seconds for seconds in cpu),
        "ratio": paired_ratio([getattr(seconds, clock) for seconds in times], base),
    }


def show(figures: Mapping[str, Any]) -> None:
    """The table, the speeds that limit it, and the goal."""
    clock = figures["clock"]
    print_table(
        (
            "arm",
            "wall ms",
            "CPU ms",
            f"ratio of {clock}",
            "moved GB",
            "limit ms",
            "of limit",
            "held",
            "peak MB",
        ),
        [
            (
                name,
                arm["wall_ms"],
                arm["cpu_ms"],
                f"{arm['ratio'].median:.3f} ({arm['ratio'].least:.3f} to {arm['ratio'].most:.3f})",
                f"{arm['moved_bytes'] / 1e9:.2f}",
                f"{arm['limit_ms']:.1f}",
                f"{arm['limit_ms'] / arm[f'{clock}_ms'].median:.0%}",
                f"{arm['held_bytes_per_weight']:.2f}",
                "?" if arm["peak_extra_bytes"] is None else f"{arm['peak_extra_bytes'] / 1e6:.0f}",
            )
            for name, arm in figures["arms"].items()
        ],
    )
    print(
        f"{figures['tensors']} tensors, {figures['weights']:,} weights; prunable: "
        f"{figures['prunable_tensors']} tensors, {figures['prunable_weights']:,} weights"
    )
    for name, speed in figures["memory_gb_per_second"].items():
        print(f"memory, {name}: {speed} GB/s")
    print(f"goal: ours, hard <= {GOAL} of torch, dense; aim {AIM}")


if __name__ == "__main__":
    with exit_codes():
        main()
