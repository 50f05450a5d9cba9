"""F23: runs that each released version left unfinished, continued and exported by this one.

    python -m tests.faults.releases make     writes fixtures/<version>/, once for each release

A fixture is the folder of a tiny run that was stopped at half: run.json, configuration, rows, one checkpoint.
"""

import argparse
import json
import math
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file

from adamwprune import __version__, run_directory
from adamwprune.errors import CheckpointError
from adamwprune.export.run import export, open_run
from adamwprune.training import checkpoint
from tests.faults import disk_runs
from tests.faults.fork_server import continue_, spawn
from tests.faults.harness import Control, Outcome, Tier
from tests.helpers.runs import rows, summary
from tests.helpers.same_run import equal

FIXTURES = Path(__file__).with_name("fixtures")
HALF = disk_runs.STEPS // 2
# A tenth of the weights, so that a fixture has some 50 KB.
RUN = (
    *disk_runs.RUN,
    "model.n_layer=1",
    "model.n_embd=8",
    "checkpoint.keep=2",
    "project=released",
    "run_name=released",
)
KEPT = (run_directory.RECORD, "config.yaml", run_directory.METRICS, run_directory.MASK_UPDATES)


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Continue each fixture to its end, and export its weights."""
    outcome = Outcome(
        "an unfinished run of each released version",
        "continues in this version to its end, its rows unchanged; its weights are exported bitwise",
        peer="not tested by any of 12 frameworks as far as a search tells (reliability.md, section 1)",
    )
    fixtures = sorted(path for path in FIXTURES.iterdir() if path.is_dir())
    for fixture in fixtures:
        directory = Path(shutil.copytree(fixture, scratch / fixture.name))
        problems = export_problems(directory, scratch / f"export-{fixture.name}")
        problems += continue_problems(directory)
        outcome.trials += 1
        outcome.failures += [f"{fixture.name}: {problem}" for problem in problems]
    outcome.figures = {"versions": ", ".join(fixture.name for fixture in fixtures)}
    newer = Path(shutil.copytree(fixtures[-1], scratch / "newer"))
    of_a_later_format(newer)
    code = continue_(newer, "resume_allow=[environment]", before=disk_runs.without_picture).wait()
    outcome.controls.append(
        Control("a format that this version does not know", 1, int(code == CheckpointError.exit_code))
    )
    return outcome


def continue_problems(directory: Path) -> list[str]:
    """What is wrong once the run has been continued; its environment may be another one."""
    before = rows(directory)
    child = continue_(directory, "resume_allow=[environment]", before=disk_runs.without_picture)
    if code := child.wait():
        return [f"continued, it ends with {code}: {disk_runs.last_line(child)}"]
    after, end = rows(directory), summary(directory)
    problems = [] if after[: len(before)] == before else ["rows from before have changed"]
    if [row["step"] for row in after if "train/loss" in row] != list(range(1, disk_runs.STEPS + 1)):
        problems.append("not each step has its row")
    if end["steps"] != disk_runs.STEPS or not end["sparsity"]["reached"]:
        problems.append(f"summary.json: {end['steps']} steps, sparsity {end['sparsity']}")
    if not math.isfinite(end["metrics"]["final"]["val/loss"]):
        problems.append("the final loss is not finite")
    return problems


def export_problems(directory: Path, folder: Path) -> list[str]:
    """What is wrong with the exported weights."""
    folder.mkdir()
    source = open_run(directory)
    export(source, ["dense"], folder)
    weights = load_file(source.checkpoint.directory / checkpoint.WEIGHTS)
    exported = load_file(folder / "dense.safetensors")
    return [] if equal(weights, exported) else ["exported weights are not those of the checkpoint"]


def of_a_later_format(directory: Path) -> None:
    """Whole in itself, but of a format to come."""
    for _, path in checkpoint.steps_on_disk(directory / "checkpoints"):
        file = path / checkpoint.MANIFEST
        manifest = json.loads(file.read_text())
        file.write_text(json.dumps(checkpoint.sealed({**manifest, "schema": checkpoint.SCHEMA + 1})))


def make() -> None:
    """Write the fixture of this version; nothing in it tells of the machine that made it."""
    fixture = FIXTURES / __version__
    with tempfile.TemporaryDirectory() as scratch:
        child = spawn(
            Path(scratch, "run"), *RUN, f"trainer.stop_step={HALF}", before=disk_runs.without_picture
        )
        print(f"the run ended with {child.wait()} (75 was asked for)")
        newest = checkpoint.load_newest(child.directory / "checkpoints").directory
        fixture.mkdir(parents=True)
        for name in KEPT:
            shutil.copy(child.directory / name, fixture / name)
        shutil.copytree(newest, fixture / "checkpoints" / newest.name)
    record = run_directory.read_json(fixture / run_directory.RECORD)
    for session in record["sessions"]:
        session.update(host="somewhere", command=["train.py", *record["overrides"]])
    run_directory.write_json(fixture / run_directory.RECORD, record)
    print(f"{fixture}: {sum(file.stat().st_size for file in fixture.rglob('*') if file.is_file()):,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.faults.releases", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=["make"])
    parser.parse_args()
    make()
