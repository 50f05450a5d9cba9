"""What the source text itself must not hold; each rule is shown something that it must flag.

Who adds a place to one of the lists below says why there; SECURITY.md has the rules.
"""

import ast
import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from adamwprune import credentials, run_directory, targets
from adamwprune.composition import compose, to_config, trusted
from adamwprune.errors import CheckpointError, ConfigError

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*(ROOT / "adamwprune").rglob("*.py"), ROOT / "train.py"])
Rule = Callable[[ast.AST], bool]


def name_of(node: ast.AST) -> str:
    """`torch.load` of a call's function, as it is written; "" for what is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{name_of(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def called(node: ast.AST) -> str:
    """The name that a call calls."""
    return name_of(node.func) if isinstance(node, ast.Call) else ""


def keyword(node: ast.AST, name: str) -> ast.expr | None:
    """The value of a call's keyword."""
    found = (item.value for item in getattr(node, "keywords", ()) if item.arg == name)
    return next(found, None)


def is_true(value: ast.expr | None) -> bool:
    """Anything but a literal False."""
    return value is not None and not (isinstance(value, ast.Constant) and value.value is False)


MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "pty", "code", "runpy")
CALLS = ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "input", "breakpoint", "globals")
YAML = ("load", "load_all", "unsafe_load", "full_load", "unsafe_load_all", "full_load_all")
DELETES = ("rmtree", "unlink", "rmdir", "remove", "removedirs", "truncate")
MOVES = ("rename", "replace", "renames", "move")
STARTS = ("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output", "os.execv")


def imports(node: ast.AST) -> bool:
    """A module that reads programs as data, or runs them; of joblib, what reads and writes pickles."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom) and not node.level:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    harmless = ("joblib.Parallel", "joblib.delayed")
    return any(name.partition(".")[0] in MODULES and name not in harmless for name in names)


def by_name(node: ast.AST) -> bool:
    """An import, or an attribute, whose name is not written in the source."""
    return called(node) in ("importlib.import_module", "importlib.reload", "hydra.utils.instantiate") or (
        called(node).endswith((".instantiate", ".get_class", ".get_method", ".get_object"))
    )


def runs_text(node: ast.AST) -> bool:
    """eval, exec, a shell."""
    return called(node) in CALLS or is_true(keyword(node, "shell"))


def loads_yaml(node: ast.AST) -> bool:
    """YAML that may make objects."""
    return called(node) in {f"yaml.{name}" for name in YAML}


def fetches_code(node: ast.AST) -> bool:
    """Code or pickles from a hub, by a flag or by a function made for that."""
    flags = ("trust_remote_code", "allow_pickle")
    places = (
        "torch.hub",
        "torch.jit.load",
        "torch.export.load",
        "torch.package",
        "torch.classes",
        "torch.ops",
    )
    return any(is_true(keyword(node, flag)) for flag in flags) or called(node).startswith(places)


def loads_torch(node: ast.AST) -> bool:
    """torch.load without the literal True."""
    only = keyword(node, "weights_only")
    return called(node) in ("torch.load", "torch.serialization.load") and not (
        isinstance(only, ast.Constant) and only.value is True
    )


def deletes(node: ast.AST) -> bool:
    """A file or folder is removed or cut, or the function that does so is handed on."""
    is_list = isinstance(node, ast.Attribute) and node.attr == "remove" and name_of(node) != "os.remove"
    return isinstance(node, ast.Attribute) and node.attr in DELETES and not is_list


def moves(node: ast.AST) -> bool:
    """A file or folder gets another's name; `text.replace(a, b)` has two arguments."""
    place, _, name = called(node).rpartition(".")
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    return name in MOVES and place != "dataclasses" and (place in ("os", "shutil") or len(node.args) == 1)


def starts(node: ast.AST) -> bool:
    """Another program."""
    return called(node) in STARTS


def binds(node: ast.AST) -> bool:
    """A port is opened."""
    return called(node).endswith((".bind", "create_server", "HTTPServer", "TCPStore", "TCPServer"))


# The rule, what it must flag, and where it may be broken: file and number of places.
RULES: dict[str, tuple[Rule, str, dict[str, int]]] = {
    "modules": (
        imports,
        "import pickle\nfrom joblib import load\nimport marshal, os\nimport dill as json",
        # An unpickler that knows three names of numpy's and refuses all others.
        {"data/files/pickles.py": 1},
    ),
    "by name": (
        by_name,
        "importlib.import_module(x)\nhydra.utils.instantiate(x)\nutils.get_class(x)",
        # The door with the check; and one of two names of our own, so that torch is imported late.
        {"targets.py": 1, "pruning/__init__.py": 1},
    ),
    "text": (runs_text, "eval(x)\nexec(x)\nsubprocess.run(x, shell=True)\nos.system(x)\nf(shell=flag)", {}),
    "yaml": (loads_yaml, "yaml.load(x)\nyaml.unsafe_load(x)\nyaml.full_load(x)", {}),
    "hubs": (
        fetches_code,
        "f(trust_remote_code=True)\nnp.load(x, allow_pickle=True)\nf(allow_pickle=y)\ntorch.hub.load(x)",
        {},
    ),
    "torch.load": (
        loads_torch,
        "torch.load(x)\ntorch.load(x, weights_only=False)\ntorch.load(x, weights_only=flag)",
        {},
    ),
    "deletes": (
        deletes,
        "shutil.rmtree(x)\npath.unlink()\nos.remove(x)\npath.rmdir()\nos.truncate(x, 0)",
        {
            # Names that only a save makes, in the run's checkpoints, while the run is locked.
            "training/checkpoint.py": 3,
            # summary.json of the run that is locked.
            "training/run.py": 1,
            # Temporary files of this process: their names hold its id; and the holder in run.lock.
            "run_directory.py": 2,
            "export/files.py": 1,
            "data/files/known_hashes.py": 1,
            # `.partial` folders and files of a preparation, under its lock, and a download that is not whole.
            "data/preparation/remapped.py": 1,
            "data/preparation/prepare.py": 3,
            "data/preparation/shard_writer.py": 2,
            "corpora/build.py": 2,
            "corpora/apt.py": 1,
            # A folder that `tempfile` made.
            "track/fake_training.py": 1,
            # Event files with the run's id in the run's folder; a torn record at the end of a .wandb file.
            "trackers/tensorboard.py": 3,
            "trackers/wandb_files.py": 1,
            # The part of a line that a kill left at the end of metrics.jsonl, or of a sweep's.
            "training/ledger.py": 1,
            "sweeps/record.py": 1,
            # A folder that was just made to see whether files can be written there.
            "room.py": 2,
        },
    ),
    "moves": (
        moves,
        "os.rename(a, b)\npath.rename(b)\ntemporary.replace(file)\nshutil.move(a, b)",
        {
            # A temporary file or folder of ours, complete now, gets its name.
            "run_directory.py": 1,
            "export/files.py": 1,
            "data/files/durable.py": 1,
            "data/files/known_hashes.py": 1,
            "data/files/packages.py": 2,
            "data/imaging/file_index.py": 1,
            "data/preparation/verified.py": 1,
            "data/preparation/remapped.py": 1,
            "data/preparation/prepare.py": 1,
            "data/preparation/shard_writer.py": 2,
            "corpora/build.py": 1,
            # And what is old or broken is set aside under a name that says so.
            "training/checkpoint.py": 3,
            "trackers/trackio_database.py": 1,
            # Within the folder that was made to see whether files can be written there.
            "room.py": 1,
        },
    ),
    "binds": (
        binds,
        "s.bind(x)\nsocket.create_server(x)\nThreadingHTTPServer(x)\ndist.TCPStore(x)",
        # 127.0.0.1 in each: tests/faults/hostile.py looks at the ports. preflight.py listens to nobody: it
        # looks whether the port is free that torchrun's user has chosen.
        {"rendezvous.py": 2, "trackers/dashboard.py": 1, "preflight.py": 1},
    ),
}


@functools.cache
def sources() -> dict[str, list[ast.AST]]:
    """Every node of every source file, by its name below adamwprune/."""
    return {
        str(file.relative_to(ROOT)).removeprefix("adamwprune/"): list(
            ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        )
        for file in SOURCES
    }


@pytest.mark.parametrize("name", RULES)
def test_the_source_breaks_no_rule_but_where_that_is_said(name):
    """In no more places than the list has, and in no fewer: a list that is too long hides the next."""
    rule, _, allowed = RULES[name]
    places = {file: [node.lineno for node in nodes if rule(node)] for file, nodes in sources().items()}
    assert {file: len(lines) for file, lines in places.items() if lines} == allowed, places


@pytest.mark.parametrize("name", RULES)
def test_each_rule_flags_every_line_of_its_control(name):
    """A rule that sees nothing proves nothing."""
    rule, control, _ = RULES[name]
    flagged = {node.lineno for node in ast.walk(ast.parse(control)) if rule(node)}
    assert flagged == set(range(1, len(control.splitlines()) + 1))


def test_no_rule_is_switched_off():
    """No `noqa` in what is shipped; programs are started by lists of arguments."""
    assert [file for file in SOURCES if "noqa" in file.read_text(encoding="utf-8")] == []
    for file, nodes in sources().items():
        for node in filter(starts, nodes):
            assert not isinstance(node.args[0], ast.JoinedStr | ast.Constant | ast.BinOp), (file, node.lineno)


# ------------------------------------------------------------------------------------- supply chain


def test_the_locks_hold_each_dependency_with_hashes_and_no_address():
    """Every requirement of a lock is pinned and hashed; every pin of constraints.txt is locked."""
    locked = {}
    for file in (ROOT / "locks").glob("*.txt"):
        text = file.read_text(encoding="utf-8")
        assert "://" not in text
        entries = re.findall(r"^[a-z]\S*.*(?:\n[ ].*)*", text, re.MULTILINE)
        assert all("==" in entry and "--hash=sha256:" in entry for entry in entries), file
        for entry in entries:
            name, _, rest = entry.partition("==")
            locked.setdefault(name, set()).add(rest.split()[0])
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.partition(";")[0].strip().split("==")
            assert version in locked.get(re.sub(r"[-_.]+", "-", name).lower(), ()), line


def test_floors_are_above_known_holes():
    """Of torch, hydra-core, wandb, datasets and transformers; advisories are in SECURITY.md."""
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    floors = {
        name: tuple(map(int, number.split("."))) for name, number in re.findall(r"([\w-]+)>=([\d.]+)", text)
    }
    least = {
        "torch": (2, 10),
        "hydra-core": (1, 3, 8),
        "wandb": (0, 29),
        "datasets": (5, 2),
        "transformers": (5, 3),
    }
    assert {name: floors[name] >= floor for name, floor in least.items()} == dict.fromkeys(least, True)


# ---------------------------------------------------------------------------- what was found, mended


@pytest.mark.parametrize(
    "override",
    [
        "tracker.wandb.api_key={}",
        "notes=sk-{}a1",
        "data.path=https://me:{}@example.org",
        "+x={{api_key: {}}}",
    ],
)
def test_a_key_on_the_command_line_is_refused_and_not_repeated(override):
    """By its name, its form, or within a value."""
    with pytest.raises(ConfigError, match="looks like a key or password") as error:
        compose([override.format("canary0123456789")])
    assert "canary" not in str(error.value)


def test_a_key_from_the_environment_or_a_file_is_refused_too(tmp_path, monkeypatch):
    """Where it would be resolved into records and trackers; a proxy's password by its form."""
    monkeypatch.setenv("A_PROXY", "http://me:canary@127.0.0.1:9")
    for notes in ("${oc.env:WANDB_API_KEY}", "${oc.env:A_PROXY}"):
        with pytest.raises(ConfigError, match="notes: looks like a key or password") as error:
            to_config(compose([f"notes={notes}"]))
        assert "canary" not in str(error.value)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "x.yaml").write_text("# @package _global_\nnotes: sk-canary0123456789\n")
    with pytest.raises(ConfigError, match="notes: looks like") as error:
        compose(["experiment=x", f"hydra.searchpath=[file://{tmp_path}]"])
    assert "canary" not in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "data.tokenizer=gpt2",
        "trainer.max_tokens=9",
        f"data.revision={'0123456789' * 4}",
        "data.bytes_per_token=2",
    ],
)
def test_what_only_sounds_like_a_key_passes(override):
    """Words that contain `token` or `key`."""
    credentials.refuse_in_arguments([override])


@pytest.mark.parametrize(
    "place", ["pkg://this", "structured://this", "[file:///tmp,pkg://this]", "['${oc.env:X}']"]
)
def test_the_search_path_imports_no_package(place):
    """Hydra would import it to look for options in it."""
    with pytest.raises(ConfigError, match=r"hydra.searchpath=.*: must be folders"):
        compose([f"hydra.searchpath={place}"])


def test_a_target_is_a_name_and_no_reference(monkeypatch):
    """What is called does not depend on the environment."""
    monkeypatch.setenv("TARGET", "adamwprune.models.lenet.LeNet5")
    with pytest.raises(ConfigError, match=r"model\._target_=.*: must be a name, not a reference"):
        to_config(compose(["model._target_=${oc.env:TARGET}"]))


def test_allowed_targets_are_a_list_of_whole_names():
    """A text would allow each of its parts."""
    assert trusted(["allow_targets=[my.model]"]) == ["my.model"]
    with pytest.raises(ConfigError, match="must be a list"):
        trusted(["allow_targets=my.model"])


def test_a_name_that_a_module_only_imported_is_not_its_own(tmp_path, monkeypatch):
    """The source defines `load`, and then something else gets the name: found by identity."""
    module = tmp_path / "adamwprune_elsewhere.py"
    module.write_text("def load(*, x: int = 1):\n    return x\nfrom os import getcwd as load\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(targets, "_distrust", lambda *_: None)
    with pytest.raises(ConfigError, match="is not defined in adamwprune_elsewhere"):
        targets.build({"_target_": "adamwprune_elsewhere.load"}, "model")


@pytest.fixture
def run(tmp_path):
    """A run's folder with a record of ours."""
    record = run_directory.new_record({}, ["seed=1"], {"name": "x", "project": "p", "group": None})
    run_directory.write_json(tmp_path / "run.json", record)
    return tmp_path


def test_a_run_of_ours_may_be_continued(run):
    """The control of the next two."""
    assert "seed=1" in run_directory.resume_overrides(run, [])


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "../../x"},
        {"run_id": "*"},
        {"name": "../x"},
        {"project": "a/b"},
        {"group": "a\nb"},
        {"overrides": "seed=1"},
        {"overrides": [1]},
        {"sessions": []},
        {"sessions": ["x"]},
        {"config": []},
    ],
)
def test_a_record_that_this_program_never_wrote_is_refused(run, change):
    """Its texts become names of files and overrides."""
    record = run_directory.read_json(run / "run.json")
    run_directory.write_json(run / "run.json", {**record, **change})
    with pytest.raises(CheckpointError, match=f"{next(iter(change))} must be"):
        run_directory.resume_overrides(run, [])


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "run.lock", "checkpoints", "tensorboard/events", "trackers/x.json"]
)
def test_a_run_whose_files_lead_elsewhere_is_refused(run, name, tmp_path_factory):
    """A run that goes on would write to, or cut, what they lead to."""
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(CheckpointError, match="is a link"):
        run_directory.resume_overrides(run, [])


def test_an_address_loses_its_user_and_password():
    """For lines that are printed and recorded."""
    assert credentials.redacted("http://me:pw@host:5000/x?a=@b") == "http://host:5000/x?a=@b"
    assert credentials.redacted("sqlite:///a@b.db") == "sqlite:///a@b.db"
