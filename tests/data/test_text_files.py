"""Text from files of the user's: what is found, what a document is, and what is refused."""

import gzip
import json
import lzma
import os

import pytest

from adamwprune.data.preparation.shards import read_shards
from adamwprune.data.text_files import find_files, text, text_documents
from adamwprune.errors import ConfigError, DataError

POEM = "Die Krähen schrein\n\nund ziehen schwirren Flugs\nzur Stadt\n \n\nbald wird es schnein"
DOCUMENTS = [f"document {number} — naïve\nof two lines" for number in range(9)]


def read(*paths, start=0, **keys):
    """All documents of some files, those of each from `start` on."""
    return [found for file in text_documents(paths, **keys).files() for found in file.documents(start)]


def write(file, content):
    """`content` in the format that the file's ending says."""
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix, open)
    with opener(file, "wt", encoding="utf-8") as stream:
        stream.write(content)
    return file


@pytest.fixture
def jsonl(tmp_path):
    """Documents under `text`, beside another key; a blank line at the end, as editors leave."""
    rows = [json.dumps({"id": number, "text": text}) for number, text in enumerate(DOCUMENTS)]
    return write(tmp_path / "some.jsonl", "\n".join(rows) + "\n\n")


@pytest.fixture
def parquet_file(tmp_path):
    """The same in three row groups."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": DOCUMENTS, "number": list(range(9)), "other": ["x", None] * 4 + ["y"]})
    parquet.write_table(table, tmp_path / "some.parquet", row_group_size=3)
    return tmp_path / "some.parquet"


# --- what a document is ---


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".txt.xz"])
@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("file", [POEM]),
        ("line", POEM.split("\n")),
        (
            "paragraph",
            ["Die Krähen schrein", "und ziehen schwirren Flugs\nzur Stadt", "bald wird es schnein"],
        ),
    ],
)
def test_plain_text(tmp_path, ending, document, expected):
    """The file, a line, or what blank lines part; compressed or not; from any document on."""
    file = write(tmp_path / f"poem{ending}", POEM)
    for start in range(len(expected) + 1):
        assert read(file, document=document, start=start) == expected[start:]


def test_line_ends_and_byte_order_mark_are_none_of_the_text(tmp_path):
    """As Windows writes them."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read(tmp_path / "a.txt", document="line") == ["one", "two"]


def test_json_lines_and_parquet_hold_the_same(jsonl, parquet_file, tmp_path):
    """A document keeps its line ends; a blank line is none; from any document on, across row groups."""
    zipped = write(tmp_path / "zipped.jsonl.gz", jsonl.read_text())
    for start in range(10):
        assert list(filter(None, read(jsonl, start=start))) == DOCUMENTS[start:]
        assert list(filter(None, read(zipped, start=start))) == DOCUMENTS[start:]
        assert read(parquet_file, start=start) == DOCUMENTS[start:]
    assert read(parquet_file, column="other") == ["x", ""] * 4 + ["y"]


# --- what is found ---


def test_files_folders_and_patterns(tmp_path):
    """A folder is all text below it, by path; a pattern too; a list keeps its order."""
    for name in ("b.txt", "a.txt", "deep/er/c.jsonl", "notes.md", "deep/er/d.txt.xz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def found(path):
        return [str(file.relative_to(tmp_path)) for file in find_files(str(tmp_path / path))]

    assert found(".") == ["a.txt", "b.txt", "deep/er/c.jsonl", "deep/er/d.txt.xz"]
    assert found("*.txt") == ["a.txt", "b.txt"]
    assert found("**/*.txt*") == ["a.txt", "b.txt", "deep/er/d.txt.xz"]
    origin = text_documents([str(tmp_path / "b.txt"), str(tmp_path / "deep")]).origin()
    assert [name for name, *_ in origin["files"]] == ["b.txt", "c.jsonl", "d.txt.xz"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["nowhere"], "nothing is there"),
        (["*.pdf"], "nothing is there"),
        (["empty"], "nothing is there"),
        (["notes.md"], r"notes.md is not a file in .txt,"),
        (["*"], "is not a file in"),
        (["a.txt", "*.txt"], "a.txt is named twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, paths, message):
    """Nothing is passed over in silence that was named, and nothing is taken twice."""
    for name in ("a.txt", "notes.md", "b.jsonl"):
        (tmp_path / name).write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        text_documents([str(tmp_path / path) for path in paths])
    assert "\n" not in str(caught.value)


# --- what is wrong inside ---


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", "UnicodeDecodeError"),
        ("a.txt.gz", b"not compressed", "BadGzipFile"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "JSONDecodeError"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b", "id": 1}', r"line 2: no text under text, it has body, id"),
        ("a.jsonl", b"[1]", r"line 1: no text under text, it has list"),
        ("a.jsonl", b'{"text": 5}', r"line 1: no text under text"),
        ("a.parquet", b"PAR1", "ArrowInvalid"),
    ],
)
def test_file_that_is_not_what_its_ending_says(tmp_path, name, content, message):
    """One line, with the file's name, whichever library notices."""
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "message"),
    [("body", "no column body, it has text, number, other"), ("number", "column number is int64, not text")],
)
def test_column_that_is_not_there_or_no_text(parquet_file, column, message):
    """With the columns that there are."""
    with pytest.raises(DataError, match=message):
        read(parquet_file, column=column)


# --- as a data set ---


def make(tmp_path, path, **keys):
    standard = {
        "column": "text",
        "document": "line",
        "vocab_size": 50257,
        "block_size": 4,
        "seed": 0,
        "val_fraction": 0.3,
        "data_dir": str(tmp_path / "data"),
    }
    return text(path=path, **{**standard, **keys})


def test_text_is_a_data_set_that_knows_its_files(tmp_path):
    """Prepared once; again when a file has changed, in another folder; moved, it is still the same."""
    file = write(tmp_path / "lines.txt", "\n".join(f"line {number} of some text" for number in range(40)))
    first = make(tmp_path, str(file))
    assert make(tmp_path, [str(file)]).facts == first.facts
    os.renames(file, moved := tmp_path / "moved" / "lines.txt")
    assert make(tmp_path, str(tmp_path / "moved")).facts["folder"] == first.facts["folder"]
    os.utime(moved, ns=(1, 1))
    touched = make(tmp_path, str(moved))
    assert touched.facts["folder"] != first.facts["folder"]
    assert touched.fingerprint == first.fingerprint
    with pytest.raises(DataError, match=r"leave . documents to train and . to validate on; .*shorter"):
        make(tmp_path, str(moved), document="file")
    assert len(read_shards(tmp_path / "data" / first.facts["folder"]).recipe["sha256"]) == 1


def test_remapped_text_says_how_many_tokens_there_are(tmp_path):
    """A small corpus with a small head; the size must be exact, and is in the message."""
    file = write(
        tmp_path / "lines.txt", "\n".join(f"{'a b c d e f'[: number % 11 + 1]}" for number in range(60))
    )
    with pytest.raises(DataError, match=r"text has 8 tokens; use data.vocab_size=8"):
        make(tmp_path, str(file), remap_vocab=True)
    assert int(make(tmp_path, str(file), remap_vocab=True, vocab_size=8).facts["train_tokens"]) > 0


@pytest.mark.parametrize("path", [None, "", []])
def test_path_is_needed(tmp_path, path):
    """Exit 2: a key is missing."""
    with pytest.raises(ConfigError, match=r"give data.path=PATH"):
        make(tmp_path, path)
