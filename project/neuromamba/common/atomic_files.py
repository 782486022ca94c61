"""Atomic files: complete, or absent."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuromamba.common.errors import UserInputError

_HOST = re.sub(r"[^A-Za-z0-9]+", "", socket.gethostname())[:32] or "host"
_TEMPORARY = re.compile(r".+\.(?P<host>[A-Za-z0-9]+)-(?P<pid>\d+)(-[0-9a-f]+)?\.tmp")
_ABANDONED = 24 * 3600.0  # seconds without a write; a run takes minutes


def temporary_beside(path: Path) -> Path:
    """A name beside ``path`` that holds machine and process.

    So several processes, on several machines of a cluster, may write one file or one folder at
    once, and a later call can tell which names are left over from a process that was killed. The
    rest of the name is random: in a folder that others can write, nobody can put a link there
    beforehand. ``new_temporary_file`` and ``new_temporary_folder`` make what has the name.
    """
    return path.with_name(f"{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(6)}.tmp")


def new_temporary_file(path: Path) -> Path:
    """Make an empty file beside ``path``, which was not there before; permissions by the umask.

    Raises:
        OSError: it cannot be made, or something has its name: no link is followed.
    """
    temporary = temporary_beside(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    os.close(os.open(temporary, flags, 0o666))
    return temporary


def new_temporary_folder(path: Path) -> Path:
    """Make a folder as ``new_temporary_file`` makes a file."""
    temporary = temporary_beside(path)
    os.mkdir(temporary)
    return temporary


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a new, empty file beside ``path``; it takes its place if the block succeeds."""
    temporary = new_temporary_file(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(folder: Path, flag: str) -> None:
    """Make a folder to write into.

    Raises:
        UserInputError: it cannot be made or written; ``flag`` named it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserInputError(
            f"{flag}: '{folder}' cannot be made ({error.strerror}). Choose a folder that can be "
            f"written."
        ) from None
    if not os.access(folder, os.W_OK):
        raise UserInputError(f"{flag}: '{folder}' is read-only. Choose another folder.")


def remove_abandoned(folder: Path, folders: bool = False) -> list[str]:
    """Delete the temporary files of processes that are gone; returns their names.

    A file of this machine goes if its process does not run; one of another machine, or of an
    unknown writer, if nothing was written to it for a day.

    Args:
        folder: where they are.
        folders: delete temporary folders as well.
    """
    removed = []
    for path in sorted(folder.glob("*.tmp")):
        try:
            is_folder = path.is_dir() and not path.is_symlink()
            if (folders or not is_folder) and _is_abandoned(path):
                shutil.rmtree(path) if is_folder else path.unlink()
                removed.append(path.name)
        except FileNotFoundError:
            continue  # another process was faster
    return removed


def _is_abandoned(path: Path) -> bool:
    found = _TEMPORARY.fullmatch(path.name)
    if found and found["host"] == _HOST:
        return not process_runs(int(found["pid"]))
    return time.time() - path.lstat().st_mtime > _ABANDONED


def process_runs(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


@contextmanager
def locked(path: Path, patience: float = 30.0) -> Iterator[None]:
    """Hold ``<path>.lock`` for a moment, against other processes that change ``path``.

    The lock is a file made exclusively, which works on network file systems, too. A lock of a
    process that is gone, or older than ``patience`` seconds, is taken over.
    """
    lock = path.with_name(path.name + ".lock")
    owner = f"{_HOST}-{os.getpid()}"
    while True:
        try:
            with open(lock, "x", encoding="utf-8") as stream:
                stream.write(owner)
            break
        except FileExistsError:
            if _lock_is_stale(lock, patience):
                lock.unlink(missing_ok=True)
            else:
                time.sleep(0.02)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _lock_is_stale(lock: Path, patience: float) -> bool:
    try:
        host, _, pid = lock.read_text(encoding="utf-8").partition("-")
        if host == _HOST and pid.isdigit() and not process_runs(int(pid)):
            return True
        return time.time() - lock.stat().st_mtime > patience
    except FileNotFoundError:
        return False
