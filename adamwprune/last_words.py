"""summary.json of a run whose process could not write it: stopped at its start, or left in a hurry.

It holds what the rows tell, as `adamwprune.track close` writes it for a run that was killed. A summary
that is there stays: it is this session's, or that of an earlier one and the run is as it was.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adamwprune.errors import Interrupted, RunError, exit_code_of
from adamwprune.run_directory import SUMMARY, locked, write_json

log = logging.getLogger(__name__)


@contextmanager
def told(directory: Path) -> Iterator[None]:
    """Whatever ends the run in here is in its summary.json."""
    try:
        yield
    except BaseException as error:
        code = exit_code_of(error)
        text = f"ended with exit code {code}" if isinstance(error, SystemExit) else str(error)
        try:
            with locked(directory):
                say(directory, code, text)
        except (RunError, OSError) as second:  # such as another process that is at this run
            log.debug("%s: no summary: %s", directory, second)
        raise


def say(directory: Path, exit_code: int, text: str) -> None:
    """Write summary.json where there is none; the caller knows that nobody else does."""
    from adamwprune.track.close import summary_of_rows  # which only a run that ends here needs
    from adamwprune.track.recorded import run_info

    if (directory / SUMMARY).exists():
        return
    summary = summary_of_rows(run_info(directory), exit_code) | {"error": text}
    if exit_code == Interrupted.exit_code:
        summary["status"] = "interrupted"
    write_json(directory / SUMMARY, summary)
