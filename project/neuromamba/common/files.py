"""Facts about files and folders."""

from __future__ import annotations

import shutil
from pathlib import Path


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk that holds, or will hold, a folder."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free
