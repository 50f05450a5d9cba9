"""`replay`: a run, from its metrics.jsonl, in a tracker that it never had or that lost it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adamwprune.composition import compose, given_keys, quoted, to_config
from adamwprune.errors import ConfigError, TrackerError
from adamwprune.preflight import check_trackers
from adamwprune.run_directory import SUMMARY, locked, read_json
from adamwprune.track.close import close
from adamwprune.track.fill import patient_trackers
from adamwprune.track.recorded import KILLED, refuse_running, run_info, run_state
from adamwprune.track.sync import make_whole
from adamwprune.trackers.backend import recorded_facts


def replay(directory: Path, names: Sequence[str], overrides: Sequence[str] = ()) -> int:
    """Rebuild a run in the trackers `names`, and print how they compare; 0 if all are whole, else 6.

    trackers/<name>.json keeps the options, so that `status`, `verify` and `sync` know the tracker
    from then on.

    Args:
        directory: the run's folder.
        names: options of conf/tracker.
        overrides: `tracker.NAME.KEY=VALUE` on top of those.
    """
    refuse_running(directory)
    run = run_info(directory)
    options = compose_options(names, overrides, project=run.project)
    if run_state(directory) == KILLED:
        close(directory)
        run = run_info(directory)
    with locked(run.directory):
        summary = read_json(run.directory / SUMMARY)
        trackers = patient_trackers(options, run)
        # A server may have lost what the folder's copy has; it is asked, and sent what it lacks.
        online = [name for name in trackers if recorded_facts(run, name).get("mode") == "online"]
        return 0 if make_whole(trackers, run, summary, online) else TrackerError.exit_code


def compose_options(names: Sequence[str], overrides: Sequence[str], **keys: str) -> dict[str, dict[str, Any]]:
    """The `tracker` nodes of options of conf/tracker, checked as those of a run.

    Args:
        names: the options.
        overrides: on top of them.
        keys: what their interpolations refer to, such as `project`.

    Raises:
        ConfigError: an override that is not below `tracker`, or is wrong.
        TrackerError: a package is not installed.
    """
    for key in given_keys(list(overrides)):
        if not key.startswith("tracker."):
            raise ConfigError(f"{key}: not a key of a tracker; give tracker.NAME.KEY=VALUE")
    chosen = f"tracker=[{','.join(names)}]"
    others = [f"{key}={quoted(value)}" for key, value in keys.items()]
    config = to_config(compose([chosen, *others, *overrides]))
    check_trackers(config)
    return config.tracker
