"""Every check of a configuration that needs no machine, no data and no torch.

`validate(config)` lists all problems at once, each as `key=value: what is wrong; the fix`.
"""

import dataclasses
import re
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

from adamwprune import ranges, targets
from adamwprune.config import NODES, Config, Device, Precision, flatten, to_plain, update_steps
from adamwprune.errors import ConfigError
from adamwprune.pruning.schedules import Plan
from adamwprune.ranges import shown


def validate(config: Config) -> None:
    """Refuse a configuration that cannot be meant.

    Raises:
        ConfigError: one line that lists all problems.
    """
    found = list(_range_problems(config, ""))
    found += [
        *_target_problems(config),
        *_pruning_problems(config, has_plan=not found),
        *_budget_problems(config),
        *_batch_problems(config),
        *_model_problems(config),
        *_name_problems(config),
        *_resume_problems(config),
    ]
    if found:
        raise ConfigError(*found)


def _range_problems(node: Any, path: str) -> Iterator[str]:
    """Values outside the range that the schema's annotation gives."""
    for key, annotation in get_type_hints(type(node), include_extras=True).items():
        value = getattr(node, key)
        if dataclasses.is_dataclass(value):
            yield from _range_problems(value, f"{path}{key}.")
        elif not _is_node(annotation) and (words := ranges.violation(annotation, value)):
            yield f"{path}{key}={shown(value)}: {words}{ranges.hint(annotation, value)}"


def _is_node(annotation: Any) -> bool:
    members = get_args(annotation) if get_origin(annotation) is types.UnionType else (annotation,)
    return any(
        get_origin(member) is dict or (isinstance(member, type) and issubclass(member, Enum))
        for member in members
    )


def _target_problems(config: Config) -> Iterator[str]:
    for group in NODES:
        node = getattr(config, group)
        if "_target_" not in node:
            yield f"{group}: has no _target_; choose an option with {group}=NAME"
    for path, node in targets.find_targets(
        {**{g: getattr(config, g) for g in NODES}, "tracker": config.tracker}
    ):
        found = targets.problems(node, path, config.allow_targets)
        yield from (f"{line}{_of_data(line, config)}" for line in found)
    for path, node in targets.find_targets(dataclasses.asdict(config.pruning), "pruning"):
        yield from targets.problems(node, path, config.allow_targets)
    for name, node in config.tracker.items():
        if not isinstance(node, Mapping) or "_target_" not in node:
            yield f"tracker.{name}: is no tracker; choose none, trackio, wandb, both or '[wandb,trackio]'"


def _of_data(problem: str, config: Config) -> str:
    """Where the model has a wrong value from, if from the data."""
    key = problem.partition("=")[0].removeprefix("model.")
    is_theirs = key in config.data and config.data[key] == config.model.get(key)
    return f"; data.{key} sets it, so choose another data= or model=" if is_theirs else ""


def _pruning_problems(config: Config, *, has_plan: bool) -> Iterator[str]:
    """`has_plan`: whether all numbers are in their ranges, so that the plan can be looked at."""
    pruning = config.pruning
    # include and exclude say what is counted, in a dense run too.
    neutral = ("criterion", "include", "exclude")
    given = [
        f.name
        for f in dataclasses.fields(pruning)
        if f.name not in neutral and getattr(pruning, f.name) is not None
    ]
    if pruning.criterion is None:
        if given:
            shown = ", ".join(f"pruning.{name}={getattr(pruning, name)}" for name in given)
            yield (
                f"{shown}: pruning=none prunes nothing; choose pruning=magnitude or pruning=state, "
                f"or leave {'it' if len(given) == 1 else 'them'} out"
            )
        return
    needed = ("schedule", "scope", "selection", "mode", "target_sparsity", "initial_sparsity")
    missing = [name for name in needed if getattr(pruning, name) is None]
    for name in missing:
        yield f"pruning.{name}=null: needed by pruning.criterion={pruning.criterion.get('_target_')}"
    for edge in ("start", "end"):
        if getattr(pruning, f"{edge}_step") is None and getattr(pruning, f"{edge}_fraction") is None:
            yield f"pruning.{edge}_step=null and pruning.{edge}_fraction=null: give one of them"
    if config.trainer.max_steps is not None and has_plan and not missing:
        yield from plan_problems(config, config.trainer.max_steps)


def plan_problems(config: Config, total_steps: int) -> Iterator[str]:
    """What is wrong with the pruning plan of a run of `total_steps` optimizer steps."""
    pruning = config.pruning
    if pruning.criterion is None:
        return
    try:
        Plan(
            targets.build(pruning.schedule or {}, "pruning.schedule", config.allow_targets),
            target_sparsity=pruning.target_sparsity or 0.0,
            initial_sparsity=pruning.initial_sparsity or 0.0,
            **update_steps(pruning, total_steps),
        )
    except ConfigError as error:
        yield from error.problems


def _budget_problems(config: Config) -> Iterator[str]:
    trainer = config.trainer
    budgets = {name: getattr(trainer, name) for name in ("max_steps", "max_epochs", "max_tokens")}
    given = [f"trainer.{name}={value}" for name, value in budgets.items() if value is not None]
    if len(given) != 1:
        yield (
            f"{', '.join(given) or 'trainer.max_steps=null, max_epochs=null, max_tokens=null'}: "
            "give exactly one budget and set the others to null"
        )
    if trainer.max_steps is None:
        return
    yield from warmup_problems(config, trainer.max_steps)
    for name in ("trainer.eval_every", "checkpoint.every", "trainer.stop_step"):
        section, key = name.split(".")
        value = getattr(getattr(config, section), key)
        if value is not None and value > trainer.max_steps:
            yield f"{name}={value}: must be at most trainer.max_steps={trainer.max_steps}, or null"


def warmup_problems(config: Config, total_steps: int) -> Iterator[str]:
    """A warm-up that the run never leaves: its learning rate would not be the configured one."""
    steps = config.lr_schedule.get("warmup_steps")
    if isinstance(steps, int) and steps >= total_steps:
        yield f"lr_schedule.warmup_steps={steps}: must be less than the {total_steps} steps of the run"


def _batch_problems(config: Config) -> Iterator[str]:
    trainer, hardware = config.trainer, config.hardware
    product = hardware.micro_batch_size * hardware.num_devices * trainer.grad_accum_steps
    if product != trainer.global_batch_size:
        yield (
            f"trainer.global_batch_size={trainer.global_batch_size}: must equal hardware.micro_batch_size="
            f"{hardware.micro_batch_size} x hardware.num_devices={hardware.num_devices} x "
            f"trainer.grad_accum_steps={trainer.grad_accum_steps} = {product}"
        )
    if config.checkpoint.keep < 2:
        yield f"checkpoint.keep={config.checkpoint.keep}: must be >= 2, so that a valid one always exists"
    if hardware.precision is Precision.fp16 and hardware.device is Device.cpu:
        yield "hardware.precision=fp16: a CPU has none; use hardware.precision=fp32 or bf16"


def _model_problems(config: Config) -> Iterator[str]:
    width, heads = config.model.get("n_embd"), config.model.get("n_head")
    if isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % heads:
        fitting = width // heads * heads or heads
        yield f"model.n_embd={width}: must be a multiple of model.n_head={heads}; use {fitting}"
    length, most = config.data.get("block_size"), config.model.get("block_size")
    if isinstance(length, int) and isinstance(most, int) and length > most:
        yield (
            f"model.block_size={most}: must be at least data.block_size={length}; "
            f"give both by recipe.block_size"
        )


def _resume_problems(config: Config) -> Iterator[str]:
    keys = [key for key, _ in flatten(to_plain(config))]
    for name in config.resume_allow:
        if name == "pruning" or name.startswith("pruning."):
            yield f"resume_allow=[{name}]: masks belong to the pruning that made them; start a new run"
        if name != "environment" and not any(key == name or key.startswith(f"{name}.") for key in keys):
            yield f"resume_allow=[{name}]: no such key; {targets.nearest(name, keys)}"


MOST_LETTERS = 64  # of a name
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What Trackio's own files are called; it would refuse such a project when the run has begun.
_RESERVED_STARTS = ("registry-",)
# What Windows takes for a device, whatever follows a dot: a project may be looked at there.
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])(\..*)?", re.IGNORECASE)
_RESERVED_ENDS = (
    *("_system", "_configs", "_traces", "_artifacts"),
    *("_artifact_versions", "_artifact_aliases", "_artifact_links"),
)


def _name_problems(config: Config) -> Iterator[str]:
    """One rule for every name that reaches a file system or a tracker."""
    names = {"project": config.project, "run_name": config.run_name}
    if config.group is not None:
        names["group"] = config.group
    names |= {f"tags[{index}]": tag for index, tag in enumerate(config.tags)}
    for tracker, node in config.tracker.items():
        own = node if isinstance(node, Mapping) else {}
        names |= {f"tracker.{tracker}.{key}": own[key] for key in ("project", "entity") if own.get(key)}
    for key, value in names.items():
        if not is_name(value):
            yield (
                f"{key}={value!r}: must be 1 to 64 of A-Z a-z 0-9 . _ - starting with a letter or digit, "
                "and none that Trackio keeps for itself (default, registry-..., ..._system and the like) "
                "or Windows does (CON, NUL and the like)"
            )


def is_name(text: str) -> bool:
    """Whether every tracker and file system takes `text` as it is, and none reserves it."""
    is_reserved = (
        text == "default"
        or text.startswith(_RESERVED_STARTS)
        or text.endswith(_RESERVED_ENDS)
        or _DEVICE.fullmatch(text) is not None
    )
    return bool(_NAME.fullmatch(text)) and len(text) <= MOST_LETTERS and not is_reserved
