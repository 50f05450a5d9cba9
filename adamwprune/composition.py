"""From a command line to a checked Config, by Hydra's compose API, before Hydra acts on it.

Hydra reports a composition error in several lines and with exit code 1; here each becomes one
line that names the key, the nearest right one and the fix, with exit code 2. `complete` adds
what a command line implies, `compose` composes it, `to_config` makes and checks the dataclasses.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from adamwprune import targets
from adamwprune.config import Config, flatten, from_plain, register_configs, to_plain
from adamwprune.errors import ConfigError
from adamwprune.resolvers import register_resolvers
from adamwprune.validation import validate

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
BUDGETS = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_tokens")


def parse(overrides: list[str]) -> list[Override]:
    """The overrides as Hydra reads them; each key may be given once.

    Raises:
        ConfigError: an override that Hydra's grammar refuses, or a key given twice.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise ConfigError(
            f"{error.override}: not KEY=VALUE as Hydra reads it ({_first_line(error)}); quote values with "
            "commas, brackets, spaces or ~, as in 'tracker=[wandb,trackio]' or \"data.path='~/x'\""
        ) from None
    seen: dict[str, str] = {}
    for override in parsed:
        key = override.get_key_element().lstrip("+~")
        if override.is_delete():
            raise ConfigError(
                f"{override.input_line}: keys cannot be removed; give {key} a value, such as {key}=null"
            )
        if key in seen and not key.startswith("hydra"):
            raise ConfigError(f"{override.input_line}: {key} is given twice (first {seen[key]}); keep one")
        seen[key] = override.input_line or ""
        if key == "tracker" and isinstance(names := override.value(), list):
            _check_tracker_list(override.input_line or "", [str(name) for name in names])
    return parsed


def _check_tracker_list(given: str, names: list[str]) -> None:
    """Hydra composes [none,wandb] to wandb, and a name given twice once, without a word."""
    if "none" in names or "both" in names or len(set(names)) < len(names):
        raise ConfigError(
            f"{given}: must name each tracker once, without none or both, as in '[wandb,trackio]'"
        )


def given_keys(overrides: list[str]) -> dict[str, Any]:
    """Key -> value of the overrides, without + and the quotes; a swept key has the sweep as value."""
    return {override.get_key_element().lstrip("+"): override.value() for override in parse(overrides)}


def quoted(value: object) -> str:
    """A text as the value of an override, whatever characters it has.

    Raises:
        ConfigError: it holds `${`, which would be read as an interpolation.
    """
    text = str(value)
    if "${" in text:
        raise ConfigError(f"{text}: a path must not contain ${{; rename the folder")
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + "\\'", text)
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
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError(_explain(error, parsed, conf_dir)) from None
        except Exception as error:  # whatever else Hydra trips over, such as model=3
            raise ConfigError(
                f"{' '.join(overrides)}: {type(error).__name__}: {_first_line(error)}"
            ) from None
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
    for key in sorted(shipped.keys() | theirs.keys()):
        is_free = any(key == free or key.startswith(f"{free}.") for free in _FREE_BELOW_HYDRA)
        if not is_free and shipped.get(key) != theirs.get(key):
            raise ConfigError(
                f"{key}={theirs.get(key)}: may not be changed; below hydra only run.dir, sweep.dir and "
                "sweeper.params may"
            )


@functools.cache  # a constant of the checkout, which costs as much as a composition
def _shipped_hydra_node(conf_dir: Path) -> dict[str, Any]:
    with _initialized(conf_dir):
        return _flat_hydra_node(hydra_compose("config", return_hydra_config=True))


def _flat_hydra_node(composed: DictConfig) -> dict[str, Any]:
    return dict(flatten(OmegaConf.to_container(composed.hydra), "hydra"))


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
    try:
        plain = OmegaConf.to_container(run, resolve=True, enum_to_str=True)
    except InterpolationKeyError as error:
        raise ConfigError(_explain_interpolation(error, run)) from None
    except OmegaConfBaseException as error:
        raise ConfigError(_resolver_message(error)) from None
    assert isinstance(plain, dict)
    if problems := [*_unknown_keys(plain, Config, ""), *_missing(plain)]:
        raise ConfigError(*problems)
    config = from_plain(Config, plain)
    if command_line is not None:
        typed = given_keys(command_line)
        if config.allow_targets and "allow_targets" not in typed:
            raise ConfigError("allow_targets: set by a file; only the command line may trust other code")
        if config.resume is not None and "resume" not in typed:
            raise ConfigError(f"resume={config.resume}: set by a file; give it on the command line")
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


def _missing(plain: Mapping[str, Any]) -> Iterator[str]:
    for key, value in flatten(plain):
        if value == "???":
            yield f"{key}=???: required; give {key}=VALUE"


# ---------------------------------------------------------------------------- one line an error


def _explain(error: Exception, parsed: list[Override], conf_dir: Path) -> str:
    """What Hydra or OmegaConf said, as one line with the nearest right key or option."""
    text = f"{error}\n{error.__cause__ or ''}"  # Hydra wraps OmegaConf's reason
    if match := re.search(r"Could not (?:override|append) '([^']+)'", text):
        return _explain_key(match[1].split("@")[0], parsed, conf_dir)
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        listed = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)*)", text)
        return _explain_option(match[1], listed[1].split() if listed else [], conf_dir)
    if match := re.search(r"Key '([^']+)' (?:is )?not in (?:struct|'(\w+)')", text):
        full_key = re.search(r"full_key: (\S+)", text)
        return _explain_key(full_key[1] if full_key else match[1], parsed, conf_dir)
    if match := re.search(r"full_key: (\S+)", text):
        given = next((o.input_line for o in parsed if o.key_or_group == match[1]), match[1])
        return f"{given}: {_reason(text)}"
    if isinstance(error, yaml.YAMLError):
        return f"a file of the configuration is not YAML: {' '.join(text.split())}"
    return " ".join(text.split())


def _explain_key(key: str, parsed: list[Override], conf_dir: Path) -> str:
    given = next((o.input_line for o in parsed if o.key_or_group == key), key)
    if key.startswith("pruning/"):
        return (
            f"{given}: the chosen pruning option has no such part; pruning=none prunes nothing, "
            "choose pruning=magnitude or pruning=state"
        )
    return f"{given}: unknown key; {_nearest_key(key, conf_dir)}"


def _explain_option(name: str, listed: list[str], conf_dir: Path) -> str:
    group, _, option = name.rpartition("/")
    options = sorted(listed or (path.stem for path in (conf_dir / group).glob("*.yaml")))
    if not options:
        return f"{name}: no such group or option in conf/"
    close = targets.nearest(option, options) if option else ""
    hint = close if close.startswith("did") else ""
    return f"{group}={option}: no such option; {hint + ' ' if hint else ''}allowed: {', '.join(options)}"


def _nearest_key(key: str, conf_dir: Path) -> str:
    """The key that was probably meant: spelled alike, or the same last part somewhere else."""
    with _initialized(conf_dir):
        default = OmegaConf.to_container(hydra_compose("config"), resolve=False)
    known = {leaf for leaf, _ in flatten(default)} | {leaf for leaf, _ in flatten(to_plain(Config()))}
    known |= {path.name for path in conf_dir.iterdir() if path.is_dir()}
    elsewhere = sorted(name for name in known if name.rpartition(".")[2] == key)
    section = key.rpartition(".")[0]
    siblings = sorted(name for name in known if section and name.startswith(f"{section}."))
    close = elsewhere or difflib.get_close_matches(key, siblings or known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"{section} has {', '.join(siblings)}" if siblings else "python train.py --cfg job shows all keys"


def _explain_interpolation(error: InterpolationKeyError, run: DictConfig) -> str:
    """A model asks its data set for a shape that this kind of data does not have."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    match = re.search(r"'data\.(\w+)'", str(error))
    if not match:
        return f"{error.full_key}: {_first_line(error)}"
    fitting = sorted(path.stem for path in (CONF_DIR / "data").glob("*.yaml") if _has_key(path, match[1]))
    return (
        f"model={choices.get('model')} data={choices.get('data')}: this model needs data with {match[1]}; "
        f"choose data= one of {', '.join(fitting)}"
    )


def _has_key(file: Path, key: str) -> bool:
    return re.search(rf"^{key}:", file.read_text(encoding="utf-8"), re.MULTILINE) is not None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _reason(text: str) -> str:
    """The line that says why, without those that say where."""
    skipped = ("full_key:", "object_type=", "reference_type=", "Error merging override")
    return next(
        (line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(skipped)),
        text,
    )


def _resolver_message(error: Exception) -> str:
    """The message of a resolver's own exception, which OmegaConf wraps."""
    return _first_line(error).removeprefix("ValueError raised while resolving interpolation: ")
