"""A corpus out of packages: by the real apt and dpkg-deb, from an archive that lies in a folder."""

import json
import re
import shutil
import tarfile
from dataclasses import replace

import pytest

from adamwprune.corpora import build
from adamwprune.corpora.apt import TOOLS, Apt, newest
from adamwprune.corpora.build import make_corpus
from adamwprune.corpora.collections import COLLECTIONS, Collection
from adamwprune.corpora.prose import html_prose
from adamwprune.data import debian_docs
from adamwprune.errors import DataError, DiskError
from tests.helpers.debian_archive import Archive

needs_apt = pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason="no Debian system")


def prose(topic: str, sentences: int = 6) -> bytes:
    """A page that is long enough, of lines that are nowhere else."""
    return "".join(
        f"<p>The {topic} is the subject of this sentence, and it is number {number} of {topic}.</p>"
        for number in range(sentences)
    ).encode()


COLLECTION = Collection(
    name="tiny",
    packages=("alpha-doc", r"beta-[\d.]+-doc"),
    component="main",
    pages=r".*\.html",
    prose=html_prose,
    least_bytes=600,
    tokens=1000,
)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An empty archive, which apt takes for the system's."""
    made = Archive(tmp_path / "archive")
    # As root, apt would read it as another user, who may not.
    settings = tmp_path / "apt.conf"
    settings.write_text('APT::Sandbox::User "root";\n')
    monkeypatch.setenv("APT_CONFIG", str(settings))
    monkeypatch.setattr(build, "Apt", lambda folder, sources=None: Apt(folder, made.sources))
    return made


def documents(folder, package):
    """The pages of one package."""
    return [json.loads(line) for line in (folder / f"{package}.jsonl").read_text().splitlines()]


@needs_apt
def test_packages_become_pages_and_a_manifest(archive, tmp_path):
    """The newest of several versions in a name; pages in order, with their source; each file by its hash."""
    archive.add(
        "alpha-doc", {"./usr/b.html": prose("bear"), "./usr/a.html": prose("ant"), "./usr/x.txt": b"x"}
    )
    archive.add("beta-2-doc", {"./old.html": prose("past")})
    file = archive.add("beta-10-doc", {"./new.html": prose("future")}, version="1:2.0-3")
    folder = make_corpus(COLLECTION, tmp_path / "data", 1)
    assert [page["source"] for page in documents(folder, "alpha-doc")] == [
        "alpha-doc/usr/b.html",
        "alpha-doc/usr/a.html",
    ]
    assert documents(folder, "alpha-doc")[1]["text"].splitlines() == html_prose(prose("ant"))
    manifest = build.read_manifest(folder)
    alpha, beta = manifest["packages"]
    assert (beta["name"], beta["version"], beta["documents"]) == ("beta-10-doc", "1:2.0-3", 1)
    assert beta["sha256"] == build.file_sha256(file)
    assert beta["file_sha256"] == build.file_sha256(folder / "beta-10-doc.jsonl")
    assert manifest["bytes"] == alpha["bytes"] + beta["bytes"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "alpha-doc.jsonl",
        "beta-10-doc.jsonl",
        "manifest.json",
    ]
    assert not folder.with_name(f"{folder.name}.partial").exists()


@needs_apt
def test_nothing_is_there_twice(archive, tmp_path):
    """A page that is a copy goes, in the same package or another, and so does boilerplate in others."""
    notice = b"<p>This notice is the same on all of the pages of it.</p>"
    archive.add(
        "alpha-doc", {"./a.html": notice + prose("ant"), "./copy.html": prose("ant"), "./short.html": notice}
    )
    archive.add("beta-1-doc", {"./copy.html": prose("ant"), "./b.html": notice + prose("bear")})
    folder = make_corpus(COLLECTION, tmp_path / "data", 1)
    (first,), (second,) = documents(folder, "alpha-doc"), documents(folder, "beta-1-doc")
    assert (first["source"], second["source"]) == ("alpha-doc/a.html", "beta-1-doc/b.html")
    assert "This notice" in first["text"]
    assert second["text"].splitlines() == html_prose(prose("bear"))


@needs_apt
def test_hostile_members_write_nothing(archive, tmp_path):
    """Names that lead out of a folder, links to files of the system, devices: names are labels only."""
    link = tarfile.TarInfo("./usr/link.html")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("./usr/device.html")
    device.type = tarfile.CHRTYPE
    outside = tmp_path / "outside.html"
    members = {
        f"../../../../../../{outside}": prose("evil"),
        str(outside): prose("absolute"),
        "link": link,
        "device": device,
        './usr/"quote\n.html': prose("quote"),
        "./usr/a.html": prose("ant"),
    }
    archive.add("alpha-doc", members)
    archive.add("beta-1-doc", {"./b.html": prose("bear")})
    folder = make_corpus(COLLECTION, tmp_path / "data", 1)
    assert not outside.exists()
    assert {page["text"].split()[1] for page in documents(folder, "alpha-doc")} == {
        "evil",
        "absolute",
        "ant",
    } | ({"quote"} if re.fullmatch(COLLECTION.pages, './usr/"quote\n.html') else set())
    assert sorted(path.name for path in folder.iterdir()) == [
        "alpha-doc.jsonl",
        "beta-1-doc.jsonl",
        "manifest.json",
    ]


@needs_apt
def test_a_missing_package_is_named_and_does_without(archive, tmp_path, capsys):
    """While there is text enough; other components of the archive do not count."""
    archive.add("alpha-doc", {"./a.html": prose("ant", 20)})
    archive.add("beta-1-doc", {"./b.html": prose("bear", 20)}, component="non-free")
    folder = make_corpus(COLLECTION, tmp_path / "data", 1)
    assert build.read_manifest(folder)["missing"] == [r"beta-[\d.]+-doc"]
    assert r"this machine's archive has no beta-[\d.]+-doc" in capsys.readouterr().err


@needs_apt
def test_too_little_text_is_refused(archive, tmp_path):
    """With the amount and what is missing, in one line; nothing is left but what was fetched."""
    archive.add("alpha-doc", {"./a.html": prose("ant", 4)})
    with pytest.raises(
        DataError, match=r"^data=tiny: .*without beta-.* have 0.0 MB of text, must be 0.0006"
    ) as caught:
        make_corpus(COLLECTION, tmp_path / "data", 1)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["debian", "debian.lock"]


@needs_apt
def test_an_empty_archive_is_refused(archive, tmp_path):
    """No lists, or none with these packages."""
    with pytest.raises(DataError, match="apt knows none of its packages"):
        make_corpus(COLLECTION, tmp_path / "data", 1)


@needs_apt
def test_whole_packages_are_kept_and_damaged_ones_fetched_again(archive, tmp_path, monkeypatch):
    """After a kill; a package that is not what the list says is the control."""
    archive.add("alpha-doc", {"./a.html": prose("ant")})
    archive.add("beta-1-doc", {"./b.html": prose("bear")})
    folder = make_corpus(COLLECTION, tmp_path / "data", 1)
    expected = {file.name: file.read_bytes() for file in folder.iterdir()}
    shutil.rmtree(folder)
    archives = tmp_path / "data/debian/archives"
    (archives / "alpha-doc_1.0_all.deb").write_bytes(b"half")
    calls = []
    run = Apt._run
    monkeypatch.setattr(
        Apt, "_run", lambda self, *given, **named: calls.append(given) or run(self, *given, **named)
    )
    make_corpus(COLLECTION, tmp_path / "data", 1)
    assert [call[-1] for call in calls if call[:3] == ("apt-get", "-q", "download")] == ["alpha-doc=1.0"]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == expected


@needs_apt
def test_no_room_is_said_before_anything_is_fetched(archive, tmp_path, monkeypatch):
    """One line with what is free and what is needed."""
    archive.add("alpha-doc", {"./a.html": prose("ant")})
    monkeypatch.setattr(build.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(DiskError, match=r"0.00 GB are free, .* choose another place with data.data_dir=DIR"):
        make_corpus(COLLECTION, tmp_path / "data", 1)
    assert not (tmp_path / "data/debian/archives").exists()


def test_without_apt_it_is_refused(tmp_path, monkeypatch):
    """In one line that says what does without; on any system."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"^data=tiny: .*apt-get is not on this machine.*data=shakespeare"):
        make_corpus(COLLECTION, tmp_path / "data", 1)


@needs_apt
def test_the_number_of_processes_changes_nothing(archive, tmp_path, monkeypatch):
    """Pages in order with several, too; small batches, so that both have some."""
    monkeypatch.setattr(build, "BATCH_BYTES", 1000)
    archive.add("alpha-doc", {f"./{number}.html": prose(f"word{number}") for number in range(20)})
    one, two = (make_corpus(COLLECTION, tmp_path / f"{count}", count) for count in (1, 2))
    assert (one / "alpha-doc.jsonl").read_bytes() == (two / "alpha-doc.jsonl").read_bytes()


def test_newest_by_the_numbers_in_a_name():
    """10 comes after 9, and nothing but the whole name counts."""
    names = ["linux-doc-6.1", "linux-doc-6.12", "linux-doc-6.9", "linux-doc-6.99-extra", "linux-doc"]
    assert newest(r"linux-doc-[\d.]+", names) == "linux-doc-6.12"
    assert newest("linux-doc", names) == "linux-doc"
    assert newest("other-doc", names) is None


@needs_apt
def test_the_data_set_is_the_corpus_in_tokens(archive, tmp_path, monkeypatch):
    """Prepared at first use; the record names the packages; later neither apt nor the text is needed."""
    archive.add("alpha-doc", {f"./{number}.html": prose(f"word{number}", 20) for number in range(12)})
    monkeypatch.setitem(COLLECTIONS, "debian_docs", replace(COLLECTION, name="debian_docs"))
    keys = {"vocab_size": 50257, "block_size": 8, "seed": 0, "data_dir": str(tmp_path / "data")}
    data = debian_docs.debian_docs(**keys, val_fraction=0.3, num_processes=1)
    assert data.facts["documents"]["train"] + data.facts["documents"]["val"] == 12
    (package,) = data.facts["recipe"]["packages"]
    assert (package["name"], package["version"]) == ("alpha-doc", "1.0")
    shutil.rmtree(tmp_path / "data/debian_docs-1")
    monkeypatch.setenv("PATH", "")
    again = debian_docs.debian_docs(**keys, val_fraction=0.3, num_processes=1)
    assert again.fingerprint == data.fingerprint
