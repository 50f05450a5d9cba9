"""Numpy arrays out of a pickle, and nothing else.

A pickle is a program: by naming `os.system` it can do what it likes. Some data sets are published
as nothing else, so this reader knows the three names that build an array and refuses every other.
"""

import io
import pickle
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct

from adamwprune.errors import DataError

_NAMES = {
    # numpy called it `core` when these files were written.
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise DataError(f"a pickle that names {module}.{name} is refused: only numpy arrays are read")
        return _NAMES[module, name]


def read_arrays(content: bytes) -> Any:
    """Tuples, lists, dicts, numbers, texts and numpy arrays of a pickle, Python 2's included.

    Raises:
        DataError: it asks for anything else (nothing of it has run then), or is damaged.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    # Whatever its bytes make the reader stumble over; too large or too deep is damage too.
    except (
        *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError),
        *(OverflowError, MemoryError, RecursionError),
    ) as error:
        raise DataError(f"a damaged pickle: {error}") from error
