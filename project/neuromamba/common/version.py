"""Which version of this code is running; kept in checkpoints."""

from __future__ import annotations

from functools import cache

from neuromamba.common.checkout import repository

VERSION = "0.2.0"


@cache
def code_version() -> str:
    """The package's version and, in a git repository, the commit: ``0.2.0 (aa29be1-dirty)``."""
    commit = _commit()
    return f"{VERSION} ({commit})" if commit else VERSION


def _commit() -> str:
    root = repository()
    if root is None or not (root / ".git").exists():
        return ""  # not git's, or a copy inside of another repository
    import subprocess  # `import neuromamba` reads this file and should be quick

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
