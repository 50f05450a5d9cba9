"""The shipped files: complete, documented, and refused when they are not what was shipped."""

import hashlib
from pathlib import Path

import pytest

from adamwprune.data.files import assets
from adamwprune.errors import DataError

FOLDER = Path(assets.__file__).parents[2] / "assets"


@pytest.mark.parametrize("name", assets.SHA256)
def test_asset_is_what_was_shipped(name):
    """The bytes that are returned hash to the table's entry."""
    assert hashlib.sha256(assets.read_asset(name)).hexdigest() == assets.SHA256[name]


def test_folder_holds_the_assets_and_their_provenance_only():
    """No file without a hash, no hash without a file; PROVENANCE names each; 4.4 MB in all."""
    files = {file.name for file in FOLDER.iterdir() if file.suffix != ".py" and file.is_file()}
    assert files == {*assets.SHA256, "PROVENANCE.md"}
    provenance = (FOLDER / "PROVENANCE.md").read_text(encoding="utf-8")
    assert all(name in provenance and sha256 in provenance for name, sha256 in assets.SHA256.items())
    assert sum((FOLDER / name).stat().st_size for name in assets.SHA256) == 4_399_227


def test_damaged_asset_is_refused(monkeypatch, tmp_path):
    """One flipped bit is named with both hashes; the control, an intact copy, is read."""
    content = bytearray((FOLDER / "mnist5k.npz").read_bytes())
    copy = tmp_path / "mnist5k.npz"
    copy.write_bytes(content)
    monkeypatch.setattr(assets.resources, "files", lambda package: tmp_path)
    assert assets.read_asset("mnist5k.npz") == content

    content[1000] ^= 1
    copy.write_bytes(content)
    with pytest.raises(DataError) as caught:
        assets.read_asset("mnist5k.npz")
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "mnist5k.npz" in message
    assert assets.SHA256["mnist5k.npz"] in message
    assert hashlib.sha256(content).hexdigest() in message

    copy.unlink()
    with pytest.raises(DataError, match=r"mnist5k.npz: cannot be read"):
        assets.read_asset("mnist5k.npz")
