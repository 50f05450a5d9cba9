"""Which files of conf/ set a key, in the order of merging, and what the last of them says about it."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from adamwprune.config import register_configs
from adamwprune.configure.comments import Line, read_keys


@dataclass(frozen=True)
class Origin:
    """Where a key's value comes from, before overrides.

    Args:
        line: the last one that sets it.
        comment: what it says, or a file merged before it where it says nothing of its own.
    """

    line: Line
    comment: str


def read_origins(overrides: Sequence[str], composed: DictConfig, conf_dir: Path) -> Mapping[str, Origin]:
    """The origin of each key and section that files set, by dotted path.

    Args:
        overrides: those that choose options; others may be among them.
        composed: what they compose to, `hydra` node included.
        conf_dir: the root of the configuration.
    """
    return _origins(tuple(overrides), option_folders(composed), conf_dir)


def option_folders(composed: DictConfig) -> tuple[Path, ...]:
    """Where options lie: conf/, and the folders of hydra.searchpath."""
    sources = composed.hydra.runtime.config_sources
    return tuple(Path(source.path) for source in sources if source.schema == "file")


@functools.lru_cache(maxsize=64)
def _origins(overrides: tuple[str, ...], folders: tuple[Path, ...], conf_dir: Path) -> Mapping[str, Origin]:
    lines: dict[str, list[Line]] = {}
    for file, package in _merged_files(overrides, folders, conf_dir):
        for name, line in read_keys(file).items():
            lines.setdefault(f"{package}.{name}" if package else name, []).append(line)
    return {path: _origin(found) for path, found in lines.items()}


def _origin(lines: list[Line]) -> Origin:
    """A comment of a key's own, the later the better; else one that it shares."""
    ranked = sorted(reversed(lines), key=lambda line: (not line.comment, not line.is_own))
    return Origin(lines[-1], ranked[0].comment)


def _merged_files(
    overrides: Sequence[str], folders: Sequence[Path], conf_dir: Path
) -> Iterator[tuple[Path, str]]:
    """Files and the sections that they set, in the order of merging: Hydra's own list of defaults."""
    register_configs()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir.resolve()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        defaults = loader.compute_defaults_list("config", list(overrides), RunMode.RUN).defaults
    for default in defaults:
        candidates = [folder / f"{default.config_path}.yaml" for folder in folders]
        if file := next((file for file in candidates if file.is_file()), None):
            yield file, default.package or ""


@dataclass(frozen=True)
class OptionFile:
    """A file of a group, and the keys that it sets by their dotted path in the configuration."""

    group: str
    option: str
    file: Path
    keys: Mapping[str, Line]


def option_files(folders: Sequence[Path]) -> list[OptionFile]:
    """Every option of every group, chosen or not; of two files of one name the first counts, as for Hydra."""
    found: dict[tuple[str, str], OptionFile] = {}
    for folder in folders:
        for file in sorted(folder.glob("*/**/*.yaml")):
            group = file.parent.relative_to(folder).as_posix()
            found.setdefault((group, file.stem), _option_file(group, file))
    return list(found.values())


@functools.cache
def _option_file(group: str, file: Path) -> OptionFile:
    directive = re.match(r"# @package (\S+)", file.read_text(encoding="utf-8"))
    package = directive[1].replace("_global_", "") if directive else group.replace("/", ".")
    keys = {f"{package}.{name}" if package else name: line for name, line in read_keys(file).items()}
    return OptionFile(group, file.stem, file, keys)
