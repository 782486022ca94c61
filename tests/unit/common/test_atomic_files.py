"""Whole files, what killed processes leave behind, and the lock."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neuromamba.common import atomic_files as whole_files
from neuromamba.common.atomic_files import (
    atomic_path,
    locked,
    remove_abandoned,
    temporary_beside,
    write_text_atomically,
)
from neuromamba.data.ingest.quarantine import read_quarantine, update_quarantine


def gone_process() -> int:
    """Number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_abandoned_files_are_removed(tmp_path: Path) -> None:
    host = whole_files._HOST
    mine = temporary_beside(tmp_path / "a.h5")
    dead = tmp_path / f"b.h5.{host}-{gone_process()}.tmp"
    elsewhere, old = tmp_path / "c.h5.othernode-1.tmp", tmp_path / "d.h5.tmp"
    for path in (mine, dead, elsewhere, old, tmp_path / "a.h5"):
        path.write_text("x")
    (tmp_path / "folder.tmp").mkdir()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    assert remove_abandoned(tmp_path) == [dead.name, old.name]
    assert {p.name for p in tmp_path.iterdir()} == {
        mine.name,
        elsewhere.name,
        "a.h5",
        "folder.tmp",
    }


def add_entry(folder: str, number: int) -> None:
    failed = {Path(folder) / f"{number}.nii": f"reason {number}"}
    update_quarantine(folder, list(failed), failed)


def test_entries_of_several_processes_are_all_kept(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.nii").touch()
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=add_entry, args=(str(tmp_path), n)) for n in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [Path(file).name for file in read_quarantine(tmp_path)] == [f"{n}.nii" for n in range(6)]
    assert not list(tmp_path.glob("*.lock"))


def test_a_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "list"
    lock = tmp_path / "list.lock"
    lock.write_text(f"{whole_files._HOST}-{gone_process()}")
    with locked(path):
        assert lock.read_text() == f"{whole_files._HOST}-{os.getpid()}"
    lock.write_text("othernode-1")
    os.utime(lock, (time.time() - 60,) * 2)
    with locked(path, patience=30):
        pass
    assert not lock.exists()


def test_quarantine_list(tmp_path: Path) -> None:
    bad, other = tmp_path / "bad\tname.nii", tmp_path / "other.nii"
    for path in (bad, other):
        path.touch()
    assert update_quarantine(tmp_path, [], {}) == 0
    assert not (tmp_path / "quarantine.tsv").exists()
    assert update_quarantine(tmp_path, [bad], {bad: 'a "reason"'}) == 1
    assert update_quarantine(tmp_path, [other], {other: "x"}) == 2
    assert read_quarantine(tmp_path) == {str(bad): 'a "reason"', str(other): "x"}
    # Mended: gone. Deleted: gone. Not looked at: still there.
    assert update_quarantine(tmp_path, [], {}) == 2
    other.unlink()
    assert update_quarantine(tmp_path, [], {}) == 1
    assert update_quarantine(tmp_path, [bad], {}) == 0
    assert not (tmp_path / "quarantine.tsv").exists()
