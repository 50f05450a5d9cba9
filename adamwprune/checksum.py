"""The project name that keeps one machine's and one directory's experiments together.

`{model}-{checksum}`: the checksum is the first five hexadecimal digits of the MD5 of
`hostname-ip-directory` and a newline. Users of the ancestor (mcgrof/AdamWPrune) find their
projects under the same names; it identifies, it protects nothing.
"""

import hashlib
import re
import socket
import subprocess
from pathlib import Path


def project_checksum(hostname: str, address: str, directory: str) -> str:
    """First 5 hex digits of the MD5 of `hostname-address-directory` + newline."""
    text = f"{hostname}-{address}-{directory}\n"
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:5]


def model_slug(model: str) -> str:
    """`model` with every character outside A-Z a-z 0-9 and dash made a dash; never empty."""
    return re.sub(r"[^A-Za-z0-9-]", "-", model) or "adamwprune"


def host_name() -> str:
    """The host name before its first dot, or `unknown`."""
    return socket.gethostname().partition(".")[0] or "unknown"


def host_address() -> str:
    """The first address of `hostname -I` with dashes for dots, or `0-0-0-0`; asks no network."""
    try:
        answer = subprocess.run(
            ["hostname", "-I"], capture_output=True, text=True, timeout=5, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        answer = ""
    return (answer.split() or ["0-0-0-0"])[0].replace(".", "-")


def local_checksum() -> str:
    """The checksum of this host and the directory that the process was started in."""
    return project_checksum(host_name(), host_address(), Path.cwd().name)
