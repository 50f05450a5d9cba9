"""python -m tests.mutations pruning|checkpoints [--sample N] [--seed N] [--keep DIR] [--again]

Mutmut changes one thing at a time in a copy of the package (an operator, a number, an argument, a returned
value) and finds out which tests call which function; in_the_copy.py runs those of each mutant in a fork of
a process that has collected all tests. Printed are the figures, and each survivor's difference. `--keep`
names the copy: a second run goes on where the first stopped, with `--again` it takes the tests as they
are by now and runs what survived.
"""

import argparse
import ast
import difflib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.plain_functions import undecorated

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("adamwprune", "conf", "tests", "docs", "benchmarks", "examples", "train.py", "README.md")
FILES = ("pyproject.toml", "setup.cfg", "constraints.txt", "Makefile")
# Mutmut's exit codes: of the tests, or of what became of them.
STATUS = {0: "survived", 5: "no tests", 33: "no tests", 34: "not drawn"}
STATUS |= dict.fromkeys((24, -24, 36, 152, 255), "timeout")
NOT_DRAWN = 34
AGAIN = {"survived", "no tests", "timeout"}


@dataclass(frozen=True)
class Target:
    """What is mutated, and the arguments of pytest: all tests that take part."""

    mutated: tuple[str, ...]
    tests: tuple[str, ...]


TARGETS = {
    "pruning": Target(
        (
            "adamwprune/pruning/*.py",
            "adamwprune/pruning/criteria/*.py",
            "adamwprune/pruning/modes/*.py",
            "adamwprune/pruning/scopes/*.py",
            "adamwprune/pruning/selection/*.py",
        ),
        (
            "tests/pruning",
            # Processes of their own, whole configurations, memory: too slow for hundreds of mutants.
            "--ignore=tests/pruning/test_matrix.py",
            "--ignore=tests/pruning/test_sharding.py",
            "--ignore=tests/pruning/test_pruning_options.py",
            "--deselect=tests/pruning/test_selection.py::test_extra_memory_is_a_few_chunks_for_every_criterion",
            # They read the source, which has trampolines in it.
            "--deselect=tests/pruning/test_criteria.py::test_a_criterion_is_one_short_function_of_known_sources",
            "--deselect=tests/pruning/test_pruner.py::test_dense_has_the_interface_of_the_pruner",
            "--deselect=tests/pruning/test_pruner.py::test_packages_are_imported_without_torch",
        ),
    ),
    "checkpoints": Target(
        ("adamwprune/training/checkpoint.py", "adamwprune/training/ledger.py"),
        (
            "tests/training/test_checkpoint.py",
            "tests/training/test_checkpoint_order.py",
            "tests/training/test_ledger.py",
            "tests/training/test_ledger_events.py",
            "tests/training/test_saver.py",
        ),
    ),
}


def main() -> None:
    """Prepare or reuse the copy, draw the sample, run, and tell."""
    given = _arguments()
    target = TARGETS[given.target]
    with tempfile.TemporaryDirectory() as scratch:
        copy = given.keep or Path(scratch)
        if not (copy / "mutants").is_dir():
            _prepare(copy, target)
            _generate(copy)
            _draw(copy, given.sample, given.seed)
        if given.again:
            _draw_survivors_again(copy)
        _run(copy, target)
        _tell(copy)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--sample", type=int, help="how many mutants are drawn (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder of the copy and of the results")
    parser.add_argument("--again", action="store_true", help="take the tests anew, and run what survived")
    return parser.parse_args()


def _prepare(copy: Path, target: Target) -> None:
    """A copy of the project that mutmut takes: without decorators, and configured."""
    copy.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source = ROOT / name
        take = shutil.copytree if source.is_dir() else shutil.copy
        take(source, copy / name)
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    for pattern in target.mutated:
        for file in copy.glob(pattern):
            file.write_text(undecorated(file.read_text(encoding="utf-8")), encoding="utf-8")
    settings = {
        "source_paths": ["adamwprune"],
        "only_mutate": list(target.mutated),
        "also_copy": [name for name in (*COPIED, *FILES) if name not in ("adamwprune", "tests")],
        "pytest_add_cli_args_test_selection": list(target.tests),
        "timeout_multiplier": 2.0,  # of a test's own time, twice
        "timeout_constant": 5.0,
    }
    _take_over(copy / "tests")
    with (copy / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("\n[tool.mutmut]\n")
        file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())


def _take_over(tests: Path) -> None:
    shutil.copy(ROOT / "tests" / "mutations" / "in_the_copy.py", tests / "in_the_copy.py")
    with (tests / "conftest.py").open("a", encoding="utf-8") as file:
        file.write("\nfrom tests.in_the_copy import pytest_runtestloop\n")


def _generate(copy: Path) -> None:
    """Mutants, and which tests call which function; then mutmut stops, for none has this name."""
    _call(copy, copy, "mutmut", "run", "none-is-drawn-yet")


def _run(copy: Path, target: Target) -> None:
    _call(copy, copy / "mutants", "pytest", "-q", "-p", "no:cacheprovider", *target.tests, RUN_MUTANTS="1")


def _call(copy: Path, folder: Path, module: str, *arguments: str, **variables: str) -> None:
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "MUTANT_UNDER_TEST": "", **variables}
    with (copy / "log.txt").open("ab") as log:
        command = [sys.executable, "-m", module, *arguments]
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)


def _results(copy: Path) -> dict[Path, dict[str, int | None]]:
    """Exit code of each mutant, by the file that mutmut keeps them in."""
    files = sorted((copy / "mutants").rglob("*.meta"))
    return {file: json.loads(file.read_text(encoding="utf-8"))["exit_code_by_key"] for file in files}


def _draw(copy: Path, sample: int | None, seed: int) -> None:
    """Leave the drawn mutants to be run; the same seed draws the same of the same code."""
    results = _results(copy)
    names = sorted(name for codes in results.values() for name in codes)
    drawn = names if sample is None else random.Random(seed).sample(names, min(sample, len(names)))
    for file in results:
        content = json.loads(file.read_text(encoding="utf-8"))
        codes = content["exit_code_by_key"]
        content["exit_code_by_key"] = {name: None if name in drawn else NOT_DRAWN for name in codes}
        file.write_text(json.dumps(content), encoding="utf-8")


def _status(code: int | None) -> str:
    return "not run" if code is None else STATUS.get(code, "killed")


def _draw_survivors_again(copy: Path) -> None:
    """With the tests as they are now; of new ones nobody knows what they call, so all of them are run."""
    shutil.rmtree(copy / "mutants" / "tests")
    shutil.copytree(ROOT / "tests", copy / "mutants" / "tests")
    _take_over(copy / "mutants" / "tests")
    for file, codes in _results(copy).items():
        content = json.loads(file.read_text(encoding="utf-8"))
        again = {name: None if _status(code) in AGAIN else code for name, code in codes.items()}
        file.write_text(json.dumps({**content, "exit_code_by_key": again}), encoding="utf-8")


def _tell(copy: Path) -> None:
    """The figures, and the difference of each mutant that no test noticed."""
    results = _results(copy)
    counts = Counter(_status(code) for codes in results.values() for code in codes.values())
    print(
        f"{counts.total()} mutants: " + ", ".join(f"{count} {name}" for name, count in counts.most_common())
    )
    for file, codes in results.items():
        source = file.with_suffix("").read_text(encoding="utf-8")
        functions = {
            node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)
        }
        for name in sorted(name for name, code in codes.items() if _status(code) in AGAIN):
            changed = name.rpartition(".")[2]
            original = functions[changed.partition("__mutmut_")[0] + "__mutmut_orig"]
            pair = (ast.unparse(node).splitlines()[1:] for node in (original, functions[changed]))
            print(f"\n{_status(codes[name])}: {name}")
            print(
                "\n".join(
                    line for line in difflib.unified_diff(*pair, n=0, lineterm="") if line[:2] in ("- ", "+ ")
                )
            )


if __name__ == "__main__":
    main()
