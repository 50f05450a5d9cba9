"""The harness of faults can see what it looks for, and its page says what it found."""

import json

import pytest

from tests.faults import __main__ as command
from tests.faults.harness import Control, Outcome, run_one, to_json
from tests.faults.report import PAGE, RESULTS, tables, with_tables

NOTICED = Control("broken on purpose", 10, 10)


@pytest.mark.parametrize(
    ("outcome", "holds"),
    [
        (Outcome("f", "p", 3, controls=[NOTICED]), True),
        (Outcome("f", "p", 3, ["one"], controls=[NOTICED]), False),
        (Outcome("f", "p", 0, controls=[NOTICED]), False),
        (Outcome("f", "p", 3), False),
        (Outcome("f", "p", 3, controls=[Control("c", 10, 9)]), False),
        (Outcome("f", "p", 3, controls=[Control("c", 10, 9, least=0.5)]), True),
        (Outcome("f", "p", 3, controls=[Control("c", 0, 0)]), False),
        (Outcome("f", "p", skipped="no root"), True),
    ],
)
def test_a_promise_is_kept_only_by_trials_without_failure_and_controls_that_are_noticed(outcome, holds):
    assert to_json(outcome, "f", "short", 1, 1.0)["holds"] is holds


def test_a_harness_that_fails_is_a_broken_promise(tmp_path):
    """A module that does not exist, as one that raises."""
    result = run_one("nothing", "short", 1, tmp_path)
    assert not result["holds"]
    assert "ModuleNotFoundError" in result["failures"][0]


def test_every_kind_of_fault_is_a_module():
    """Its name in the command is that of a file here, and each file with a run() is named there."""
    folder = PAGE.parents[1] / "tests" / "faults"
    written = {
        file.stem for file in folder.glob("*.py") if "\ndef run(tier" in file.read_text(encoding="utf-8")
    }
    assert written == {*command.FAULTS, *command.ALONE}


def test_figures_over_their_goal_are_told():
    outcome = Outcome("f", "p", 1, figures={"s": 2.0, "n": 1}, goals={"s": 1.0, "n": 1}, controls=[NOTICED])
    assert outcome.missed == ["s: 2.0, goal 1"]
    assert outcome.holds


def test_the_page_has_the_tables_of_the_results():
    """docs/reliability.md is what `python -m tests.faults.report` makes of the committed results."""
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page, tables(json.loads(RESULTS.read_text(encoding="utf-8")))) == page


def test_another_result_is_another_page():
    """Control: one figure changed is seen."""
    page, results = PAGE.read_text(encoding="utf-8"), json.loads(RESULTS.read_text(encoding="utf-8"))
    results["faults"][0]["trials"] += 1
    assert with_tables(page, tables(results)) != page
