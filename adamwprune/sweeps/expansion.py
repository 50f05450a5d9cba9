"""From a command line with several values to jobs: all combinations, composed and checked.

Where a sweep mixes dense and pruned arms, the swept `pruning.*` keys do not multiply the dense ones.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from adamwprune import run_directory
from adamwprune.composition import compose, given_keys, parse, to_config
from adamwprune.config import Config, to_plain, trajectory_hash
from adamwprune.errors import ConfigError
from adamwprune.launchers.base import Launcher
from adamwprune.targets import build
from adamwprune.validation import MOST_LETTERS

# Hydra's default: no launcher was chosen.
_HYDRAS_OWN = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
_BASIC = {"_target_": "adamwprune.launchers.basic.Basic"}
# Keys of a launcher whose values run on the cluster's nodes.
COMMANDS = ("setup", "additional_parameters")


@dataclass(frozen=True)
class Job:
    """One combination of values.

    Args:
        overrides: all of its command line.
        swept: which of them were swept.
        config: checked.
        identity: equal for jobs that compute the same, in this sweep or in one that is continued.
    """

    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    config: Config
    identity: str


def split_overrides(overrides: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Swept keys with their values, and the other overrides.

    Raises:
        ConfigError: a sweep that is no list of values.
    """
    swept: dict[str, list[str]] = {}
    fixed = []
    for override in parse(overrides):
        if override.is_sweep_override():
            swept[override.get_key_element()] = _values(override)
        else:
            fixed.append(override.input_line or "")
    return swept, fixed


def _values(override: Override) -> list[str]:
    if override.is_discrete_sweep():
        try:
            return list(override.sweep_string_iterator())
        except HydraException:
            raise ConfigError(f"{override.input_line}: glob is not supported; name the options") from None
    raise ConfigError(
        f"{override.input_line}: an interval needs a search; give values, as in KEY=1,2,3 or range(1,4)"
    )


def expand(
    swept: dict[str, list[str]], fixed: list[str], command_line: list[str] | None = None
) -> tuple[list[Job], Path, Launcher]:
    """All jobs, composed and checked, dense arms once; the sweep's folder, and what starts them.

    Raises:
        ConfigError: naming the first job that cannot run.
    """
    if "group" in swept:
        raise ConfigError("group: the jobs of a sweep are one group; give one name")
    if own := next((key for key in swept if key.startswith(("hydra.", "hydra/", "sweep."))), None):
        raise ConfigError(f"{own}: belongs to the sweep, not to its jobs; give one value")
    shared = [o for o in fixed if not _is_pruning_only(o)]  # a dense arm may be the first
    first = compose([*shared, *(f"{key}={v[0]}" for key, v in swept.items() if not _is_pruning_only(key))])
    params = dict(first.hydra.sweeper.params or {})
    given = swept.keys() | given_keys(fixed).keys()  # what the command line says replaces the file's
    from_file = split_overrides([f"{key}={value}" for key, value in params.items() if key not in given])
    swept, fixed = from_file[0] | swept, [*fixed, *from_file[1]]
    if not swept:
        raise ConfigError("-m: no key has several values; give some, as in seed=1,2,3, or leave out -m")
    count = math.prod(map(len, swept.values()))
    if count > first.max_jobs:
        raise ConfigError(
            f"-m: {count} jobs are more than max_jobs={first.max_jobs}; add max_jobs={count} if you mean it"
        )
    mixes = len(swept.get("pruning", [])) > 1 or len(swept.get("optimizer", [])) > 1
    jobs: dict[str, Job] = {}
    for combination in product(*swept.values()):
        values = [f"{key}={value}" for key, value in zip(swept, combination, strict=True)]
        job = _compose_job(values, fixed, command_line, drop_for_dense=mixes)
        jobs.setdefault(job.identity, job)
    for number, job in enumerate(jobs.values()):
        if len(f"{job.config.run_name}-{number}") > MOST_LETTERS:
            raise ConfigError(
                f"run_name={job.config.run_name}: too long with the job's number -{number}; shorten it"
            )
    place = run_directory.place_for_runs(first.hydra.sweep.dir, "hydra.sweep.dir")
    return list(jobs.values()), place, _launcher(first, given_keys(command_line or fixed))


def _launcher(composed: DictConfig, typed: Mapping[str, Any]) -> Launcher:
    """What `hydra/launcher` names.

    Raises:
        ConfigError: it is none of ours, or a key of it is wrong.
    """
    plain = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    assert isinstance(plain, dict)
    node = {str(key): value for key, value in plain.items()}
    for key in COMMANDS:
        if node.get(key) and f"hydra.launcher.{key}" not in typed:
            raise ConfigError(
                f"hydra.launcher.{key}={node[key]}: set by a file; only the command line may give the "
                "cluster commands"
            )
    launcher = build(_BASIC if node["_target_"] == _HYDRAS_OWN else node, "hydra.launcher")()
    assert isinstance(launcher, Launcher)
    return launcher


def _compose_job(
    swept: list[str], fixed: list[str], command_line: list[str] | None, *, drop_for_dense: bool
) -> Job:
    try:
        if drop_for_dense:
            without = [[o for o in part if not _is_pruning_only(o)] for part in (fixed, swept)]
            choices = compose([*without[0], *without[1]]).hydra.runtime.choices
            if choices.get("pruning") == "none":
                fixed, swept = without
        overrides = [*fixed, *swept]
        config = to_config(compose(overrides), command_line)
        keys = [override.partition("=")[0] for override in swept]
        return Job(tuple(overrides), tuple(swept), config, _identity(config, keys))
    except ConfigError as error:
        raise ConfigError(*(f"job {' '.join(swept)}: {problem}" for problem in error.problems)) from None


def _is_pruning_only(override: str) -> bool:
    """`pruning.target_sparsity=0.5` or `pruning/scope=global`: meaningless in a dense arm.

    include and exclude say what is counted, in a dense arm too.
    """
    neutral = ("pruning.include", "pruning.exclude")
    return override.startswith(("pruning.", "pruning/")) and not override.startswith(neutral)


def _identity(config: Config, swept: Collection[str]) -> str:
    """What the job computes; a name or a harmless key makes another job only where it is swept."""
    names = {"project", "group", "run_name"}
    return trajectory_hash(config, also=swept, less=names)


def machine_key(config: Config) -> str:
    """Equal for jobs that differ in their seed only: one look at the machine and the data serves them all."""
    plain = {key: value for key, value in to_plain(config).items() if key not in ("seed", "run_name")}
    return json.dumps({**plain, "data": {**config.data, "seed": None}}, sort_keys=True)
