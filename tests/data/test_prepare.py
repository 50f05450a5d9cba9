"""Preparation: what comes out depends on documents and recipe, not on processes, kills and batches."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from adamwprune.data import bpe
from adamwprune.data.preparation import documents as sources
from adamwprune.data.preparation import encoding, prepare, processes, shards, verified
from adamwprune.data.preparation.documents import Documents, Position
from adamwprune.data.preparation.prepare import Recipe
from adamwprune.data.preparation.prepared import Windows, prepared_text, shards_text
from adamwprune.data.preparation.remapped import read_vocab_map
from adamwprune.errors import DataError, DiskError, RunError

RECIPE = Recipe(max_tokens=None, val_fraction=0.2, shard_tokens=200)
WORDS = ["a", "naïve", "café", "—", "committee's", "1,234", "<|endoftext|>", "reports\n\n", "", "were"]


@dataclass
class Memory:
    """A file of documents in memory; counts what is taken out of it."""

    texts: list
    part: str | None = None
    taken: list = field(default_factory=list)

    def documents(self, start):
        for text in self.texts[start:]:
            self.taken.append(text)
            yield text


def random_texts(count, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 60))) for _ in range(count)]


@pytest.fixture(scope="module")
def texts():
    """60 documents, 1,900 tokens; two empty ones and a copy among them."""
    made = random_texts(57)
    return [*made[:20], "", *made[20:40], made[3], *made[40:], ""]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Many batches and notes in a small corpus."""
    monkeypatch.setattr(sources, "BATCH_CHARACTERS", 500)
    monkeypatch.setattr(prepare, "TOKENS_BETWEEN_NOTES", 150)
    # A killed process loses nothing that it has written; only a power cut would.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def corpus(*files):
    return Documents(lambda: {"from": "memory"}, lambda: files, tokens=2000)


def make(folder, documents, recipe=RECIPE, num_processes=1):
    """A prepared folder."""
    prepare.prepare(documents, folder, recipe, documents.origin(), num_processes)
    return folder


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != verified.FILE}


def oracle(texts, val_fraction, shard_tokens):
    """Part -> shards, each a list of ids, written down document by document with tiktoken's own lists."""
    table = bpe.gpt2_encoding()
    parts = {"train": [], "val": []}
    for text in filter(None, texts):
        side = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64 < val_fraction
        part = parts["val" if side else "train"]
        tokens = [*table.encode_ordinary(text), 50256]
        if not part or len(part[-1]) + len(tokens) > shard_tokens:
            part.append([])
        part[-1] += tokens
    return parts


# --- what comes out ---


def test_shards_are_what_tiktoken_says(tmp_path, texts):
    """Order, tokens, ends of documents, split and shards, against an oracle that takes one at a time."""
    found = shards.read_shards(make(tmp_path / "text", corpus(Memory(texts[:11]), Memory(texts[11:]))))
    expected = oracle(texts, 0.2, 200)
    assert [shard.ids.tolist() for shard in found.train] == expected["train"]
    assert [shard.ids.tolist() for shard in found.val] == expected["val"]
    assert min(len(expected["train"]), len(expected["val"])) > 1
    assert sum(found.documents.values()) == len(list(filter(None, texts)))


def test_document_longer_than_a_shard_has_one_alone(tmp_path, texts):
    """It is never cut; with shards of 20 tokens that happens often."""
    recipe = Recipe(None, 0.2, shard_tokens=20)
    found = shards.read_shards(make(tmp_path / "text", corpus(Memory(texts)), recipe))
    assert [shard.ids.tolist() for shard in found.train] == oracle(texts, 0.2, 20)["train"]
    assert max(len(shard.ids) for shard in found.train) > 20


@pytest.mark.parametrize("part", [None, "train"])
def test_files_and_batches_leave_no_trace(tmp_path, texts, part, monkeypatch):
    """The same documents in other files and batches: the same bytes; files of one part stay in it."""
    last = Memory(texts[50:], part and "val")
    first = make(tmp_path / "one", corpus(Memory(texts[:50], part), last))
    monkeypatch.setattr(sources, "BATCH_CHARACTERS", 37)
    pieces = [Memory(texts[start : start + 5], part) for start in range(0, 50, 5)]
    assert contents(make(tmp_path / "many", corpus(*pieces, last))) == contents(first)
    if part:
        documents = shards.read_shards(first).documents
        assert documents == {"train": len(list(filter(None, texts[:50]))), "val": 9}


def test_number_of_processes_leaves_no_trace(tmp_path, texts):
    """One, two or three: byte for byte the same folder."""
    one, two, three = (
        contents(make(tmp_path / f"of{count}", corpus(Memory(texts)), num_processes=count))
        for count in (1, 2, 3)
    )
    assert one == two == three


@pytest.mark.parametrize("max_tokens", [500, 777, 778, 1500])
def test_max_tokens_takes_whole_documents_from_the_beginning(tmp_path, texts, max_tokens):
    """Until the next would be too much, wherever that is in a batch."""
    recipe = Recipe(max_tokens, 0.4, shard_tokens=200)
    found = shards.read_shards(make(tmp_path / "text", corpus(Memory(texts)), recipe))
    table = bpe.gpt2_encoding()
    ends = np.cumsum([len(table.encode_ordinary(text)) + 1 for text in filter(None, texts)])
    assert sum(len(array.ids) for array in (*found.train, *found.val)) == ends[ends <= max_tokens][-1]


def test_half_a_character_is_replaced_as_tiktoken_does(tmp_path, texts):
    """JSON can hold one; it ends neither the process nor the document."""
    odd = "half \ud83d of a smile"
    folder = make(tmp_path / "text", corpus(Memory([odd], "train"), Memory(texts, "val")))
    (train,) = shards.read_shards(folder).train
    assert train.ids.tolist() == [*bpe.gpt2_encoding().encode_ordinary(odd), 50256]
    assert encoding.is_validation(odd, 1.0)


def test_split_by_document_is_near_its_fraction_and_fixed():
    """Of 10,000 documents 5 % within four standard errors (0.22 % each), whatever else is there."""
    documents = [f"document {number}" for number in range(10_000)]
    held_out = [document for document in documents if encoding.is_validation(document, 0.05)]
    assert abs(len(held_out) / 10_000 - 0.05) < 4 * 0.0022
    assert not any(encoding.is_validation(document, 0) for document in documents)
    assert all(encoding.is_validation(document, 0.1) for document in held_out)


@pytest.mark.parametrize("recipe", [Recipe(None, 0.0, 200), Recipe(3, 0.2, 200)])
def test_empty_part_is_refused(tmp_path, texts, recipe):
    """With both keys that could change it; the next try does not take the empty one for done."""
    for _ in range(2):
        with pytest.raises(DataError, match=r"data.val_fraction=.*, data.max_tokens=.*: leave"):
            make(tmp_path / "text", corpus(Memory(texts)), recipe)
    assert not (tmp_path / "text").exists()


# --- killed, and continued ---


class Killer:
    """Calls of what makes a file or a name durable; the `number`-th never returns."""

    def __init__(self, number):
        self.left = number

    def watch(self, owner, name):
        real = getattr(owner, name)

        def watched(*arguments, **keywords):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)

        setattr(owner, name, watched)


def killed(folder, documents, number, recipe=RECIPE):
    """Prepare in a child that is killed at the `number`-th durable operation; whether it was."""
    child = os.fork()
    if child == 0:
        try:
            killer = Killer(number)
            for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "unlink")):
                killer.watch(owner, name)
            make(folder, documents, recipe)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.fixture(scope="module")
def short(texts):
    """Enough for several shards of each kind."""
    return texts[:30]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, short):
    """What an uninterrupted preparation makes."""
    return contents(make(tmp_path_factory.mktemp("whole") / "text", corpus(Memory(short))))


def assert_complete(folder, whole):
    """Byte for byte; one that was killed at its very last act has left its note, which nobody reads."""
    found = contents(folder)
    found.pop(prepare.NOTE, None)
    assert found == whole


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere_it_continues_to_the_same_bytes(tmp_path, short, whole, every):
    """At every (sixth) fsync, rename and removal of a preparation, each time by kill -9.

    Files that were finished are not written again: they keep their inodes. What was left is never
    taken for data.
    """
    point, kept_any = 1, False
    while killed(folder := tmp_path / f"at{point}", corpus(Memory(short)), point):
        partial = folder.with_name(f"{folder.name}.partial")
        assert partial.exists() != folder.exists()
        finished = {file.name: file.stat().st_ino for file in partial.glob("*.bin")}
        memory = Memory(short)
        make(folder, corpus(memory))
        assert_complete(folder, whole)
        assert {name: (folder / name).stat().st_ino for name in finished} == finished
        if finished:
            kept_any = True
            assert len(memory.taken) < len(short)  # fast-forwarded
        point += every
    assert point > 30
    assert kept_any


def test_killed_again_and_again_it_arrives(tmp_path, short, whole):
    """A little further each time, with what an earlier process of it left half written."""
    folder, kills = tmp_path / "text", 0
    while killed(folder, corpus(Memory(short)), 12):
        kills += 1
    assert kills > 3
    assert_complete(folder, whole)


def test_cut_short_and_killed_before_its_name_it_takes_no_more(tmp_path, short):
    """`max_tokens` holds across processes, also where only the last acts were left."""
    recipe = Recipe(600, 0.4, 200)
    expected = contents(make(tmp_path / "whole", corpus(Memory(short)), recipe))
    point = 1
    while killed(folder := tmp_path / f"at{point}", corpus(Memory(short)), point, recipe):
        make(folder, corpus(Memory(short)), recipe)
        assert_complete(folder, expected)
        point += 1


def test_error_in_the_middle_keeps_what_was_written(tmp_path, short, whole):
    """A line that goes dead is no reason to begin anew."""

    class Broken(Memory):
        def documents(self, start):
            yield from super().documents(start)
            raise DataError("the line went dead")

    folder = tmp_path / "text"
    with pytest.raises(DataError, match="line went dead"):
        make(folder, corpus(Broken(short[:20])))
    assert not folder.exists()
    memory = Memory(short)
    make(folder, corpus(memory))
    assert contents(folder) == whole
    assert len(memory.taken) < len(short)


@pytest.mark.parametrize("damage", ["finished", "open", "note"])
def test_damaged_beginning_is_not_built_upon(tmp_path, texts, damage):
    """Half of a preparation is hashed before it is continued; the way out is in the message."""
    folder = tmp_path / "text"
    assert killed(folder, corpus(Memory(texts)), 25)
    partial = tmp_path / "text.partial"
    note = (partial / prepare.NOTE).read_text()
    assert '"open": {' in note
    pattern = {"finished": "train-00000.bin", "open": "val-*.partial", "note": prepare.NOTE}[damage]
    (file,) = partial.glob(pattern)
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"remove .*text.partial to begin anew"):
        make(folder, corpus(Memory(texts)))
    shutil.rmtree(partial)
    make(folder, corpus(Memory(texts)))


def test_files_that_change_meanwhile_are_not_mixed(tmp_path, texts):
    """Other content than the one that the folder is named for: refused, and begun anew."""
    state = {"size": 1}
    changing = Documents(lambda: dict(state), lambda: [Memory(texts)], 2000)
    origin = changing.origin()
    state["size"] = 2
    for _ in range(2):
        with pytest.raises(DataError, match="changed while they were read"):
            prepare.prepare(changing, tmp_path / "text", RECIPE, origin, 1)
    assert not (tmp_path / "text").exists()


# --- several at once ---


def test_two_at_once_prepare_one(tmp_path, texts, capsys):
    """The second waits, says so, and finds it done."""
    started, target = [], tmp_path / "text"

    class Slow(Memory):
        def documents(self, start):
            started.append(True)
            time.sleep(0.2)
            yield from super().documents(start)

    threads = [threading.Thread(target=make, args=(target, corpus(Slow(texts)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 1
    assert shards.read_shards(target).documents["train"] > 0
    assert "another process prepares it; waiting" in capsys.readouterr().err


@pytest.mark.slow
def test_process_that_dies_is_one_line(tmp_path, texts, monkeypatch):
    """As when the system kills one for its memory; what was finished is kept."""
    real = processes._begin_process
    monkeypatch.setattr(processes, "_begin_process", _die)
    with pytest.raises(RunError, match=r"data.num_processes=2: one of them was killed"):
        make(tmp_path / "text", corpus(Memory(texts)), num_processes=2)
    monkeypatch.setattr(processes, "_begin_process", real)
    make(tmp_path / "text", corpus(Memory(texts)), num_processes=2)


def _die():
    os._exit(9)


PROGRAM = """
import sys
from pathlib import Path
from adamwprune.data.preparation import prepare
from adamwprune.data.preparation.prepare import Recipe
from adamwprune.data.text_files import text_documents

if __name__ == "__main__":
    prepare.TOKENS_BETWEEN_NOTES = 300_000
    documents = text_documents([sys.argv[1]], document="line")
    recipe = Recipe(None, 0.05, 400_000)
    prepare.prepare(documents, Path(sys.argv[2]), recipe, documents.origin(), 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_with_its_processes_at_any_time(tmp_path, seed):
    """kill -9 after a drawn time, again and again: the same bytes in the end, no process left behind.

    Times are parts of what it takes here and now without a kill.
    """
    draw = random.Random(seed)
    lines = random_texts(60_000, seed)
    (tmp_path / "lines.txt").write_text("\n".join(line.replace("\n", " ") for line in lines))
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "lines.txt")]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, timeout=100)
    seconds, kills = time.monotonic() - start, 0
    while True:
        child = subprocess.Popen([*command, str(tmp_path / "text")], start_new_session=True)
        try:
            # Early the first time; later long enough to come further than the last.
            assert child.wait(seconds * (draw.uniform(0.6, 1.2) if kills else draw.uniform(0.3, 0.7))) == 0
            break
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            kills += 1
            _wait_until_group_is_gone(child.pid)
    assert kills
    assert contents(tmp_path / "text") == contents(tmp_path / "whole")


def _wait_until_group_is_gone(group):
    """Workers see their parent gone and leave; none may go on for ever."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("a worker outlived its parent")


# --- the disk ---


def test_too_little_space_is_refused_before_anything_is_created(tmp_path, texts, monkeypatch):
    """What is needed and what is there, exit 9; what is half done counts as room."""
    usage = shutil.disk_usage(tmp_path)._replace(free=3_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskError, match=r"needs about 4e-06 GB, .* has 3e-06 GB free") as caught:
        make(tmp_path / "data" / "text", corpus(Memory(texts)))
    assert caught.value.exit_code == 9
    assert not list(tmp_path.iterdir())
    (tmp_path / "data" / "text.partial").mkdir(parents=True)
    (tmp_path / "data" / "text.partial" / "train-00000.bin").write_bytes(bytes(1_000))
    make(tmp_path / "data" / "text", corpus(Memory(texts)))


def test_bound_that_a_small_corpus_does_not_reach_needs_no_space(tmp_path, texts, monkeypatch):
    """`max_tokens` is at most; where the corpus is the larger one it decides, and too little is refused."""
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    bounded = make(tmp_path / "bounded", corpus(Memory(texts)), replace(RECIPE, max_tokens=10**12))
    assert contents(bounded).keys() == contents(make(tmp_path / "all", corpus(Memory(texts)))).keys()
    large = Documents(lambda: {"from": "memory"}, lambda: [Memory(texts)], tokens=10**12)
    make(tmp_path / "beginning", large, replace(RECIPE, max_tokens=1500))
    with pytest.raises(DiskError, match=r"needs about 6e-06 GB"):
        make(tmp_path / "more", large, replace(RECIPE, max_tokens=3000))


# --- verified once, remembered ---


@pytest.fixture
def prepared(tmp_path, texts):
    return make(tmp_path / "text", corpus(Memory(texts)))


def test_what_was_verified_is_not_read_again(prepared, monkeypatch):
    """The second start reads no file; equal facts. The control: another time of the file, and it does."""
    first = shards.read_shards(prepared)
    monkeypatch.setattr(verified, "examine", None)
    second = shards.read_shards(prepared)
    assert [array.sha256 for array in second.train] == [array.sha256 for array in first.train]
    assert [array.max_id for array in second.train] == [int(array.ids.max()) for array in first.train]
    os.utime(prepared / "train-00000.bin", ns=(1, 1))
    with pytest.raises(DataError, match="NoneType"):
        shards.read_shards(prepared)


def test_flipped_bit_is_found_by_verifying_and_mostly_at_once(prepared, monkeypatch):
    """A write is seen at the next start, even with its time set back; what the disk does, by --verify."""
    shards.read_shards(prepared)
    file = prepared / "train-00001.bin"
    before = file.stat()
    with file.open("r+b") as stream:
        stream.write(bytes([stream.read(1)[0] ^ 1]) if stream.seek(0) == 0 else b"")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=r"train-00001.bin: sha256 is"):
        shards.read_shards(prepared)
    # As if the disk had done it: nothing about the file has changed but its content.
    known = verified.recall(prepared)
    known[file.name] = known[file.name]._replace(identity=verified.identity(file))
    verified.remember(prepared, known)
    shards.read_shards(prepared)
    with pytest.raises(DataError, match=r"train-00001.bin: sha256 is"):
        shards.verify_shards(prepared)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "adamwprune-verified-1", "files": {"a": 1}}'])
def test_memory_that_cannot_be_read_is_none(prepared, content):
    """It only saves time: then all is read."""
    (prepared / verified.FILE).write_text(content)
    assert verified.recall(prepared) == {}
    assert shards.read_shards(prepared).train


def test_copy_is_verified_anew(prepared, tmp_path):
    """Times and memory are the original's, inodes are not: nothing is taken on trust."""
    shards.read_shards(prepared)
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    (copy / "val-00000.bin").write_bytes(bytes((copy / "val-00000.bin").stat().st_size))
    with pytest.raises(DataError, match=r"val-00000.bin: sha256 is"):
        shards.read_shards(copy)


# --- as a data set ---


def test_prepared_text_is_a_data_set(tmp_path, texts):
    """The way for code of one's own: any documents, one call; the second opens nothing."""

    def build(documents, **windows):
        return prepared_text(
            documents,
            name="mine",
            data_dir=tmp_path,
            recipe=RECIPE,
            windows=Windows(**{"vocab_size": 50257, "block_size": 8, "seed": 0, **windows}),
        )

    data = build(corpus(Memory(texts)))
    assert data.name == "mine"
    assert sum(data.facts["documents"].values()) == len(list(filter(None, texts)))
    closed = Documents(lambda: {"from": "memory"}, None, tokens=2000)
    assert build(closed).fingerprint == data.fingerprint
    with pytest.raises(DataError, match=r"data.vocab_size=50257: with data.remap_vocab=true mine has (\d+)"):
        build(closed, remap_vocab=True)


def test_remapped_tokens_stand_for_the_same_text(prepared, texts):
    """A bijection onto 0..size-1 over both parts that keeps the order of ids; the fingerprint knows."""
    used = sorted({token for part in oracle(texts, 0.2, 200).values() for shard in part for token in shard})
    plain = Windows(vocab_size=50257, block_size=8, seed=0)
    remapped = Windows(vocab_size=len(used), block_size=8, seed=0, remap_vocab=True)
    one, two = (shards_text(prepared, name="text", windows=windows) for windows in (plain, remapped))
    everything = np.arange(len(one.val))
    old, new = one.val.batch(everything, 0)[0].numpy(), two.val.batch(everything, 0)[0].numpy()
    assert np.array_equal(np.array(used)[new], old)
    assert one.fingerprint != two.fingerprint
    assert two.facts["train_tokens"] == one.facts["train_tokens"]
    folder = Path(two.facts["folder"])
    assert read_vocab_map(shards.read_shards(folder)).tolist() == used
    assert shards_text(folder, name="text", windows=remapped).fingerprint == two.fingerprint
    with pytest.raises(DataError, match="holds remapped tokens; name the original"):
        shards_text(folder, name="text", windows=plain)


def test_positions_are_exact(texts):
    """From each batch's end the rest is the rest, empty documents and ends of files included."""
    files = [Memory(texts[:20]), Memory([]), Memory(texts[20:])]
    everything = list(filter(None, texts))
    done = 0
    for batch in sources.batches(files, Position(0, 0)):
        done += len(batch.texts)
        rest = [text for later in sources.batches(files, batch.end) for text in later.texts]
        assert rest == everything[done:]
