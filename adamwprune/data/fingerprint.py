"""One hash that says whether two runs saw the same data."""

import hashlib
from collections.abc import Mapping

import numpy as np


def fingerprint(parts: Mapping[str, np.ndarray | str]) -> str:
    """SHA-256 (64 hex digits) over named arrays and texts; the order of the names does not matter.

    Type, shape and length of each part are hashed before its bytes, so no two different
    collections of parts run together into the same input.
    """
    digest = hashlib.sha256()
    for name in sorted(parts):
        part = parts[name]
        if isinstance(part, str):
            content = part.encode()
            kind = f"text {len(content)}"
        else:
            content = np.ascontiguousarray(part)
            kind = f"array {content.dtype.str} {content.shape}"
        digest.update(f"{name}\n{kind}\n".encode())
        digest.update(content)
    return digest.hexdigest()
