"""Ways by which a name can come to be called, and what watches that it was not.

A door is a function of a name that does what a user would do with hostile data: type an override, take a
file from somebody, continue somebody's run, look at it with the trackers' commands. All happen in this
process, where everything that is imported, started or written is seen.
"""

import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from adamwprune import targets
from adamwprune.command_line import prepare
from adamwprune.composition import compose, quoted, to_config
from adamwprune.config import Config, to_plain
from adamwprune.errors import ConfigError, RunError
from adamwprune.sweep import expand, split_overrides
from adamwprune.track.recorded import run_info, trackers_of

Door = Callable[[Any, Path], object]

# What would tell of a call: events of Python's own audit.
_SIGNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class")
_SIGNS += ("socket.connect", "socket.bind", "ctypes.dlopen", "webbrowser.open", "os.putenv")
# A module that leaves a trace when it is imported.
CANARY = "canary_of_the_hostile_names"


class Watch:
    """What happens between `watching()` and its end: imports by name and dangerous calls."""

    def __init__(self, folder: Path) -> None:
        self.trace = folder / "canary"
        (folder / f"{CANARY}.py").write_text(
            f"open({str(self.trace)!r}, 'a').write('x')\n"
            f"def run(*, x: int = 1):\n    open({str(self.trace)!r}, 'a').write('y')\n"
        )
        sys.path.insert(0, str(folder))
        self._is_on = False
        self._seen: list[str] = []
        sys.addaudithook(self._hear)
        self._import_module = importlib.import_module

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._is_on and event in _SIGNS:
            self._seen.append(f"{event} {arguments[:1]}")

    def _import(self, name: str, package: str | None = None) -> Any:
        if not name.startswith("hydra"):  # Hydra looks for its own plugins
            self._seen.append(f"import {name}")
        return self._import_module(name, package)

    @contextlib.contextmanager
    def watching(self) -> Iterator[list[str]]:
        """What is seen inside, as texts."""
        self._seen, self._is_on = [], True
        importlib.import_module = self._import
        try:
            yield self._seen
        finally:
            importlib.import_module = self._import_module
            self._is_on = False
            if self.trace.exists():
                self._seen.append("the canary was imported")
                self.trace.unlink()
                sys.modules.pop(CANARY, None)


# --------------------------------------------------------------------------------------- doors


def by_code(name: Any, _: Path) -> object:
    """Every part of a configuration, as the engine builds it."""
    for path in ("data", "optimizer", "lr_schedule", "pruning.mode", "tracker.x", "hydra.launcher"):
        with contextlib.suppress(ConfigError):
            if path.split(".")[0] not in str(name):  # its own part is tried by the other doors
                targets.build({"_target_": name, "path": "x"}, path)
                raise AssertionError(f"built as {path}")
    return targets.build({"_target_": name}, "model")


def by_command_line(name: Any, _: Path) -> object:
    """`model._target_=NAME`, as typed, with `_partial_` and the like."""
    return to_config(compose([f"model._target_={_typed(name)}"]), [])


def by_nested_node(name: Any, _: Path) -> object:
    """A node within a node within a list, which no key of ours takes."""
    return to_config(compose([f"+model.inner=[{{a: {{_target_: {_typed(name)}}}}}]"]), [])


def by_file(name: Any, folder: Path) -> object:
    """An experiment from --config-dir, which also allows its own target."""
    content = {"allow_targets": [name], "model": {"_target_": name, "_args_": ["x"], "_partial_": True}}
    return _composed_with(folder, "experiment", content, "experiment=hostile")


def by_file_of_a_part(name: Any, folder: Path) -> object:
    """An option of a group from --config-dir."""
    return _composed_with(folder, "tracker", {"x": {"_target_": name, "required": False}}, "tracker=hostile")


def by_callback(name: Any, folder: Path) -> object:
    """A callback that Hydra would build itself."""
    return _composed_with(folder, "hydra/callbacks", {"x": {"_target_": name}}, "+hydra/callbacks=hostile")


def by_logging(name: Any, _: Path) -> object:
    """A log handler that Python's logging would build, and one that it would call."""
    key = "job_logging.handlers.console.class" if len(str(name)) % 2 else "job_logging.formatters.file.()"
    return prepare([f"++hydra.{key}={_typed(name)}"])


def by_information(name: Any, _: Path) -> object:
    """A log handler again, where nothing is to be run, only said."""
    return prepare(["--info", "all", f"++hydra.hydra_logging.handlers.console.class={_typed(name)}"])


def by_sweeper(name: Any, folder: Path) -> object:
    """A sweeper, which Hydra would build."""
    return _composed_with(folder, "hydra/sweeper", {"_target_": name}, "hydra/sweeper=hostile")


def by_launcher(name: Any, folder: Path) -> object:
    """A launcher for the jobs of a sweep."""
    _option(folder, "hydra/launcher", {"_target_": name})
    overrides = ["hydra/launcher=hostile", "seed=1,2", _search_path(folder)]
    return expand(*split_overrides(overrides), command_line=overrides)


def by_help(name: Any, _: Path) -> object:
    """The subtree of --help, with the flag."""
    return prepare(["--help", f"+hydra.help._target_={_typed(name)}"])


def by_search_path(name: Any, _: Path) -> object:
    """A package that Hydra would import to look for options in it."""
    top = str(name).partition(".")[0]
    return compose([f"hydra.searchpath=[{_typed(f'pkg://{top}')}]"])


def by_continued_run(name: Any, folder: Path) -> object:
    """`resume=` of a run whose record names the target and allows it."""
    run = _record(folder, overrides=[f"model._target_={_typed(name)}", f"allow_targets=[{_typed(name)}]"])
    return prepare([f"resume={quoted(run)}"])


def by_continued_run_of_hydra(name: Any, folder: Path) -> object:
    """`resume=` of a run whose record sets keys of Hydra's; they are left out, and the run is compared."""
    config = {**to_plain(Config()), "model": {"_target_": name}}
    odd = [f"+hydra.callbacks.x._target_={_typed(name)}", f"++hydra.sweeper._target_={_typed(name)}"]
    return prepare([f"resume={quoted(_record(folder, config=config, overrides=odd))}"])


def by_tracked_run(name: Any, folder: Path) -> object:
    """`track sync` of a run whose record, or whose tracker's file, names the target."""
    config = {"tracker": {"x": {"_target_": name}}, "allow_targets": [name]}
    run = _record(folder, config=config)
    with contextlib.suppress(ConfigError):
        trackers_of(run_info(run))
        raise AssertionError("the record's tracker was built")
    run = _record(folder, config={})
    (run / "trackers").mkdir(exist_ok=True)
    (run / "trackers" / "x.json").write_text(json.dumps({"options": {"_target_": name}}))
    return trackers_of(run_info(run))


DOORS: tuple[Door, ...] = (
    *(by_command_line, by_nested_node, by_file, by_file_of_a_part, by_callback, by_logging, by_sweeper),
    *(by_information, by_launcher, by_help, by_search_path, by_continued_run, by_continued_run_of_hydra),
    by_tracked_run,
)


def knock(door: Door, name: Any, folder: Path, watch: Watch) -> str | None:
    """Try one name at one door; what went wrong, if anything."""
    with watch.watching() as seen, contextlib.redirect_stderr(None):
        try:
            door(name, folder)
            answer = "was taken"
        except RunError as error:
            answer = "" if error.exit_code in (2, 5) else f"exit code {error.exit_code}: {error}"
        except (Exception, SystemExit) as error:
            answer = f"{type(error).__name__}: {error}"
    if answer or seen:
        return f"{door.__name__} {name!a}: {'; '.join(filter(None, (answer, *seen[:3])))}"
    return None


def hydras_own(names: tuple[str, ...]) -> tuple[int, int]:
    """How many of the names that exist here Hydra's `instantiate` resolves; how many exist."""
    import hydra.utils
    from hydra._internal.utils import _locate

    resolved = existing = 0
    for name in names:
        if name.startswith(("webbrowser", "sys.modules")):
            continue
        with contextlib.suppress(Exception):
            _locate(name)
            existing += 1
            resolved += callable(hydra.utils.instantiate({"_target_": name, "_partial_": True}))
    return resolved, existing


# -------------------------------------------------------------------------------------- helpers


def _typed(value: Any) -> str:
    """A value as an override's."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return "null" if value is None else json.dumps(value).replace('"', "")


def _search_path(folder: Path) -> str:
    return f"hydra.searchpath=[{quoted(f'file://{folder}/conf')}]"


def _option(folder: Path, group: str, content: dict[str, Any]) -> None:
    file = folder / "conf" / group / "hostile.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    package = "# @package _global_\n" if group == "experiment" else ""
    file.write_text(package + yaml.safe_dump(content, allow_unicode=False), encoding="utf-8")


def _composed_with(folder: Path, group: str, content: dict[str, Any], *overrides: str) -> Config:
    _option(folder, group, content)
    return to_config(compose([*overrides, _search_path(folder)]), list(overrides))


def _record(folder: Path, **changes: Any) -> Path:
    """A run's folder whose record was changed."""
    run = folder / "run"
    run.mkdir(exist_ok=True)
    record = {
        **{"run_id": "0123456789ab", "name": "x", "project": "p", "group": None, "exact": True},
        **{
            "overrides": [],
            "config": to_plain(Config()),
            "sessions": [{"started": "2026-11-24T12:00:00+0000"}],
        },
        **changes,
    }
    (run / "run.json").write_text(json.dumps(record))
    return run
