"""What the files of conf/ say about their keys: the comment above each, and where it stands.

PyYAML says on which line a key is; the comment is read from the lines above. A key without one shares that of
the key above it, as in a block that one comment explains:

    # Images of each part, at least num_classes.
    num_train: 2048
    num_val: 256
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

# The C parser where PyYAML has it: ten times faster.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Line:
    """One `key:` line of a file.

    Args:
        file: the YAML file.
        number: of the line, from 1.
        comment: its words, "" where there are none.
        is_own: whether the comment stands directly above the key, rather than above its block.
    """

    file: Path
    number: int
    comment: str
    is_own: bool


@functools.cache
def read_keys(file: Path) -> Mapping[str, Line]:
    """The line of each key and section of a YAML file, by its dotted path within the file."""
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=_LOADER)
    return dict(_keys(root, file, text.splitlines(), "")) if root is not None else {}


def _keys(node: yaml.Node, file: Path, lines: list[str], path: str) -> Iterator[tuple[str, Line]]:
    if not isinstance(node, yaml.MappingNode):
        return
    above = ""  # the comment of the key before
    for key, value in node.value:
        number = key.start_mark.line
        own = _comment_above(lines, number)
        is_in_block = number > 0 and bool(lines[number - 1].strip())
        above = own or (above if is_in_block else "")
        name = f"{path}{key.value}"
        if name != "defaults":
            yield name, Line(file, number + 1, above, bool(own))
            yield from _keys(value, file, lines, f"{name}.")


def _comment_above(lines: list[str], number: int) -> str:
    first = number
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return _words(lines[first:number])


def _words(comment: list[str]) -> str:
    """The text of comment lines, without Hydra's directive."""
    words = [line.strip().removeprefix("#").strip() for line in comment]
    return " ".join(word for word in words if word and not word.startswith("@package"))


@functools.cache
def opening(file: Path) -> str:
    """What a file is: its first comment, without the command with which an experiment begins."""
    comment = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# python train.py"):
            comment.append(line)
    return _words(comment)
