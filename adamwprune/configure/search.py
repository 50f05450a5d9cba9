"""Search of a configuration: keys and options by name, value and comment, chosen or not."""

from collections.abc import Iterator
from dataclasses import dataclass

from adamwprune.configure.entries import Key, Menu
from adamwprune.configure.origins import option_files, option_folders
from adamwprune.configure.tree import Tree


@dataclass(frozen=True)
class Hit:
    """What a search found.

    Args:
        path: of the key, or of the group, to go to.
        option: of that group, where an option or a key of one was found.
        title: what was found, as on a command line.
        words: what its file says about it.
    """

    path: str
    option: str | None
    title: str
    words: str


def search(tree: Tree, text: str) -> list[Hit]:
    """Everything that has all the words of `text` in it, names before comments; nothing for no words."""
    words = text.lower().split()
    if not words:
        return []
    found = [hit for hit in _everything(tree) if all(word in _haystack(hit) for word in words)]
    return sorted(found, key=lambda hit: _distance(hit, words))


def _haystack(hit: Hit) -> str:
    return f"{hit.title} {hit.words}".lower()


def _distance(hit: Hit, words: list[str]) -> int:
    """0: the name is what was typed; 1: its last part has it; 2: the name has it; 3: only the comment."""
    name = hit.title.lower().partition(" ")[0]
    last = name.partition("=")[0].rpartition(".")[2] if hit.option is None else name.partition("=")[2]
    if last == " ".join(words):
        return 0
    for distance, text in enumerate((last, name), start=1):
        if all(word in text for word in words):
            return distance
    return 3


def _everything(tree: Tree) -> Iterator[Hit]:
    """Keys of the configuration, all options, and the keys of options that are not chosen."""
    here = {""}
    groups = {}
    for _, entry in tree.root.walk():
        here.add(entry.path)
        if isinstance(entry, Key):
            yield Hit(entry.path, None, f"{entry.path}={entry.text}", entry.comment)
        elif entry.choice is None:
            yield Hit(entry.path, None, entry.path, entry.comment)
        else:
            groups[entry.choice.group] = entry
            for option in entry.choice.options:
                yield Hit(entry.path, option.name, f"{entry.choice.group}={option.name}", option.help)
    for found in option_files(option_folders(tree.composed)):
        for path in sorted(found.keys.keys() - here) if found.group in groups else ():
            menu: Menu = groups[found.group]
            if path.startswith(f"{menu.path}.") and not path.endswith("_target_"):
                title = f"{path} of {found.group}={found.option}"
                yield Hit(menu.path, found.option, title, found.keys[path].comment)
