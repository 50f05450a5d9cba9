"""From a command line to a checked Config, by Hydra's compose API, before Hydra acts on it.

`complete` adds what a command line implies, `compose` composes it, `to_config` makes and checks
the dataclasses. Each error is one line (explanations.py says which) and exit code 2.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from adamwprune import credentials, targets
from adamwprune.config import Config, flatten, from_plain, register_configs, to_plain
from adamwprune.errors import ConfigError
from adamwprune.explanations import explain, explain_interpolation, first_line, resolver_message
from adamwprune.resolvers import register_resolvers
from adamwprune.validation import validate

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
BUDGETS = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_tokens")


def parse(overrides: list[str]) -> list[Override]:
    """The overrides as Hydra reads them; each key may be given once.

    Raises:
        ConfigError: an override that Hydra's grammar refuses, a key given twice, or a password.
    """
    credentials.refuse_in_arguments(overrides)  # before anything quotes them
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise ConfigError(
            f"{error.override}: not KEY=VALUE as Hydra reads it ({first_line(error)}); quote values with "
            "commas, brackets, spaces or ~, as in 'tracker=[wandb,trackio]' or \"data.path='~/x'\""
        ) from None
    seen: dict[str, str] = {}
    for override in parsed:
        key = override.get_key_element().lstrip("+~")
        if not key:
            raise ConfigError(f"{override.input_line}: not KEY=VALUE; the key is missing")
        if override.is_delete():
            raise ConfigError(
                f"{override.input_line}: keys cannot be removed; give {key} a value, such as {key}=null"
            )
        if key in seen and not key.startswith("hydra"):
            raise ConfigError(f"{override.input_line}: {key} is given twice (first {seen[key]}); keep one")
        seen[key] = override.input_line or ""
        if override.key_or_group == "hydra.searchpath":
            _check_search_path(override)
        if isinstance(names := override.value(), list) and (CONF_DIR / key).is_dir():
            _check_option_list(key, override.input_line or "", [str(name) for name in names])
    return parsed


def _check_search_path(override: Override) -> None:
    """Folders only: to look into a package, Hydra would import it."""
    places = override.value()
    for place in places if isinstance(places, list) else [places]:
        if "${" in str(place) or not re.match(r"file://|[^:]*$", str(place)):
            raise ConfigError(f"{override.input_line}: must be folders, as in [file:///home/me/conf]")


def _check_option_list(group: str, given: str, names: list[str]) -> None:
    """Hydra merges a list of options, [none,wandb] to wandb, without a word: only trackers add up."""
    if group != "tracker":
        raise ConfigError(f"{given}: takes one option; to run each in turn: -m {group}={','.join(names)}")
    if "none" in names or "both" in names or len(set(names)) < len(names):
        raise ConfigError(
            f"{given}: must name each tracker once, without none or both, as in '[wandb,trackio]'"
        )


def given_keys(overrides: list[str]) -> dict[str, Any]:
    """Key -> value of the overrides, without + and the quotes; a swept key has the sweep as value."""
    return {override.get_key_element().lstrip("+"): override.value() for override in parse(overrides)}


def trusted(overrides: list[str]) -> list[str]:
    """The targets that a command line allows, each by its whole name.

    Raises:
        ConfigError: `allow_targets` is no list.
    """
    allowed = given_keys(overrides).get("allow_targets") or []
    if not isinstance(allowed, list):
        raise ConfigError(f"allow_targets={allowed}: must be a list, as in allow_targets=[my_code.model]")
    return [str(name) for name in allowed]


def quoted(value: object) -> str:
    """A text as the value of an override, whatever characters it has.

    Raises:
        ConfigError: it holds `${`, which would be read as an interpolation.
    """
    text = str(value)
    if "${" in text:
        raise ConfigError(f"{text}: a path must not contain ${{; rename the folder")
    # Hydra reads a backslash as itself, but before a quote: there, and at the end, it is doubled.
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + "\\'", text)
    escaped = re.sub(r"(\\+)$", lambda match: match[1] * 2, escaped)
    return f"'{escaped}'"


def complete(overrides: list[str]) -> list[str]:
    """The overrides with what they imply: a budget given here sets the two other budgets to null."""
    keys = given_keys(overrides)
    given = [name for name in BUDGETS if keys.get(name) is not None]
    if not given:
        return overrides
    return overrides + [f"{name}=null" for name in BUDGETS if name not in keys]


def compose(overrides: list[str], conf_dir: Path = CONF_DIR) -> DictConfig:
    """Compose one run, the `hydra` node included, and make it Hydra's current configuration.

    Raises:
        ConfigError: one line for whatever Hydra or OmegaConf objects to.
    """
    parsed = parse(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line}: several values need a sweep; add -m, or quote a list as [a,b]"
            )
    with _initialized(conf_dir):
        try:
            composed = hydra_compose("config", overrides=overrides, return_hydra_config=True)
        except Exception as error:  # Hydra lets all kinds through, such as ValueError for model=3
            raise ConfigError(explain(error, parsed, conf_dir, lambda: _known_keys(conf_dir))) from None
    credentials.refuse_in_values(flatten(OmegaConf.to_container(composed, resolve=False)))
    _check_hydra_node(composed, conf_dir)
    HydraConfig.instance().set_config(composed)
    return composed


# What may differ below `hydra`: where runs go, what a sweep sweeps, where more options lie.
_FREE_BELOW_HYDRA = (
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.sweeper.params",
    "hydra.searchpath",
    "hydra.output_subdir",
    "hydra.mode",
    "hydra.verbose",
    "hydra.runtime",
    "hydra.overrides",
    "hydra.job.name",
    "hydra.job.override_dirname",
)


def _check_hydra_node(composed: DictConfig, conf_dir: Path) -> None:
    """Hydra builds callbacks and log handlers by itself, from names: they must be the shipped ones."""
    shipped, theirs = _shipped_hydra_node(conf_dir), _flat_hydra_node(composed)
    # One that was chosen is built, and so checked, by sweep.py.
    has_launcher = composed.hydra.runtime.choices["hydra/launcher"] != "basic"
    allowed = (*_FREE_BELOW_HYDRA, "hydra.launcher") if has_launcher else _FREE_BELOW_HYDRA
    # What they added before what is missing for it, such as an empty hydra.callbacks.
    for key in sorted(shipped.keys() | theirs.keys(), key=lambda key: (key not in theirs, key)):
        is_free = any(key == free or key.startswith(f"{free}.") for free in allowed)
        if not is_free and shipped.get(key) != theirs.get(key):
            raise ConfigError(f"{key}={theirs.get(key)}: may not be changed; leave it out")
    subdir = composed.hydra.output_subdir
    if subdir is not None and (Path(subdir).name != subdir or subdir == ".."):
        raise ConfigError(f"hydra.output_subdir={subdir}: must be the name of a folder in the run's, or null")


@functools.cache  # a constant of the checkout, which costs as much as a composition
def _shipped_hydra_node(conf_dir: Path) -> dict[str, Any]:
    with _initialized(conf_dir):
        return _flat_hydra_node(hydra_compose("config", return_hydra_config=True))


def _flat_hydra_node(composed: DictConfig) -> dict[str, Any]:
    return dict(flatten(OmegaConf.to_container(composed.hydra), "hydra"))


def _known_keys(conf_dir: Path) -> set[str]:
    """Every dotted key of the default configuration and of the schema, and every group."""
    with _initialized(conf_dir):
        default = OmegaConf.to_container(hydra_compose("config"), resolve=False)
    keys = {leaf for tree in (default, to_plain(Config())) for leaf, _ in flatten(tree)}
    return keys | {path.name for path in conf_dir.iterdir() if path.is_dir()}


@contextmanager
def _initialized(conf_dir: Path) -> Iterator[None]:
    register_configs()
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir.resolve()), version_base="1.3"):
        yield


def to_config(composed: DictConfig, command_line: list[str] | None = None) -> Config:
    """Resolve a composed configuration into dataclasses and check it.

    With `command_line`, what the user typed today, trust in code outside this package must have been
    typed: a file, or the record of a run, cannot allow its own targets.

    Raises:
        ConfigError: listing every unknown key, wrong value and contradiction.
    """
    run = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    written = OmegaConf.to_container(run)
    if problems := [*_missing(written), *_referring_targets(written)]:  # before something refers to it
        raise ConfigError(*problems)
    try:
        plain = OmegaConf.to_container(run, resolve=True, enum_to_str=True)
    except InterpolationKeyError as error:
        raise ConfigError(explain_interpolation(error, HydraConfig.get().runtime.choices, CONF_DIR)) from None
    except OmegaConfBaseException as error:
        raise ConfigError(resolver_message(error)) from None
    assert isinstance(plain, dict)
    credentials.refuse_in_values(flatten(plain))  # also what the environment has put in
    if problems := [*_unknown_keys(plain, Config, "")]:
        raise ConfigError(*problems)
    config = from_plain(Config, plain)
    if command_line is not None:
        typed = given_keys(command_line)
        if config.allow_targets and "allow_targets" not in typed:
            raise ConfigError("allow_targets: set by a file; only the command line may trust other code")
        if config.resume is not None and "resume" not in typed:
            raise ConfigError(f"resume={config.resume}: set by a file; give it on the command line")
        if config.sweep.resume is not None and "sweep.resume" not in typed:
            raise ConfigError(
                f"sweep.resume={config.sweep.resume}: set by a file; give it on the command line"
            )
    validate(config)
    return config


def _unknown_keys(plain: Mapping[str, Any], cls: type, path: str) -> Iterator[str]:
    """Keys that a `+` on the command line, or a file, added beside the schema's."""
    hints = get_type_hints(cls)
    for key, value in plain.items():
        where = f"{path}{key}"
        if key not in hints:
            yield f"{where}={value}: unknown key; {targets.nearest(str(key), hints)}"
        elif dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            yield from _unknown_keys(value, hints[key], f"{where}.")
    for key in hints.keys() - plain.keys():
        yield f"{path}{key}: required key is missing; do not remove it with ~"


def _missing(tree: Any) -> Iterator[str]:
    for key, value in flatten(tree):
        if value == "???":
            yield f"{key}=???: required; give {key}=VALUE"


def _referring_targets(tree: Any) -> Iterator[str]:
    """What is called is written where it is called: no environment and no other key decides it."""
    for path, node in targets.find_targets(tree):
        if "${" in str(node["_target_"]):
            yield f"{path}._target_={node['_target_']}: must be a name, not a reference"
