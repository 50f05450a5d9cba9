"""A small Debian archive in a folder, for the real apt: packages made here, nothing signed, no network."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path


def deb(members: dict[str, bytes | tarfile.TarInfo], name: str, version: str) -> bytes:
    """A package with these members, whatever they are called; a TarInfo is taken as it is."""
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: T <t@t>\nDescription: t\n"
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": _tar({"./control": control.encode()}),
        "data.tar.gz": _tar(members),
    }
    content = b"!<arch>\n"
    for part, data in parts.items():
        content += f"{part:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        content += data + b"\n" * (len(data) % 2)
    return content


def _tar(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


class Archive:
    """The archive, and the file of sources that leads apt to it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._entries: list[str] = []
        root.mkdir()
        self.sources = root / "sources.list"
        self.sources.write_text(f"deb [trusted=yes] file:{root} ./\n")
        self._write_list()

    def add(
        self,
        name: str,
        pages: dict[str, bytes | tarfile.TarInfo],
        version: str = "1.0",
        component: str = "main",
    ) -> Path:
        """Put a package into the archive; its file."""
        file = self._root / "pool" / component / "x" / f"{name}_{version}_all.deb"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(deb(pages, name, version))
        content = file.read_bytes()
        self._entries.append(
            f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: T <t@t>\nDescription: t\n"
            f"Filename: ./pool/{component}/x/{file.name}\nSize: {len(content)}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        )
        self._write_list()
        return file

    def _write_list(self) -> None:
        (self._root / "Packages").write_text("\n".join(self._entries))
