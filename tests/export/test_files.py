"""Exported files: a function of the weights, atomic, checked, and read by one function."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from adamwprune.errors import CheckpointError, ConfigError, DiskError
from adamwprune.export.files import encode, equal, load, read, write

FACTS = {"run": "a", "run_id": "0123456789ab", "step": "7", "sparsity": "0.9", "nonzero": "1", "entries": "9"}


def weights():
    """A matrix with zeros in the 2:4 pattern and beyond, a dense one, a bias, a counter."""
    torch.manual_seed(0)
    pruned = torch.randn(32, 64)
    pruned.view(-1, 4)[:, :2] = 0.0
    pruned[:, 16:] = 0.0
    return {"a.weight": pruned, "b.weight": torch.randn(8, 8), "a.bias": torch.zeros(8), "n": torch.tensor(3)}


def export(encoding="bitmask"):
    return encode(weights(), encoding, candidates=weights(), facts=FACTS)


@pytest.mark.parametrize("encoding", ["dense", "bitmask", "csr", "2:4"])
def test_load_reads_each_format(tmp_path, encoding):
    """Every bit, from the header alone; only what becomes smaller is encoded."""
    file = tmp_path / "x.safetensors"
    exported = export(encoding)
    write(exported, file, weights=weights())
    assert equal(load(file), weights())
    assert list(read(file).encoded) == ([] if encoding == "dense" else ["a.weight"])
    with safe_open(file, "pt") as stream:
        header = stream.metadata()
    assert {key: header[key] for key in FACTS} == FACTS
    assert header["encoding"] == encoding


def test_a_dense_file_is_an_ordinary_one(tmp_path):
    """Names, tensors and format as any reader of safetensors expects them; other formats do not claim it."""
    write(export("dense"), tmp_path / "d.safetensors", weights=weights())
    write(export("csr"), tmp_path / "c.safetensors", weights=weights())
    assert equal(load_file(tmp_path / "d.safetensors"), weights())
    formats = [
        safe_open(tmp_path / name, "pt").metadata()["format"] for name in ("d.safetensors", "c.safetensors")
    ]
    assert formats == ["pt", "adamwprune"]


def test_the_same_weights_give_the_same_bytes(tmp_path):
    """The header's order too, which safetensors alone changes from file to file (the control)."""
    ours, plain = set(), set()
    for number in range(8):
        write(export(), tmp_path / f"{number}", weights=weights())
        ours.add((tmp_path / f"{number}").read_bytes())
        plain.add(save(weights(), metadata=FACTS))
    assert len(ours) == 1
    assert len(plain) > 1


def test_an_equal_file_stays_and_another_is_refused(tmp_path):
    """Written twice: the same bytes. Other weights under the same name: exit 2, the file as it was."""
    file = tmp_path / "x.safetensors"
    write(export(), file, weights=weights())
    before = file.read_bytes()
    write(export(), file, weights=weights())
    other = {"a.weight": torch.zeros(32, 64)}
    with pytest.raises(ConfigError, match="another file of this name is there"):
        write(encode(other, "bitmask", candidates=other), file, weights=other)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_reads_back_otherwise_is_not_written(tmp_path):
    """The file gets its name after its content was compared with the weights."""
    expected = weights() | {"n": torch.tensor(4)}
    with pytest.raises(DiskError, match="reads back as something else"):
        write(export(), tmp_path / "x.safetensors", weights=expected)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_exit_9(tmp_path):
    """A file where the folder should be."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(DiskError, match="not written"):
        write(export(), tmp_path / "taken" / "x.safetensors", weights=weights())


@pytest.mark.parametrize("place", [-1, -700, 300])
def test_a_flipped_bit_is_found(tmp_path, place):
    """In values, in bits, in the header's shapes; safetensors itself takes most of them without a word."""
    file = tmp_path / "x.safetensors"
    write(export(), file, weights=weights())
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load(file)
    if place == -1:
        load_file(file)  # the control


def test_files_of_others_are_refused(tmp_path):
    """A plain safetensors file, text, nothing, and a format of the future."""
    plain, text, future = (tmp_path / name for name in ("plain", "text", "future"))
    save_file(weights(), plain)
    text.write_text("x")
    save_file(weights(), future, metadata={"encoding": "4:8", "encoded": json.dumps({})})
    for file, words in (
        (plain, "not written by"),
        (text, "damaged"),
        (future, "newer"),
        (tmp_path / "no", "no such"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load(file)
