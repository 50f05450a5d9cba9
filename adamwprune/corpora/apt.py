"""Packages of a Debian system as files: found and fetched by apt, without root and beside the system.

apt works on lists in a folder of ours, fetched anew from the system's own sources. Nothing is
installed, no file of the system changes, and a machine whose lists are old or were removed, as in
most containers, will do.
"""

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from adamwprune.data.files.cache import NotThere, disk_errors, file_sha256

log = logging.getLogger(__name__)

TOOLS = ("apt-get", "apt-cache", "dpkg-deb")
# A dead network must not hold a run for minutes; 50 MB on a slow line still fit.
SECONDS = 900
# A dead mirror is given up soon, and what apt would fetch beside the lists of packages is not read here.
# Images of containers turn the cache off, without which every call reads all lists again.
SETTINGS = (
    "Acquire::http::Timeout=15",
    "Acquire::https::Timeout=15",
    "Acquire::Retries=1",
    "Acquire::Languages=none",
    "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
    "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
    "Dir::Cache::pkgcache=pkgcache.bin",
    "Dir::Cache::srcpkgcache=srcpkgcache.bin",
)

# 'http://HOST/debian/pool/main/p/perl/perl-doc_5.36_all.deb' perl-doc_5.36_all.deb 7909200 SHA256:e9e3...
# In the archive of security updates it is pool/updates/main.
PRINTED = re.compile(
    r"^'\S+/pool/(?:updates/)?([^/\s]+)/\S+' (\S+\.deb) (\d+) SHA256:([0-9a-f]{64})\s*$", re.MULTILINE
)


@dataclass(frozen=True)
class Package:
    """A version of a package, as the archive's signed lists describe it."""

    name: str
    version: str
    component: str  # of the archive: main, non-free, ...
    file_name: str
    bytes: int
    sha256: str


class Apt:
    """apt with its lists in `folder`, and the sources of the system or of the file `sources`."""

    def __init__(self, folder: Path, sources: Path | None = None) -> None:
        self._folder = folder
        settings = [*SETTINGS, f"Dir::State::Lists={folder}/lists", f"Dir::Cache={folder}/cache"]
        if sources is not None:
            settings += [f"Dir::Etc::SourceList={sources.absolute()}", "Dir::Etc::SourceParts=/dev/null"]
        self._options = [part for setting in settings for part in ("-o", setting)]

    def update(self) -> None:
        """Fetch the lists; what cannot be had is left as it was, with a warning.

        Raises:
            NotThere: this is no Debian system.
        """
        if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
            raise NotThere(f"{missing[0]} is not on this machine, which is no Debian system")
        for part in ("lists/partial", "cache/archives/partial"):
            with disk_errors(self._folder):
                (self._folder / part).mkdir(parents=True, exist_ok=True)
        try:
            self._run("apt-get", "-q", "update")
        except NotThere as error:
            log.warning("apt-get update: %s", error)

    def repositories(self, origin: str) -> list[tuple[str, str]]:
        """Address and suite of each repository of `origin` among the sources."""
        form = "$(ORIGIN)\t$(REPO_URI)\t$(SUITE)\t$(CODENAME)"
        lines = self._run("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines()
        fields = {tuple(line.split("\t")[1:]) for line in lines if line.startswith(f"{origin}\t")}
        return sorted((address, codename or suite) for address, suite, codename in fields)

    def names(self) -> list[str]:
        """All names of packages, sorted; some may be mentioned only, and not to be had."""
        return sorted(self._run("apt-cache", "pkgnames").split())

    def find(self, names: Sequence[str]) -> dict[str, Package]:
        """The versions that apt would install, by name; what is not to be had is left out."""
        # Unknown names are an error, which concerns them alone.
        printed = self._complete("apt-get", "--print-uris", "download", *names).stdout
        found = {}
        for component, file_name, size, sha256 in PRINTED.findall(printed):
            name, version, _ = (unquote(part) for part in file_name.split("_"))
            found[name] = Package(name, version, component, Path(file_name).name, int(size), sha256)
        return found

    def fetch(self, package: Package, folder: Path) -> Path:
        """The package's file in `folder`: one that is there and whole is kept, else it is fetched.

        Raises:
            NotThere: apt cannot get it, or gets something else.
        """
        file = folder / package.file_name
        if not (file.exists() and file_sha256(file) == package.sha256):
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                file.unlink(missing_ok=True)
            self._run("apt-get", "-q", "download", f"{package.name}={package.version}", folder=folder)
            if not file.exists() or file_sha256(file) != package.sha256:
                raise NotThere(f"{file}: is not the {package.name} {package.version} of apt's lists")
        return file

    def _run(self, tool: str, *arguments: str, folder: Path | None = None) -> str:
        """What the tool prints.

        Raises:
            NotThere: it fails; the message is the last error that it names.
        """
        done = self._complete(tool, *arguments, folder=folder)
        if done.returncode == 0:
            return done.stdout
        errors = [line for line in done.stderr.splitlines() if line.startswith("E: ")]
        raise NotThere((errors or [f"{tool} ended with {done.returncode}"])[-1].removeprefix("E: "))

    def _complete(
        self, tool: str, *arguments: str, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [tool, *self._options, *arguments],
                cwd=folder,
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise NotThere(f"{tool} was not done after {SECONDS} s") from error


def newest(pattern: str, names: Sequence[str]) -> str | None:
    """The name that the regular expression matches; of several, that with the highest number in it."""
    matching = [name for name in names if re.fullmatch(pattern, name)]
    return max(matching, key=lambda name: [int(number) for number in re.findall(r"\d+", name)], default=None)
