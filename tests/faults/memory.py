"""Memory that runs out, in a training step and in an evaluation, by a limit on the address space (F19).

What holds: exit 8, a line with what is needed and free and the micro batch that fits; the last checkpoint
is whole and the run goes on from it.
"""

import re
import resource
from collections.abc import Callable
from pathlib import Path

import psutil

from adamwprune.training import loop
from tests.faults.fork_server import continue_, spawn
from tests.faults.harness import Control, Outcome, Tier
from tests.helpers.runs import IMAGES

# Micro batches whose activations take some hundred megabytes.
RUN = (
    *IMAGES,
    "data.num_train=4096",
    "data.num_val=2048",
    "trainer.global_batch_size=2048",
    "hardware.micro_batch_size=2048",
    "trainer.max_steps=6",
    "trainer.eval_every=2",
    "optimizer=sgd",
)
# Bytes beyond what the process has when the limit falls.
ROOM = 16 * 2**20


def limited() -> None:
    """From now on, hardly any more memory."""
    most = psutil.Process().memory_info().vms + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def in_training() -> None:
    """The fifth step finds the memory taken."""
    real, calls = loop.accumulate_gradients, []

    def tight(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 5:
            limited()
        return real(*arguments)

    loop.accumulate_gradients = tight


def in_evaluation() -> None:
    """The second evaluation finds it so."""
    real, calls = loop.evaluate_split, []

    def tight(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            limited()
        return real(*arguments)

    loop.evaluate_split = tight


def judge(code: int, console: str) -> str:
    """What is wrong with how the run ended; "" where nothing is."""
    line = next((line for line in console.splitlines() if line.startswith("error[8]")), "")
    if code != 8 or not line:
        return f"exit {code}: {console[-300:]}"
    free, needed = (
        re.search(words, line) for words in (r"[\d.]+ GiB are free", r"predicted [\d.]+ of [\d.]+ GiB")
    )
    fix = re.search(r"try hardware.micro_batch_size=\d+", line)
    return "" if free and needed and fix else f"no numbers or no batch that fits: {line}"


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Once in training, once in an evaluation."""
    outcome = Outcome(
        "address space limited in a training step, and in an evaluation",
        "exit 8 with needed and free memory and a micro batch that fits; continued from its checkpoint",
    )
    kinds: tuple[Callable[[], None], ...] = (in_training, in_evaluation)
    for kind in kinds:
        directory = scratch / kind.__name__
        child = spawn(directory, *RUN, before=kind)
        code = child.wait()
        problem = judge(code, child.console)
        if not problem and (code := continue_(directory).wait()) != 0:
            problem = f"continued, it ended with {code}"
        outcome.trials += 1
        if problem:
            outcome.failures.append(f"{kind.__name__}: {problem}")
    child = spawn(scratch / "control", *RUN)
    outcome.controls.append(Control("no limit", 1, int(bool(judge(child.wait(), child.console)))))
    return outcome
