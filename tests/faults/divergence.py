"""Numbers that are not finite, in loss, gradients, data and weights of real runs; and one finite spike (F18).

What holds: the step is not taken, weights, moments, masks and running means are bitwise those before it,
the command ends with 7, and the step's samples are kept; a spike that is finite is clipped and survived.
"""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from adamwprune.training import loop
from adamwprune.training.build import Training
from adamwprune.training.checkpoint import load_newest
from tests.faults.fork_server import Child, spawn
from tests.faults.harness import Control, Outcome, Tier
from tests.faults.tiny_runs import MODELS, overrides_of

# The step whose batch is bad: in the ramp, between two checkpoints.
STEP = 33


def _before_step(act: Callable[[Training], None]) -> None:
    """Do something to the objects of the run before its bad step."""
    real, calls = loop.accumulate_gradients, []

    def acting(training: Training, batches: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == STEP:
            act(training)
        return real(training, batches)

    loop.accumulate_gradients = acting


def _in_step(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change the loss of the bad step's first micro batch."""
    real, is_there = loop.cross_entropy, []
    _before_step(lambda _: is_there.append(True))

    def changed(*arguments: torch.Tensor, **options: float) -> torch.Tensor:
        loss = real(*arguments, **options)
        if not is_there:
            return loss
        is_there.clear()
        return change(loss)

    loop.cross_entropy = changed


def nan_in_the_loss() -> None:
    """A loss that overflows while its gradients are finite."""
    _in_step(lambda loss: loss + math.nan)


def nan_in_a_gradient() -> None:
    """One entry of one gradient, under a mask or not."""

    def act(training: Training) -> None:
        parameter = next(p for p in training.model.parameters() if p.ndim > 1)
        poison = torch.zeros_like(parameter)
        poison.view(-1)[7] = math.nan
        parameter.register_hook(lambda gradient: gradient + poison)

    _before_step(act)


def inf_in_a_gradient() -> None:
    """All of the last one."""

    def act(training: Training) -> None:
        *_, parameter = training.model.parameters()
        parameter.register_hook(lambda gradient: gradient * math.inf)

    _before_step(act)


def inf_in_the_batch() -> None:
    """What comes out of the first layer, as from a bad sample."""

    def act(training: Training) -> None:
        first = next(m for m in training.model.modules() if not list(m.children()))
        first.register_forward_hook(lambda _, __, output: output + math.inf)

    _before_step(act)


def nan_in_the_weights() -> None:
    """As by a broken device: nothing can be saved of this run but its last checkpoint."""

    def act(training: Training) -> None:
        with torch.no_grad():
            next(training.model.parameters()).view(-1)[3] = math.nan

    _before_step(act)


def one_spike() -> None:
    """A loss ten thousand times as large, once: finite, so clipping is all that is needed."""
    _in_step(lambda loss: loss * 1e4)


KINDS = (
    nan_in_the_loss,
    nan_in_a_gradient,
    inf_in_a_gradient,
    inf_in_the_batch,
    nan_in_the_weights,
    one_spike,
)


def digest(training: Training) -> str:
    """SHA-256 over weights, buffers, moments and masks."""
    found = hashlib.sha256(training.pruner.mask_hash().encode())
    states = training.optimizer.state_dict()["state"].values()
    for tensor in [*training.model.state_dict().values(), *(t for s in states for t in s.values())]:
        if isinstance(tensor, torch.Tensor):
            found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def watched(kind: Callable[[], None], notes: Path) -> Callable[[], None]:
    """Patch the child; it notes what the weights were before each step's forward pass, and at the end."""

    def before() -> None:
        real_take, real_diverged = loop.take_step, loop.diverged

        def take_step(session: loop.Session, batches: object) -> bool:
            if session.state.step == STEP - 1 and kind is not nan_in_the_weights:
                Path(f"{notes}.before").write_text(digest(session.training))
            return real_take(session, batches)

        def diverged(training: Training, *arguments: object) -> Exception:
            Path(f"{notes}.after").write_text(digest(training))
            return real_diverged(training, *arguments)

        loop.take_step, loop.diverged = take_step, diverged
        kind()

    return before


def without_the_check() -> None:
    """Control: a loop that takes every step."""
    nan_in_a_gradient()
    loop.math = type("math", (), {"isfinite": lambda _: True})


def judge(kind: Callable[[], None], child: Child, notes: Path) -> str:
    """What is wrong with how the run took it; "" where nothing is."""
    code = child.wait()
    if kind is one_spike:
        return "" if code == 0 else f"exit {code} after a finite spike: {child.console[-300:]}"
    if code != 7:
        return f"exit {code} instead of 7"
    if kind is not nan_in_the_weights and read(f"{notes}.before") != read(f"{notes}.after"):
        return "weights, moments, buffers or masks are not those before the step"
    record = json.loads(next((child.directory / "diverged").glob("*.json")).read_text())
    batch = next((child.directory / "diverged").glob("*.safetensors"))
    with safe_open(batch, "pt") as file:
        kept = sum(file.get_slice(name).get_shape()[0] for name in list(file.keys()) if "inputs" in name)
    if record["step"] != STEP or kept != len(record["samples"]) or not record["layer"]:
        return f"the record says {record}, with {kept} samples"
    newest = load_newest(child.directory / "checkpoints")
    if newest.step >= STEP or not all(w.isfinite().all() for w in newest.weights.values()):
        return f"the newest checkpoint is of step {newest.step}, or not finite"
    return ""


def read(file: str) -> str:
    """A note of the child."""
    return Path(file).read_text() if Path(file).exists() else f"no {file}"


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Every kind on one model (short) or on all four."""
    outcome = Outcome(
        "NaN or Inf in loss, gradient, batch or weights of a run; one finite spike",
        "exit 7 with step, layer and samples kept; weights, moments, masks and buffers bitwise as before",
        peer="torchtitan raises before optimizer.step and records no batch (test_invalid_loss.py)",
    )
    names = list(MODELS) if tier == "long" else list(MODELS)[:1]
    for model in names:
        for kind in KINDS:
            directory = scratch / f"{model}-{kind.__name__}"
            overrides = overrides_of(model, "adamw", "magnitude")
            child = spawn(directory, *overrides, before=watched(kind, directory.with_suffix(".note")))
            outcome.trials += 1
            if problem := judge(kind, child, directory.with_suffix(".note")):
                outcome.failures.append(f"{model}, {kind.__name__}: {problem}")
    child = spawn(
        scratch / "control", *overrides_of("lenet5", "adamw", "magnitude"), before=without_the_check
    )
    child.wait()
    noticed = bool(judge(nan_in_a_gradient, child, scratch / "control.note"))
    outcome.controls.append(Control("a loop that takes every step", 1, int(noticed)))
    return outcome
