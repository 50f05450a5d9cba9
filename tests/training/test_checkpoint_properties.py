"""Properties of checkpoints and of ledgers: what goes in comes out, and no damaged byte passes."""

import json
import math
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adamwprune.errors import DiskError
from adamwprune.training import checkpoint, ledger
from adamwprune.training.ledger import Ledger, read_lines, read_rows
from tests.helpers.properties import tried
from tests.helpers.same_run import equal

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
FILES = (checkpoint.WEIGHTS, checkpoint.STATE, checkpoint.MANIFEST)


@st.composite
def tensors(draw):
    """Any bits of any type that a checkpoint holds, NaN with payloads and -0.0 among them; empty ones too."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = math.prod(shape) * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=count, max_size=count)))
    if dtype is torch.bool:
        data = bytearray(byte & 1 for byte in data)
    return torch.frombuffer(data, dtype=dtype).view(shape) if count else torch.empty(shape, dtype=dtype)


NAMES = st.text(st.characters(codec="ascii", exclude_characters="\x00"), min_size=1, max_size=8)
PLAIN = st.one_of(
    tensors(),
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.binary(min_size=1, max_size=8),  # empty ones are refused by torch.load
    st.sampled_from(DTYPES),
)
STATES = st.dictionaries(
    st.one_of(NAMES, st.integers(0, 9)),
    st.recursive(
        PLAIN,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.one_of(NAMES, st.integers(0, 9)), inner, max_size=3),
        ),
        max_leaves=8,
    ),
    max_size=4,
)
WEIGHTS = st.dictionaries(
    NAMES.filter(lambda name: name != "__metadata__"), tensors(), min_size=1, max_size=3
)


def same(first, second) -> bool:
    """Deep equality to the bit and to the type; a NaN equals one of the same bits."""
    if isinstance(first, float) and isinstance(second, float):
        return struct.pack("<d", first) == struct.pack("<d", second)
    if isinstance(first, dict) and isinstance(second, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and type(first) is type(second):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and equal(first, second)


# ------------------------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that all examples use, each in one of its own below it."""
    return tmp_path_factory.mktemp("checkpoints")


@given(WEIGHTS, STATES, st.integers(0, 10**9))
@tried(40)
def test_any_state_comes_back_to_the_bit(place, weights, state, step):
    root = Path(place, "any")
    shutil.rmtree(root, ignore_errors=True)
    checkpoint.save(root, step, weights, state)
    loaded = checkpoint.load_newest(root)
    assert loaded.step == step
    assert same(dict(sorted(loaded.weights.items())), dict(sorted(weights.items())))
    assert same(loaded.state, state)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints; the files of the newer one as they were written."""
    root = tmp_path_factory.mktemp("saved")
    for step in (1, 2):
        state = {"step": step, "list": [1.5, torch.arange(step + 5)], "text": "x"}
        identity = {"config": "0f" * 32, "masks": "1e" * 32}
        directory = checkpoint.save(root, step, {"weight": torch.randn(20)}, state, identity=identity)
    return directory, {name: (directory / name).read_bytes() for name in FILES}


def is_passed_over(directory, name, data) -> bool:
    """Whether the loader takes the older checkpoint once the file holds these bytes."""
    file = directory / name
    before = file.read_bytes()
    file.write_bytes(data)
    try:
        return checkpoint.find_problem(directory) is not None and (
            checkpoint.load_newest(directory.parent).step == 1
        )
    finally:
        file.write_bytes(before)


@given(st.data(), st.sampled_from(FILES))
@tried(100)
def test_any_byte_that_is_changed_is_found(saved, data, name):
    """In the manifest: unless it says the same, as with another blank."""
    directory, files = saved
    damaged = bytearray(files[name])
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != files[name][place]))
    if name != checkpoint.MANIFEST or says(damaged) != says(files[name]):
        assert is_passed_over(directory, name, damaged)


def says(manifest: bytes) -> object:
    """What it means; None where it is no JSON."""
    try:
        return json.loads(manifest)
    except ValueError:
        return None


@given(st.data(), st.sampled_from(FILES))
@tried(60)
def test_any_beginning_of_a_file_is_found(saved, data, name):
    directory, files = saved
    whole = files[name].rstrip()
    assert is_passed_over(directory, name, whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_whole_files_are_taken(saved):
    """Control: it is the damage that is found."""
    directory, files = saved
    assert checkpoint.find_problem(directory) is None
    assert not any(is_passed_over(directory, name, data) for name, data in files.items())


# ---------------------------------------------------------------------------------------- ledgers

VALUES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**53), 2**53),
    st.none(),
    st.text(max_size=5),
)
ROWS = st.lists(st.dictionaries(st.text(min_size=1, max_size=6), VALUES, max_size=3), max_size=8).map(
    lambda rows: [{f"train/{key}": value for key, value in row.items()} for row in rows]
)


def write(file, rows, first=1, **options):
    """Rows of consecutive steps, from `first` on."""
    book = Ledger(file, first - 1, **options)
    for step, row in enumerate(rows, first):
        book.write(step, 100.0 + step, row)
    book.close()


def expected(rows, first=1):
    """The lines that stand for them."""
    return [{"step": step, "time": 100.0 + step, **row} for step, row in enumerate(rows, first)]


@given(ROWS, st.data())
@tried(60)
def test_a_ledger_cut_anywhere_has_its_whole_lines_and_goes_on_after_them(place, rows, data):
    """As a kill or a power cut leaves it, at any byte."""
    file = Path(place, "metrics.jsonl")
    file.unlink(missing_ok=True)
    write(file, rows)
    assert read_rows(file) == expected(rows)
    whole = file.read_bytes()
    length = data.draw(st.integers(0, len(whole)))
    file.write_bytes(whole[:length])
    lines = whole[:length].count(b"\n")
    left = read_rows(file)
    # A cut just before its newline leaves a line that is whole; opening the file drops it all the same.
    assert left[:lines] == expected(rows)[:lines]
    assert left in (expected(rows)[:lines], expected(rows)[: lines + 1])
    write(file, rows[lines:], first=lines + 1)
    assert file.read_bytes() == whole


@given(ROWS, ROWS, st.data())
@tried(40)
def test_a_rewind_takes_back_the_rows_after_its_step_and_no_others(place, rows, others, data):
    """Whatever came before it, the rows that count are those of the last time that each step was done."""
    file = Path(place, "rewound.jsonl")
    file.unlink(missing_ok=True)
    write(file, rows)
    step = data.draw(st.integers(0, len(rows)))
    before = file.read_bytes()
    write(file, others, first=step + 1, exact=False)
    assert file.read_bytes().startswith(before)  # nothing is overwritten
    assert read_rows(file) == expected(rows[:step]) + expected(others, first=step + 1)


@given(ROWS.filter(len), st.data())
@tried(30)
def test_rows_that_are_replayed_leave_the_file_as_it_is(place, rows, data):
    file = Path(place, "replayed.jsonl")
    file.unlink(missing_ok=True)
    write(file, rows)
    before = file.read_bytes()
    step = data.draw(st.integers(0, len(rows)))
    write(file, rows[step:], first=step + 1)
    assert file.read_bytes() == before


@given(ROWS.filter(len), st.data())
@tried(30)
def test_a_row_that_did_not_fit_leaves_nothing_behind(place, rows, data):
    """The disk takes a part of a line: what is appended once there is room is a line of its own."""
    file = Path(place, "full.jsonl")
    file.unlink(missing_ok=True)
    book = Ledger(file)
    for step, row in enumerate(rows[:-1], 1):
        book.write(step, 100.0 + step, row)
    fits = data.draw(st.integers(0, 10))
    with pytest.MonkeyPatch.context() as patch:
        os_write = ledger.os.write
        patch.setattr(ledger.os, "write", lambda descriptor, line: os_write(descriptor, line[:fits]))
        with pytest.raises(DiskError, match="full"):
            book.write(len(rows), 0.0, rows[-1])
    book.write(len(rows), 100.0 + len(rows), rows[-1])
    book.close()
    assert len(file.read_bytes().splitlines()) == len(rows)
    assert read_lines(file) == expected(rows)
