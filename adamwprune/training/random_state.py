"""Every random generator of a process: seeded at the start, captured and restored for resume."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from adamwprune.errors import HardwareError


def seed_everything(seed: int, rank: int) -> None:
    """Seed Python, NumPy and torch (all devices); each rank has its own stream for dropout."""
    # A large odd factor keeps the ranks' seeds apart from the neighbouring seeds of a study.
    own = (seed + rank * 1_000_003) % 2**32
    random.seed(own)
    np.random.seed(own)
    torch.manual_seed(own)


def capture() -> dict[str, Any]:
    """State of all generators, in types that `torch.load(weights_only=True)` takes."""
    algorithm, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (algorithm, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore(state: dict[str, Any]) -> None:
    """Put all generators where `capture` found them."""
    random.setstate(state["python"])
    algorithm, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Let only deterministic kernels run within the context; the old setting comes back after it.

    Raises:
        HardwareError: torch refuses (an environment variable contradicts).
    """
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(wanted)
        # Filling new memory guards against reading it uninitialised, which nothing here does.
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = False
    except RuntimeError as error:
        raise HardwareError(f"hardware.deterministic={str(wanted).lower()}: {error}") from None
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill
