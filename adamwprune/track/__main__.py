"""Look at runs and their trackers; fill, rebuild, test and show a tracker.

A RUN is the folder of a run, such as outputs/DATE/TIME_NAME. replay and
import-wandb take keys of a tracker too, as in tracker.wandb.mode=offline; a
tracker outside this package needs 'allow_targets=[...]', as for train.py.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path

from adamwprune.command_line import Parser, exit_codes
from adamwprune.composition import CONF_DIR, trusted
from adamwprune.errors import ConfigError

# Options of conf/tracker that are one tracker each.
TRACKERS = tuple(
    sorted(file.stem for file in (CONF_DIR / "tracker").glob("*.yaml") if file.stem not in ("none", "both"))
)
# Of these, those that keep a run elsewhere than in its folder.
ELSEWHERE = ("trackio", "mlflow")
# What of a command line is an override, as train.py has them; all else is argparse's.
OVERRIDES = ("tracker.", "allow_targets=")
# 128 + SIGPIPE, as a shell shows it.
BROKEN_PIPE = 141
Command = Callable[[argparse.Namespace], int]


def parser() -> Parser:
    """The command line of all commands."""
    made = Parser(
        prog="python -m adamwprune.track",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(function: Command) -> argparse.ArgumentParser:
        """Add a command: its name and help are those of the function that runs it."""
        assert function.__doc__ is not None
        name = function.__name__.strip("_").replace("_", "-")
        help_text = function.__doc__.partition("\n")[0]
        added = commands.add_parser(
            name,
            help=help_text,
            description=inspect.cleandoc(function.__doc__),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=function)
        return added

    one = {"type": Path, "metavar": "RUN"}
    many = {"type": Path, "metavar": "RUN", "nargs": "*"}
    names = {"choices": TRACKERS, "metavar": "TRACKER", "nargs": "+"}
    status = command(_status)
    status.add_argument("runs", help="a run, or a folder of runs (outputs and multirun)", **many)
    command(_verify).add_argument("run", **one)
    diff = command(_diff)
    diff.add_argument("left", **one)
    diff.add_argument("right", help="a run, or a .wandb file", **one)
    diff.add_argument("--all", action="store_true", help="compare times, perf/ and memory/ too")
    sync = command(_sync)
    sync.add_argument("runs", help="a run, or a folder of runs (all that `status` finds incomplete)", **many)
    replay = command(_replay)
    replay.add_argument("run", **one)
    replay.add_argument("--to", required=True, help=f"{', '.join(TRACKERS)}; several too", **names)
    bring = command(_import_wandb)
    bring.add_argument(
        "directories",
        type=Path,
        metavar="DIR",
        nargs="+",
        help="offline-run-... folders, of any runs",
    )
    bring.add_argument("--to", choices=ELSEWHERE, default="trackio", help="trackio, the default, or mlflow")
    close = command(_close)
    close.add_argument("run", **one)
    close.add_argument("--exit-code", type=int, default=137, metavar="N", help="1 to 255 (%(default)s)")
    test = command(_test)
    test.add_argument("trackers", help=", ".join(TRACKERS), **names)
    test.add_argument("--keep", action="store_true", help="leave what was stored, and say where")
    dashboard = command(_dashboard)
    dashboard.add_argument("--project", help="the project that it opens with (all)")
    dashboard.add_argument("--port", help="1 to 65535 (TRACKIO_PORT, else 7860)")
    dashboard.add_argument("--dir", type=Path, help="folder of the databases (as tracker.trackio.dir)")
    command(_metrics).add_argument("run", **one)
    return made


def _status(given: argparse.Namespace) -> int:
    """Say what is where, and what is not sent yet.

    Running, killed or ended; rows in metrics.jsonl and in each tracker's store;
    the command that sends what is missing. Into a pipe: one line for each run and
    tracker, fields separated by tabs.
    """
    from adamwprune.track.status import print_status

    print_status(given.runs, given.allowed)
    return 0


def _verify(given: argparse.Namespace) -> int:
    """Compare a run's trackers with its metrics.jsonl.

    Each tracker's own store is read back, value by value.
    Exit code 0: all equal; 1: not equal, or a store that cannot be read.
    """
    from adamwprune.track.compare import verify

    return int(not verify(given.run, given.allowed))


def _diff(given: argparse.Namespace) -> int:
    """Compare two runs: configurations, then every value.

    What is measured (times, perf/, memory/) is left out. Exit code 0: the values
    are equal, even if the configurations are not; 1: they differ.
    """
    from adamwprune.track.compare import diff

    return int(not diff(given.left, given.right, with_measured=given.all))


def _sync(given: argparse.Namespace) -> int:
    """Send to trackers what their stores lack.

    The stores are compared before and after. W&B runs that are only here are
    uploaded where a key and a server exist. A killed run is closed first. A second
    sync sends nothing. Exit code 0: nothing is missing; 6: something still is.
    """
    from adamwprune.track.sync import sync_all

    return sync_all(given.runs, given.allowed)


def _replay(given: argparse.Namespace) -> int:
    """Rebuild a run in trackers that it never had, or that lost it.

    From metrics.jsonl, with original steps and times; a second replay adds
    nothing. Exit code 0: all equal; 6: not.
    """
    from adamwprune.track.replay import replay

    return replay(given.run, given.to, given.overrides)


def _import_wandb(given: argparse.Namespace) -> int:
    """Bring offline W&B runs into Trackio.

    Of this or any other program, with its steps, times, configuration, name and
    group; a second import adds nothing. Exit code 0: all equal; 6: not.
    """
    from adamwprune.track.import_wandb import import_wandb

    return max([import_wandb(directory, given.to, given.overrides) for directory in given.directories])


def _close(given: argparse.Namespace) -> int:
    """End a run that was killed.

    Writes summary.json and an alert, and ends the run in each of its trackers.
    """
    from adamwprune.track.close import close

    if not 1 <= given.exit_code <= 255:
        raise ConfigError(f"--exit-code {given.exit_code}: must be from 1 to 255; 137 is a SIGKILL")
    summary = close(given.run, given.exit_code, given.allowed)
    for name, state in summary["trackers"].items():
        print(f"{name}: {state['state']}")
    print(f"{given.run}: closed as killed at step {summary['steps']}, exit code {summary['exit_code']}")
    return 0


def _test(given: argparse.Namespace) -> int:
    """Send a fake training to trackers, and read it back.

    1,000 steps through the callbacks of a real one, in a temporary folder,
    compared value by value; W&B against a server of its own on 127.0.0.1, or with
    WANDB_ONLINE=1 against the real one. Exit code 0: all equal; 6: not.
    """
    from adamwprune.track.fake_training import try_out

    results = [try_out(name, keep=given.keep) for name in given.trackers]
    return 0 if all(results) else 6


def _dashboard(given: argparse.Namespace) -> int:
    """Serve Trackio's dashboard on 127.0.0.1, until Ctrl-C."""
    from adamwprune.track.dashboard import dashboard

    dashboard(given.project, given.port, given.dir)
    return 0


def _metrics(given: argparse.Namespace) -> int:
    """Print the last value of each metric, and the alerts."""
    from adamwprune.track.metrics import print_metrics

    print_metrics(given.run)
    return 0


def main(arguments: list[str]) -> int:
    """Run one command; its exit code."""
    overrides = [argument for argument in arguments if argument.startswith(OVERRIDES)]
    given = parser().parse_args([argument for argument in arguments if argument not in overrides])
    # As for train.py: only a command line may trust code outside this package.
    given.allowed = trusted(overrides)
    given.overrides = [override for override in overrides if override.startswith("tracker.")]
    if given.overrides and given.command not in (_replay, _import_wandb):
        raise ConfigError(f"{given.overrides[0]}: only replay and import-wandb take keys of a tracker")
    command: Command = given.command
    return command(given)


if __name__ == "__main__":
    with exit_codes():
        try:
            code = main(sys.argv[1:])
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of a pipe has gone, as `head` goes
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = BROKEN_PIPE
        sys.exit(code)
