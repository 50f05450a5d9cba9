"""File systems of this process alone: nobody else sees them, and they are gone with it, however it ends.

    with small_file_system(folder, 4 * MIB): ...      a tmpfs
    with ext4(image, folder, "noauto_da_alloc"): ...  an image in a file, by a loop device

Both need root.
"""

import ctypes
import functools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 2**20
# linux/sched.h and sys/mount.h
_NEW_NAMESPACE, _RECURSIVE, _PRIVATE = 0x20000, 16384, 1 << 18


@functools.cache
def obstacle() -> str:
    """Why nothing can be mounted here; empty where it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NAMESPACE) or libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None):
        return f"no mount namespace of our own: {os.strerror(ctypes.get_errno())}"
    return ""


@contextmanager
def small_file_system(folder: Path, size: int) -> Iterator[Path]:
    """A tmpfs of so many bytes on `folder`, which is created."""
    folder.mkdir(parents=True)
    with _mounted("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder):
        yield folder


@contextmanager
def ext4(image: Path, folder: Path, options: str = "defaults") -> Iterator[Path]:
    """The file system in `image` on `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with _mounted("-t", "ext4", "-o", f"loop,{options}", image, folder):
        yield folder


def ext4_obstacle(folder: Path) -> str:
    """Why there can be no ext4 of our own; empty where there can. `folder` is created."""
    if reason := obstacle():
        return reason
    folder.mkdir()
    try:
        make_ext4(folder / "image", MIB)
        with ext4(folder / "image", folder / "mounted"):
            return ""
    except OSError as error:
        return str(error)


def trigger_error(folder: Path) -> None:
    """Have the ext4 on `folder` find an error in itself."""
    source = subprocess.run(["findmnt", "-no", "SOURCE", folder], capture_output=True, text=True, check=True)
    device = Path(source.stdout.strip()).name
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("an error of a test's own\n")


def make_ext4(image: Path, size: int) -> None:
    """An empty file system of so many bytes in a new file."""
    with image.open("wb") as stream:
        stream.truncate(size)
    _run("mkfs.ext4", "-q", "-F", image)


@contextmanager
def _mounted(*arguments: str | Path) -> Iterator[None]:
    _run("mount", *arguments)
    try:
        yield
    finally:
        _run("umount", arguments[-1])


def _run(*command: str | Path) -> None:
    """A command without output; raises OSError with what it says where it fails."""
    # mkfs lies where only root's PATH leads.
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip() or done.returncode}")
