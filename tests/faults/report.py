"""The tables of docs/reliability.md, from the results of a run of all faults.

python -m tests.faults --tier long --out tests/faults/results/long.json
python -m tests.faults.report                      writes them into the page
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "faults" / "results" / "long.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- made by python -m tests.faults.report: begin -->\n", "<!-- end -->\n"


def tables(results: dict[str, Any]) -> str:
    """Markdown: what was done and came of it, the controls, and what missed its goal."""
    faults = results["faults"]
    done = [fault for fault in faults if not fault.get("skipped")]
    trials, minutes = sum(fault["trials"] for fault in done), results["seconds"] / 60
    machine = f"{results['system']}, {results['cores']} cores, Python {results['python']}"
    lines = [
        f"`{results['command']}`: {len(done)} kinds of fault, {trials:,} trials, {minutes:.0f} minutes, "
        f"two kinds at a time in half of that ({machine}, torch {results['torch']}).",
        "",
        "| fault | what must hold | trials | broken | figures | elsewhere |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| `{fault['name']}`: {fault['fault']} | {fault['promise']} | {fault['trials']:,} | "
            f"{len(fault['failures'])} | {_figures(fault)} | {fault['peer'] or '-'} |"
            for fault in done
        ),
        "",
        "Each look is also taken at something that is broken on purpose; it must be noticed:",
        "",
        "| fault | broken on purpose | noticed |",
        "| --- | --- | --- |",
        *(
            f"| `{fault['name']}` | {control['what']} | {control['noticed']} of {control['trials']} |"
            for fault in done
            for control in fault["controls"]
        ),
        "",
        "What did not reach its goal, or was not done:",
        "",
        *(_shortfalls(faults) or ["- nothing in this run"]),
    ]
    return "\n".join(lines) + "\n"


def _figures(fault: dict[str, Any]) -> str:
    def one(name: str, value: float | str) -> str:
        goal = f" (goal {fault['goals'][name]:g})" if name in fault["goals"] else ""
        shown = (
            f"{value:,.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        )
        return f"{name}: {shown}{goal}"

    return "; ".join(one(name, value) for name, value in fault["figures"].items()) or "-"


def _shortfalls(faults: list[dict[str, Any]]) -> list[str]:
    def of(fault: dict[str, Any]) -> Iterator[str]:
        if fault.get("skipped"):
            yield f"- `{fault['name']}` was not done: {fault['skipped']}"
        yield from (f"- `{fault['name']}`: {line}" for line in fault["missed"])
        yield from (f"- `{fault['name']}`, a promise that was broken: {line}" for line in fault["failures"])

    return [line for fault in faults for line in of(fault)]


def with_tables(page: str, made: str) -> str:
    """The page with its part between the marks replaced."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{PAGE.name}: the marks around the tables are missing")
    return before + BEGIN + made + END + after


def main() -> None:
    """Write the tables into the page."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    made = tables(json.loads(file.read_text(encoding="utf-8")))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
