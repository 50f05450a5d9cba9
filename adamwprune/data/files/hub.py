"""The Hugging Face hub, through `datasets`, imported only here and only when it is needed.

Without a network `load_dataset` retries for 23 s before it gives up. A probe of 3 s comes first.
"""

import importlib.util
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from adamwprune.data.files.cache import NotThere
from adamwprune.errors import DataError

PROBE_SECONDS = 3.0
# Earlier releases run code from a data set: CVE-2026-57845 (datasets <= 5.1.0).
OLDEST_DATASETS = (5, 2)


def require_packages(*names: str) -> None:
    """Packages that only the hub and parquet files need.

    Raises:
        NotThere: one is not installed.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise NotThere(f"the package {missing[0]} is not installed (pip install 'datasets>=5.2' pillow)")


def address() -> tuple[str, int]:
    """Host and port of the hub, or of the mirror that HF_ENDPOINT names."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)


def answers() -> bool:
    """Whether something accepts a connection at the hub's address, known after 3 s at the latest.

    Behind a proxy the address itself may well be unreachable, so there the answer is yes.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    reached, done = [], threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(address(), PROBE_SECONDS).close()
            reached.append(True)
        except OSError:
            pass
        finally:
            done.set()

    # In a thread, because the timeout of a connection does not cover the search for its name.
    threading.Thread(target=connect, daemon=True).start()
    done.wait(PROBE_SECONDS)
    return bool(reached)


def check() -> None:
    """The hub can be used now.

    Raises:
        NotThere: `datasets` is not installed, or nothing answers.
    """
    require_packages("datasets")
    if not answers():
        host, port = address()
        raise NotThere(f"{host}:{port} does not answer")


def load(location: str | Path, *, revision: str | None = None, **options: Any) -> Any:
    """`datasets.load_dataset` of a hub id at a pinned revision (40 hex digits), or of a local folder.

    Raises:
        NotThere: `datasets` is not installed, or the hub does not have or give it.
        DataError: `datasets` is too old, or a folder would be taken for the hub's data set.
    """
    require_packages("datasets")
    import datasets

    if tuple(int(part) for part in datasets.__version__.split(".")[:2]) < OLDEST_DATASETS:
        raise DataError(
            f"datasets {datasets.__version__} can run code from a data set; pip install 'datasets>=5.2'"
        )
    if isinstance(location, str) and Path(location).exists():
        raise DataError(
            f"the folder {location} here would be read in place of the hub's {location}; run elsewhere"
        )
    try:
        return datasets.load_dataset(str(location), revision=revision, **options)
    # Any library below may raise its own kind: connection, missing file, HTTP status, parquet.
    except Exception as error:
        raise NotThere(f"{location}: {type(error).__name__}: {first_line(error)}") from error


@contextmanager
def offline() -> Iterator[None]:
    """Inside, `datasets` answers from its cache or fails at once."""
    require_packages("datasets")
    import datasets
    from huggingface_hub import constants

    kept = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = kept


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [""])[0]
