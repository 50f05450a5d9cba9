"""The documentation is true: its commands compose, its examples run, its names and tables are the code's.

Each check is a function from a text to the problems in it, so that a control can show it a wrong text.
"""

import csv
import dataclasses
import functools
import importlib
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import yaml
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from adamwprune import errors, run_directory, targets
from adamwprune.command_line import prepare
from adamwprune.composition import CONF_DIR, complete, compose, parse, to_config
from adamwprune.config import HARMLESS, Config, flatten, to_plain
from adamwprune.configure.tracking import TARGETS
from adamwprune.configure.variables import ARGS, KEYS
from adamwprune.errors import ConfigError, Preempted, RunError
from adamwprune.pruning import schedules
from adamwprune.pruning.modes.soft import GROWTH
from adamwprune.pruning.prunable import find_prunable
from adamwprune.pruning.sharding import ALONE
from adamwprune.pruning.sources import Sources
from adamwprune.pruning.state_view import StateView
from adamwprune.sweep import expand
from adamwprune.targets import build
from adamwprune.trackers.mirror import Mirror
from adamwprune.training.devices import Gpu, Host
from adamwprune.training.run import train
from tests.helpers import runs

ROOT = CONF_DIR.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("**/*.md"), *ROOT.glob("README.md")])
OTHERS = sorted([*CONF_DIR.glob("**/*.yaml"), ROOT / "train.py"])
# Words that stand for something else; what contains one names no command, file or target.
PLACEHOLDER = re.compile(
    r"…|\.\.\.|<\w+>|\b(DATE|TIME|RUN|DIR|GROUP|OPTION|KEY|VALUE|NAME|PROJECT|MODEL|CODE|TIME_MODEL_OPTIMIZER"
    r"|HARDWARE_MODEL|YYYY-MM-DD|mine)\b"
)


# ---------------------------------------------------------------------------- what a page holds


class Fence(NamedTuple):
    """A fenced block; `name` is the file that a line of its own before it names."""

    name: str
    language: str
    text: str


_FENCE = re.compile(r"(?:^`([\w./-]+)`\n\n)?^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(text: str) -> list[Fence]:
    """The fenced blocks of a page."""
    return [Fence(*match.groups(default="")) for match in _FENCE.finditer(text)]


# Sections whose tables show mistakes on purpose, by page.
MISTAKES = {"configuration.md": "Common mistakes", "pruning.md": "What does not fit"}


def spans(text: str) -> list[str]:
    """Inline code outside fences and outside the sections whose rows are mistakes on purpose."""
    for heading in MISTAKES.values():
        text = re.sub(rf"^## {heading}\n.*?(?=^## |\Z)", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", _FENCE.sub("", text))


def code(text: str) -> list[str]:
    """Everything on a page that one might type: lines of fences, lines set in, inline code."""
    lines = [line for fence in fences(text) for line in fence.text.splitlines()]
    return [*lines, *re.findall(r"^    (\S.*)$", _FENCE.sub("", text), re.MULTILINE), *spans(text)]


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next of the same level."""
    match = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"no section {heading}"
    return match[1]


def table(text: str) -> list[list[str]]:
    """The cells of all table rows but heads and rules."""
    rows = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        is_head = number + 1 < len(lines) and re.fullmatch(r"[| -]+", lines[number + 1] or "x")
        if line.startswith("|") and not is_head and not re.fullmatch(r"[| -]+", line):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def names(cell: str) -> list[str]:
    """What stands in backticks in a table's cell."""
    return re.findall(r"`([^`]+)`", cell)


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


# ----------------------------------------------------------------------------------- commands


def commands(lines: Iterable[str]) -> list[tuple[str, ...]]:
    """The arguments of every `python train.py ...` or `torchrun ... train.py ...` in some lines of code."""
    found = []
    for line in lines:
        line = match[1] if (match := re.search(r"\$\((.*)\)", line)) else line
        if match := re.search(r"\b(?:python3?|torchrun [^#]*?) ?\btrain\.py(.*)", line):
            # Two spaces end a command where an explanation follows in the same line.
            found.append(tuple(shlex.split(re.split(r"\s{2,}", match[1], maxsplit=1)[0], comments=True)))
    return found


def commands_of_source(text: str) -> list[tuple[str, ...]]:
    """Commands in comments of YAML files and in a docstring: in backticks, or up to the line's end."""
    lines = text.splitlines()
    return commands(
        part for line in lines for part in (re.findall(r"`([^`]+)`", line) or [line.lstrip("# ")])
    )


def documented_commands() -> dict[tuple[str, ...], str]:
    """Each different command, with the file that it stands in."""
    found = {}
    for file in PAGES:
        found |= dict.fromkeys(commands(code(file.read_text(encoding="utf-8"))), file.name)
    for file in OTHERS:
        found |= dict.fromkeys(commands_of_source(file.read_text(encoding="utf-8")), file.name)
    return found


def without_resume(words: tuple[str, ...]) -> tuple[str, ...]:
    """A run's folder is a placeholder by nature; what is given beside it can still be checked."""
    return tuple(word for word in words if not (word.startswith("resume=") and PLACEHOLDER.search(word)))


def is_placeholder(words: tuple[str, ...]) -> bool:
    return any(PLACEHOLDER.search(word) for word in without_resume(words))


def command_problem(words: tuple[str, ...]) -> str | None:
    """What train.py would object to; the machine, the data and the folders are not looked at."""
    try:
        flags = get_args_parser().parse_args(list(without_resume(words)))
    except SystemExit:
        return f"{shlex.join(words)}: unknown flag"
    if flags.shell_completion:
        return None  # its words are not overrides
    overrides = list(flags.overrides)
    if flags.config_dir:
        overrides.append(f"hydra.searchpath=[file://{Path(flags.config_dir).resolve()}]")
    try:
        if flags.multirun:
            swept, fixed = _thinned(overrides)
            _expand_once(tuple((key, *values) for key, values in swept.items()), tuple(fixed))
        else:
            to_config(compose(complete(overrides)))
    except RunError as error:
        return f"{shlex.join(words)}: {error}"
    return None


def _thinned(overrides: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Swept keys and fixed overrides; all values of a choice, only the last of a number, to save time."""
    swept, fixed = {}, []
    for override in parse(overrides):
        key = override.get_key_element()
        if override.is_sweep_override():
            values = list(override.sweep_string_iterator())
            swept[key] = values if (CONF_DIR / key).is_dir() else values[-1:]
        else:
            fixed.append(override.input_line)
    return swept, fixed


@functools.cache
def _expand_once(swept: tuple[tuple[str, ...], ...], fixed: tuple[str, ...]) -> None:
    expand({key: list(values) for key, *values in swept}, list(fixed))


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Iterator[Path]:
    """A folder with every file that the pages show in full, importable."""
    directory = tmp_path_factory.mktemp("examples")
    for file in PAGES:
        for fence in fences(file.read_text(encoding="utf-8")):
            if fence.name:
                target = directory / fence.name
                assert not target.exists(), f"{fence.name} is shown twice"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(fence.text)
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    yield directory
    sys.path.remove(str(directory))
    targets._arguments.cache_clear()
    for name in [name for name in sys.modules if name == "my" or name.startswith("my.")]:
        del sys.modules[name]


COMMANDS = documented_commands()


@pytest.mark.parametrize("file", sorted(set(COMMANDS.values())))
def test_documented_commands_compose(file, examples, monkeypatch):
    """Every command of README, docs, conf, help and train.py, each once."""
    monkeypatch.chdir(examples)
    found = [words for words, where in COMMANDS.items() if where == file and not is_placeholder(words)]
    assert [problem for words in found if (problem := command_problem(words))] == []


def test_documented_commands_are_found():
    """The test above looks at as many as there are; what it skips is three forms such as GROUP=OPTION."""
    skipped = [words for words in COMMANDS if is_placeholder(words)]
    assert len(COMMANDS) - len(skipped) >= 50
    assert len(skipped) <= 3, skipped


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("python train.py optimizer.lrr=1", "did you mean"),
        ("python train.py model=lenet6   # a comment", "did you mean lenet5"),
        ("python train.py --no-such-flag", "unknown flag"),
        ("python train.py resume=outputs/DATE/RUN optmizer.lr=1", "did you mean optimizer.lr"),
        ("torchrun --nproc-per-node=4 train.py hardware=a10gx5", "did you mean"),
        ("python train.py -m optimizer=adamw,admw seed=1,2", "no such option"),
        ('eval "$(python train.py model=lenet6)"', "did you mean lenet5"),
    ],
)
def test_a_wrong_command_is_found(line, words):
    """Control of the test above, in a fence and in inline code."""
    fenced, inline = f"```bash\n{line}\n```\n", f"Type `{line.partition('#')[0]}` now.\n"
    (command,) = commands(code(fenced))
    assert commands(code(inline)) == [command]
    assert not is_placeholder(command)
    assert words in command_problem(command)


# ------------------------------------------------------------------------------------ examples


def run_command(words: list[str]) -> Path:
    """What `python train.py WORDS` does, in this process; the run's folder."""
    composed = compose(prepare(words))
    directory = Path(composed.hydra.run.dir)
    train(to_config(composed), directory)
    return directory


EXAMPLES = [
    words
    for words in commands(line for fence in fences(page("extending.md")) for line in fence.text.splitlines())
    if "--config-dir" in words
]
SHORT = (
    "trainer.max_steps=4",
    "trainer.global_batch_size=16",
    "trainer.eval_samples=32",
    "hardware.threads=1",
)


def python_blocks() -> dict[str, list[str]]:
    """Python that is shown without a file's name and holds no placeholder, by page and in its order."""
    blocks: dict[str, list[str]] = {}
    for file in PAGES:
        for fence in fences(file.read_text(encoding="utf-8")):
            if fence.language == "python" and not fence.name and not PLACEHOLDER.search(fence.text):
                blocks.setdefault(file.name, []).append(fence.text)
    return blocks


def run_python(name: str) -> None:
    """Run the blocks of a page one after the other, as a reader would."""
    shared: dict[str, object] = {}
    for block in python_blocks()[name]:
        exec(compile(block, name, "exec"), shared)


def test_there_is_an_example_of_each_kind():
    """Eight kinds of extension, each a command that is run below."""
    parts = {"pruning", "pruning/scope", "pruning/mode"}
    assert {words[2].partition("=")[0] for words in EXAMPLES} == parts | {
        "optimizer",
        "lr_schedule",
        "model",
        "data",
        "tracker",
    }
    assert len(EXAMPLES) == 8


@pytest.mark.parametrize("words", EXAMPLES, ids=lambda words: words[2])
def test_each_extension_trains(words, examples, tmp_path, monkeypatch):
    """Written to files as the page shows them and started as it says: a real, short, pruned run."""
    monkeypatch.chdir(examples)
    if "data=arrays" in words:
        run_python("extending.md")
    directory = run_command([*words, *SHORT, f"hydra.run.dir={tmp_path}/run"])
    summary, record = (run_directory.read_json(directory / name) for name in ("summary.json", "run.json"))
    assert summary["status"] == "finished"
    allowed = next(word for word in words if word.startswith("allow_targets"))
    assert f'"{allowed.partition("=")[2].strip("[]")}"' in (directory / "run.json").read_text()
    expected = {
        "pruning=taylor": lambda: record["pruning"]["criterion"] == {"name": "taylor", "power": 1.0},
        "pruning/scope=alike": lambda: record["pruning"]["scope"] == {"name": "alike"},
        "pruning/mode=rewind": lambda: record["pruning"]["mode"] == {"name": "Rewind"},
        "optimizer=lion": lambda: record["optimizer"]["class"] == "Lion",
        "lr_schedule=wsd": lambda: record["config"]["lr_schedule"]["decay_fraction"] == 0.2,
        "model=mlp": lambda: record["model"] == "MLP",
        "data=arrays": lambda: record["data"]["train_images"] == 900,
        "tracker=table": lambda: table_equals_ledger(directory, summary),
    }
    assert expected[words[2]]()
    if record["config"]["pruning"]["criterion"]:
        assert summary["parameters"]["pruned"] > 0.4 * summary["parameters"]["prunable"]
        assert summary["sparsity"]["reached"]


def table_equals_ledger(directory: Path, summary: dict) -> bool:
    """The example tracker got every value of metrics.jsonl, in order, and the final ones."""
    with (directory / "table.csv").open(newline="") as stream:
        lines = [tuple(line) for line in csv.reader(stream)]
    rows = runs.read_rows(directory / "metrics.jsonl")
    values = [
        (str(row["step"]), name, str(value))
        for row in rows
        for name, value in row.items()
        if name not in ("step", "time")
    ]
    assert lines[: len(values)] == values
    assert {step for step, _, _ in lines[len(values) :]} == {"end"}
    return summary["trackers"]["table"]["state"] == "closed"


def test_an_extension_that_is_not_allowed_is_refused(examples, tmp_path, monkeypatch):
    """Control: without allow_targets, and with a key that the signature does not have."""
    monkeypatch.chdir(examples)
    allow = "allow_targets=[my.taylor.taylor]"
    with pytest.raises(ConfigError, match="not in this package"):
        prepare(["--config-dir", "my/conf", "pruning=taylor"])
    with pytest.raises(ConfigError, match="from 0 to 1"):
        prepare(["--config-dir", "my/conf", "pruning=taylor", "pruning.criterion.power=2", allow])


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    """Of every page but extending.md, whose block runs with its example; pruning.md reaches its target."""
    monkeypatch.chdir(tmp_path)
    pages = python_blocks().keys()
    assert {"extending.md", "pruning.md"} <= pages
    for name in sorted(pages - {"extending.md"}):
        run_python(name)
        if name == "pruning.md":
            assert capsys.readouterr().out.startswith("0.8")


def test_example_files_keep_the_house_style():
    """Shown files open with what they are, as those of the package do."""
    shown = [fence for file in PAGES for fence in fences(file.read_text(encoding="utf-8")) if fence.name]
    assert len(shown) >= 14
    for fence in shown:
        assert fence.text.startswith({"python": '"""', "yaml": "# "}[fence.language]), fence.name


# -------------------------------------------------------------------------------------- mistakes


def mistakes() -> list[tuple[str, str]]:
    return [
        (names(row[0])[0], row[1])
        for name, heading in MISTAKES.items()
        for row in table(section(page(name), heading))
    ]


@pytest.mark.parametrize(("line", "words"), mistakes(), ids=[line for line, _ in mistakes()])
def test_common_mistakes_give_the_documented_message(line, words, tmp_path, monkeypatch):
    """Exit code 2, the words of the table, and nothing created."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        prepare(line.split())
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------- links, paths, targets, keys


def link_problems(text: str, file: Path) -> list[str]:
    """Relative links whose file or heading does not exist."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text)):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (file.parent / path).resolve() if path else file
        if not target.exists():
            found.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8") if path else text):
            found.append(f"{link}: no such heading")
    return found


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


TOP = ("adamwprune", "conf", "docs", "tests", "benchmarks", "examples", ".ci")
FILES = ("train.py", "Makefile", "setup.cfg", "pyproject.toml", "constraints.txt", "LICENSE")


def path_problems(text: str) -> list[str]:
    """Paths of this repository in inline code that lead nowhere; `*` is a pattern."""
    found = []
    for span in spans(text):
        first = span.partition("/")[0]
        is_ours = re.fullmatch(r"[\w.*/-]+", span) and ((first in TOP and "/" in span) or span in FILES)
        if is_ours and not PLACEHOLDER.search(span) and not list(ROOT.glob(span.rstrip("/"))):
            found.append(f"{span}: no such path")
    return found


def make_problems(text: str) -> list[str]:
    """Targets and variables of make that the Makefile does not have."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.search(r"\.PHONY: (.*?)\n\.", makefile, re.DOTALL)[1].replace("\\", "").split())
    own = [name for target in TARGETS.values() for name in (*target.flags, *target.environment)]
    variables = {*KEYS, ARGS, "NAME", *own, *re.findall(r"^([A-Z]+) \?=", makefile, re.MULTILINE)}
    found = []
    for line in code(text):
        if not re.match(r"make( |$)", line):
            continue
        for word in shlex.split(line, comments=True)[1:]:
            name, is_variable, _ = word.partition("=")
            is_key = is_variable and name.islower()  # an override, which train.py looks at
            if (
                not PLACEHOLDER.search(word)
                and not is_key
                and name not in (variables if is_variable else known)
            ):
                found.append(f"{line}: the Makefile has no {name}")
    return found


def extras_problems(text: str) -> list[str]:
    """Extras in `pip install '.[...]'` that setup.cfg does not have."""
    known = set(
        re.findall(r"^(\w+) ?=", (ROOT / "setup.cfg").read_text().partition("extras_require]")[2], re.M)
    )
    asked = [
        name
        for line in code(text)
        for extras in re.findall(r"\.\[([\w,]+)\]'", line)
        for name in extras.split(",")
    ]
    return [f"setup.cfg has no extra {name}" for name in asked if name not in known]


def known_keys() -> set[str]:
    """Every dotted key that some choice of options composes, with the sections above it."""
    keys = {key for key, _ in flatten(to_plain(Config()))}
    hydra = OmegaConf.to_container(compose([]).hydra, resolve=False)
    keys |= {key for key, _ in flatten(hydra, "hydra")}
    for file in CONF_DIR.glob("**/*.yaml"):
        first = file.read_text(encoding="utf-8").partition("\n")[0]
        package = first.removeprefix("# @package ") if first.startswith("# @package") else None
        group = ".".join(file.parent.relative_to(CONF_DIR).parts)
        prefix = "" if package == "_global_" else package or group
        content = {k: v for k, v in (yaml.safe_load(file.read_text()) or {}).items() if k != "defaults"}
        keys |= {key for key, _ in flatten(content, prefix)}
    return keys | {key[:i] for key in keys for i, letter in enumerate(key) if letter == "."}


@pytest.fixture(scope="module")
def keys() -> set[str]:
    return known_keys()


SECTIONS = "recipe|data|model|pruning|optimizer|lr_schedule|trainer|checkpoint|hardware|tracker|hydra"


def key_problems(text: str, keys: set[str]) -> list[str]:
    """`section.key` and `group=option` in inline code that are not in the configuration."""
    found = []
    for span in spans(text):
        word = span.strip("'")
        if word.endswith(".safetensors"):
            continue
        if match := re.fullmatch(rf"((?:{SECTIONS})(?:\.\w+)+)(=.*)?", word):
            if match[1] not in keys:
                found.append(f"{span}: no such key")
        elif match := re.fullmatch(r"([a-z_]+(?:/[a-z]+)?)=([\w-]+)", word):
            group = CONF_DIR / match[1]
            if group.is_dir() and not (group / f"{match[2]}.yaml").exists() and not PLACEHOLDER.search(word):
                found.append(f"{span}: no such option")
    return found


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_paths_targets_extras_and_keys_exist(file, keys):
    """Of each page."""
    text = file.read_text(encoding="utf-8")
    assert link_problems(text, file) == []
    assert path_problems(text) == []
    assert make_problems(text) == []
    assert extras_problems(text) == []
    assert key_problems(text, keys) == []


def test_wrong_links_paths_targets_extras_and_keys_are_found(keys):
    """Control: one of each, and each right one beside it passes."""
    here = DOCS / "data.md"
    assert link_problems("[a](nowhere.md) [b](data.md#no-such) [c](data.md#splits) [d](#e)\n# E\n", here) == [
        "nowhere.md: no such file",
        "data.md#no-such: no such heading",
    ]
    assert path_problems("`conf/data/mnits.yaml` `conf/data/mnist.yaml` `conf/GROUP/OPTION.yaml`") == [
        "conf/data/mnits.yaml: no such path"
    ]
    assert make_problems("`make tset` `make test ARGS=x`\n```bash\nmake train TRACKR=both\n```\n") == [
        "make train TRACKR=both: the Makefile has no TRACKR",
        "make tset: the Makefile has no tset",
    ]
    assert extras_problems("`pip install '.[trackio,wand]'`") == ["setup.cfg has no extra wand"]
    assert key_problems(
        "`trainer.gradclip` `trainer.grad_clip` `'tracker.wandb.mode=x'` `model=gtp2`", keys
    ) == [
        "trainer.gradclip: no such key",
        "model=gtp2: no such option",
    ]


# ------------------------------------------------------------------------------- tables and the code


def exit_code_problems(text: str) -> list[str]:
    """Differences between a page's table of exit codes and adamwprune/errors.py."""
    documented = {int(row[0]): set(names(row[1])) for row in table(text) if row[0].isdigit()}
    actual: dict[int, set[str]] = {0: set()}
    for name, item in vars(errors).items():
        if isinstance(item, type) and issubclass(item, RunError | errors.Stopped):
            actual.setdefault(item.exit_code, set()).add(name)
    return [
        f"{code}: {documented.get(code)} instead of {actual.get(code)}"
        for code in sorted(documented.keys() | actual.keys())
        if documented.get(code) != actual.get(code)
    ]


def test_exit_codes_are_those_of_the_code():
    """In the page, and by number in the help text; a missing row, a wrong name and a wrong code are found."""
    text = page("exit-codes.md")
    assert exit_code_problems(text) == []
    footer = yaml.safe_load((CONF_DIR / "hydra" / "default.yaml").read_text())["help"]["footer"]
    listed = re.findall(r"\b(\d+) [a-z]", footer.partition("Exit codes:")[2])
    assert listed == [row[0] for row in table(text)]
    assert exit_code_problems(text.replace("| 9 |", "| 10 |")) == [
        "9: None instead of {'DiskError'}",
        "10: {'DiskError'} instead of None",
    ]
    assert len(exit_code_problems(text.replace("`DataError`", "`DatumError`"))) == 1


def options(group: str) -> set[str]:
    return {file.stem for file in (CONF_DIR / group).glob("*.yaml")}


def first_names(rows: list[list[str]]) -> set[str]:
    return {names(row[0])[0] for row in rows}


def test_tables_of_options_are_complete():
    """Data sets, schedules, scopes, selections and modes: each option has its row, each row an option."""
    pruning = page("pruning.md")
    for file, group in {"data.md": "data", "hardware.md": "hardware"}.items():
        rows = table(page(file).partition("##")[0])
        assert set().union(*(names(row[0]) for row in rows)) == options(group)
    for heading, group in {
        "Schedules": "pruning/schedule",
        "Scopes": "pruning/scope",
        "Selection": "pruning/selection",
        "Modes": "pruning/mode",
    }.items():
        assert first_names(table(section(pruning, heading))) == options(group), heading


def test_tables_of_criteria_are_complete():
    """Rows are options but for names that the page calls none; what grows back is a value of mode soft."""
    scores, _, growth = section(page("criteria.md"), "All criteria").partition("| function |")
    history = section(page("criteria.md"), "bitter0 to bitter9")
    no_options = names(re.search(r"^(.*) are no options", history, re.MULTILINE)[1])
    documented = first_names(table(scores)) | first_names(table(history)) - set(no_options)
    assert documented == options("pruning") - {"none"}
    assert first_names(table("| function |" + growth)) == {function.__name__ for function in GROWTH.values()}


def defaults_in(file: str) -> dict[str, str | None]:
    """Group -> option in the list of defaults of a file of conf/."""
    entries = yaml.safe_load((CONF_DIR / file).read_text())["defaults"]
    pairs = [item for entry in entries if isinstance(entry, dict) for item in entry.items()]
    return {key.lstrip("/"): value for key, value in pairs}


def test_tables_of_groups_are_complete_with_their_defaults():
    """Groups of conf/ and those within pruning, in configuration.md; the parts of a pruning in pruning.md."""
    within = {f"pruning/{path.name}" for path in (CONF_DIR / "pruning").iterdir() if path.is_dir()}
    groups = {path.name for path in CONF_DIR.iterdir() if path.is_dir()} - {"hydra", "hardware_model"}
    defaults = {
        **defaults_in("config.yaml"),
        **defaults_in("pruning/plan/ramp.yaml"),
        "pruning/plan": defaults_in("pruning/magnitude.yaml")["plan"],
    }
    rows = table(section(page("configuration.md"), "Groups"))
    assert first_names(rows) == groups | within
    for row in rows:
        assert defaults[names(row[0])[0]] == (names(row[2])[0] if names(row[2]) else None)
    parts = table(page("pruning.md").partition("\n## ")[0])
    assert {names(row[2])[0]: names(row[3])[0] for row in parts} == {
        group: defaults[group] for group in {"pruning", *within} - {"pruning/plan"}
    }


def test_recipe_table_names_every_key_of_the_recipe():
    """A suggestion that nobody knows of is no suggestion."""
    rows = table(section(page("configuration.md"), "Recipe"))
    assert {names(row[0])[0] for row in rows} == {f"recipe.{key}" for key in to_plain(Config())["recipe"]}


def test_mean_densities_are_those_of_the_plan():
    """At the targets of the columns, window 25 to 75 %, to the three digits that the page shows."""
    for row in table(section(page("pruning.md"), "Schedules")):
        schedule = getattr(schedules, names(row[0])[0])
        for cell, target in zip(row[2:], (0.5, 0.7, 0.9), strict=True):
            plan = schedules.Plan(schedule, target, 0.0, 25_000, 75_000, 10)
            assert float(cell) == pytest.approx(plan.mean_density(100_000), abs=6e-4), row[0]


def test_prunable_counts_are_true():
    """LeNet-5 to the weight, GPT-2 124M to a tenth of a million; built without memory."""
    text = section(page("pruning.md"), "Which weights")
    lenet5, gpt2 = (_counts(choice) for choice in ("model=lenet5", "model=gpt2"))
    assert "{:,} of {:,} parameters".format(*lenet5) in text
    assert "{:.1f} M of {:.1f} M".format(*(count / 1e6 for count in gpt2)) in text


def _counts(choice: str) -> tuple[int, int]:
    """(prunable, all) parameters of a model."""
    with torch.device("meta"):
        model = build(to_config(compose(complete([choice]))).model, "model")()
    prunable, _ = find_prunable(model)
    return sum(p.numel() for p in prunable.values()), sum(p.numel() for p in model.parameters())


def test_what_a_criterion_can_read_is_there():
    """Every name of the table, of AdamW with AMSGrad; control: a name that nobody keeps."""
    documented = [
        name for row in table(section(page("extending.md"), "A criterion")) for name in names(row[0])
    ]
    assert len(documented) >= 13
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = torch.optim.AdamW([parameter], amsgrad=True)
    parameter.grad = torch.ones(4, 4)
    optimizer.step()
    sources = Sources(documented, {"w": parameter}, StateView(optimizer), ALONE)
    assert sources.missing("w", [*documented, "row_var"]) == ["row_var"]
    found = sources.read("w", documented, parameter.detach(), torch.ones(4, 4, dtype=torch.bool))
    assert found.keys() == set(documented)
    assert None not in found.values()


@pytest.mark.parametrize("name", ["mnist5k", "fashion3k", "shakespeare", "sotu"])
def test_sizes_of_shipped_data_are_true(name):
    """Images, or tokens, of each part."""
    fitting = ["model=gpt2-nano"] if name in ("shakespeare", "sotu") else []
    facts = build(to_config(compose([*fitting, f"data={name}"])).data, "data")().facts
    row = next(row for row in table(page("data.md")) if names(row[0]) == [name])
    sizes = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\d", row[2])]
    assert sizes == [value for key, value in facts.items() if key.endswith(("_images", "_tokens"))]


def test_keys_that_a_resumed_run_may_change_are_listed():
    """The list of configuration.md is config.HARMLESS."""
    paragraph = section(page("configuration.md"), "Resume").partition("These may change:")[2].split("\n\n")[1]
    assert set(names(paragraph)) == set(HARMLESS)


# -------------------------------------------------------------------------------- records of real runs


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> list[Path]:
    """A pruned run on images to its end, and a dense one on tokens that is stopped."""
    root = tmp_path_factory.mktemp("recorded")
    images = runs.run(
        root / "images",
        *(*runs.IMAGES, *runs.BUSY, "optimizer=adamwprune", "trainer.max_steps=8", "tracker=trackio"),
    )
    short = ("trainer.max_steps=8", "trainer.stop_step=7", "hardware.peak_flops=1e12")
    config, tokens = runs.start(root / "tokens", *runs.TOKENS, *runs.BUSY, *short)
    with pytest.raises(Preempted):
        train(config, tokens)
    return [images, tokens]


def test_metric_names_are_those_of_real_rows(recorded):
    """No metric without a line, no line without a metric."""
    rows = [row for directory in recorded for row in runs.read_rows(directory / "metrics.jsonl")]
    written = {name for row in rows for name in row} - {"step", "time"}
    layers = {name for name in written if name.startswith("sparsity/") and name != "sparsity/global"}
    assert layers
    documented = {
        name for row in table(section(page("records.md"), "metrics.jsonl")) for name in names(row[0])
    }
    # Whether a sample falls into so short a run is chance.
    assert documented - sampled() == (written - layers - sampled()) | {"sparsity/<tensor>"}
    assert sampled() <= documented


def sampled() -> set[str]:
    """Names of the figures of host and devices, `i` for the number of a device."""
    host = Host()
    host.sample()
    nvml = SimpleNamespace(
        NVMLError=OSError,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=50),
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=2**30),
        nvmlDeviceGetPowerUsage=lambda _: 1000,
        nvmlDeviceGetTemperature=lambda *_: 50,
    )
    devices = Gpu(nvml, None, 0).sample()
    return {*host.sample(), *(name.replace("gpu0", "gpu<i>") for name in devices)}


def test_mask_update_keys_are_those_of_real_updates(recorded):
    """Those of single tensors once, and nothing of a dense run."""
    updates = runs.read_rows(recorded[0] / "mask_updates.jsonl")
    tensors = set(run_directory.read_json(recorded[0] / "run.json")["pruning"]["prunable"])
    written = {
        f"{key.partition('/')[0]}/<tensor>" if key.partition("/")[2] in tensors else key
        for update in updates
        for key in update
    }
    rows = table(section(page("records.md"), "mask_updates.jsonl"))
    assert {name for row in rows for name in names(row[0])} == written - {"step", "time"}
    assert not (recorded[1] / "mask_updates.jsonl").exists()


def test_segments_have_the_documented_fields():
    """The first ones of each, in their order, in the file that is named."""
    for row in table(section(page("extending.md"), "A scope")):
        name, fields = re.fullmatch(r"(\w+)\((.*)\)", names(row[0])[0]).groups()
        module = importlib.import_module(f"adamwprune.pruning.scopes.{names(row[1])[0].removesuffix('.py')}")
        documented, actual = fields.split(", "), [f.name for f in dataclasses.fields(getattr(module, name))]
        assert documented == actual[: len(documented)], name


def test_summary_keys_are_those_of_real_summaries(recorded):
    """Two levels deep, where the page goes two levels deep."""
    written = set()
    for summary in map(runs.summary, recorded):
        for key, value in summary.items():
            is_deep = key in ("metrics", "sparsity", "parameters")
            written |= {f"{key}.{inner}" for inner in value} if is_deep else {key}
    documented = {
        name for row in table(section(page("records.md"), "summary.json")) for name in names(row[0])
    }
    assert documented == written


def test_run_record_keys_are_those_of_real_records(recorded):
    """run.json of a run that has started."""
    rows = table(section(page("records.md"), "run.json"))
    documented = {name for row in rows for name in names(row[0])}
    for directory in recorded:
        assert documented == run_directory.read_json(directory / "run.json").keys()
    sessions = next(row[1] for row in rows if names(row[0]) == ["sessions"])
    assert set(names(sessions)) == runs.run_directory.session([]).keys()


def test_files_of_a_run_are_those_of_a_real_folder(recorded):
    """Two come from Hydra, which these runs went without."""
    documented = {names(row[0])[0].rstrip("/") for row in table(section(page("records.md"), "The folder"))}
    written = {path.name for path in recorded[0].iterdir()}
    assert documented == written | {".hydra", "train.log"}
    shown = {
        names(row[0])[0].rstrip("/") for row in table(section(page("quickstart.md"), "What a run leaves"))
    }
    assert shown <= documented


def test_files_of_a_checkpoint_are_those_of_a_real_one(recorded):
    """The three of the page."""
    text = section(page("records.md"), "Checkpoints")
    documented = re.findall(r"^- `([\w.]+)`", text, re.MULTILINE)
    newest = max((recorded[0] / "checkpoints").iterdir())
    assert set(documented) == {path.name for path in newest.iterdir()}


def test_tracker_status_keys_are_those_of_a_tracker():
    """The common ones; facts of its own each tracker adds."""

    class Nothing:
        name, idempotent, facts = "nothing", True, {}

    status = Mirror(Nothing(), finish_timeout=1.0).status()["nothing"]
    rows = table(section(page("tracking.md"), "When a tracker fails"))
    assert {name for row in rows if row[0] != "others" for name in names(row[0])} == status.keys()


def test_every_page_is_reached_from_another():
    """No page that nobody finds; README leads to the first ones."""
    linked = {
        (file.parent / link.partition("#")[0]).resolve()
        for file in PAGES
        for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8"))
        if "://" not in link
    }
    entrances = {DOCS / "quickstart.md", DOCS / "development.md", ROOT / "README.md"}
    assert [file for file in PAGES if file not in linked | entrances] == []
