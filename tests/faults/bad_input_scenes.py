"""Bad inputs for which something has to be prepared: files, variables, limits, another process.

By row of reliability.md section 9. Those of the configuration need no torch; those that end with 0 are whole
runs of a few steps, and say what must hold afterwards.
"""

import json
import resource
import sys
from collections.abc import Callable, Iterable

from tests.faults.bad_inputs import Answer, Case, Folder

# 64 images, 4 steps.
QUICK = (
    "data=synthetic_images data.num_train=64 data.num_val=16 data.num_test=16 trainer.global_batch_size=16 "
    "trainer.max_steps=4 hardware.threads=1"
)
WORDS = "model=gpt2-nano data=synthetic_tokens model.n_layer=1 model.n_embd=16 model.n_head=2"


def writes(**files: str | bytes) -> Callable[[Folder], None]:
    """Files of the working directory; `__` in a name is a slash and `_dot_` a dot."""

    def prepare(folder: Folder) -> None:
        for name, content in files.items():
            file = folder.work / name.replace("__", "/").replace("_dot_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def experiment(text: str | bytes) -> Callable[[Folder], None]:
    """An experiment of the user's, for `--config-dir my experiment=mine`."""
    content = text if isinstance(text, bytes) else f"# @package _global_\n{text}".encode()
    return writes(my__experiment__mine_dot_yaml=content)


# A model with an operation that has no deterministic kernel.
OWN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(28 * 28, 10)

    def forward(self, images):
        out = self.linear(images.flatten(1))
        with torch.no_grad():
            torch.zeros(4).put_(torch.tensor([1, 1]), torch.ones(2))
        return out


def build(*, num_classes, in_channels, image_size, weights):
    return Net()
"""
MINE = "--config-dir my experiment=mine"

# ------------------------------------------------------------- of the configuration: without torch

FILES = [
    Case(42, MINE, words=("mine.yaml", "line 2"), prepare=experiment("trainer: {max_steps: 5\n")),
    Case(42, MINE, words=("mine.yaml", "line 3"), prepare=experiment("trainer:\n\tmax_steps: 5\n")),
    Case(42, MINE, words=("mine.yaml", "line 3", "seed"), prepare=experiment("seed: 1\nseed: 2\n")),
    Case(42, MINE, words=("experiment/mine",), prepare=experiment("- a list\n")),
    Case(42, MINE, words=("mine.yaml",), prepare=experiment(b"\xff\xfe\x00seed")),
    Case(
        42,
        MINE,
        words=("experiment=mine", "byte order mark"),
        prepare=experiment("\ufeff# @package _global_\nseed: 3\n".encode()),
    ),
    Case(
        42,
        MINE,
        words=("experiment/nothing/x: no such group",),
        prepare=experiment("defaults:\n  - nothing: x\n"),
    ),
    Case(
        33,
        MINE,
        words=("trainer.grad_clp", "did you mean trainer.grad_clip?"),
        prepare=experiment("trainer:\n  grad_clp: 1.0\n"),
    ),
    Case(23, MINE, words=("seed", "integer"), prepare=experiment("seed: many\n")),
    Case(
        44,
        MINE,
        words=("model._target_=evil.build: not in this package",),
        prepare=lambda folder: _evil(folder, "model:\n  _target_: evil.build\n"),
        look=lambda folder, _: _not_run(folder),
    ),
    Case(
        44,
        MINE,
        words=("allow_targets", "only the command line"),
        prepare=lambda folder: _evil(folder, "allow_targets: [evil.build]\nmodel:\n  _target_: evil.build\n"),
        look=lambda folder, _: _not_run(folder),
    ),
    Case(
        44,
        "resume=run",
        words=("model._target_=evil.build: not in this package",),
        prepare=lambda folder: _evil_record(folder),
        look=lambda folder, _: _not_run(folder),
    ),
    Case(
        45,
        MINE,
        words=("hydra.callbacks.x._target_=evil.build: may not be changed",),
        prepare=lambda folder: _evil(folder, "hydra:\n  callbacks:\n    x:\n      _target_: evil.build\n"),
        look=lambda folder, _: _not_run(folder),
    ),
    Case(72, MINE, words=("project='a\\x00b': must be",), prepare=experiment('project: "a\\0b"\n')),
    Case(72, MINE, words=("project='a\\nb': must be",), prepare=experiment('project: "a\\nb"\n')),
    Case(72, MINE, words=("run_name='../../evil': must be",), prepare=experiment("run_name: ../../evil\n")),
]


def _evil(folder: Folder, text: str) -> None:
    experiment(text)(folder)
    writes(evil_dot_py="open('PWNED', 'w')\ndef build(**_): open('PWNED', 'w')\n")(folder)


def _evil_record(folder: Folder) -> None:
    """run.json of another's run."""
    overrides = ["allow_targets=[evil.build]", "model._target_=evil.build"]
    record = {"run_id": "0" * 12, "name": "run", "project": "p", "group": None, "overrides": overrides}
    writes(run__run_dot_json=json.dumps({**record, "config": {}, "sessions": [{"overrides": overrides}]}))(
        folder
    )
    writes(evil_dot_py="open('PWNED', 'w')\ndef build(**_): open('PWNED', 'w')\n")(folder)


def _not_run(folder: Folder) -> Iterable[str]:
    if (folder.work / "PWNED").exists():
        yield "the hostile code ran"


def link_out(folder: Folder) -> None:
    """`outputs` leads out of the working directory."""
    (folder.root / "elsewhere").mkdir()
    (folder.work / "outputs").symlink_to(folder.root / "elsewhere")


PLACES = [
    Case(64, f"hydra.run.dir={'x' * 300}", 2, ("hydra.run.dir=", "too long")),
    Case(
        65,
        "hydra.run.dir=../../x",
        words=("hydra.run.dir=../../x: leads to", "below the working directory", "ADAMWPRUNE_OUTPUTS="),
    ),
    Case(
        65,
        "hydra.run.dir=/tmp/adamwprune-x",
        words=("hydra.run.dir=/tmp/adamwprune-x: leads to", "ADAMWPRUNE_OUTPUTS=/tmp"),
    ),
    Case(65, "hydra.run.dir=outputs/../../x", words=("leads to", "ADAMWPRUNE_OUTPUTS=")),
    Case(65, words=("leads to", "elsewhere", "ADAMWPRUNE_OUTPUTS="), prepare=link_out),
    Case(65, "-m seed=1,2 hydra.sweep.dir=../../x", words=("hydra.sweep.dir=../../x: leads to",)),
    Case(
        65,
        MINE,
        words=("hydra.run.dir=../up: leads to",),
        prepare=experiment("hydra:\n  run:\n    dir: ../up\n"),
    ),
    Case(61, "hydra.run.dir=file/run", 9, ("hydra.run.dir=", "file"), prepare=writes(file="")),
    Case(
        61,
        "",
        9,
        ("hydra.run.dir=", "outputs leads to nothing"),
        prepare=lambda folder: (folder.work / "outputs").symlink_to("nowhere"),
    ),
]

# The environment of a launcher.
LAUNCHERS = [
    Case(
        55,
        "hardware.num_devices=2",
        4,
        ("hardware.num_devices=2", "WORLD_SIZE=3"),
        environment={
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "3",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29511",
        },
    ),
    Case(
        55,
        "hardware.num_devices=2",
        4,
        ("WORLD_SIZE=2", "MASTER_PORT is missing", "torchrun"),
        environment={"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
    ),
    Case(55, "", 4, ("RANK=1", "LOCAL_RANK is missing"), environment={"RANK": "1"}),
    Case(
        55,
        "",
        4,
        ("WORLD_SIZE=two: must be a number",),
        environment={
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "two",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29511",
        },
    ),
    Case(
        58,
        "hardware.compile=true",
        4,
        ("hardware.compile=true: needs a compiler", "g++", "hardware.compile=false"),
        environment={"PATH": "/nowhere", "CXX": None},
    ),
    Case(58, "hardware.compile=true", 4, ("found no nocc", "CXX"), environment={"CXX": "nocc"}),
    Case(
        46,
        "tracker=wandb",
        2,
        ("WANDB_MODE=foo: must be one of online", "tracker.wandb.mode"),
        environment={"WANDB_MODE": "foo"},
    ),
    Case(
        47,
        "tracker=trackio",
        6,
        ("tracker=trackio: its package is not installed; pip install", "tracker=none"),
        inside=lambda _: sys.modules.update(trackio=None),
    ),
    Case(
        47,
        "tracker=wandb",
        6,
        ("tracker=wandb: its package is not installed; pip install", "tracker=none"),
        inside=lambda _: sys.modules.update(wandb=None),
    ),
    Case(
        66,
        "",
        9,
        ("working directory", "gone"),
        inside=lambda folder: folder.work.rmdir(),
        look=lambda *_: (),
    ),
]


def _open_files(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


RESUMES = [
    Case(84, "resume=nowhere", 5, ("resume=", "nowhere", "no run there")),
    Case(84, "resume=.", 5, ("no run there", "run.json")),
    Case(84, "resume=note.txt", 5, ("no run there",), prepare=writes(note_dot_txt="a note")),
    Case(84, "resume=run", 5, ("run.json",), prepare=writes(run__run_dot_json="{")),
    Case(
        84,
        "resume=run/checkpoints/.tmp-step_00000002-1",
        5,
        ("no run there",),
        prepare=writes(**{"run__checkpoints___tmp": ""}),
    ),
]


# ------------------------------------------------------------------- of data and model: torch needed


def heavy(row: int, line: str, code: int, words: tuple[str, ...] = (), **more: object) -> Case:
    """A case that the configuration alone does not show."""
    return Case(row, line, code, words, needs_torch=True, **more)  # type: ignore[arg-type]


def png(level: int) -> bytes:
    """A small grey image."""
    from io import BytesIO

    from PIL import Image

    stream = BytesIO()
    Image.new("L", (28, 28), level).save(stream, "PNG")
    return stream.getvalue()


def classes(count: int, each: int = 12) -> Callable[[Folder], None]:
    """A folder of images, `each` for each class."""

    def prepare(folder: Folder) -> None:
        for number in range(count):
            place = folder.work / "images" / f"class{number:02}"
            place.mkdir(parents=True)
            for copy in range(each):
                (place / f"{copy}.png").write_bytes(png((number * 20 + copy) % 256))

    return prepare


def text(content: str | bytes) -> Callable[[Folder], None]:
    """A text file of the user's."""
    return writes(book_dot_txt=content)


IMAGES = (
    "model=lenet5 data=images data.path=images data.channels=1 data.image_size=28 data.mean='[0.5]' "
    "data.std='[0.5]' trainer.global_batch_size=16 trainer.max_steps=4 hardware.threads=1"
)
# A GPT-2 whose steps and evaluations are quick.
SMALL = (
    "model=gpt2-nano model.n_layer=1 model.n_embd=16 model.n_head=2 recipe.block_size=16 "
    "trainer.eval_samples=8"
)
BOOK = (
    f"{SMALL} data=text data.path=book.txt data.val_fraction=0.5 data.document=line trainer.max_steps=4 "
    "hardware.threads=1"
)
LINES = "\n".join(
    f"line {number} of a book of many lines, each about the number {number * 7}" for number in range(600)
)


def no_run(folder: Folder, answer: Answer) -> Iterable[str]:
    """No run's folder; what data were prepared may stay."""
    if list(folder.work.rglob("run.json")) or (folder.work / "outputs").exists():
        yield "created a run's folder"


MODELS = [
    heavy(
        6,
        f"{QUICK} trainer.max_steps=60 optimizer=sgd optimizer.lr=1e6".replace("trainer.max_steps=4 ", ""),
        7,
        ("warning: optimizer.lr=1e+06: usual values lie between", "loss nan"),
    ),
    heavy(13, "pruning=state trainer.max_epochs=0.05", 2, ("no update inside",)),
    heavy(
        15,
        "trainer.global_batch_size=1000000000",
        3,
        ("trainer.global_batch_size=1000000000: larger than the 3600",),
    ),
    heavy(16, "trainer.global_batch_size=5000", 3, ("trainer.global_batch_size=5000: larger than the 3600",)),
    heavy(20, "trainer.max_epochs=0.001", 2, ("trainer.max_epochs=0.001: less than one step",)),
    heavy(
        22,
        "trainer.max_epochs=0.1 lr_schedule.warmup_steps=500",
        2,
        ("lr_schedule.warmup_steps=500: must be less than",),
    ),
    heavy(24, f"{QUICK} hardware.num_workers=500", 0, ("warning: hardware.num_workers=500: more than 4 x",)),
    heavy(28, f"{WORDS} model.vocab_size=100", 3, ("has 100 outputs", "label")),
    heavy(28, f"{BOOK} data.vocab_size=100", 3, ("vocab_size=100",), prepare=text(LINES), look=no_run),
    heavy(29, f"{WORDS} recipe.block_size=200000", 3, ("block_size=200000",)),
    heavy(43, f"{QUICK} hardware.compile=off trainer.decay_embeddings=yes", 0),
    heavy(
        48,
        "model=resnet18 data=cifar10 data.source=folder data.path=x model.in_channels=1",
        3,
        ("x: has neither",),
        look=no_run,
    ),
    heavy(
        49,
        f"{IMAGES} data.num_classes=10",
        3,
        ("data.num_classes=10", "11 sub-folders", "use 11"),
        prepare=classes(11),
        look=no_run,
    ),
    heavy(
        49,
        f"{IMAGES} data.num_classes=3 model.num_classes=2",
        3,
        ("has 2 outputs", "label 2"),
        prepare=classes(3),
        look=no_run,
    ),
    heavy(
        50,
        f"{QUICK} optimizer=adamwprune pruning=magnitude".replace("max_steps=4", "max_steps=40"),
        0,
        look=lambda folder, answer: _is_magnitude(folder),
    ),
    heavy(51, f"{WORDS} pruning=movement 'pruning.include=[wte*]'", 2, ("wte",)),
    heavy(
        52,
        "hardware=a10gx4",
        4,
        ("hardware.num_devices=4: needs as many CUDA devices, found 0", "hardware=cpu"),
    ),
    heavy(52, "hardware=gpu", 4, ("found 0", "hardware=cpu")),
    heavy(53, "hardware=a10gx4", 4, ("CUDA_VISIBLE_DEVICES=''",), environment={"CUDA_VISIBLE_DEVICES": ""}),
    heavy(53, "hardware=a10gx4", 4, ("CUDA_VISIBLE_DEVICES='9'",), environment={"CUDA_VISIBLE_DEVICES": "9"}),
    heavy(
        53,
        "hardware=a10gx4",
        4,
        ("CUDA_VISIBLE_DEVICES='MIG-1c2d'",),
        environment={"CUDA_VISIBLE_DEVICES": "MIG-1c2d"},
    ),
    heavy(54, "hardware=gpu", 4, ("found 0",)),
    heavy(
        60,
        f"{QUICK} 'allow_targets=[own.build]' model._target_=own.build",
        4,
        ("hardware.deterministic", "put_"),
        prepare=writes(own_dot_py=OWN),
        inside=lambda folder: sys.path.insert(0, str(folder.work)),
        look=lambda *_: (),  # which operations there are, only the first step shows
    ),
    heavy(
        60,
        "hardware=gpu",
        4,
        ("CUBLAS_WORKSPACE_CONFIG=:0:0", "hardware.deterministic=false"),
        environment={"CUBLAS_WORKSPACE_CONFIG": ":0:0"},
    ),
    heavy(66, QUICK, 0, environment={"HOME": None}),
    heavy(66, QUICK, 0, environment={"TMPDIR": "/proc/nowhere"}),
    heavy(66, QUICK, 0, inside=lambda _: _open_files(16)),
    heavy(67, QUICK, 0, environment={"PATH": "/nowhere"}),
    heavy(70, f"{QUICK} hardware.num_workers=2", 0),
]


def _is_magnitude(folder: Folder) -> Iterable[str]:
    record = json.loads(next(folder.work.rglob("run.json")).read_text())
    criterion = record["config"]["pruning"]["criterion"]["_target_"]
    if not criterion.endswith(".magnitude"):
        yield f"pruned by {criterion}"


LIGHT = [*FILES, *PLACES, *LAUNCHERS, *RESUMES]
