"""A pickle of numpy arrays, numbers, texts and plain containers, read by checks of our own.

A pickle is a program. Here it can call a few functions, all of them of this module: what a file
says of an array (kind, size, shape, bytes) is checked, and numpy builds the array of what passed.
numpy's own functions are not called, because a file could tell them that bytes are pointers (the
state of a dtype), or change an array while another one looks into it.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, ClassVar, NoReturn

import numpy as np

from neuromamba.common.plain_data import MOST_CONTAINERS, check_plain

_CORES = ("numpy.core", "numpy._core")  # numpy 2 has moved its core; files of either are about
_PLAIN = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|f16|c8|c16|c32|[SU]\d{1,6})")
_OBJECT = re.compile(r"[|]?O[48]?")
# Flags of numpy's dtypes: strings are filled with zeros; 1 and others mean that bytes are pointers.
_PLAIN_FLAGS = (0, 8)
_LATIN = ("latin1", "latin-1", "latin_1", "iso-8859-1")
_LAST_CHARACTER = 0x10FFFF
_SURROGATE = 0xD800 >> 11  # halves of characters, which no file can be written with


class Refused(Exception):
    """The name of what a pickle wanted to call."""


class _Kind:
    """What a file says of the kind of an array's values; numpy's dtype is made from it."""

    def __init__(self, text: Any) -> None:
        text = text.decode("ascii") if isinstance(text, bytes) else text
        plain = isinstance(text, str) and _PLAIN.fullmatch(text)
        if not plain and not (isinstance(text, str) and _OBJECT.fullmatch(text)):
            raise Refused(f"numpy.dtype({str(text)[:40]!r})")
        self.is_object = not plain
        self._dtype = np.dtype(text if plain else "O")

    def set_state(self, state: Any) -> None:
        """Take the order of the bytes; refuse fields, parts, and flags that do not fit."""
        if not isinstance(state, tuple) or len(state) < 8 or state[0] not in (3, 4):
            raise Refused("numpy.dtype.__setstate__ in an unknown form")
        order, size, flags = state[1], state[5], state[7]
        if any(part is not None for part in state[2:5]) or any(state[8:]):
            raise Refused("numpy.dtype of several fields")
        if self.is_object:
            return  # such an array is made from a list, whatever its state says
        if order not in ("<", ">", "=", "|") or flags not in _PLAIN_FLAGS:
            raise Refused("numpy.dtype.__setstate__ with flags of another kind")
        if size not in (-1, self._dtype.itemsize):
            raise Refused("numpy.dtype.__setstate__ with another size")
        if order in ("<", ">"):
            self._dtype = self._dtype.newbyteorder(order)

    def state_of(self, values: Any, shape: Any, fortran: bool) -> tuple[Any, ...]:
        """What ``ndarray.__setstate__`` takes; from bytes, or for objects from a list of them.

        Raises:
            ValueError: they are not as many as the shape says.
        """
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array without a shape")
        count = math.prod(shape)
        if self.is_object:
            if not isinstance(values, list) or len(values) != count:
                raise ValueError(f"an array of {count} objects without a list of them")
        else:
            if not isinstance(values, bytes | bytearray):
                raise ValueError(f"an array from {type(values).__name__}, expected bytes")
            if len(values) != count * self._dtype.itemsize or not self._dtype.itemsize:
                raise ValueError(f"an array of {count} values in {len(values)} bytes")
            values = bytes(values)
            check_characters(np.frombuffer(values, self._dtype))
        return 1, shape, self._dtype, bool(fortran), values

    def array(self, *state: Any) -> np.ndarray:
        """An array; arguments as above."""
        array = _empty()
        array.__setstate__(self.state_of(*state))
        return array


def check_characters(array: np.ndarray) -> None:
    """Make sure that an array's texts can be printed; numpy takes any four bytes for a character.

    Raises:
        ValueError: a character does not exist.
    """
    if array.dtype.kind != "U" or not array.size:
        return
    kind = np.dtype("u4").newbyteorder(array.dtype.byteorder)
    codes = np.frombuffer(array.tobytes(), kind)
    if (codes > _LAST_CHARACTER).any() or (codes >> 11 == _SURROGATE).any():
        raise ValueError("a text with characters that do not exist")


def _empty() -> np.ndarray:
    return np.empty(0, dtype=np.int8)


class _Function:
    """A function that a file may call, and that it cannot change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _dtype(text: Any, *_: Any) -> _Kind:
    return _Kind(text)


def _scalar(kind: Any, raw: Any = b"") -> Any:
    if not isinstance(kind, _Kind) or kind.is_object:
        raise Refused("numpy scalar of an object")
    return kind.array(raw, (1,), False)[0]


def _from_buffer(values: Any, kind: Any, shape: Any, order: Any, *_: Any) -> np.ndarray:
    if not isinstance(kind, _Kind) or kind.is_object:
        raise Refused("numpy array of objects from bytes")
    return kind.array(values, shape, order == "F")


def _encode(text: Any, encoding: Any = "") -> bytes:
    if not isinstance(text, str) or encoding not in _LATIN:
        raise Refused(f"_codecs.encode to {str(encoding)[:40]!r}")
    return text.encode("latin-1")


def _ordered(*pairs: Any) -> OrderedDict[Any, Any]:
    return OrderedDict(*pairs)


class _Unbuilt:
    """The class of an array, which only ``_reconstruct`` is given."""


class _BoundedStream:
    """A stream that gives no more than its file has, however much a pickle says that it holds."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        here = stream.tell()
        self.left = stream.seek(0, io.SEEK_END) - here
        stream.seek(here)

    def read(self, n: int) -> bytes:
        if n < 0 or n > self.left:
            raise EOFError("it is cut short")
        self.left -= n
        return self._stream.read(n)

    def readline(self) -> bytes:
        line = self._stream.readline()
        self.left -= len(line)
        return line

    def readinto(self, buffer: Any) -> int:
        buffer[:] = self.read(len(buffer))
        return len(buffer)


class CheckedUnpickler(pickle._Unpickler):  # the one in Python: its steps can be replaced
    """Reads the object of a pickle; see the module.

    Args:
        stream: stands at the beginning of the pickle; can be positioned.

    Raises:
        Refused: from ``load``: the pickle wants to call something else, or to change an object.
    """

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, stream: IO[bytes]) -> None:
        bounded = _BoundedStream(stream)
        self._size = bounded.left
        super().__init__(bounded)  # all that it needs
        self._unbuilt: dict[int, np.ndarray] = {}  # by id; kept, so that no id is given twice
        self._functions: dict[tuple[str, str], Any] = {
            ("numpy", "dtype"): _Function(_dtype),
            ("numpy", "ndarray"): _Unbuilt(),
            ("collections", "OrderedDict"): _Function(_ordered),
            ("_codecs", "encode"): _Function(_encode),  # bytes in protocol 2
            ("__builtin__", "bytes"): _Function(lambda: b""),  # no bytes, in protocol 2
        }
        for core in _CORES:
            self._functions |= {
                (f"{core}.multiarray", "_reconstruct"): _Function(self._reconstruct),
                (f"{core}.multiarray", "scalar"): _Function(_scalar),
                (f"{core}.numeric", "_frombuffer"): _Function(_from_buffer),
            }

    def load(self) -> Any:
        """The object; every array in it is numpy's own."""
        found = super().load()
        check_plain(found, MOST_CONTAINERS + self._size)
        return found

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._functions[module, name]
        except KeyError:
            raise Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise Refused("an object outside the file")

    def get_extension(self, code: int) -> NoReturn:
        raise Refused(f"number {code} of copyreg's table of extensions")

    def _instantiate(self, klass: Any, args: Any) -> NoReturn:
        raise Refused(f"{type(klass).__name__} as a class")

    def _build(self) -> None:
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        state = stack.pop()
        target = stack[-1]
        if isinstance(target, _Kind):
            target.set_state(state)
            return
        array = self._unbuilt.pop(id(target), None)  # once: others may look into it afterwards
        if array is None:
            raise Refused(f"__setstate__ of {type(target).__name__}")
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Kind):
            raise Refused("numpy.ndarray.__setstate__ in an unknown form")
        _, shape, kind, fortran, values = state
        array.__setstate__(kind.state_of(values, shape, fortran))

    def _reconstruct(self, kind: Any = None, *_: Any) -> np.ndarray:
        if not isinstance(kind, _Unbuilt):
            raise Refused("numpy.core.multiarray._reconstruct of another class")
        array = _empty()
        self._unbuilt[id(array)] = array
        return array

    def _reduce(self) -> None:
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        args = stack.pop()
        function = stack[-1]
        if not isinstance(function, _Function) or not isinstance(args, tuple):
            raise Refused(f"{type(function).__name__}")
        stack[-1] = function(*args)

    def _set_items(self) -> None:
        items: list[Any] = self.pop_mark()  # type: ignore[attr-defined]
        self._into_dictionary(items)

    def _set_item(self) -> None:
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        value = stack.pop()
        self._into_dictionary([stack.pop(), value])

    def _into_dictionary(self, items: list[Any]) -> None:
        target = self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(target, dict):
            raise Refused(f"__setitem__ of {type(target).__name__}")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _byte_array(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        self.append(bytearray(self.read(size)))  # type: ignore[attr-defined]

    def _refuse_class(self) -> NoReturn:
        raise Refused("__new__ of a class")

    dispatch[pickle.BUILD[0]] = _build  # type: ignore[assignment]
    dispatch[pickle.REDUCE[0]] = _reduce  # type: ignore[assignment]
    dispatch[pickle.SETITEM[0]] = _set_item  # type: ignore[assignment]
    dispatch[pickle.SETITEMS[0]] = _set_items  # type: ignore[assignment]
    dispatch[pickle.BYTEARRAY8[0]] = _byte_array  # type: ignore[assignment]
    dispatch[pickle.NEWOBJ[0]] = _refuse_class  # type: ignore[assignment]
    dispatch[pickle.NEWOBJ_EX[0]] = _refuse_class  # type: ignore[assignment]
