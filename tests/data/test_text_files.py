"""Text from files of the user's: what is found, what a document is, and what is refused."""

import gzip
import hashlib
import json
import lzma
import os

import pytest

from adamwprune.data.files import known_hashes
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
    assert [name for name, _ in origin["sha256"]] == ["b.txt", "c.jsonl", "d.txt.xz"]


def test_hidden_names_in_a_folder_are_none_of_the_text(tmp_path):
    """What git or an editor keeps there; named, it is read."""
    for name in ("a.txt", ".git/b.txt", ".c.txt", "deep/.d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [file.name for file in find_files(str(tmp_path))] == ["a.txt"]
    assert read(tmp_path / ".git" / "b.txt") == [".git/b.txt"]


def test_linked_folders_are_followed_and_none_is_entered_twice(tmp_path):
    """A cycle ends; what is reached by two ways is text once."""
    write(tmp_path / "elsewhere.txt", "no")
    for name in ("corpus/own", "corpus/z", "far"):
        (tmp_path / name).mkdir(parents=True)
        write(tmp_path / name / "a.txt", name)
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "corpus" / "own" / "loop").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus" / "y").symlink_to(tmp_path / "corpus" / "z")
    assert read(tmp_path / "corpus") == ["far", "corpus/own", "corpus/z"]


@pytest.mark.parametrize("path", ["", "*.jsonl", "some.jsonl"])
def test_linked_file_has_the_ending_of_the_link(tmp_path, path):
    """As the hub's cache and git-annex keep files: what a link leads to is called by its hash."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write(tmp_path / "blobs" / "5f0c1d", json.dumps({"text": "hello"}))
    (tmp_path / "snapshot" / "some.jsonl").symlink_to("../blobs/5f0c1d")
    assert read(tmp_path / "snapshot" / path) == ["hello"]
    (tmp_path / "blobs" / "5f0c1d").unlink()
    with pytest.raises(DataError, match=r"some.jsonl"):
        read(tmp_path / "snapshot" / path)


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
    """Prepared once; again when a file has changed, in another folder; moved or touched, it is the same."""
    file = write(tmp_path / "lines.txt", "\n".join(f"line {number} of some text" for number in range(40)))
    first = make(tmp_path, str(file))
    assert make(tmp_path, [str(file)]).facts == first.facts
    os.renames(file, moved := tmp_path / "moved" / "lines.txt")
    assert make(tmp_path, str(tmp_path / "moved")).facts["folder"] == first.facts["folder"]
    os.utime(moved, ns=(1, 1))
    assert make(tmp_path, str(moved)).facts == first.facts
    with pytest.raises(DataError, match=r"leave . documents to train and . to validate on; .*shorter"):
        make(tmp_path, str(moved), document="file")
    recipe = read_shards(tmp_path / "data" / first.facts["folder"]).recipe
    assert recipe["sha256"] == [["lines.txt", hashlib.sha256(moved.read_bytes()).hexdigest()]]


def words(word):
    """Forty lines; as long for every word of a length."""
    return "\n".join(f"{word} number {number}" for number in range(40))


def test_another_file_of_the_same_name_size_and_time_is_other_data(tmp_path):
    """Beside it, and in its place with its time set back; and each is known again without being read."""
    files = [tmp_path / name / "corpus.txt" for name in ("v1", "v2")]
    for file, word in zip(files, ("cat", "dog"), strict=True):
        file.parent.mkdir()
        write(file, words(word))
        os.utime(file, ns=(1, 1))
    cat, dog = (make(tmp_path, str(file)) for file in files)
    assert cat.fingerprint != dog.fingerprint
    assert len({cat.facts["folder"], dog.facts["folder"]}) == 2
    write(files[0], words("eel"))
    os.utime(files[0], ns=(1, 1))
    assert make(tmp_path, str(files[0])).fingerprint not in {cat.fingerprint, dog.fingerprint}
    files[1].replace(files[0])
    assert make(tmp_path, str(files[0])).facts == dog.facts


def test_files_are_hashed_once(tmp_path, monkeypatch):
    """While path, size, times and inode are the same; a damaged memory costs time alone."""
    hashed = []
    sha256 = known_hashes.file_sha256
    monkeypatch.setattr(known_hashes, "file_sha256", lambda file: hashed.append(file.name) or sha256(file))
    for name in ("a.txt", "b.txt"):
        write(tmp_path / name, words(name))
    first = make(tmp_path, str(tmp_path / "*.txt"))
    hashed.clear()
    assert make(tmp_path, str(tmp_path / "*.txt")).facts == first.facts
    assert hashed == []
    os.utime(tmp_path / "b.txt", ns=(1, 1))
    assert make(tmp_path, str(tmp_path / "*.txt")).facts == first.facts
    assert hashed == ["b.txt"]
    (memory,) = (tmp_path / "data").glob("hashes-*.json")
    for damage in ("", "[]", '{"format": "adamwprune-hashes-1", "files": {"a": 5}}'):
        memory.write_text(damage)
        hashed.clear()
        assert make(tmp_path, str(tmp_path / "*.txt")).facts == first.facts
        assert hashed == ["a.txt", "b.txt"]


@pytest.mark.parametrize("name", ["../evil", "", "..", "a/b", "/evil", "a\nb"])
def test_name_is_that_of_a_folder_in_data_dir(tmp_path, name):
    """Exit 2 before anything is read or made."""
    file = write(tmp_path / "lines.txt", words("cat"))
    with pytest.raises(ConfigError, match=r"data.name="):
        make(tmp_path, str(file), name=name)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["lines.txt"]


def test_carried_shards_are_those_of_the_keys(tmp_path):
    """The same data where the text is not; other keys are refused with the right ones; of one folder."""
    file = write(tmp_path / "lines.txt", words("cat"))
    first = make(tmp_path, str(file))
    os.renames(first.facts["folder"], carried := str(tmp_path / "carried"))
    file.unlink()
    assert make(tmp_path, carried, source="shards").fingerprint == first.fingerprint
    with pytest.raises(DataError, match=r"data.max_tokens=10: .*; use data.max_tokens=null$"):
        make(tmp_path, carried, source="shards", max_tokens=10)
    with pytest.raises(DataError, match=r"document=line, .* another text"):
        make(tmp_path, carried, source="shards", document="file")
    with pytest.raises(ConfigError, match=r"takes one prepared folder"):
        make(tmp_path, [carried], source="shards")


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
