"""Bad data, and bad ways to them: networks, files, folders, processes (rows 94 to 100, 28, 49).

Nothing here leaves this machine: a hub is a program on 127.0.0.1, or nothing at all.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults import mounts
from tests.faults.bad_input_runs import finished, runs, until
from tests.faults.bad_input_scenes import (
    BOOK,
    IMAGES,
    LINES,
    SMALL,
    classes,
    heavy,
    no_run,
    png,
    text,
    writes,
)
from tests.faults.bad_inputs import Answer, Case, Folder, train_before

NANO = f"{SMALL} trainer.max_steps=4 hardware.threads=1"
SHARDS = f"{NANO} data=text data.source=shards data.path=shards data.val_fraction=0.5 data.document=line"
# A data set of the user's; `%s` changes it.
OWN_DATA = """
import numpy as np
import torch
from adamwprune.data.base import Data


class Samples:
    def __init__(self, count):
        self.images = torch.rand(count, 1, 28, 28)
        self.labels = torch.arange(count) %% 10
        %s

    def __len__(self):
        return len(self.labels)

    def batch(self, indices, epoch):
        return self.images[indices], self.labels[indices]


def data(*, num_classes=10, channels=1, image_size=28):
    return Data("own", Samples(64), Samples(16), None, "accuracy", "images", 1, "0" * 64, {})
"""


def own_data(change: str) -> Case:
    """A run on the user's own data set."""
    line = (
        "--config-dir my data=own 'allow_targets=[own.data]' trainer.global_batch_size=16 trainer.max_steps=4"
    )
    prepare = writes(
        own_dot_py=OWN_DATA % change,
        my__data__own_dot_yaml="_target_: own.data\nnum_classes: 10\nchannels: 1\nimage_size: 28\n",
    )
    return heavy(
        98, line, 3, ("own",), prepare=prepare, inside=lambda folder: sys.path.insert(0, str(folder.work))
    )


def shards(change: Callable[[Path], None] | None = None) -> Callable[[Folder], None]:
    """`shards`, prepared once, and changed."""

    def prepare(folder: Folder) -> None:
        made = Folder(folder.root.parent / "begun-shards")
        if not made.root.exists():
            made.make()
            text(LINES)(made)
            train_before(made, f"{BOOK} data.data_dir=data")
        source = next((made.work / "data").rglob("train-00000.bin")).parent
        shutil.copytree(source, folder.work / "shards", ignore=shutil.ignore_patterns("verified.json"))
        if change:
            change(folder.work / "shards")

    return prepare


def change_bytes(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    """Of the first shard."""

    def do(folder: Path) -> None:
        file = folder / "train-00000.bin"
        content = bytearray(file.read_bytes())
        change(content)
        file.write_bytes(content)

    return do


def flip(content: bytearray) -> None:
    """One bit."""
    content[len(content) // 2] ^= 1


def cut(content: bytearray) -> None:
    """An odd number of bytes."""
    del content[len(content) // 2 | 1 :]


def one_byte(content: bytearray) -> None:
    """One byte too many."""
    content += b"x"


def untouched(folder: Folder, answer: Answer) -> Iterable[str]:
    """Nothing of the user's was changed, and no run began."""
    yield from no_run(folder, answer)
    if lost := [name for name in answer.lost if "shards/train" in name]:
        yield f"changed {', '.join(lost)}"


@contextmanager
def hub(folder: Folder, answers: str) -> Iterator[None]:
    """Something at 127.0.0.1:29519 that answers every request in one way."""
    program = f"""
import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self): {answers}
    do_HEAD = do_GET
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 29519), Answer).serve_forever()
"""
    server = subprocess.Popen([sys.executable, "-c", program])
    time.sleep(0.3)
    try:
        yield
    finally:
        server.kill()
        server.wait()


def not_found(folder: Folder) -> object:
    """404 for everything."""
    return hub(folder, "self.send_error(404)")


def portal(folder: Folder) -> object:
    """A page to log in at, for everything."""
    return hub(
        folder,
        'self.send_response(200); self.send_header("Content-Length", "20"); self.end_headers(); '
        'self.command == "GET" and self.wfile.write(b"<html>log in</html>\\n")',
    )


def idx_folder(images: bytes, labels: bytes) -> Callable[[Folder], None]:
    """A folder of the four files of MNIST."""

    def prepare(folder: Folder) -> None:
        place = folder.work / "mnist"
        place.mkdir()
        for part in ("train", "t10k"):
            (place / f"{part}-images-idx3-ubyte.gz").write_bytes(images)
            (place / f"{part}-labels-idx1-ubyte.gz").write_bytes(labels)

    return prepare


def leak(folder: Folder) -> None:
    """An image of the training part in the validation part too."""
    for part, first in (("train", 0), ("val", 100)):
        for number in range(2):
            place = folder.work / "images" / part / f"class{number}"
            place.mkdir(parents=True)
            for copy in range(9):
                (place / f"{copy}.png").write_bytes(png(first + 20 * number + copy))
    shutil.copy(folder.work / "images/train/class1/3.png", folder.work / "images/val/class1/again.png")


def broken_image(folder: Folder) -> None:
    """An image that ends early."""
    classes(3)(folder)
    file = folder.work / "images" / "class01" / "2.png"
    file.write_bytes(file.read_bytes()[:40])


def linked(folder: Folder) -> None:
    """The shards lie elsewhere, by a link."""
    shards()(folder)
    (folder.work / "shards").rename(folder.root / "real")
    (folder.work / "shards").symlink_to(folder.root / "real")


@contextmanager
def read_only(folder: Folder) -> Iterator[None]:
    """The shards lie on a file system that cannot be written."""
    with mounts.small_file_system(folder.work / "mounted", 2**20):
        shards()(folder)
        shutil.copytree(folder.work / "shards", folder.work / "mounted" / "shards")
        shutil.rmtree(folder.work / "shards")
        (folder.work / "shards").symlink_to(folder.work / "mounted" / "shards")
        subprocess.run(["mount", "-o", "remount,ro", folder.work / "mounted"], check=True)
        yield


def same_cache(folder: Folder, _: int) -> None:
    """A second run that prepares the same text at the same moment."""
    train_before(folder, f"{BOOK} data.data_dir=data")


def killed_before(folder: Folder) -> None:
    """A first run, killed while it prepared the text."""
    text(LINES)(folder)
    child = os.fork()
    if child == 0:
        os.chdir(folder.work)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        os.execv(
            sys.executable,
            [
                sys.executable,
                "-m",
                "adamwprune.prepare",
                "data=text",
                "data.path=book.txt",
                "data.document=line",
                "data.val_fraction=0.5",
                "data.data_dir=data",
            ],
        )
    until(lambda: any((folder.work / "data").rglob("*")) if (folder.work / "data").exists() else False, 20)
    os.kill(child, 9)
    os.waitpid(child, 0)


def in_another_order(folder: Folder) -> None:
    """A finished run on the same images, made in another order, at another time, seen in another language."""
    count, each = 3, 8
    for number in range(count):
        for copy in range(each):
            file = folder.work / "images" / f"class{number:02}" / f"{copy}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(number * 20 + copy))
    train_before(folder, f"{IMAGES} data.num_classes=3 hydra.run.dir=first data.data_dir=one")
    for number in reversed(range(count)):
        for copy in reversed(range(each)):
            file = folder.work / "images" / f"class{number:02}" / f"{copy}.png"
            content = file.read_bytes()
            file.unlink()
            file.write_bytes(content)
            os.utime(file, (0, 0))


def same_fingerprint(folder: Folder, answer: Answer) -> Iterable[str]:
    """Both runs know the data by one name."""
    yield from finished(folder, answer)
    found = {json.loads(file.read_text())["data"]["fingerprint"] for file in folder.work.rglob("run.json")}
    if len(found) != 1:
        yield f"{len(found)} fingerprints"


LOCAL = {
    "HF_ENDPOINT": "http://127.0.0.1:29519",
    "HF_HUB_OFFLINE": None,
    "HTTPS_PROXY": None,
    "https_proxy": None,
    "HTTP_PROXY": None,
    "http_proxy": None,
    "ALL_PROXY": None,
    "all_proxy": None,
}
HTML = gzip.compress(b"<html>log in</html>\n")
DATA = [
    heavy(
        94,
        f"{NANO} data=tinystories",
        3,
        ("data=tinystories", "127.0.0.1:29519 does not answer", "hf download"),
        environment=LOCAL,
        look=no_run,
    ),
    heavy(94, "model=resnet18 data=cifar10", 3, ("cifar10",), environment=LOCAL, look=no_run),
    heavy(
        94, f"{NANO} data=tinystories", 3, ("TinyStories",), environment=LOCAL, around=not_found, look=no_run
    ),
    heavy(94, f"{NANO} data=tinystories", 3, ("TinyStories",), environment=LOCAL, around=portal, look=no_run),
    heavy(
        94,
        "data=mnist data.source=folder data.path=mnist",
        3,
        ("mnist",),
        prepare=idx_folder(HTML, HTML),
        look=no_run,
    ),
    heavy(
        94,
        "data=mnist data.source=folder data.path=mnist",
        3,
        ("mnist",),
        prepare=idx_folder(b"<html>log in</html>", b""),
        look=no_run,
    ),
    heavy(95, SHARDS, 3, ("train-00000.bin",), prepare=shards(change_bytes(flip)), look=untouched),
    heavy(
        95,
        SHARDS,
        3,
        ("train-00000.bin", "bytes, must be"),
        prepare=shards(change_bytes(cut)),
        look=untouched,
    ),
    heavy(
        95,
        SHARDS,
        3,
        ("train-00000.bin", "bytes, must be"),
        prepare=shards(change_bytes(one_byte)),
        look=untouched,
    ),
    heavy(
        95,
        SHARDS,
        3,
        ("train-00000.bin", "0 bytes"),
        prepare=shards(change_bytes(bytearray.clear)),
        look=untouched,
    ),
    heavy(
        95,
        SHARDS,
        3,
        ("train-00000.bin", "cannot be read"),
        prepare=shards(lambda place: (place / "train-00000.bin").unlink()),
        look=untouched,
    ),
    heavy(
        95,
        SHARDS,
        3,
        ("manifest.json",),
        prepare=shards(lambda place: (place / "manifest.json").write_text("{")),
        look=untouched,
    ),
    heavy(96, f"{BOOK} data.data_dir=data", 0, prepare=text(LINES), meanwhile=same_cache, look=runs(2)),
    heavy(96, f"{BOOK} data.data_dir=data", 0, prepare=killed_before, look=runs(1)),
    heavy(97, SHARDS, 0, prepare=linked, look=runs(1)),
    *([heavy(97, SHARDS, 0, around=read_only, look=runs(1))] if not mounts.obstacle() else []),
    own_data("self.labels[3] = -1"),
    own_data("self.labels[3] = 10"),
    own_data("self.images[3, 0, 0, 0] = float('nan')"),
    own_data("self.labels[:] = 4"),
    heavy(98, f"{IMAGES} data.num_classes=1", 3, ("one class",), prepare=classes(1, 40), look=no_run),
    heavy(
        98,
        f"{IMAGES} data.num_classes=3 data.val_fraction=0.001",
        3,
        ("data.val_fraction=0.001", "without a validation image"),
        prepare=classes(3),
        look=no_run,
    ),
    heavy(
        98,
        f"{IMAGES} data.num_classes=2",
        3,
        ("again.png", "is the training image"),
        prepare=leak,
        look=no_run,
    ),
    heavy(98, f"{IMAGES} data.num_classes=3", 3, ("class01/2.png",), prepare=broken_image, look=no_run),
    heavy(98, f"{BOOK}", 3, ("book.txt",), prepare=text(b"\xff\xfe\x00bad"), look=no_run),
    heavy(98, f"{BOOK}", 3, ("text",), prepare=text(""), look=no_run),
    heavy(
        99, f"{NANO} data=tinystories data.revision=main", 3, ("data.revision=main: must be 40 hex digits",)
    ),
    heavy(
        99, f"{NANO} data=tinystories data.revision=v1.0", 3, ("data.revision=v1.0: must be 40 hex digits",)
    ),
    heavy(
        99,
        f"{NANO} data=finewebedu data.sample=9BT",
        2,
        ("data.sample=9BT: must be one of 10BT, 100BT, 350BT",),
    ),
    heavy(
        99,
        f"{NANO} data=text data.path=script.py",
        3,
        ("data.path=script.py",),
        prepare=writes(script_dot_py="open('PWNED', 'w')"),
        look=no_run,
    ),
    heavy(
        99,
        f"{NANO} data=text data.path=data.pkl",
        3,
        ("data.path=data.pkl",),
        prepare=writes(data_dot_pkl=b"\x80\x04"),
        look=no_run,
    ),
    heavy(
        100,
        f"{IMAGES} data.num_classes=3 hydra.run.dir=second data.data_dir=two",
        0,
        prepare=in_another_order,
        environment={"LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Kolkata"},
        look=same_fingerprint,
    ),
]
