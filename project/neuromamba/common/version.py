"""Which version of this code is running; kept in checkpoints."""

from __future__ import annotations

import subprocess
from functools import cache

from neuromamba import __version__
from neuromamba.common.checkout import repository


@cache
def code_version() -> str:
    """The package's version and, in a git repository, the commit: ``0.1.0 (aa29be1-dirty)``."""
    commit = _commit()
    return f"{__version__} ({commit})" if commit else __version__


def _commit() -> str:
    root = repository()
    if root is None or not (root / ".git").exists():
        return ""  # not git's, or a copy inside of another repository
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
