"""Fills trackers from a finished metrics.jsonl: with the same Mirror as training, no longer in a hurry."""

from collections.abc import Collection, Mapping
from typing import Any

from adamwprune.callbacks.base import RunInfo
from adamwprune.track.recorded import OPTIONS, build_trackers
from adamwprune.trackers.mirror import Mirror

# Seconds that a tracker may take for its rows and its end.
PATIENCE = 600.0


def patient_trackers(
    options: Mapping[str, Mapping[str, Any]], run: RunInfo, allowed: Collection[str] = ()
) -> dict[str, Mirror]:
    """The trackers of `tracker` nodes, with more time to finish than training gives them.

    Options that are not those of the run's configuration are kept in trackers/<name>.json.
    """
    patient = {
        name: {**node, **({"finish_timeout": PATIENCE} if "finish_timeout" in node else {})}
        for name, node in options.items()
    }
    trackers = build_trackers(patient, allowed)
    own = run.config.get("tracker") or {}
    for name, tracker in trackers.items():
        if name in options and options[name] != own.get(name):
            tracker.backend.facts[OPTIONS] = options[name]
    return trackers


def fill(trackers: Mapping[str, Mirror], run: RunInfo, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Send what the trackers lack and end their runs as `summary` says; what each says of itself."""
    is_finished = summary["status"] == "finished"
    # A finished run that ended with 6 had ended its trackers with 0: only then was it known.
    exit_code = 0 if is_finished else summary["exit_code"]
    for tracker in trackers.values():
        tracker.on_train_start(run)
        if is_finished:
            tracker.on_train_end(dict(summary))
        tracker.finish(exit_code)
    statuses: dict[str, Any] = {}
    for tracker in trackers.values():
        tracker.close(exit_code)
        statuses |= tracker.status()
    return statuses
