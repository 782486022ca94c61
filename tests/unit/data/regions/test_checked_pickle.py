"""Pickles that lie about arrays do not reach numpy; files of the README are read."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.safe_loading import load_objects

STATE = (3, "|", None, None, None, 8, 1, 63)  # flags of pointers to objects
ADDRESS = struct.pack("<Q", 0x4141414141414141)


def load(path: Path, data: bytes) -> Any:
    path.write_bytes(data)
    return load_objects(path, "--data_file")


def by_name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def dumped(value: Any) -> bytes:
    """A pickle without its end, as a part of a longer one."""
    return pickle.dumps(value, protocol=0)[:-1]


DTYPE, ARRAY = by_name("numpy", "dtype"), by_name("numpy", "ndarray")
CORE = "numpy.core.multiarray"
SCALAR, RECONSTRUCT = by_name(CORE, "scalar"), by_name(CORE, "_reconstruct")
FROM_BUFFER = by_name("numpy.core.numeric", "_frombuffer")


def dtype(text: str, state: Any = None) -> bytes:
    made = DTYPE + b"(" + dumped(text) + b"I00\nI01\ntR"
    return made if state is None else made + dumped(state) + b"b"


def array(kind: bytes, shape: tuple[int, ...], values: Any) -> bytes:
    new = RECONSTRUCT + b"(" + ARRAY + dumped((0,)) + b"C\x01btR"
    return new + b"(I1\n" + dumped(shape) + kind + b"I00\n" + dumped(values) + b"tb"


def raw(values: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(values)) + values


LYING = dtype("S8", STATE)
FIELDS = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
HOSTILE: dict[str, bytes] = {
    "scalar": SCALAR + b"(" + LYING + raw(ADDRESS) + b"tR.",
    "array": array(LYING, (1,), None)[:-3] + raw(ADDRESS) + b"tb.",
    "from buffer": FROM_BUFFER + b"(" + raw(ADDRESS) + LYING + dumped((1,)) + dumped("C") + b"tR.",
    "objects from bytes": array(dtype("O8"), (1,), None)[:-3] + raw(ADDRESS) + b"tb.",
    "object scalar": SCALAR + b"(" + dtype("O8") + raw(ADDRESS) + b"tR.",
    "objects from a buffer": FROM_BUFFER
    + b"("
    + raw(ADDRESS)
    + dtype("O8")
    + dumped((1,))
    + dumped("C")
    + b"tR.",
    "fields": array(dtype("V8", (3, "|", None, ("a",), {}, 8, 1, 0)), (1,), None) + b".",
    "fields of a plain kind": SCALAR + b"(" + dtype("i8", FIELDS) + raw(ADDRESS) + b"tR.",
    "size": SCALAR + b"(" + dtype("S8", (3, "|", None, None, None, 99, 1, 0)) + raw(b"") + b"tR.",
    "part": array(dtype("i8", (3, "<", (np.dtype("O"), (1,)), None, None, 8, 8, 0)), (1,), None)
    + b".",
    "raw kind": SCALAR + b"(" + dtype("V8") + raw(ADDRESS) + b"tR.",
    "fewer bytes": array(dtype("f8"), (1000,), None)[:-3] + raw(ADDRESS) + b"tb.",
    "negative shape": array(dtype("f8"), (-1, -1), None)[:-3] + raw(ADDRESS) + b"tb.",
    "state of a function": SCALAR + dumped({"__defaults__": ()}) + b"b.",
    "state of a class": by_name("collections", "OrderedDict") + dumped((None, {"x": 1})) + b"b.",
    "array as a class": ARRAY + dumped((1 << 40,)) + b"\x81.",
    "array of another class": RECONSTRUCT + b"(" + DTYPE + dumped((0,)) + b"C\x01btR.",
    "copyreg": by_name("copyreg", "_reconstructor") + b"(" + DTYPE + dumped(None) + b"tR.",
    "copyreg's numbers": b"\x80\x02\x82\x01.",
    "codec": by_name("_codecs", "encode") + dumped(("x" * 9, "zlib")) + b"R.",
    "impossible characters": array(dtype("U1"), (1,), None)[:-3] + raw(b"\xff" * 4) + b"tb.",
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_file_cannot_say_that_bytes_are_objects(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserInputError, match=r"wants to call|is damaged"):
        load(tmp_path / "x.pickle", HOSTILE[name])


def test_an_array_is_changed_once(tmp_path: Path) -> None:
    """A second state would free the bytes that others look into."""
    one = array(dtype("f8"), (1,), None)[:-3] + raw(ADDRESS) + b"tb"
    again = one + b"(I1\n" + dumped((1,)) + dtype("f8") + b"I00\n" + raw(ADDRESS) + b"tb."
    with pytest.raises(UserInputError, match="__setstate__ of ndarray"):
        load(tmp_path / "x.pickle", again)
    assert load(tmp_path / "x.pickle", one + b".").shape == (1,)


@pytest.mark.parametrize(
    "descr", ["|V8", "('a', 'O')", "[('a', '|O')]", "[('a', '<f8')]", "<M8[s]", "('<f8', (2,))"]
)
def test_npy_of_numbers_texts_or_objects_only(tmp_path: Path, descr: str) -> None:
    text = descr if descr[0] in "([" else repr(descr)
    header = f"{{'descr': {text}, 'fortran_order': False, 'shape': (1,), }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + ADDRESS * 2
    with pytest.raises(UserInputError, match="damaged"):
        load(tmp_path / "x.npy", data)


@pytest.mark.parametrize("shape", [(10**12,), (1 << 40, 1 << 40), (-1, -1)])
def test_the_size_in_a_header_is_compared_with_the_file(tmp_path: Path, shape: Any) -> None:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + ADDRESS
    with pytest.raises(UserInputError, match=r"promises|of shape"):
        load(tmp_path / "x.npy", data)


def nested(depth: int) -> bytes:
    return b"]" * depth + b"a" * (depth - 1) + b"."


def doubled(times: int) -> bytes:
    """A list of twice the list before, without end when it is printed."""
    return b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (k + 1, k, k) for k in range(times)) + b"."


ENDLESS = {
    "deep": nested(100_000),
    "doubled": doubled(30),
    "circular": b"]q\x00h\x00a.",
    "long number": b"\x8b" + struct.pack("<I", 5000) + b"\x7f" * 5000 + b".",
    "half a character": b"X\x03\x00\x00\x00\xed\xa0\x80.",
    "longer than the file": b"\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "array of bytes longer than the file": b"\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "large number of a note": b"]r" + struct.pack("<I", (1 << 32) - 1) + b".",
}


@pytest.mark.parametrize("name", sorted(set(ENDLESS) - {"large number of a note"}))
def test_what_no_program_would_finish_with(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserInputError, match="is damaged"):
        load(tmp_path / "x.pickle", ENDLESS[name])


def test_a_note_of_a_large_number_takes_no_memory(tmp_path: Path) -> None:
    assert load(tmp_path / "x.pickle", ENDLESS["large number of a note"]) == []


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pickle")
    with pytest.raises(UserInputError, match="not a file"):
        load_objects(tmp_path / "x.pickle", "--data_file")


KINDS: list[Callable[[], Any]] = [
    lambda: np.arange(6, dtype=">i2").reshape(2, 3),
    lambda: np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    lambda: np.array(["sub-1", "süd"]),
    lambda: np.array([b"ab", b"c"]),
    lambda: np.array([True, False]),
    lambda: np.array(2.5, dtype=np.float16),
    lambda: np.zeros((0, 4), dtype=np.float32),
    lambda: np.str_("text"),
    lambda: np.bool_(True),
    lambda: np.array(["a", 1, None], dtype=object),
    lambda: OrderedDict(a=np.arange(3)),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_kind_of_the_readme_is_read(tmp_path: Path, protocol: int) -> None:
    wanted = [make() for make in KINDS]
    found = load(tmp_path / "x.pickle", pickle.dumps(wanted, protocol=protocol))
    for one, two in zip(found, wanted, strict=True):
        assert type(one) is type(two)
        np.testing.assert_equal(one, two)
        if isinstance(two, np.ndarray):
            assert one.dtype == two.dtype.newbyteorder("=") and one.shape == two.shape


def test_scans_that_share_their_facts_are_read(tmp_path: Path) -> None:
    facts = {"subjectId": "a"}
    found = load(tmp_path / "x.pickle", pickle.dumps([{"pheno": facts} for _ in range(1000)]))
    assert len(found) == 1000 and found[0]["pheno"] is found[999]["pheno"]
