"""`dashboard`: which project, port and folder Trackio's dashboard is asked for."""

import os
from pathlib import Path

from adamwprune.errors import ConfigError
from adamwprune.trackers.trackio import PORT


def dashboard(project: str | None, port: str | None, directory: Path | None) -> None:
    """Serve the dashboard until Ctrl-C; the port is the flag's, else TRACKIO_PORT, else 7860."""
    chosen = choose_port(port)

    from adamwprune.trackers.dashboard import serve

    serve(project, chosen, directory)


def choose_port(flag: str | None) -> int:
    """The port, checked.

    Raises:
        ConfigError: it is no port.
    """
    environment = os.environ.get("TRACKIO_PORT")
    name, text = ("--port ", flag) if flag is not None else ("TRACKIO_PORT=", environment or str(PORT))
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ConfigError(f"{name}{text}: must be an integer from 1 to 65535, such as {PORT}")
    return int(text)
