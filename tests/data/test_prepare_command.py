"""python -m adamwprune.prepare: composed as a run is, one line and an exit code for what is wrong."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from adamwprune.composition import CONF_DIR, complete, compose, to_config
from adamwprune.data import bpe
from adamwprune.data.preparation.shards import read_shards
from adamwprune.errors import ConfigError, DataError
from adamwprune.prepare import __main__ as command
from adamwprune.prepare.__main__ import data_node, main, parse
from adamwprune.targets import build


@pytest.fixture
def lines(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(f"line {number} of some text" for number in range(200)))
    return [
        "data=text",
        f"data.path={tmp_path}/lines.txt",
        "data.document=line",
        "data.val_fraction=0.2",
        f"data.data_dir={tmp_path}/data",
        "recipe.block_size=16",
    ]


def test_what_is_prepared_is_what_a_run_finds(tmp_path, lines, capsys):
    """The same keys, the same folder: the run prepares nothing; other processes would not matter."""
    main(lines)
    said = capsys.readouterr()
    (folder,) = (entry for entry in (tmp_path / "data").iterdir() if entry.is_dir())
    assert str(folder) in said.out
    assert "text: preparing about" in said.err
    config = to_config(compose(complete([*lines, "model=gpt2-nano", "data.num_processes=3"])))
    data = build(config.data, "data")()
    assert data.facts["folder"] == str(folder)
    assert capsys.readouterr().err == ""
    assert f"{data.facts['train_tokens']:,} tokens to train on" in said.out
    tokens = sum(len(array.ids) for array in read_shards(folder).train)
    assert tokens == data.facts["train_tokens"]


def test_verify_reads_all(tmp_path, lines, capsys):
    """A flipped bit is refused, whoever asks."""
    main([*lines, "--verify"])
    assert "2 files are what the manifest says" in capsys.readouterr().out
    (file,) = (tmp_path / "data").glob("text-*/train-00000.bin")
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    with pytest.raises(DataError, match=r"train-00000.bin: sha256 is"):
        main([*lines, "--verify"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=finewebedu", "data.sampel=100BT"], "data.sampel"),
        (["data=finewebedu", "data.max_tokens=0"], "data.max_tokens=0: must be"),
        (["data=nothing"], "data=nothing: no such option"),
        (["--no-such-flag"], "see python -m adamwprune.prepare --help"),
        (["data=text"], "give data.path=PATH"),
        (["data=synthetic_tokens", "--verify"], "has no prepared files"),
        (["--config-dir", "nowhere"], "there is no such folder"),
    ],
)
def test_wrong_command_is_one_line(words, message):
    """Exit 2, as train.py would say it."""
    with pytest.raises(ConfigError, match=message):
        main(words)


def test_model_that_does_not_fit_is_none_of_its_business():
    """The default model is for images; the text is prepared all the same."""
    node, _ = data_node(compose(["data=openwebtext"]), [])
    assert (node["name"], node["hub_id"]) == ("openwebtext", "Skylion007/openwebtext")
    with pytest.raises(ConfigError):
        to_config(compose(["data=openwebtext"]))


def test_any_data_set_can_be_prepared(capsys):
    """What ships or is made up is there already."""
    main(["data=synthetic_images", "data.num_train=64"])
    assert "synthetic_images: 64 images to train on, 256 images to validate on" in capsys.readouterr().out


def test_refusals_and_help_need_no_torch(tmp_path):
    """A dead network is found without 2 s of imports, with exit code 3 and nothing created."""
    code = (
        "import sys\n"
        "from adamwprune.prepare.__main__ import main\n"
        "from adamwprune.errors import DataError\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except DataError as error:\n"
        "    print(error)\n"
        "assert not {'torch', 'datasets'} & sys.modules.keys()"
    )
    words = ["data=tinystories", f"data.data_dir={tmp_path}/data"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={"HF_ENDPOINT": "http://127.0.0.1:9", "HOME": str(tmp_path), "PYTHONPATH": str(CONF_DIR.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1:9 does not answer" in done.stdout
    assert "roneneldan/TinyStories" in done.stdout
    assert not list(tmp_path.iterdir())


def test_documented_commands_compose():
    """Every command of docs/data.md and of --help, but for one with a placeholder."""
    text = (CONF_DIR.parent / "docs" / "data.md").read_text() + (command.__doc__ or "")
    found = re.findall(r"^python -m adamwprune\.prepare (.*?)(?:\s{2,}.*)?$", text, re.MULTILINE)
    assert len(found) > 6
    for words in map(shlex.split, found):
        given = parse([word for word in words if word != "experiment=NAME"])
        assert data_node(compose(complete(given.overrides)), given.overrides)[0]


@pytest.mark.slow
def test_first_use_by_a_run_prepares(tmp_path, lines):
    """train.py alone: prepares, trains, records recipe and hashes; a second run starts from what there is."""
    words = [
        *lines,
        "model=gpt2-nano",
        "trainer.max_steps=2",
        "model.n_layer=1",
        "trainer.global_batch_size=4",
    ]
    for number in (1, 2):
        command = [
            sys.executable,
            str(CONF_DIR.parent / "train.py"),
            *words,
            f"hydra.run.dir={tmp_path}/{number}",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert ("preparing about" in done.stderr) == (number == 1)
    record = json.loads(Path(tmp_path / "2" / "run.json").read_text())["data"]
    assert record["recipe"]["tokenizer_sha256"] == bpe.SHA256
    assert len(record["recipe"]["sha256"]) == 1
