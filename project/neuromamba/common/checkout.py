"""The location of this package: in a checkout of the repository, or installed without one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

SOURCE_ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package


@cache
def repository() -> Path | None:
    """The checkout that this package runs from; None where only the package is installed."""
    root = SOURCE_ROOT.parent
    is_checkout = SOURCE_ROOT.name == "project" and (root / "pyproject.toml").is_file()
    return root if is_checkout else None
