"""What Hydra and OmegaConf object to, in one line that names the key, the nearest right one and the fix.

They say it in several lines of English, which is read here and nowhere else (hydra-core 1.3,
omegaconf 2.3); tests/test_composition.py has an example of each.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from adamwprune import ranges, targets
from adamwprune.config import annotation_of


def explain(
    error: Exception, parsed: list[Override], conf_dir: Path, known_keys: Callable[[], set[str]]
) -> str:
    """What composing failed of, as one line with the nearest right key or option.

    Args:
        error: what Hydra or OmegaConf raised.
        parsed: the overrides, to quote the one that is meant.
        conf_dir: where the groups and their options lie.
        known_keys: all dotted keys and groups; called only where a key was misspelt.
    """
    text = f"{error}\n{error.__cause__ or ''}"  # Hydra wraps OmegaConf's reason
    if match := re.search(r"Could not (?:override|append) '([^']+)'", text):
        return _unknown_key(match[1].split("@")[0], parsed, known_keys)
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        listed = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)*)", text)
        return _unknown_option(match[1], listed[1].split() if listed else [], conf_dir)
    if match := re.search(r"Key '([^']+)' (?:is )?not in (?:struct|'(\w+)')", text):
        full_key = re.search(r"full_key: (\S+)", text)
        return _unknown_key(full_key[1] if full_key else match[1], parsed, known_keys)
    if match := re.search(r"full_key: (\S+)", text):
        return _wrong_value(match[1], text, parsed)
    if isinstance(error, yaml.YAMLError):
        return f"a file of the configuration is not YAML: {' '.join(text.split())}"
    if isinstance(error, UnicodeDecodeError):
        return f"{_file_with(error.object, parsed, conf_dir)}: not UTF-8 ({error}); save it as UTF-8"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return " ".join(text.split())
    given = " ".join(override.input_line or "" for override in parsed)  # such as model=3
    return f"{given}: {type(error).__name__}: {first_line(error)}"


def _file_with(content: bytes, parsed: list[Override], conf_dir: Path) -> str:
    """The file that was being read, of which Hydra says nothing."""
    places = next((o.value() for o in parsed if o.key_or_group == "hydra.searchpath"), None)
    listed = places if isinstance(places, list) else []
    folders = [conf_dir, *(Path(str(place).strip("'").removeprefix("file://")) for place in listed)]
    files = (file for folder in folders for file in folder.rglob("*.yaml"))
    found = next((file for file in files if file.read_bytes().startswith(content)), None)
    return "a file of the configuration" if found is None else str(found)


def _wrong_value(key: str, text: str, parsed: list[Override]) -> str:
    """A value of another type than the schema's, in the words of its range."""
    given = next((o for o in parsed if o.key_or_group == key), None)
    file = re.search(r"In '([^']+)'", text)
    where = given.input_line if given else f"{key} in {file[1]}.yaml" if file else key
    annotation = annotation_of(key)
    if given is None or isinstance(given.value(), dict | list) or annotation is None:
        value = re.search(r"Value '(.*)' of type", text)
        words = ranges.violation(annotation, value[1]) if value else None
        return f"{where}: {f'{value[1]!r} {words}' if value and words else _reason(text)}"
    words = ranges.violation(annotation, given.value()) or _reason(text)
    return f"{where}: {words}{ranges.hint(annotation, given.value())}"


def _unknown_key(key: str, parsed: list[Override], known_keys: Callable[[], set[str]]) -> str:
    given = next((o.input_line for o in parsed if o.key_or_group == key), key)
    if key.startswith("pruning/"):
        return (
            f"{given}: the chosen pruning option has no such part; pruning=none prunes nothing, "
            "choose pruning=magnitude or pruning=state"
        )
    return f"{given}: unknown key; {_nearest_key(key, known_keys())}"


def _unknown_option(name: str, listed: list[str], conf_dir: Path) -> str:
    group, _, option = name.rpartition("/")
    options = sorted(listed or (path.stem for path in (conf_dir / group).glob("*.yaml")))
    if not options:
        return f"{name}: no such group or option in conf/"
    close = targets.nearest(option, options) if option else ""
    hint = close if close.startswith("did") else ""
    return f"{group}={option}: no such option; {hint + ' ' if hint else ''}allowed: {', '.join(options)}"


# What other programs call our keys.
_ALIASES = {
    "learning_rate": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "batch_size": "trainer.global_batch_size",
    "epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "iterations": "trainer.max_steps",
    "sparsity": "pruning.target_sparsity",
    "clip": "trainer.grad_clip",
    "device": "hardware.device",
}


def _nearest_key(key: str, known: set[str]) -> str:
    """The key that was probably meant: spelled alike, or the same last part somewhere else."""
    section, _, last = key.rpartition(".")
    if key in known:  # and yet it was refused
        return (
            f"the chosen {section} option has no {last}"
            if section
            else "a file needs '# @package _global_' for it, in a first line without a byte order mark"
        )
    if (meant := _ALIASES.get(key.rpartition(".")[2])) in known:
        return f"did you mean {meant}?"
    elsewhere = sorted(name for name in known if name.rpartition(".")[2] == key)
    siblings = sorted(name for name in known if section and name.startswith(f"{section}."))
    close = elsewhere or difflib.get_close_matches(key, siblings or known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"{section} has {', '.join(siblings)}" if siblings else "python train.py --cfg job shows all keys"


def explain_interpolation(error: InterpolationKeyError, choices: Mapping[str, str], conf_dir: Path) -> str:
    """A model asks its data set for a shape that this kind of data does not have."""
    match = re.search(r"'data\.(\w+)'", str(error))
    if not match:
        return f"{error.full_key}: {first_line(error)}"
    fitting = sorted(path.stem for path in (conf_dir / "data").glob("*.yaml") if _has_key(path, match[1]))
    return (
        f"model={choices.get('model')} data={choices.get('data')}: this model needs data with {match[1]}; "
        f"choose data= one of {', '.join(fitting)}"
    )


def _has_key(file: Path, key: str) -> bool:
    return re.search(rf"^{key}:", file.read_text(encoding="utf-8"), re.MULTILINE) is not None


def first_line(error: Exception) -> str:
    """The first line of a message that has several; the class's name where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _reason(text: str) -> str:
    """The line that says why, without those that say where."""
    skipped = ("full_key:", "object_type=", "reference_type=", "Error merging override", "In '")
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line and not line.startswith(skipped)), " ".join(text.split()))


def resolver_message(error: OmegaConfBaseException) -> str:
    """The message of a resolver's own exception, which OmegaConf wraps; one of OmegaConf's with its key."""
    line = first_line(error)
    ours = "ValueError raised while resolving interpolation: "
    return line.removeprefix(ours) if line.startswith(ours) else f"{error.full_key}: {line}"
