"""Files of Python objects, ``.npy`` with objects and ``.pickle``, without running their code.

``checked_pickle`` says what such a file may hold.
"""

from __future__ import annotations

import math
import stat
from pathlib import Path
from typing import IO, Any

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.checked_pickle import (
    CheckedUnpickler,
    Refused,
    check_characters,
)

_KINDS = "biufcSU"  # numpy's letters of numbers, booleans and texts of a fixed width


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
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("not a file that can be read twice")
        with open(path, "rb") as stream:
            return _read(stream, path.suffix == ".npy")
    except Refused as refused:
        raise UserInputError(
            f"{flag}: '{path}' wants to call {refused} when it is read, which could run any code. "
            f"Expected numpy arrays, lists, dictionaries, strings and numbers only; save it again "
            f"without other objects."
        ) from None
    except OSError as error:
        raise UserInputError(
            f"{flag}: '{path}' cannot be read ({error.strerror}). docs/region_data.md says which "
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
        return CheckedUnpickler(stream).load()
    shape, dtype = read_array_header(stream)
    if dtype.kind == "O":
        found = CheckedUnpickler(stream).load()  # what np.save writes after the header: the array
        if not isinstance(found, np.ndarray) or found.shape != shape:
            raise ValueError("its content is not the array of its header")
        return found.item() if shape == () else list(found)
    if dtype.kind not in _KINDS or dtype.subdtype is not None:
        raise ValueError(f"an array of {dtype}, expected numbers or texts")
    here = stream.tell()
    size, holds = math.prod(shape) * dtype.itemsize, stream.seek(0, 2) - here
    if size > holds:  # before numpy makes room for it
        raise ValueError(f"its header promises {size} bytes, it holds {holds}")
    stream.seek(0)
    array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
    check_characters(array)
    return array


def read_array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an ``.npy`` array, of whose stream the header is read.

    Raises:
        ValueError: it is none.
    """
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(stream)
    if any(n < 0 for n in shape):
        raise ValueError(f"an array of shape {shape}")
    return shape, dtype
