"""Facts about files and folders."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk that holds, or will hold, a folder."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def without_leftovers(paths: Iterable[Path]) -> list[Path]:
    """Sort paths, without what other systems leave beside files: ``._name`` and ``~$name``."""
    return sorted(path for path in paths if not path.name.startswith(("._", "~$")))
