"""Headers that are remembered: files that have changed are read again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.store import reader
from neuromamba.data.store.reader import RunFile, read_header
from tests.helpers.tiny import write_tiny_run

HOUR = 3600


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that nobody has changed for an hour, before any header was remembered."""
    monkeypatch.setattr(reader, "_headers", type(reader._headers)())
    path = tmp_path / "run.h5"
    write_tiny_run(path, "ab", 0)
    before = time.time() - HOUR
    os.utime(path, (before, before))
    return path


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths whose header was really read and checked."""
    found: list[Path] = []
    checked = reader._checked_header

    def counted(file: h5py.File, path: Path) -> reader.RunHeader:
        found.append(path)
        return checked(file, path)

    monkeypatch.setattr(reader, "_checked_header", counted)
    return found


def test_an_unchanged_file_is_read_once(run: Path, readings: list[Path]) -> None:
    first = read_header(run)
    file = RunFile(run)
    assert file.header == first and file.vox.size == first.n_voxels
    file.close()
    link = run.with_name("other_name.h5")
    link.hardlink_to(run)
    assert read_header(link) == first
    assert readings == [run]


def rename(path: Path) -> None:
    """Another file takes its place, with the same size and time."""
    other = path.with_name("other.h5")
    shutil.copy2(path, other)
    with h5py.File(other, "r+") as file:
        file.attrs["subject"] = "zz"
    found = path.stat()
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.replace(path)


def in_place(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["subject"] = "zz"


@pytest.mark.parametrize("change", [rename, in_place])
def test_a_changed_file_is_read_again(run: Path, change: Callable[[Path], None]) -> None:
    assert read_header(run).subject != "zz"
    change(run)
    assert read_header(run).subject == "zz"


def test_damage_is_still_found(run: Path) -> None:
    read_header(run)
    with h5py.File(run, "r+") as file:
        file.attrs["scale"] = float("nan")
    with pytest.raises(UserInputError, match="an attribute is damaged"):
        read_header(run)


def test_a_file_that_was_just_written_is_not_remembered(run: Path, readings: list[Path]) -> None:
    """Within a tick of the clock it may change without its time changing."""
    os.utime(run)
    found = run.stat()
    read_header(run)
    with h5py.File(run, "r+") as file:
        file.attrs.modify("tr", 7.0)
    os.utime(run, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert reader.identity_of(run) == (
        *(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns),
    )
    assert read_header(run).tr == 7
    assert len(readings) == 2


def test_memory_is_bounded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_REMEMBERED", 3)
    for number in range(6):
        copy = run.with_name(f"{number}.h5")
        shutil.copy2(run, copy)
        read_header(copy)
    assert len(reader._headers) == 3
