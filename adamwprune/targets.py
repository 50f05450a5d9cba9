"""`_target_` nodes: how a piece of configuration names the code that it configures.

    optimizer:
      _target_: adamwprune.optim.adamw.adamw
      lr: 1.0e-3

`build(node, path)` returns the target with its keys bound, as `functools.partial`: keyword-only
parameters come from the configuration, positional ones are given by code, so the engine says
`build(config.optimizer, "optimizer")(param_groups)`. Nothing else in the project imports by name.

`problems(node, path)` checks a node without importing it: the signature is read from the source
text, so a wrong key, type or range is found before torch is imported (1.8 s) and before
anything is created. Configurations are data: a target must be defined in this package, where the
code of its part lies, or be named, exactly, in `allow_targets` on the command line.
"""

import ast
import difflib
import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal

from adamwprune import ranges
from adamwprune.errors import ConfigError

PACKAGE = __name__.partition(".")[0]
# Where the code of each part lies, and how many positional arguments it is called with. Else a configuration
# could have any function of ours called, such as one that writes files or runs commands.
HOMES: Mapping[str, tuple[str, int | None]] = {
    "data": ("data", 0),
    "model": ("models", 0),
    "optimizer": ("optim", 1),
    "lr_schedule": ("lr_schedules", 2),
    "pruning": ("pruning", None),  # each part of it has its own
    "tracker": ("trackers", 0),
    "hydra": ("launchers", 0),
}
# ASCII only: letters that look alike are other letters.
_DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+")


@dataclass(frozen=True)
class Parameter:
    """One keyword-only parameter of a target: what its key may hold."""

    annotation: Any
    required: bool


def build(node: Mapping[str, Any], path: str, allowed: Collection[str] = ()) -> Callable[..., Any]:
    """Import the node's target and bind its keys; call the result with the positional arguments.

    Raises:
        ConfigError: the target is not allowed, or its keys do not fit its signature.
    """
    if found := problems(node, path, allowed):
        raise ConfigError(*found)
    name = node["_target_"]
    module_name, _, attribute = name.rpartition(".")
    target = getattr(importlib.import_module(module_name), attribute)
    # By identity: a name that our module only imported from elsewhere is not ours.
    origin = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if name not in allowed and origin != (module_name, attribute):
        raise ConfigError(
            f"{path}._target_={name}: is not defined in {module_name}; name where it is defined"
        )
    return functools.partial(target, **{key: value for key, value in node.items() if key != "_target_"})


def find_targets(tree: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping below `tree` that has a `_target_`, with its dotted path."""
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            yield path, tree
        for key, value in tree.items():
            yield from find_targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from find_targets(value, f"{path}[{index}]")


def problems(node: Mapping[str, Any], path: str, allowed: Collection[str] = ()) -> list[str]:
    """Everything wrong with a node, one line each, found without importing its target."""
    name = node.get("_target_")
    if not isinstance(name, str) or not _DOTTED.fullmatch(name):
        shown = name if isinstance(name, str) and name.isascii() and name.isprintable() else ascii(name)
        return [f"{path}._target_={shown}: must be a dotted name such as {PACKAGE}.models.lenet.LeNet5"]
    if name not in allowed and (reason := _distrust(name, path)):
        return [f"{path}._target_={name}: {reason}"]
    try:
        parameters, needed = read_parameters(name), _positionals(_arguments(name))
    except LookupError as error:
        return [f"{path}._target_={name}: {error.args[0]}"]
    given = HOMES[path.partition(".")[0]][1]
    if given is not None and needed > given:
        return [f"{path}._target_={name}: needs {needed} positional arguments, here it gets {given}"]
    return _key_problems(node, path, parameters)


def _distrust(name: str, path: str) -> str | None:
    """Why a target that nobody allowed may not be called as the part `path`; None where it may."""
    top, *rest = name.split(".")
    if top != PACKAGE:
        return (
            f"not in this package; if you trust that code, add 'allow_targets=[{name}]' to the command line"
        )
    home, _ = HOMES[path.partition(".")[0]]
    if rest[0] != home or any(part.startswith("_") for part in rest):
        return f"must be a public name of {PACKAGE}.{home}"
    return None


def _key_problems(node: Mapping[str, Any], path: str, parameters: Mapping[str, Parameter]) -> list[str]:
    short = node["_target_"].rpartition(".")[2]
    found = []
    for key, value in node.items():
        if key == "_target_":
            continue
        if key not in parameters:
            found.append(
                f"{path}.{key}={ranges.shown(value)}: {short} has no {key}; {nearest(key, parameters)}"
            )
        elif words := ranges.violation(parameters[key].annotation, value):
            found.append(f"{path}.{key}={ranges.shown(value)}: {words}")
    for key, parameter in parameters.items():
        if parameter.required and key not in node:
            found.append(f"{path}.{key}: missing; {short} needs it, so give {path}.{key}=VALUE")
    return found


def nearest(key: str, names: Collection[str]) -> str:
    """The name that `key` was probably meant to be, or all names, as the end of an error message."""
    close = difflib.get_close_matches(key, names, n=1)
    return f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(names)) or 'no keys'}"


def read_parameters(name: str) -> Mapping[str, Parameter]:
    """The keyword-only parameters of the function or class called `name`, read from its source with ast.

    Raises:
        LookupError: no such module, one that is not Python, or it defines no such public function or class.
    """
    arguments = _arguments(name)
    return {
        argument.arg: Parameter(_annotation(argument.annotation), required=default is None)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    }


@functools.cache
def _arguments(name: str) -> ast.arguments:
    """The parameters of a function, or of a class's __init__ without self."""
    module_name, _, attribute = name.rpartition(".")
    source = _source_file(module_name)
    if source is None:
        raise LookupError(f"there is no module {module_name}")
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise LookupError(f"{source}, line {error.lineno}: {error.msg}") from None
    definitions = {
        item.name: item
        for item in tree.body
        if isinstance(item, ast.FunctionDef | ast.ClassDef) and item.name[0] != "_"
    }
    if attribute not in definitions:
        raise LookupError(f"{module_name} does not define {attribute}; {nearest(attribute, definitions)}")
    definition = definitions[attribute]
    if isinstance(definition, ast.FunctionDef):
        return definition.args
    for item in definition.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return ast.arguments(**{**vars(item.args), "args": item.args.args[1:]})
    return ast.arguments([], [], None, [], [], None, [])


def _positionals(arguments: ast.arguments) -> int:
    """How many positional arguments must be given."""
    return len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)


def _source_file(module_name: str) -> Path | None:
    """Where a module's source lies, found without importing it or its packages."""
    top, *rest = module_name.split(".")
    if top == PACKAGE:
        roots = [str(Path(__file__).parent)]
    elif (spec := importlib.util.find_spec(top)) is None:
        return None
    elif not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    else:
        roots = list(spec.submodule_search_locations or [])
    stems = [Path(root).joinpath(*rest) for root in roots]
    candidates = [file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py")]
    return next((file for file in candidates if file.is_file()), None)


_PLAIN = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "tuple": tuple}


def _annotation(node: ast.expr | None) -> Any:
    """The type that an annotation's source means; Any where it is none of the configuration's."""
    match node:
        case ast.Constant(value=None):
            return type(None)
        case ast.Constant(value=value):
            return value  # inside Literal
        case ast.Name(id=name):
            return _PLAIN.get(name) or getattr(ranges, name, Any)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union(_annotation(left), _annotation(right))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            return Literal[tuple(ast.literal_eval(item) for item in _items(inner))]
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[base, *marks])):
            return Annotated[(_annotation(base), *(_range(mark) for mark in marks))]
        case ast.Subscript(value=ast.Name(id="list"), slice=inner):
            return list[_annotation(inner)]  # type: ignore[misc]
        case ast.Subscript(value=ast.Name(id="tuple"), slice=inner):
            return tuple[tuple(... if _is_ellipsis(item) else _annotation(item) for item in _items(inner))]
    return Any


def _union(left: Any, right: Any) -> UnionType | Any:
    return Any if Any in (left, right) else left | right


def _items(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def _range(mark: ast.expr) -> Any:
    """`Range(least=0, most=0.5)` as written inside an Annotated."""
    if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "Range":
        return ranges.Range(**{keyword.arg: ast.literal_eval(keyword.value) for keyword in mark.keywords})
    return None
