"""Pickles as Python 2 wrote them, which some data sets still are."""

import pickle
import struct
from types import FunctionType
from typing import ClassVar


class Python2Pickler(pickle._Pickler):
    """Bytes as Python 2 pickled its strings, numpy under its old name."""

    def save_bytes(self, value):
        """Opcode, length, bytes."""
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    def save_global(self, value, name=None):
        """By module and name."""
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{name or value.__name__}\n".encode())

    dispatch: ClassVar = {
        **pickle._Pickler.dispatch,
        bytes: save_bytes,
        type: save_global,
        FunctionType: save_global,
    }
