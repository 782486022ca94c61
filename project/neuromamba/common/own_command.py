"""Commands of this package, run in processes of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from neuromamba.common.checkout import SOURCE_ROOT


def own_command(*words: str) -> list[str]:
    """The words that run ``neuromamba WORDS`` with this interpreter; see ``own_environment``."""
    return [sys.executable, "-m", "neuromamba", *words]


def own_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment in which ``own_command`` finds this very package.

    A script of a checkout that is not installed has it on ``sys.path`` only, which is not handed on
    to other processes.
    """
    environment = {**os.environ, **(changes or {})}
    if SOURCE_ROOT.name not in ("site-packages", "dist-packages"):
        before = environment.get("PYTHONPATH", "").split(os.pathsep)
        others = [path for path in before if path and path != str(SOURCE_ROOT)]
        environment["PYTHONPATH"] = os.pathsep.join([str(SOURCE_ROOT), *others])
    return environment
