"""Rows that a machine without GPUs cannot show, and those of single functions: what decides is asked.

By row of reliability.md section 9; the probe of the device is faked, the decision is the real one.
"""

import json
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from adamwprune.config import Config, Device, HardwareConfig, Precision
from adamwprune.errors import RunError
from tests.faults.bad_inputs import Decision

GPU = HardwareConfig(device=Device.cuda, num_devices=4, precision=Precision.bf16)


def refusal(act: Callable[[], object]) -> RunError | None:
    """What was refused; None where nothing was."""
    try:
        act()
    except RunError as error:
        return error
    return None


def expects(act: Callable[[], object], code: int, *words: str) -> Iterable[str]:
    """Lines of what is not in the refusal."""
    error = refusal(act)
    if error is None or error.exit_code != code:
        yield f"{error!r}, expected {code}"
        return
    yield from (f"{word!r} is not in {error}" for word in words if word not in str(error))


def two_of_four() -> Iterable[str]:
    """Four GPUs wanted, two visible."""
    from adamwprune.preflight import check_devices

    config = Config(hardware=GPU, model={"_target_": "x"})
    with (
        mock.patch("torch.cuda.device_count", return_value=2),
        mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES="0,1"),
    ):
        yield from expects(
            lambda: check_devices(config),
            4,
            "found 2",
            "CUDA_VISIBLE_DEVICES='0,1'",
            "hardware.num_devices=2",
        )


def no_bf16() -> Iterable[str]:
    """bf16 on a GPU that has none."""
    from adamwprune.preflight import check_devices

    config = Config(hardware=GPU, model={"_target_": "x"})
    with (
        mock.patch("torch.cuda.device_count", return_value=4),
        mock.patch("torch.cuda.is_bf16_supported", return_value=False),
        mock.patch("torch.cuda.get_device_name", return_value="Tesla T4"),
    ):
        yield from expects(
            lambda: check_devices(config), 4, "hardware.precision=bf16: Tesla T4 has none", "fp16"
        )


def old_driver() -> Iterable[str]:
    """torch finds no device because the driver is too old, and says so."""
    from adamwprune.preflight import check_devices

    words = "The NVIDIA driver on your system is too old (found version 11040)"
    config = Config(hardware=GPU, model={"_target_": "x"})
    with mock.patch("torch.cuda.init", side_effect=RuntimeError(words)):
        yield from expects(lambda: check_devices(config), 4, "found 0", "too old", "hardware=cpu")


def taken_gpu() -> Iterable[str]:
    """A GPU on which another process has almost all memory."""
    from adamwprune.room import _check_gpus

    gib = 2**30
    model = SimpleNamespace(parameters=lambda: [], buffers=lambda: [])
    predictor: Any = SimpleNamespace(model=model, optimizer_bytes=2 * gib, pruning_bytes=0)
    config = Config(hardware=GPU)
    with (
        mock.patch("adamwprune.fit.memory.tensor_bytes", return_value=gib),
        mock.patch("torch.cuda.device_count", return_value=4),
        mock.patch("torch.cuda.mem_get_info", return_value=(gib, 24 * gib)),
        mock.patch(
            "torch.cuda.list_gpu_processes", return_value="GPU:0\nprocess   4711 uses 23000 MB GPU memory"
        ),
    ):
        yield from expects(
            lambda: _check_gpus(config, predictor), 4, "1,024 of 24,576 MB free", "4,096 MB", "process 4711"
        )
        with mock.patch("torch.cuda.mem_get_info", return_value=(20 * gib, 24 * gib)):
            if error := refusal(lambda: _check_gpus(config, predictor)):
                yield f"refused with room: {error}"


def more_ranks_than_cores() -> Iterable[str]:
    """A warning, and no more."""
    from adamwprune.doubts import doubts

    lines = list(doubts(Config(hardware=HardwareConfig(num_devices=4096))))
    if len(lines) != 1 or "hardware.num_devices=4096: more processes than the" not in lines[0]:
        yield f"says {lines}"
    if found := list(doubts(Config())):
        yield f"doubts the defaults: {found}"


def odd_metrics() -> Iterable[str]:
    """All mirrors get what the ledger holds, and the ledger holds plain values."""
    import torch

    from adamwprune.training.metrics import json_row, sanitise

    dropped: Counter[str] = Counter()
    odd = {"nan": math.nan, "inf": -math.inf, "none": None, "tensor": torch.tensor(2.5), "huge": 10**400}
    try:
        row = json_row(
            sanitise({**odd, "object": object(), "many": torch.zeros(3), "x" * 5000: 1.0}, dropped)
        )
    except OverflowError as error:
        yield f"10^400 raises {error}"
        return
    json.dumps(row, allow_nan=False)
    if (row["nan"], row["inf"], row["none"], row["tensor"]) != ("NaN", "-Infinity", None, 2.5):
        yield f"row {row}"
    if set(dropped) != {"object", "many"}:
        yield f"dropped {dict(dropped)}"


def backwards() -> Iterable[str]:
    """A step that the ledger has is compared and not written again."""
    from adamwprune.training.ledger import Ledger, read_rows

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "metrics.jsonl"
        first = Ledger(file)
        for step in (1, 2, 3):
            first.write(step, 0.0, {"train/loss": 1.0 / step})
        first.close()
        again = Ledger(file, step=1)
        again.write(2, 9.0, {"train/loss": 0.5})
        again.close()
        if [row["step"] for row in read_rows(file)] != [1, 2, 3]:
            yield "a replayed step was written twice"
        third = Ledger(file, step=1)
        yield from expects(lambda: third.write(2, 9.0, {"train/loss": 0.7}), 5)


def many_entries() -> Iterable[str]:
    """10,000 foreign entries beside the checkpoints cost less than a second."""
    from adamwprune.training.checkpoint import steps_on_disk

    with tempfile.TemporaryDirectory() as folder:
        for number in range(10_000):
            (Path(folder) / f"step_{number}x").touch()
        started = time.monotonic()
        found = steps_on_disk(Path(folder))
        seconds = time.monotonic() - started
    if found or seconds > 1:
        yield f"{len(found)} found in {seconds:.2f} s"


DECISIONS = [
    Decision(27, "bf16 on a GPU without it", no_bf16),
    Decision(53, "4 GPUs wanted, 2 visible", two_of_four),
    Decision(54, "a driver that is too old", old_driver),
    Decision(54, "a GPU whose memory is taken", taken_gpu),
    Decision(57, "more ranks than cores", more_ranks_than_cores),
    Decision(82, "metrics that are no numbers", odd_metrics),
    Decision(83, "a step going backwards", backwards),
    Decision(92, "10,000 entries", many_entries),
]
