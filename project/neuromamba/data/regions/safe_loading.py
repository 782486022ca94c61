"""Files of Python objects, ``.npy`` with objects and ``.pickle``, without running their code.

A pickle is a program. Here it may call what builds numpy arrays and numbers, and nothing else;
lists, tuples, dictionaries, strings and numbers need no call.
"""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np

from neuromamba.common.errors import UserInputError

# (module, name); numpy 2 has moved its core, and files of either version are about.
_ARRAYS = ("_reconstruct", "scalar")
ALLOWED = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in _ARRAYS),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),  # bytes in protocol 2
}


class _Refused(Exception):
    """The name of what a pickle wanted to call."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise _Refused(f"{module}.{name}")
        # numpy 1 has no numpy._core, and numpy 2 warns of numpy.core.
        parts = module.split(".")
        if len(parts) > 1 and parts[1] in ("core", "_core"):
            parts[1] = "_core" if hasattr(np, "_core") else "core"
        return getattr(importlib.import_module(".".join(parts)), name)

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object outside the file")


def load_objects(path: Path, flag: str) -> Any:
    """The object of a ``.pickle`` or ``.npy`` file; an object array comes as a list.

    Args:
        path: the file.
        flag: what named it.

    Raises:
        UserInputError: there is no such file, it is damaged, or holds more than arrays and plain
            containers.
    """
    try:
        with open(path, "rb") as stream:
            return _read(stream, path.suffix == ".npy")
    except _Refused as refused:
        raise UserInputError(
            f"{flag}: '{path}' wants to call {refused} when it is read, which could run any code. "
            f"Expected numpy arrays, lists, dictionaries, strings and numbers only; save it again "
            f"without other objects."
        ) from None
    except OSError as error:
        raise UserInputError(
            f"{flag}: '{path}' cannot be read ({error.strerror}). docs/neurossm.md says which "
            f"files belong where."
        ) from None
    except Exception as error:  # a damaged pickle can fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserInputError(
            f"{flag}: '{path}' is damaged, or no {path.suffix} file ({reason}). Copy or write it "
            f"again."
        ) from None


def _read(stream: IO[bytes], is_npy: bool) -> Any:
    if not is_npy:
        return _Unpickler(stream).load()
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(stream)
    if not dtype.hasobject:
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
    found = _Unpickler(stream).load()  # what np.save writes after the header: the array
    if not isinstance(found, np.ndarray) or found.shape != shape:
        raise ValueError("its content is not the array of its header")
    return found.item() if shape == () else list(found)
