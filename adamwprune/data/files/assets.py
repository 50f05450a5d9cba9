"""The files that ship with the package, checked whenever they are read."""

import hashlib
from importlib import resources

from adamwprune.errors import DataError

# Sources, licences and how each was cut: adamwprune/assets/PROVENANCE.md.
SHA256 = {
    "cifar_samples20.npz": "c719f67746416159d5134292690c1054214c7e1c496953bf76d19e50676eeeed",
    "fashion3k.npz": "316c2ed9d82f82fe788efa7ea66522c04632d894742c528d8b71c17b5edc3738",
    "gpt2.tiktoken.gz": "f4b9b001e6a94f0303124edf6643adf42e2ba74428cf379978818f50452b7ac2",
    "mnist5k.npz": "e8c1f74d90bf751ff78fa43f8d05e5167fc3f366ea927d02c69925cd6fdffd93",
    "shakespeare9.txt.gz": "6abc0d71c02d22462f5a4c3dff893e5d2bd822fe7128d441c900415b2058e172",
    "sotu_1900_2021.txt.xz": "ad0c491a09b22c02c30c6be26d36b659ad0aa36e2e3a2b161d41aa9d34ad5e8b",
}


def read_asset(name: str) -> bytes:
    """The bytes of one asset.

    Raises:
        DataError: the file is missing, or is not the one that was shipped.
    """
    try:
        content = resources.files("adamwprune.assets").joinpath(name).read_bytes()
    except OSError as error:
        raise DataError(
            f"adamwprune/assets/{name}: cannot be read ({error}); install the package again"
        ) from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != SHA256[name]:
        raise DataError(
            f"adamwprune/assets/{name}: sha256 is {actual}, not {SHA256[name]} as shipped; "
            f"install the package again"
        )
    return content
