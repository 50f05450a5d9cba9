"""Trackio's dashboard, on 127.0.0.1 only.

Trackio would take the host from GRADIO_SERVER_NAME and a public tunnel from GRADIO_SHARE, the next
free port where one is in use, and print an address with a token that may delete runs. Here the host
is fixed, the port is the one asked for, and the address has no token: reading needs none, and
renaming and deleting are refused. Behaviour measured with Trackio 0.43.0.
"""

import errno
import importlib.util
import io
import os
import socket
import threading
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from adamwprune.errors import ConfigError, TrackerError
from adamwprune.trackers.backend import environment, first_line
from adamwprune.trackers.trackio import (
    PACKAGES,
    PORT,
    REMOTE,
    find_directory,
    refuse_other_directory,
    trackio_name,
)

HOST = "127.0.0.1"
LAST_PORT = 65535
# Trackio sorts sections by name, and final values would come first; within a section too, a metric
# that is named here comes first. TRACKIO_PLOT_ORDER in the environment wins.
PLOT_ORDER = (
    *("train/loss", "val/loss", "sparsity/global", "prune/churn", "perf/step_time_ms"),
    *("memory/peak_gib", "final/val/loss", "best/val/loss", "run/exit_code"),
)
# Folder beside the databases with rows that a run left as files, on a network file system.
FRAGMENTS = "inbox"


def serve(project: str | None, port: int, directory: Path | None) -> None:
    """Serve the dashboard until Ctrl-C, and print the address to open.

    Args:
        project: the project that it opens with; None is the first, any can be chosen in the page.
        port: 1 to 65535.
        directory: where the databases are; None is TRACKIO_DIR, else trackio/ below HF_HOME.

    Raises:
        ConfigError: the port is none or in use, or there is no such project.
        TrackerError: Trackio is not installed, or cannot read a database.
    """
    if importlib.util.find_spec("trackio") is None:
        (requirement,) = PACKAGES.values()
        raise TrackerError(f"dashboard: its package is not installed; pip install '{requirement}'")
    directory = find_directory(directory)
    project = _find_project(project, directory)
    _check_port(port)
    order = os.environ.get("TRACKIO_PLOT_ORDER") or ",".join(PLOT_ORDER)
    with environment(TRACKIO_DIR=str(directory), TRACKIO_PLOT_ORDER=order, **dict.fromkeys(REMOTE)):
        import trackio
        from trackio import utils

        refuse_other_directory(directory, utils)
        server, address = _start(trackio.show, project, port, directory)
        print(f"Trackio's dashboard: {address}{f'?project={project}' if project else ''}")
        print("Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        server.close()


def _start(show: Callable[..., Any], project: str | None, port: int, directory: Path) -> tuple[Any, str]:
    """Trackio's server, running, and its address."""
    try:
        # What Trackio prints has the token.
        with redirect_stdout(io.StringIO()):
            server, address, _, _ = show(
                project=project,
                host=HOST,
                server_port=port,
                share=False,
                mcp_server=False,
                open_browser=False,
                block_thread=False,
            )
    except RuntimeError as error:  # one database that Trackio cannot open is enough
        raise TrackerError(
            f"dashboard: {directory}: {first_line(error)}; if that database is damaged, move it away, and "
            "store its runs again with: python -m adamwprune.track sync"
        ) from error
    return server, address


def _find_project(project: str | None, directory: Path) -> str | None:
    """The project as Trackio names it.

    Raises:
        ConfigError: there is no such project, or none at all.
    """
    name = project and trackio_name(project)
    if any((directory / FRAGMENTS).rglob("*.jsonl")):
        return name  # which projects these have is known once Trackio has read them
    projects = sorted(file.stem for file in directory.glob("*.db"))
    if not projects:
        raise ConfigError(f"{directory}: no project is there; train with tracker=trackio, or give its --dir")
    if name and name not in projects:
        raise ConfigError(f"project={project}: not in {directory}; choose from {', '.join(projects)}")
    return name


def _check_port(port: int) -> None:
    """Raise ConfigError, with what to type, for a port that cannot be had."""
    if not 1 <= port <= LAST_PORT:
        raise ConfigError(
            f"tracker.trackio.port={port}: must be from 1 to {LAST_PORT}; the default is {PORT}"
        )
    if problem := _problem_with(port):
        others = [*range(port + 1, LAST_PORT + 1), *range(PORT, port)]
        free = next(other for other in others if not _problem_with(other))
        raise ConfigError(
            f"tracker.trackio.port={port}: {problem}; type TRACKIO_PORT={free} or --port {free}"
        )


def _problem_with(port: int) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the server does: a port that was in use a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return "in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
    return None
