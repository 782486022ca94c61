"""Facts about files and folders."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from neuromamba.common.errors import UserInputError


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk that holds, or will hold, a folder."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def without_leftovers(paths: Iterable[Path]) -> list[Path]:
    """Sort paths, without what other systems leave beside files: ``._name`` and ``~$name``."""
    return sorted(path for path in paths if not path.name.startswith(("._", "~$")))


def refuse_other_content(folder: Path, own: Collection[str], flag: str) -> None:
    """Refuse a folder that holds files of others, which ours could replace.

    Args:
        folder: may be absent or empty.
        own: names of which an earlier call of the same command has left at least one.
        flag: that named the folder.

    Raises:
        UserInputError: it holds something, and none of ``own``.
    """
    if not folder.is_dir() or any((folder / name).exists() for name in own):
        return
    if any(folder.iterdir()):
        raise UserInputError(
            f"{flag}: '{folder}' holds something else. Choose a new folder; nothing in this one "
            f"was touched."
        )


def safe_name(text: str, instead: str = "-", *, more: str = ".", runs: bool = False) -> str:
    """A name from data, such as of a scan, class or site, as a part of a file name.

    Args:
        text: any text.
        instead: what takes the place of a character that is no ASCII letter, digit or ``-``.
        more: further characters that stay.
        runs: replace several such characters in a row by one.
    """
    return re.sub(f"[^A-Za-z0-9{re.escape(more)}-]{'+' if runs else ''}", instead, text)
