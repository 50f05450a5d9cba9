"""Several ranks on one machine, for tests: spawned, met on gloo, the first failure re-raised."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any


def run_ranks(
    function: Callable[..., Any], world_size: int, *arguments: Any, timeout: float = 90
) -> list[Any]:
    """Call `function(*arguments)` on every rank; the results in the order of ranks.

    `function` must be importable by name. An exception of a rank is raised here with its traceback.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(
            target=_body, args=(function, rank, world_size, port, arguments, results), daemon=True
        )
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    try:
        for _ in processes:
            rank, value, trace = results.get(timeout=timeout)
            if trace:
                raise AssertionError(f"rank {rank} failed:\n{trace}")
            found[rank] = value
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return [found[rank] for rank in range(world_size)]


def _body(function, rank, world_size, port, arguments, results):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        results.put((rank, function(*arguments), ""))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


def train_and_look(config, directory):
    """Train on this rank; what it ended with and which samples it saw."""
    import torch

    from adamwprune.training import build, run

    seen: list[int] = []
    built = []
    real = build.build_training

    def watching(config, ranks):
        training = real(config, ranks)
        built.append(training)
        load = training.batches.load

        def watched(step, indices):
            seen.extend((step, int(index)) for index in indices)
            return load(step, indices)

        training.batches.load = watched
        return training

    run.build_training = watching
    run.train(config, directory)
    training = built[0]
    return {
        "weights": {name: tensor.numpy().copy() for name, tensor in training.model.state_dict().items()},
        "masks": training.pruner.mask_hash(),
        "seen": seen,
        "threads": torch.get_num_threads(),
    }
