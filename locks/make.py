"""Write the lock files: every package of the project with the SHA-256 of each of its files.

    python locks/make.py [--cpu-wheel FILE ...]

    build.txt    what builds this project, and the one dependency that comes as source
    base.txt     all dependencies but torch, for Python 3.10 to 3.13 on Linux and macOS, x86_64 and arm64
    cuda.txt     torch as the index has it, with CUDA's libraries on Linux
    cpu.txt      torch's CPU builds, which other places than the index have: of the wheels given here

Versions are those of constraints.txt. `uv` resolves them for all systems at once and must be on the PATH
(pip install uv); the index is the one that it is configured for, and its name stays out of the files.
"""

import argparse
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

LOCKS = Path(__file__).resolve().parent
ROOT = LOCKS.parent
# What torch alone brings.
CUDA = re.compile(r"(torch|triton|cuda-.*|nvidia-(?!ml-py).*)")
OLDEST = "3.10"
HEAD = "# Made by python locks/make.py; see there.\n"


def main() -> None:
    """Resolve twice, split, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu-wheel", type=Path, nargs="+", default=[], metavar="FILE")
    wheels = parser.parse_args().cpu_wheel
    entries = resolve(str(ROOT / "setup.cfg"), "--extra", "all", "--extra", "test")
    with_torch = [entry for entry in entries if CUDA.fullmatch(name_of(entry))]
    write("base.txt", [entry for entry in entries if entry not in with_torch])
    write("cuda.txt", with_torch)
    write("build.txt", resolve("-", given="pip\nsetuptools>=77\nwheel\n"))
    if wheels:
        hashes = " \\\n    ".join(
            f"--hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in wheels
        )
        (version,) = {file.name.split("-")[1] for file in wheels}
        write("cpu.txt", [f"torch=={version} \\\n    {hashes}\n"])


def resolve(source: str, *options: str, given: str | None = None) -> list[str]:
    """The requirements that `uv` finds for all systems, each with its hashes."""
    if (uv := shutil.which("uv")) is None:
        raise SystemExit("uv is not on the PATH; pip install uv")
    command = [uv, "pip", "compile", source, *options, "--constraints", str(ROOT / "constraints.txt")]
    command += ["--universal", "--python-version", OLDEST, "--generate-hashes", "--no-annotate"]
    command += ["--no-header", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]
    text = subprocess.run(command, input=given, check=True, capture_output=True, text=True).stdout
    return re.findall(r"^\S.*(?:\n[ ].*)*\n", text, re.MULTILINE)


def name_of(entry: str) -> str:
    """The package of a requirement."""
    return entry.partition("==")[0]


def write(name: str, entries: list[str]) -> None:
    """Write one lock file."""
    (LOCKS / name).write_text(HEAD + "".join(entries), encoding="utf-8")
    print(f"{name}: {len(entries)} requirements, {sum(entry.count('--hash=') for entry in entries)} files")


if __name__ == "__main__":
    main()
