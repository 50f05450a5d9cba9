"""Secrets in the environment, in files and on command lines, and a search of all that runs leave.

Canaries stand where keys and passwords stand: variables, ~/.netrc, a token file, proxies, the address of
the repository. Real runs with every tracker, a sweep, a run that fails with a traceback, an export and the
reading commands are made with them; afterwards no file below the working directory, HOME or the trackers'
folders and nothing that was printed may hold one, compressed or not. Those typed as overrides are refused
before anything is written, and not repeated. Control: a canary that was given as a note is found, in plain
files, in SQLite, in W&B's records and compressed.
"""

import base64
import contextlib
import gzip
import io
import os
import subprocess
import sys
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tests.faults.harness import Control, Outcome, Tier

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "train.py"
HEX = "c0ffee" * 6 + "beef"
# Name of a variable, or of the file below HOME -> canary.
ENVIRONMENT = {
    "WANDB_API_KEY": HEX,
    "HF_TOKEN": "hf_CANARYaaaaaaaaaaaaaaaaaaaaaaaaa1",
    "AWS_ACCESS_KEY_ID": "AKIACANARY0000000002",
    "AWS_SECRET_ACCESS_KEY": "CANARY/aws/secret+aaaaaaaaaaaaaaaaaaaaa3",
    "OPENAI_API_KEY": "sk-CANARYaaaaaaaaaaaaaaaaaaaaaaaaaaaaa4",
    "GITHUB_TOKEN": "ghp_CANARYaaaaaaaaaaaaaaaaaaaaaaaaaaaa5",
    "MLFLOW_TRACKING_PASSWORD": "CANARY-mlflow-password-6",
    "DATABASE_PASSWORD": "CANARY-database-password-7",
}
NETRC, PROXY, REMOTE, TOKEN_FILE, SERVER = (
    f"CANARY-{what}-secret" for what in ("netrc", "proxy", "remote", "file", "server")
)
CANARIES = (*ENVIRONMENT.values(), NETRC, PROXY, REMOTE, TOKEN_FILE, SERVER)
# Exit codes that are not 0: of the run that fails, and of the data that a dead proxy hides.
EXPECTED = {"raises": 1, "refused": 3}
# A note, which is meant to be kept: what the search must find.
NOTE = "CANARY-that-is-a-note"

TINY = (
    *("data=synthetic_images", "data.num_train=64", "data.num_val=32", "data.num_test=32", "project=secrets"),
    *("trainer.global_batch_size=16", "trainer.max_steps=8", "trainer.log_every=2", "hardware.threads=1"),
)
NAMES = ("trackio", "wandb", "tensorboard", "mlflow")
# All get the time that they need beside other faults.
TRACKERS = (f"tracker=[{','.join(NAMES)}]", *(f"tracker.{name}.finish_timeout=200" for name in NAMES))
# Typed with a canary in the place of {}: refused, without a word of it.
TYPED = (
    *("tracker.wandb.api_key={}", "+api_key={}", "++hydra.job.env_set.WANDB_API_KEY={}", "+hf_token={}"),
    *(
        "+db.password={}",
        "+aws_secret_access_key={}",
        "+model.client_secret={}",
        "+tracker.x={{api_key: {}}}",
    ),
    *("notes=sk-{}aaaaaaaaaaaa1", "run_name=hf_{}aaaaaaaaaaaa", "data.path=https://me:{}@example.org/x"),
    *(
        "tracker.mlflow.tracking_uri=postgresql://me:{}@db/x",
        "+credentials={}",
        "--api-key={}",
        "sk-{}aaaaaaaa1",
    ),
    *("notes=wandb_v1_{}aaaaaaaaaa", "+optimizer.access_key={}", "tags=[glpat-{}aaaaaaaaaaaa]"),
)
REFERRED = ("notes=${{oc.env:{}}}", "+data.x=${{oc.env:{},none}}", "run_name=${{oc.env:{}}}")
# Not secrets: they pass this check, whatever else is wrong with them.
HARMLESS = (
    *(
        "data.tokenizer=gpt2",
        "trainer.max_tokens=1000",
        f"data.revision={'0123456789' * 4}",
        "samples.tokens=3",
    ),
    *("data.bytes_per_token=2.85", "data=synthetic_tokens", "run_name=sk-learn", "notes=the key to all"),
    *("hydra.searchpath=[file:///a@b]", "data.path=/a@b/c", "notes='token: the unit of text'"),
)


def run(tier: Tier, seed: int, scratch: Path) -> Outcome:
    """Runs with canaries, then the search."""
    outcome = Outcome(
        "canaries in environment, netrc, token file, proxies, addresses and overrides of real runs",
        "in no file, tracker, log or output; key-like overrides exit 2 and are not repeated",
        peer="W&B keeps argv and configuration, Hydra an override in 4 files (reliability.md section 8)",
    )
    home, work = scratch / "home", scratch / "work"
    work.mkdir()
    environment = _environment(home)
    output = scratch / "output.txt"
    commands = _commands(tier)
    for name, command in commands.items():
        code = _call(command, work, environment, output)
        outcome.trials += 1
        if code != EXPECTED.get(name, 0):
            outcome.failures.append(f"{name}: exit {code}: {_tail(output)}")
    _refusals(outcome, work, environment)
    searched = [*_files(work), *_files(home), output]
    kept = {home / name for name in (".netrc", ".gitconfig", ".cache/huggingface/token")}
    for file in set(searched) - kept:
        for canary in found_in(file):
            outcome.failures.append(f"{canary} is in {file.relative_to(scratch)}")
    outcome.figures |= {"canaries": len(CANARIES), "files searched": len(searched), "commands": len(commands)}
    outcome.figures["hits"] = sum("CANARY" in failure or HEX in failure for failure in outcome.failures)
    outcome.goals["hits"] = 0
    if "on purpose" not in (work / "outputs" / "raises" / "train.log").read_text():
        outcome.failures.append("raises: no traceback was written")
    outcome.controls += [_notes(work, home), _wrapped(scratch)]
    return outcome


def _commands(tier: Tier) -> dict[str, list[str]]:
    """By name; those of the long tier are a sweep, a failure, and what reads a run later."""
    train = [sys.executable, str(TRAIN), *TINY]
    note = f"notes={NOTE}"
    commands = {"tracked": [*train, *TRACKERS, note, "hydra.run.dir=outputs/tracked"]}
    module = [sys.executable, "-m"]
    failing = [
        "model._target_=failing.model",
        "allow_targets=[failing.model]",
        "hydra.run.dir=outputs/raises",
    ]
    commands["raises"] = [*train, *failing]
    if tier == "long":
        commands |= {
            "sweep": [*train, "-m", "seed=1,2", "tracker=trackio", "hydra.sweep.dir=multirun/s"],
            "resumed": [*train[:2], "resume=outputs/tracked"],
            "export": [*module, "adamwprune.export", "outputs/tracked"],
            "status": [*module, "adamwprune.track", "status", "outputs/tracked"],
            "verify": [*module, "adamwprune.track", "verify", "outputs/tracked"],
            "refused": [*module, "adamwprune.prepare", "data=finewebedu"],
        }
    return commands


def _environment(home: Path) -> dict[str, str]:
    """Of somebody who has accounts everywhere, behind a proxy, in a clone with a password."""
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {NETRC}\n")
    (home / ".netrc").chmod(0o600)
    (home / ".cache" / "huggingface" / "token").write_text(TOKEN_FILE)
    (home / ".gitconfig").write_text(f'[remote "origin"]\n\turl = https://me:{REMOTE}@example.org/r.git\n')
    (home / "failing.py").write_text(
        "from torch import nn\n"
        "class model(nn.Module):\n"
        "    def __init__(self, *, num_classes=10, in_channels=1, image_size=28, weights=None):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(in_channels * image_size**2, num_classes)\n"
        "    def forward(self, x):\n"
        "        raise RuntimeError('on purpose')\n"
    )
    proxy = f"http://me:{PROXY}@127.0.0.1:9"
    return {
        **{key: value for key, value in os.environ.items() if not key.lower().endswith("proxy")},
        **ENVIRONMENT,
        **{"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "https_proxy": proxy, "ALL_PROXY": proxy},
        **{"HOME": str(home), "TRACKIO_DIR": str(home / "trackio")},
        **{"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db", "OMP_NUM_THREADS": "1"},
        "WANDB_BASE_URL": f"https://me:{SERVER}@127.0.0.1:9",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{home}",
    }


def _call(command: list[str], work: Path, environment: dict[str, str], output: Path) -> int:
    with output.open("ab") as stream:
        return subprocess.run(
            command,
            cwd=work,
            env=environment,
            stdout=stream,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            timeout=300,
            check=False,
        ).returncode


def _tail(file: Path) -> str:
    return " | ".join(file.read_text(errors="replace").splitlines()[-3:])


# ---------------------------------------------------------------------------------------- refusals


def _refusals(outcome: Outcome, work: Path, environment: dict[str, str]) -> None:
    """Overrides that are secrets, in this process; one of them typed at the real command."""
    from adamwprune.command_line import prepare
    from adamwprune.credentials import refuse_in_arguments
    from adamwprune.errors import ConfigError

    canary = "CANARYtyped"
    typed = [override.format(canary) for override in TYPED]
    typed += [
        override.format(name) for override in REFERRED for name in ("WANDB_API_KEY", "DATABASE_PASSWORD")
    ]
    before = set(_files(work))
    for override in typed:
        outcome.trials += 1
        try:
            prepare([override])
            outcome.failures.append(f"{override}: was taken")
        except ConfigError as error:
            if canary in str(error) or "key or password" not in str(error):
                outcome.failures.append(f"{override}: {error}")
    for override in HARMLESS:
        outcome.trials += 1
        try:
            refuse_in_arguments([override])
        except ConfigError as error:
            outcome.failures.append(f"{override}: is harmless, but {error}")
    done = subprocess.run(
        [sys.executable, str(TRAIN), typed[0]],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    outcome.trials += 1
    if done.returncode != 2 or canary in done.stdout + done.stderr or set(_files(work)) != before:
        outcome.failures.append(f"typed {typed[0]}: exit {done.returncode}: {done.stderr}")
    outcome.figures["key-like overrides refused"] = len(typed)


# ------------------------------------------------------------------------------------------ search


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def found_in(file: Path, canaries: tuple[str, ...] = CANARIES) -> list[str]:
    """The canaries that a file holds: as they are, in other writings, or within something compressed."""
    forms = {form: canary for canary in canaries for form in _forms(canary)}
    return sorted(
        {name for layer in _layers(file.read_bytes()) for form, name in forms.items() if form in layer}
    )


def _forms(canary: str) -> Iterator[bytes]:
    """Plain, percent-encoded, in UTF-16, and in base64 at each of its three offsets."""
    yield canary.encode()
    yield urllib.parse.quote(canary, safe="").encode()
    yield canary.encode("utf-16-le")
    for offset in range(3):
        encoded = base64.b64encode(b" " * offset + canary.encode())
        yield encoded[4 if offset else 0 : len(encoded) // 4 * 4 - 4]


def _layers(content: bytes, depth: int = 0) -> Iterator[bytes]:
    """The content, and what gzip, zlib and zip have packed in it, wherever that begins."""
    yield content
    if depth == 2:
        return
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            yield from _layers(archive.read(name), depth + 1)
    for mark, bits in ((b"\x1f\x8b\x08", 31), (b"\x78\x9c", 15), (b"\x78\x01", 15), (b"\x78\xda", 15)):
        start = content.find(mark)
        while start >= 0:
            with contextlib.suppress(zlib.error):
                yield zlib.decompressobj(bits).decompress(content[start:], 1 << 24)
            start = content.find(mark, start + 1)


def _notes(work: Path, home: Path) -> Control:
    """The note of a run: in its record, configuration and every tracker's files."""
    places = {
        "run.json": [work / "outputs" / "tracked" / "run.json"],
        "config.yaml": [work / "outputs" / "tracked" / "config.yaml"],
        "trackio": list((home / "trackio").glob("*.db*")),
        "mlflow": list(home.glob("mlflow.db*")),
        "wandb": list((work / "outputs" / "tracked" / "wandb").rglob("*.wandb")),
        "tensorboard": list((work / "outputs" / "tracked" / "tensorboard").glob("*")),
    }
    noticed = sum(any(found_in(file, (NOTE,)) for file in files) for files in places.values())
    return Control("a note, in the records and each tracker's files", len(places), noticed)


def _wrapped(scratch: Path) -> Control:
    """A canary in packed and encoded files."""
    text = f"prefix {NOTE} suffix".encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        stream.writestr("a/b.txt", text)
    wraps = {
        "gzip": gzip.compress(text),
        "zlib": b"head" + zlib.compress(text) + b"tail",
        "fast zlib": b"head" + zlib.compress(text, 1),
        "zip": archive.getvalue(),
        "base64": b"x" + base64.b64encode(text),
        "utf-16": text.decode().encode("utf-16-le"),
    }
    noticed = 0
    for name, content in wraps.items():
        file = scratch / f"{name}.bin"
        file.write_bytes(content)
        noticed += bool(found_in(file, (NOTE,)))
    return Control("a canary packed or encoded", len(wraps), noticed)
