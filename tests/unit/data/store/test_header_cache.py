"""The cache of headers: as good as the files, whatever happens to either."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path

import pytest

from neuromamba.data.store import header_cache
from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.header_cache import CACHE, read_headers
from neuromamba.data.store.reader import list_runs, read_header
from tests.helpers.tiny import write_tiny_run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "hdf5").mkdir()
    for i in range(4):
        tr = math.nan if i == 3 else 0.72
        write_tiny_run(tmp_path / "hdf5" / f"sub-{i}.h5", f"sub-{i}", i, tr=tr)
    return tmp_path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened."""
    opened: list[str] = []

    def counted(path: Path):
        opened.append(path.name)
        return read_header(path)

    monkeypatch.setattr(header_cache, "read_header", counted)
    return opened


def headers_of(store: Path, paths: list[Path], write: bool = True) -> list[RunHeader]:
    headers, errors = read_headers(store, paths, write=write)
    assert not errors and list(headers) == [path.name for path in paths]
    return list(headers.values())


def same(found, expected) -> bool:
    return repr(found) == repr(expected)  # NaN differs from itself


def test_files_are_opened_once(store: Path, reads: list[str]) -> None:
    paths = list_runs(store)
    plain = [read_header(path) for path in paths]
    assert same(headers_of(store, paths), plain) and len(reads) == 4
    assert same(headers_of(store, paths), plain) and len(reads) == 4
    assert same(headers_of(store, paths[::-1]), plain[::-1]) and len(reads) == 4


def test_changes_are_seen(store: Path, reads: list[str]) -> None:
    headers_of(store, list_runs(store))
    reads.clear()
    write_tiny_run(store / "hdf5" / "sub-1.h5", "sub-1", 1, tr=2.0)
    write_tiny_run(store / "hdf5" / "sub-9.h5", "sub-9", 9)
    (store / "hdf5" / "sub-2.h5").unlink()
    headers = headers_of(store, list_runs(store))
    assert reads == ["sub-1.h5", "sub-9.h5"]
    assert [h.subject for h in headers] == ["sub-0", "sub-1", "sub-3", "sub-9"]
    assert headers[1].tr == 2.0
    assert list(json.loads((store / CACHE).read_text())["runs"]) == [
        p.name for p in list_runs(store)
    ]
    (store / "hdf5" / "sub-1.h5").write_bytes(b"no HDF5 file")
    found, errors = read_headers(store, list_runs(store), write=True)
    assert list(found) == ["sub-0.h5", "sub-3.h5", "sub-9.h5"]
    assert len(errors) == 1 and "sub-1.h5: not a readable HDF5 file" in str(errors[0])


@pytest.mark.parametrize("text", ["", "[]", "{", '{"fields": ["subject"], "runs": {}}', "null"])
def test_a_damaged_cache_is_written_anew(
    store: Path, reads: list[str], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (store / CACHE).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert len(headers_of(store, list_runs(store))) == 4 == len(reads)
    assert ("cannot be used" in caplog.text) == ("fields" not in text)
    assert len(headers_of(store, list_runs(store))) == 4 == len(reads)


def test_nothing_is_written_unless_asked(store: Path) -> None:
    before = sorted(os.listdir(store))
    headers_of(store, list_runs(store), write=False)
    assert sorted(os.listdir(store)) == before
