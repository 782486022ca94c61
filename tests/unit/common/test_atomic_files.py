"""Whole files, what killed processes leave behind, and the lock."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from neuromamba.common import atomic_files as whole_files
from neuromamba.common.atomic_files import (
    atomic_path,
    locked,
    new_temporary_file,
    new_temporary_folder,
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
    dead = tmp_path / f"b.h5.{host}-{gone_process()}-0123456789ab.tmp"
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


PLANTED: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda name, target: name.symlink_to(target),
    "link to nothing": lambda name, target: name.symlink_to(target.with_name("absent")),
    "file": lambda name, target: name.write_text("others"),
    "folder": lambda name, target: name.mkdir(),
}


@pytest.mark.parametrize("planted", sorted(PLANTED))
def test_nothing_is_followed_that_others_have_put_there(
    tmp_path: Path, planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    names = [  # one that could be guessed, and, if all else failed, the very name
        tmp_path / f"a.txt.{whole_files._HOST}-{os.getpid()}.tmp",
        tmp_path / f"a.txt.{whole_files._HOST}-{os.getpid()}-{'0' * 12}.tmp",
    ]
    for name in names:
        PLANTED[planted](name, secret)
    write_text_atomically(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text" and secret.read_text() == "mine"
    assert not (tmp_path / "a.txt").is_symlink()
    monkeypatch.setattr(whole_files.secrets, "token_hex", lambda n: "00" * n)
    for make in (new_temporary_file, new_temporary_folder):
        with pytest.raises(FileExistsError):
            make(tmp_path / "a.txt")
    with pytest.raises(FileExistsError), atomic_path(tmp_path / "a.txt"):
        pass
    assert secret.read_text() == "mine" and not (tmp_path / "absent").exists()
    assert all(name.exists() or name.is_symlink() for name in names)  # not ours to delete


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text_atomically(tmp_path / "a.txt", "text")
        folder = new_temporary_folder(tmp_path / "b")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~mask
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask


def test_names_differ(tmp_path: Path) -> None:
    assert len({temporary_beside(tmp_path / "a") for _ in range(100)}) == 100


def test_an_abandoned_link_is_removed_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    link = tmp_path / f"x.{whole_files._HOST}-{gone_process()}-0123456789ab.tmp"
    link.symlink_to(tmp_path / "kept")
    dangling = tmp_path / f"y.{whole_files._HOST}-{gone_process()}.tmp"
    dangling.symlink_to(tmp_path / "absent")
    assert remove_abandoned(tmp_path, folders=True) == [link.name, dangling.name]
    assert (tmp_path / "kept" / "file").exists()


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
