"""A forecast as text, as a row of a table, and as a file of conf/hardware_model."""

from collections.abc import Mapping

from adamwprune.fit.forecast import Forecast
from adamwprune.fit.memory import GIB, LIMIT
from adamwprune.fit.speed import checkpoints_at_a_time
from adamwprune.ranges import shown

PARTS = {
    "weights": "weights and buffers, fp32",
    "gradients": "gradients, fp32",
    "optimizer": "optimizer states",
    "pruning": "masks, sums of scores, dense copies",
    "average": "moving average of the weights",
    "activations": "activations kept for the backward pass",
    "logits": "outputs and their loss",
    "temporary": "temporary, backward pass",
    "gathered": "blocks that FSDP has whole at a time (not measured)",
    "runtime": "context, libraries, workspaces (assumed)",
    "communication": "NCCL (assumed)",
}
HEAD = (
    *("model", "hardware", "micro batch", "accumulation", "GiB of a device"),
    *("{unit}/s at most", "hours at least"),
)
NOT_COUNTED = (
    "bounds, not estimates: the optimizer's pass, exchange of gradients, data and evaluations come on top"
)


def text(forecast: Forecast, choices: Mapping[str, str]) -> str:
    """What `python -m adamwprune.fit` prints."""
    below = [*_batch(forecast), *_speed(forecast), _disk(forecast)]
    return "\n".join([_head(forecast, choices), "", *_memory(forecast), "", *below])


def _head(forecast: Forecast, choices: Mapping[str, str]) -> str:
    hardware = forecast.config.hardware
    counts = f"{forecast.parameters:,} parameters"
    if forecast.config.pruning.criterion is not None:
        counts += f", {forecast.prunable:,} of them prunable"
    devices = f"{hardware.num_devices} device{'s' if hardware.num_devices > 1 else ''}"
    chosen = " ".join(f"{group}={choices[group]}" for group in ("model", "optimizer", "pruning", "hardware"))
    return f"{chosen}: {counts}, {forecast.precision}, {devices}"


def _memory(forecast: Forecast) -> list[str]:
    name, unit = ("GiB", GIB) if forecast.memory.total >= GIB else ("MiB", 2**20)
    size = forecast.micro_batch_size
    lines = [f"{name} on each device at micro batch {size}, at the highest moment of a step, eager"]
    lines += [
        f"{forecast.memory.parts[name] / unit:9.2f}  {words}"
        for name, words in PARTS.items()
        if name in forecast.memory.parts
    ]
    of = ""
    if forecast.device is not None and forecast.limit is not None:
        of = f", of {forecast.limit / unit:,.2f} = {LIMIT:.0%} of {forecast.device / unit:,.2f}"
        of += "" if forecast.fits else ": does not fit"
    return [*lines, f"{forecast.memory.total / unit:9.2f}  in all{of}"]


def _batch(forecast: Forecast) -> list[str]:
    trainer, hardware = forecast.config.trainer, forecast.config.hardware
    size = forecast.micro_batch_size
    lines = [
        f"batch         {trainer.global_batch_size} = {size} x {hardware.num_devices} x "
        f"{forecast.grad_accum_steps} (micro batch x devices x accumulation)"
    ]
    if forecast.device is None:
        return [*lines, "largest       unknown: give hardware.memory_gb=GB of one device"]
    if forecast.largest is None:
        return [*lines, f"largest       none; {smaller(forecast)}"]
    advice = "" if forecast.largest == size else f"; hardware.micro_batch_size={forecast.largest}"
    return [*lines, f"largest       {forecast.largest}{advice}"]


def smaller(forecast: Forecast) -> str:
    """What to try where not even one sample fits."""
    tries = ["a larger device"]
    if forecast.config.model.get("activation_checkpointing") is False:
        tries.insert(0, "model.activation_checkpointing=true")
    if forecast.config.hardware.num_devices > 1 and forecast.config.hardware.parallel.name == "ddp":
        tries.insert(0, "hardware.parallel=fsdp")
    return "try " + " or ".join(tries)


def _speed(forecast: Forecast) -> list[str]:
    if forecast.speed is None:
        return ["speed         unknown: give hardware.peak_flops=FLOP/s of one device"]
    hardware = forecast.config.hardware
    peak = f"{forecast.mfu:.0%} of {shown(hardware.peak_flops / 1e12)} TFLOP/s" if hardware.peak_flops else ""
    reason = f"assumed: {peak} on each device (MFU)"
    if forecast.speed.bound == "memory":
        reason = (
            f"the memory's {(hardware.memory_bandwidth or 0) / 1e9:,.0f} GB/s, eager; {peak} would be more"
        )
    lines = [f"speed         at most {forecast.speed.units_per_second:,.0f} {forecast.unit}/s ({reason})"]
    if forecast.hours is None or forecast.units is None:
        return [
            *lines,
            "duration      unknown: no data are read, which trainer.max_epochs counts; give max_steps",
        ]
    steps = f"{forecast.steps:,} steps, {forecast.units / 1e6:,.0f} M {forecast.unit}"
    return [
        *lines,
        f"duration      at least {forecast.hours:,.1f} hours ({steps})",
        f"              {NOT_COUNTED}",
    ]


def _disk(forecast: Forecast) -> str:
    number = checkpoints_at_a_time(forecast.config.checkpoint.keep)
    name, unit = ("GB", 1e9) if forecast.checkpoint >= 1e9 else ("MB", 1e6)
    size = forecast.checkpoint / unit
    return f"disk          {number * size:,.2f} {name}: {number} checkpoints of {size:,.2f} at a time"


def row(forecast: Forecast, choices: Mapping[str, str]) -> tuple[str, ...]:
    """One line of the table; HEAD names the columns."""
    memory = f"{forecast.memory.total / GIB:.1f}"
    memory += "" if forecast.device is None else f" of {forecast.device / GIB:.1f}"
    pair = choices["model"], choices["hardware"]
    if not forecast.fits:
        return (*pair, "none", "", memory, "", "")
    rate = hours = ""
    if forecast.speed is not None:
        rate = f"{_rounded(forecast.speed.units_per_second):,}"
        rate += " (memory)" if forecast.speed.bound == "memory" else ""
    if forecast.hours is not None:
        hours = f"{forecast.hours:,.1f}"
    return (*pair, str(forecast.micro_batch_size), str(forecast.grad_accum_steps), memory, rate, hours)


def _rounded(number: float) -> int:
    """To three digits: more would promise what nobody knows."""
    digits = max(0, len(str(int(number))) - 3)
    return int(round(number, -digits))


def table(rows: list[tuple[str, ...]], unit: str) -> str:
    """Markdown."""
    head = tuple(name.format(unit=unit) for name in HEAD)
    lines = [head, ("---", "---", *["---:"] * (len(head) - 2)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
