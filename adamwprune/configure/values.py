"""What a key may hold: its type in words, and a typed text as the value of an override.

A value is set in a copy of the composed configuration, as Hydra sets an override, and then held to the range
of its annotation: the schema's in config.py, or that in the signature of the node's `_target_`. Composing and
`to_config` do the same for all keys at once; what is refused here is refused there, in the same words.
"""

import copy
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adamwprune import ranges, targets
from adamwprune.composition import CONF_DIR, parse, quoted
from adamwprune.config import Config
from adamwprune.errors import ConfigError
from adamwprune.explanations import explain


@dataclass(frozen=True)
class Kind:
    """What a key may hold, from its annotation."""

    annotation: Any

    @property
    def words(self) -> str:
        """Type and range, such as `number > 0 and finite, or null`."""
        return ", or ".join(_described(member) for member in _members(self.annotation))

    @property
    def choices(self) -> tuple[str, ...]:
        """The values, where the key has a few that have names; () elsewhere."""
        names = [_names(member) for member in _members(self.annotation)]
        return sum(names, ()) if all(names) else ()

    @property
    def is_switch(self) -> bool:
        """Whether the key is true or false."""
        return self.annotation is bool

    @property
    def is_editable(self) -> bool:
        """False for a whole part, such as pruning.criterion, which an option of a group brings."""
        return not any(get_origin(member) is dict for member in _members(self.annotation))


def kind_of(path: str, plain: Mapping[str, Any]) -> Kind:
    """The kind of the key at a dotted path.

    Args:
        path: of the key.
        plain: the unresolved configuration that has it; its `_target_` nodes say whose key it is.
    """
    *sections, name = path.split(".")
    owner: type | None = Config
    node: Any = plain
    for section in sections:
        node = node[section]
        hint = get_type_hints(owner).get(section) if owner else None
        owner = hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None
    if owner is not None:
        return Kind(get_type_hints(owner, include_extras=True).get(name, Any))
    try:
        return Kind(targets.read_parameters(node["_target_"])[name].annotation)
    except LookupError:  # no target, or one without such a key: to_config says so
        return Kind(Any)


def override_value(path: str, kind: Kind, typed: str, composed: DictConfig) -> tuple[str, Any]:
    """A typed text as it stands behind `path=` on a command line, and the value that the key then has.

    Texts are typed without quotes, lists with or without brackets.

    Raises:
        ConfigError: the key cannot hold it.
    """
    if "${" in typed:
        raise ConfigError(f"{path}={typed}: must be a value; an interpolation belongs in a file of conf/")
    text = override_text(kind, typed.strip())
    parsed = parse([f"{path}={text}"])
    if parsed[0].is_sweep_override():
        raise ConfigError(f"{path}={text}: several values need a sweep; add -m, or quote a list as [a,b]")
    if parsed[0].value() == "???":
        raise ConfigError(f"{path}=???: required; give {path}=VALUE")
    trial = copy.deepcopy(composed)
    try:
        OmegaConf.update(trial, path, parsed[0].value(), merge=True)
        value = OmegaConf.select(trial, path)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, parsed, CONF_DIR, set)) from None
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    value = value.name if isinstance(value, Enum) else value
    if words := ranges.violation(kind.annotation, value):
        raise ConfigError(f"{path}={ranges.shown(value)}: {words}")
    return text, value


def as_typed(value: Any) -> str:
    """A value as it is shown and as it can be typed again."""
    if isinstance(value, list | tuple):
        items = (_text(item) if isinstance(item, str) else as_typed(item) for item in value)
        return f"[{', '.join(items)}]"
    if isinstance(value, float) and float(short := f"{value:.12g}") == value and len(repr(value)) > 9:
        return short
    return ranges.shown(value)


def override_text(kind: Kind, typed: str) -> str:
    """What was typed, as it stands in an override: with the quotes and brackets that were left out."""
    members = _members(kind.annotation)
    lists = [member for member in members if get_origin(member) in (list, tuple)]
    if (typed == "null" and NoneType in members) or (typed.startswith("[") and lists):
        return typed
    if str in members:
        return _text(typed)
    return f"[{typed}]" if lists == [member for member in members if member is not NoneType] else typed


# Characters that mean themselves in an override, in a file of overrides, and nearly all to a shell.
_PLAIN_TEXT = re.compile(r"[\w./@%+-]+( [\w./@%+-]+)*", re.ASCII)


def _text(typed: str) -> str:
    """A text as Hydra reads it as that text: plain where it can be, else in quotes."""
    is_plain = _PLAIN_TEXT.fullmatch(typed) and parse([f"key={typed}"])[0].value() == typed
    return typed if is_plain else quoted(typed)


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, null last; of any other type, itself."""
    if get_origin(annotation) not in (Union, UnionType):
        return (annotation,)
    return tuple(sorted(get_args(annotation), key=lambda member: member is NoneType))


def _names(member: Any) -> tuple[str, ...]:
    if get_origin(member) is Literal:
        return tuple(map(str, get_args(member)))
    if isinstance(member, type) and issubclass(member, Enum):
        return tuple(member.__members__)
    return ("null",) if member is NoneType else ()


_NOUNS = {float: "number", int: "integer", str: "text", bool: "true or false", NoneType: "null"}


def _described(member: Any) -> str:
    """A type that is no union, in words."""
    origin, arguments = get_origin(member), get_args(member)
    if origin is Annotated:
        marks = [str(mark) for mark in arguments[1:] if isinstance(mark, ranges.Range)]
        return " ".join([_described(arguments[0]), *marks])
    if origin in (list, tuple):
        count = f"{len(arguments)} " if origin is tuple and ... not in arguments else ""
        noun, _, rest = Kind(arguments[0]).words.partition(" ")
        plural = f"{noun}s" if noun in _NOUNS.values() else noun
        return f"list of {count}{plural} {rest}".rstrip()
    if origin is dict:
        return "a part that an option brings"
    if member is not NoneType and (names := _names(member)):
        return ", ".join(names)
    return _NOUNS.get(member, "any value")
