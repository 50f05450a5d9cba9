"""The typed configuration: what the engine reads.

`conf/` composes into these dataclasses. They are plain and picklable, made once by
adamwprune/composition.py and never changed afterwards; the engine sees no DictConfig. Nodes with a `_target_`
(model, data, optimizer, ...) stay plain dictionaries, checked and built by adamwprune/targets.py.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, get_args, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from adamwprune.pruning.schedules import default_update_every, window
from adamwprune.ranges import (
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Range,
    Seed,
    UnitInterval,
    shown,
)

Node = dict[str, Any]


class Device(Enum):
    """Where the ranks run; `auto` takes CUDA, else MPS (Apple), else the CPU, and says so."""

    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"
    auto = "auto"


class Precision(Enum):
    """Number format of the forward pass; `auto` is bf16 on a CUDA device that has it, else fp32."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    auto = "auto"


class Parallel(Enum):
    """How several devices share a run: `ddp` holds the model on each, `fsdp` spreads it over them."""

    ddp = "ddp"
    fsdp = "fsdp"


class Unseen(Enum):
    """What becomes of live weights that no gradient ever reached, under a criterion that reads v."""

    keep = "keep"
    prune = "prune"


# The dataclasses below mirror conf/: each key is explained where its value is set.


@dataclass
class RecipeConfig:
    """What a model suggests to the optimizer, schedule and pruning files; see conf/model."""

    adam_lr: Positive = 1e-3
    sgd_lr: Positive = 0.1
    betas: list[Fraction] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: NonNegative = 5e-4
    warmup_fraction: Fraction = 0.0
    target_sparsity: Fraction = 0.9
    block_size: PositiveInt = 1024
    micro_batch_size: PositiveInt = 128


@dataclass
class TrainerConfig:
    """Batch, budget, clipping and cadence of the training loop."""

    global_batch_size: PositiveInt = 64
    grad_accum_steps: PositiveInt = 1
    max_steps: PositiveInt | None = None
    max_epochs: Positive | None = None
    max_tokens: PositiveInt | None = None
    max_time: Positive | None = None
    stop_step: PositiveInt | None = None
    grad_clip: Positive | None = 1.0
    label_smoothing: Fraction = 0.0
    ema_decay: Fraction | None = None
    max_skipped_steps: NonNegativeInt = 0
    decay_embeddings: bool = False
    log_every: PositiveInt = 10
    eval_every: PositiveInt | None = None
    eval_samples: PositiveInt | None = None


@dataclass
class SamplesConfig:
    """What a language model writes at evaluations."""

    tokens: NonNegativeInt = 0
    prompts: list[str] = field(default_factory=lambda: ["The"])
    temperature: NonNegative = 0.8
    top_k: PositiveInt | None = 200


@dataclass
class CheckpointConfig:
    """When a checkpoint is written and how many are kept."""

    every: PositiveInt | None = None
    keep: PositiveInt = 2


@dataclass
class AlertsConfig:
    """When a run says that something looks wrong; each null switches its rule off."""

    loss_spike: Positive | None = 10.0
    throughput_drop: UnitInterval | None = 0.5
    stalled_updates: PositiveInt | None = 2
    disk_free_gib: NonNegative | None = 1.0
    quiet: NonNegative = 300.0


@dataclass
class PruningConfig:
    """criterion x schedule x scope x selection x mode, target and window; all null for a dense run."""

    criterion: Node | None = None
    schedule: Node | None = None
    scope: Node | None = None
    selection: Node | None = None
    mode: Node | None = None
    target_sparsity: Fraction | None = None
    initial_sparsity: Fraction | None = None
    start_fraction: UnitInterval | None = None
    end_fraction: UnitInterval | None = None
    start_step: NonNegativeInt | None = None
    end_step: NonNegativeInt | None = None
    update_every: PositiveInt | None = None
    unseen: Unseen | None = None
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)


@dataclass
class HardwareConfig:
    """Devices, number format and micro batch: says where, never what is computed."""

    device: Device = Device.cpu
    num_devices: PositiveInt = 1
    parallel: Parallel = Parallel.ddp
    micro_batch_size: PositiveInt = 64
    precision: Precision = Precision.fp32
    compile: bool = False
    num_workers: Annotated[int, Range(least=0, most=512)] = 0
    threads: PositiveInt | None = None
    peak_flops: Positive | None = None
    memory_gb: Positive | None = None
    memory_bandwidth: Positive | None = None
    deterministic: bool = True
    timeout: Positive = 300.0


@dataclass
class SweepConfig:
    """How the jobs of one -m are run; the group of the same name has saved sweeps."""

    resume: str | None = None
    job_timeout: Positive | None = None
    kill_after: Positive = 120.0


@dataclass
class Config:
    """One run, completely."""

    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    data: Node = field(default_factory=dict)
    model: Node = field(default_factory=dict)
    pruning: PruningConfig = field(default_factory=PruningConfig)
    optimizer: Node = field(default_factory=dict)
    lr_schedule: Node = field(default_factory=dict)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    alerts: AlertsConfig = field(default_factory=AlertsConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    tracker: Node = field(default_factory=dict)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: Seed = 1
    project: str = ""
    run_name: str = ""
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    resume: str | None = None
    resume_allow: list[str] = field(default_factory=list)
    allow_targets: list[str] = field(default_factory=list)
    max_jobs: PositiveInt = 100


# Groups whose option is one `_target_` node.
NODES = ("data", "model", "optimizer", "lr_schedule")
# Keys that a continued run may change: they say when, where to and to whom, not what is computed.
HARMLESS = (
    "data.data_dir",  # where the data lie, not what they are: their fingerprint is compared
    "data.num_processes",
    "data.path",
    "data.samples",  # what there is to choose from
    "data.source",
    "hardware.num_workers",
    "hardware.peak_flops",
    "hardware.memory_gb",
    "hardware.memory_bandwidth",
    "hardware.timeout",
    "trainer.max_time",
    "trainer.stop_step",
    "checkpoint",
    "alerts",
    "tags",
    "notes",
    "tracker",
    "resume",
    "resume_allow",
    "allow_targets",
    "max_jobs",
    "sweep",
)


def register_configs() -> None:
    """Store the schema that conf/config.yaml starts from; calling it again changes nothing."""
    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    # Hydra's launcher plugins, where they are installed: it would merge their options into ours.
    Plugins.instance()
    for name in ("joblib.yaml", "submitit_local.yaml", "submitit_slurm.yaml"):
        store.repo["hydra"].get("launcher", {}).pop(name, None)


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as plain dictionaries, lists, numbers and texts (for records and trackers)."""
    return {key: _plain(value) for key, value in dataclasses.asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def from_plain(cls: type, plain: Mapping[str, Any]) -> Any:
    """A dataclass from plain values; OmegaConf has checked their types."""
    hints = get_type_hints(cls)
    values = {}
    for key, value in plain.items():
        kind = next(
            (k for k in get_args(hints[key]) if isinstance(k, type) and issubclass(k, Enum)), hints[key]
        )
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            value = from_plain(kind, value)
        elif isinstance(kind, type) and issubclass(kind, Enum):
            value = None if value is None else kind[value]
        values[key] = value
    return cls(**values)


def annotation_of(key: str) -> Any:
    """The annotation of a dotted key in the schema; None where it has none, as below a `_target_`."""
    kind: Any = Config
    for name in key.split("."):
        if not dataclasses.is_dataclass(kind):
            return None
        kind = get_type_hints(kind, include_extras=True).get(name)
    return kind


def update_steps(pruning: PruningConfig, total_steps: int) -> dict[str, int]:
    """start_step, end_step and update_every of a run's mask updates.

    Raises:
        ConfigError: the window does not lie within the run.
    """
    start, end = window(
        total_steps,
        start_fraction=pruning.start_fraction or 0.0,
        end_fraction=pruning.end_fraction or 0.0,
        start_step=pruning.start_step,
        end_step=pruning.end_step,
    )
    every = pruning.update_every or default_update_every(start, end)
    return {"start_step": start, "end_step": end, "update_every": every}


def changed_keys(
    before: Mapping[str, Any], after: Mapping[str, Any], allowed: Collection[str] = ()
) -> list[str]:
    """`key: old -> new` of each key that may not differ between a run and its continuation."""
    flat_before, flat_after = dict(flatten(before)), dict(flatten(after))
    return [
        f"{key}: {shown(flat_before.get(key))} -> {shown(flat_after.get(key))}"
        for key in sorted(flat_before.keys() | flat_after.keys())
        if flat_before.get(key) != flat_after.get(key) and not _is_below(key, (*HARMLESS, *allowed))
    ]


def trajectory_hash(config: Config, *, also: Collection[str] = (), less: Collection[str] = ()) -> str:
    """16 hex digits over all keys that decide what a run computes: equal for runs that must be equal.

    Args:
        config: of the run.
        also: keys or sections that count although they are harmless.
        less: keys or sections that do not count.
    """
    leaves = sorted(
        (key, value)
        for key, value in flatten(to_plain(config))
        if _is_below(key, also) or not _is_below(key, (*HARMLESS, *less))
    )
    return hashlib.sha256(json.dumps(leaves).encode()).hexdigest()[:16]


def _is_below(key: str, prefixes: Collection[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def flatten(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings as dotted keys."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from flatten(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree
