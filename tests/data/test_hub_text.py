"""Text of the hub: read by the real code from parquet laid out as there, refused when it is damaged."""

import contextlib
import json
import lzma
import os
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from adamwprune.composition import CONF_DIR
from adamwprune.data import bpe, hub_text
from adamwprune.data.files import hub
from adamwprune.data.files.assets import read_asset
from adamwprune.data.files.cache import NotThere
from adamwprune.data.preparation import prepared, shards
from adamwprune.data.preparation.encoding import is_validation
from adamwprune.data.text_files import text
from adamwprune.errors import ConfigError, DataError, DiskError

parquet = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("datasets")

VAL_FRACTION = 0.2


@pytest.fixture(scope="session")
def addresses():
    """Twenty State of the Union addresses, 180,000 tokens."""
    return lzma.decompress(read_asset("sotu_1900_2021.txt.xz")).decode().split("\n")[:20]


@pytest.fixture
def folder(tmp_path, addresses):
    """Two files laid out as on the hub, with the columns that it has and an empty document."""
    return write_parquet(
        tmp_path / "fineweb",
        {
            "sample/10BT/000_00000.parquet": addresses[:9],
            "sample/10BT/001_00000.parquet": ["", *addresses[9:]],
        },
        FINEWEBEDU_COLUMNS,
    )


# What fineweb-edu has beside the text.
FINEWEBEDU_COLUMNS = {
    "id": "<urn:uuid:0>",
    "dump": "CC-MAIN-2013-20",
    "url": "http://example.org",
    "file_path": "s3://commoncrawl/x.warc.gz",
    "language": "en",
    "language_score": 0.96,
    "token_count": 123,
    "score": 3.5,
    "int_score": 4,
}


def write_parquet(root, files, columns=()):
    """`files`: path -> documents; `columns`: name -> a value that every row has."""
    import pyarrow

    for path, documents in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        others = {name: [value] * len(documents) for name, value in dict(columns).items()}
        # Several row groups a file, as on the hub.
        parquet.write_table(pyarrow.table({"text": documents, **others}), root / path, row_group_size=4)
    return root


def option(name, **keys):
    """An option of conf/data as it stands there, and keys given beside it."""
    root = OmegaConf.create({"seed": 0, "recipe": {"block_size": 64}, "data": {}})
    root.data = OmegaConf.load(CONF_DIR / "data" / f"{name}.yaml")
    node = OmegaConf.to_container(root, resolve=True)["data"]
    assert node.pop("_target_") == "adamwprune.data.hub_text.hub_text"
    return hub_text.hub_text(**{**node, **keys})


def make(tmp_path, name="finewebedu", **keys):
    standard = {
        "source": "folder",
        "data_dir": str(tmp_path / "data"),
        "val_fraction": VAL_FRACTION,
        "shard_tokens": 30_000,
        "num_processes": 1,
    }
    return option(name, **{**standard, **keys})


def prepared_folder(tmp_path):
    (found,) = (entry for entry in (tmp_path / "data").iterdir() if entry.is_dir())
    return found


def documents_of(data):
    """Its documents as sets of texts: those that train, and those that validate."""
    found, table = shards.read_shards(Path(data.facts["folder"])), bpe.gpt2_encoding()
    return tuple(
        set(table.decode(np.concatenate([array.ids for array in part]).tolist()).split("<|endoftext|>"))
        - {""}
        for part in (found.train, found.val)
    )


def test_parquet_becomes_shards_of_whole_documents(tmp_path, folder, addresses):
    """Order, tokens and split against a direct encoding; shards end at documents and keep to their size."""
    data = make(tmp_path, path=str(folder))
    encoded = bpe.encode(bpe.gpt2_encoding(), addresses, end_of_text=True)
    found = shards.read_shards(prepared_folder(tmp_path))
    for part, held_out in ((found.train, False), (found.val, True)):
        expected = [
            tokens
            for text, tokens in zip(addresses, encoded, strict=True)
            if is_validation(text, VAL_FRACTION) == held_out
        ]
        assert np.array_equal(np.concatenate([shard.ids for shard in part]), np.concatenate(expected))
        documents = [np.count_nonzero(shard.ids == bpe.END_OF_TEXT) for shard in part]
        assert all(
            len(shard.ids) <= 30_000 or count == 1 for shard, count in zip(part, documents, strict=True)
        )
        assert all(shard.ids[-1] == bpe.END_OF_TEXT for shard in part)
    assert len(found.train) > 2
    assert found.documents == {"train": 20 - found.documents["val"], "val": found.documents["val"]}
    assert data.facts["train_tokens"] + data.facts["val_tokens"] == sum(map(len, encoded))
    assert set(data.facts["recipe"]["sha256"]) == {
        "sample/10BT/000_00000.parquet",
        "sample/10BT/001_00000.parquet",
    }
    inputs, targets = data.train.batch(np.arange(len(data.train)), epoch=1)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_second_use_needs_neither_datasets_nor_the_files(tmp_path, folder, monkeypatch):
    """The shards are all that is read, also when only they are carried to another machine."""
    first = make(tmp_path, path=str(folder))
    monkeypatch.setattr(hub, "load", None)
    monkeypatch.setattr(prepared, "prepare", None)
    assert make(tmp_path, path=str(folder)).fingerprint == first.fingerprint
    elsewhere = tmp_path / "elsewhere"
    prepared_folder(tmp_path).rename(elsewhere)
    assert make(tmp_path, source="shards", path=str(elsewhere)).fingerprint == first.fingerprint


def test_shards_of_another_text_are_refused(tmp_path, folder):
    """No data set stands in for another: not one of the user's, nor another of the hub or sample of it."""
    make(tmp_path, path=str(folder))
    shards_folder = prepared_folder(tmp_path)
    keys = {"source": "shards", "path": str(shards_folder)}
    with pytest.raises(DataError, match=r"hub_id=HuggingFaceFW/fineweb-edu, and data=openwebtext has Sky"):
        make(tmp_path, "openwebtext", **keys)
    with pytest.raises(DataError, match=r"files=\['sample/10BT/\*.parquet'\], .* another text"):
        make(tmp_path, sample="100BT", **keys)
    (tmp_path / "own.txt").write_text("\n".join(map(str, range(100))))
    own = {"column": "text", "document": "line", "vocab_size": 50257, "block_size": 4, "seed": 0}
    data_dir = str(tmp_path / "other")
    made = text(path=str(tmp_path / "own.txt"), data_dir=data_dir, val_fraction=VAL_FRACTION, **own)
    with pytest.raises(DataError, match=r"hub_id=null, and data=finewebedu has Hugging.* another text"):
        make(tmp_path, source="shards", path=made.facts["folder"])


def test_shards_are_of_the_keys_that_name_them(tmp_path, folder):
    """A key that cannot change them is refused unless it says what they are; with the keys that do."""
    make(tmp_path, path=str(folder))
    keys = {"source": "shards", "path": str(prepared_folder(tmp_path))}
    with pytest.raises(DataError, match=r"data.max_tokens=10, data.val_fraction=0.9: ") as caught:
        make(tmp_path, **keys, max_tokens=10, val_fraction=0.9)
    assert str(caught.value).endswith("use data.max_tokens=10050000000 data.val_fraction=0.2")


def test_shards_of_another_revision_are_refused(tmp_path, folder, monkeypatch):
    """Where the manifest knows it."""
    load = hub.load
    monkeypatch.setattr(hub, "load", lambda location, revision=None, **options: load(folder, **options))
    monkeypatch.setattr(hub, "check", lambda: None)
    first = make(tmp_path, source="hub")
    keys = {"source": "shards", "path": str(prepared_folder(tmp_path))}
    assert make(tmp_path, **keys).fingerprint == first.fingerprint
    with pytest.raises(DataError, match=r"revision=87f0.*, and data=finewebedu has 0000"):
        make(tmp_path, **keys, revision="0" * 40)


def test_copies_of_the_same_names_sizes_and_times_are_told_apart(tmp_path, addresses):
    """The folder of tokens is named by content."""
    import pyarrow

    made, sizes = [], set()
    for version, end in (("v1", "x"), ("v2", "y")):
        file = tmp_path / version / "sample" / "10BT" / "0.parquet"
        file.parent.mkdir(parents=True)
        texts = [text[:2000] + end for text in addresses]
        parquet.write_table(pyarrow.table({"text": texts}), file, compression="none")
        os.utime(file, ns=(1, 1))
        sizes.add(file.stat().st_size)
        made.append(make(tmp_path, path=str(tmp_path / version)))
    assert len(sizes) == 1
    assert made[0].fingerprint != made[1].fingerprint


@pytest.mark.parametrize(("name", "sample"), [("openwebtext", "10BT"), ("finewebedu", None)])
def test_sample_is_named_where_there_are_some(tmp_path, name, sample):
    """A value that cannot apply is not passed over."""
    with pytest.raises(ConfigError, match=r"data.sample="):
        make(tmp_path, name, path=str(tmp_path), sample=sample)


def test_fingerprint_is_of_content_not_of_names_and_times(tmp_path, folder, addresses):
    """The same documents in other files, written later: equal. One letter less: not."""
    first = make(tmp_path, path=str(folder)).fingerprint
    one, two = "sample/10BT/a.parquet", "sample/10BT/b.parquet"
    same = write_parquet(tmp_path / "same", {one: addresses[:1], two: addresses[1:]})
    assert make(tmp_path, path=str(same)).fingerprint == first
    changed = write_parquet(tmp_path / "changed", {one: [addresses[0][:-1]], two: addresses[1:]})
    assert make(tmp_path, path=str(changed)).fingerprint != first


def test_changed_files_are_prepared_anew(tmp_path, folder, addresses):
    """Shards made from other content are never taken for these."""
    first = make(tmp_path, path=str(folder))
    file = folder / "sample" / "10BT" / "001_00000.parquet"
    file.unlink()
    assert make(tmp_path, path=str(folder)).facts["train_tokens"] < first.facts["train_tokens"]


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("finewebedu", "HuggingFaceFW/fineweb-edu"),
        ("openwebtext", "Skylion007/openwebtext"),
        ("tinystories", "roneneldan/TinyStories"),
    ],
)
def test_hub_and_folder_are_read_by_the_same_code(tmp_path, addresses, monkeypatch, name, repository):
    """Only the location and the pinned revision differ; here the hub's id leads to the local folder."""
    files = ("sample/10BT/0.parquet", "plain_text/train-0.parquet", "data/train-0.parquet")
    folder = write_parquet(tmp_path / "copy", dict.fromkeys(files, addresses[:9]))
    write_parquet(folder, {"data/validation-0.parquet": addresses[9:11]})
    calls = []
    load = hub.load

    def load_locally(location, revision=None, **options):
        calls.append((location, revision, options))
        return load(folder, **options)

    monkeypatch.setattr(hub, "load", load_locally)
    monkeypatch.setattr(hub, "check", lambda: None)
    keys = {"val_fraction": None if name == "tinystories" else VAL_FRACTION}
    from_hub = make(tmp_path, name, source="hub", **keys)
    from_folder = make(tmp_path, name, path=str(folder), **keys)
    assert from_hub.fingerprint == from_folder.fingerprint
    assert (from_hub.facts["recipe"]["hub_id"], len(from_hub.facts["recipe"]["revision"])) == (repository, 40)
    hub_calls, folder_calls = calls[: len(calls) // 2], calls[len(calls) // 2 :]
    for (hub_id, revision, options), (location, no_revision, same) in zip(
        hub_calls, folder_calls, strict=True
    ):
        assert (hub_id, len(revision)) == (repository, 40)
        assert (location, no_revision) == (folder, None)
        assert options == same
        assert options["columns"] == ["text"]


def test_readme_of_the_hub_does_not_mislead(tmp_path, folder, addresses):
    """The hub's README lists configurations whose files a partial copy lacks; the files are named instead."""
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: data/*/*}\n"
        "- config_name: sample-10BT\n  data_files:\n  - {split: train, path: sample/10BT/*}\n---\n"
    )
    assert set.union(*documents_of(make(tmp_path, path=str(folder)))) == set(addresses)


def test_openwebtext_is_read_as_the_hub_has_it(tmp_path, addresses):
    """plain_text/train-000NN-of-00080.parquet, one column; its README names one configuration."""
    files = {f"plain_text/train-{number:05d}-of-00080.parquet": addresses[number::4] for number in range(4)}
    root = write_parquet(tmp_path / "owt", files)
    (root / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain_text\n  data_files:\n"
        "  - {split: train, path: plain_text/train-*}\n  default: true\n---\n"
    )
    train, val = documents_of(make(tmp_path, "openwebtext", path=str(root)))
    assert val == {text for text in addresses if is_validation(text, VAL_FRACTION)}
    assert train | val == set(addresses)


def test_tinystories_keeps_the_published_split(tmp_path, addresses):
    """data/train-* and data/validation-*: what validates is one, whatever its hash says, and is whole."""
    files = {
        "data/train-00000-of-00004-2d5a1467fff1081b.parquet": addresses[:8],
        "data/train-00001-of-00004-5852b56a2bd28fd9.parquet": addresses[8:16],
        "data/validation-00000-of-00001-869c898b519ad725.parquet": addresses[16:],
    }
    root = write_parquet(tmp_path / "stories", files)
    keys = {"path": str(root), "val_fraction": None}
    assert documents_of(make(tmp_path, "tinystories", **keys)) == (set(addresses[:16]), set(addresses[16:]))
    train, val = documents_of(make(tmp_path, "tinystories", **keys, max_tokens=90_000))
    assert val == set(addresses[16:])
    assert train == set(addresses[: len(train)]) < set(addresses[:16])


@pytest.mark.parametrize("sample", ["10BT", "100BT"])
def test_sample_of_finewebedu_is_a_key(tmp_path, addresses, sample):
    """Each sample has a folder of its own on the hub, and a folder of its own here."""
    one, two = {"10BT": addresses[:10], "100BT": addresses}[sample], addresses
    root = write_parquet(
        tmp_path / "fineweb", {"sample/10BT/0.parquet": addresses[:10], "sample/100BT/0.parquet": two}
    )
    data = make(tmp_path, path=str(root), sample=sample)
    assert set.union(*documents_of(data)) == set(one)


def test_fast_forward_within_a_file_is_exact(folder, addresses):
    """From any document on, across row groups and batches; the empty one is a document here."""
    repository = hub_text.Repository(folder, None, "text", {None: "sample/10BT/*.parquet"})
    first, second = repository.files()
    for start in (0, 1, 4, 5, 8, 9, 12):
        assert list(first.documents(start)) == addresses[:9][start:]
        assert list(second.documents(start)) == ["", *addresses[9:]][start:]


@pytest.mark.parametrize("damage", ["bit", "truncated", "odd", "empty", "missing"])
def test_damaged_shard_is_refused(tmp_path, folder, damage):
    """By name, and left as it is: no repair, no download over it."""
    make(tmp_path, path=str(folder))
    file = prepared_folder(tmp_path) / "train-00001.bin"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    damaged = {"bit": bytes(content), "truncated": content[:-2], "odd": content[:-1], "empty": b""}.get(
        damage
    )
    file.unlink()
    if damaged is not None:
        file.write_bytes(damaged)
    with pytest.raises(DataError, match=r"train-00001.bin: "):
        make(tmp_path, path=str(folder))
    assert (file.read_bytes() if file.exists() else None) == damaged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.pop("val"), "incomplete"),
        (lambda manifest: manifest.update(format="other"), "format is other"),
        (lambda manifest: manifest["train"][0].update(file="../../secret.bin"), "secret.bin: cannot be read"),
        (lambda manifest: manifest["train"][0].update(tokens="many"), "incomplete"),
        (
            lambda manifest: manifest["recipe"].update(tokenizer_sha256="other"),
            "shards of the tokenizer other",
        ),
    ],
)
def test_manifest_that_is_not_ours_is_refused(tmp_path, folder, change, message):
    """It is data: it can neither break the reader nor lead it out of its folder."""
    make(tmp_path, path=str(folder))
    (tmp_path / "secret.bin").write_bytes(b"secret")
    file = prepared_folder(tmp_path) / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=message):
        make(tmp_path, path=str(folder))


def test_column_of_another_name_is_refused(tmp_path):
    """One line, whichever library notices."""
    import pyarrow

    place = tmp_path / "fineweb" / "sample" / "10BT"
    place.mkdir(parents=True)
    parquet.write_table(pyarrow.table({"content": ["a"]}), place / "000_00000.parquet")
    with pytest.raises(DataError, match="text") as caught:
        make(tmp_path, path=str(tmp_path / "fineweb"))
    assert "\n" not in str(caught.value)


def test_folder_without_the_files_is_refused(tmp_path):
    """Naming what is looked for."""
    with pytest.raises(DataError, match=r"has no sample/10BT/\*.parquet"):
        make(tmp_path, path=str(tmp_path))


@pytest.mark.parametrize(
    "keys",
    [
        {"source": "folder"},
        {"source": "hub", "path": "x"},
        {"source": "shards"},
        {"source": "hub", "val_fraction": None},
        {"source": "hub", "val_files": "val/*.parquet"},
    ],
)
def test_contradictory_keys_are_the_users(tmp_path, keys):
    """Exit 2: the configuration is wrong, not the data."""
    with pytest.raises(ConfigError, match=r"data.path=|data.val_fraction="):
        make(tmp_path, **keys)


def test_folder_that_cannot_be_written_is_one_line(tmp_path, folder):
    """The way out is in the message."""
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(DiskError, match=r"data.data_dir=DIR"):
        make(tmp_path, path=str(folder))


# --- without a network ---


def hang(*arguments):
    time.sleep(1)
    raise OSError


@pytest.fixture
def dead_hub(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def test_dead_network_is_known_in_seconds(tmp_path, dead_hub):
    """What is missing, how big, the command, what works instead: one line, exit 3, nothing created."""
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        make(tmp_path, source="hub", max_tokens=100_000_000)
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in message
    for part in (
        "127.0.0.1:9 does not answer",
        "0.28 GB of HuggingFaceFW/fineweb-edu",
        "hf download HuggingFaceFW/fineweb-edu",
        "data=sotu",
    ):
        assert part in message
    assert not list(tmp_path.iterdir())


def test_black_hole_is_given_up_after_the_probe(monkeypatch, dead_hub):
    """A name server that never answers is not covered by a connection's timeout; the probe is."""
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(socket, "create_connection", hang)
    start = time.monotonic()
    assert not hub.answers()
    assert time.monotonic() - start < 0.5


def test_probe_sees_a_hub_that_is_there(monkeypatch, dead_hub):
    """The control: a listening socket; and HF_HUB_OFFLINE means no, without a look."""
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.answers()
        hub.check()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not hub.answers()


def test_proxy_is_trusted_unprobed(monkeypatch, dead_hub):
    """Behind a proxy the hub's own address may be unreachable."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert hub.answers()


def test_missing_package_is_one_line():
    """With the command that installs it."""
    with pytest.raises(NotThere, match=r"no_such_package is not installed \(pip install"):
        hub.require_packages("no_such_package")


def test_local_folder_never_stands_in_for_the_hub(tmp_path, monkeypatch):
    """`datasets` would read ./HuggingFaceFW/fineweb-edu without a word."""
    monkeypatch.chdir(tmp_path)
    Path("HuggingFaceFW/fineweb-edu").mkdir(parents=True)
    with pytest.raises(DataError, match="would be read in place of the hub's"):
        hub.load("HuggingFaceFW/fineweb-edu", revision="0" * 40)


def test_old_datasets_is_refused(monkeypatch, tmp_path):
    """Releases before 5.2 can run code from a data set."""
    import datasets

    monkeypatch.setattr(datasets, "__version__", "5.1.9")
    with pytest.raises(DataError, match=r"datasets 5.1.9 .*pip install 'datasets>=5.2'"):
        hub.load(tmp_path)


def test_offline_inside_and_as_before_outside():
    """The switch of two libraries is put back, also after an error."""
    import datasets
    from huggingface_hub import constants

    def switches():
        return constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE

    before, inside = switches(), None
    with contextlib.suppress(ValueError), hub.offline():
        inside = switches()
        raise ValueError
    assert inside == (True, True)
    assert switches() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_data_directory_is_enough_once_prepared(tmp_path, folder):
    """Reading takes no lock and writes nothing."""
    first = make(tmp_path, path=str(folder))
    (tmp_path / "data").chmod(0o500)
    try:
        assert make(tmp_path, path=str(folder)).fingerprint == first.fingerprint
    finally:
        (tmp_path / "data").chmod(0o700)
