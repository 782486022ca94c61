"""Small facts that take seconds to find out, kept for the user: JSON files in the cache folder.

The folder is ``$NEUROMAMBA_CACHE``, else ``$XDG_CACHE_HOME/neuromamba``, else
``~/.cache/neuromamba``. A file that is missing, damaged, or belongs to somebody else counts as
unknown, and where nothing can be written the fact is found out again in the next process.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.json_text import parse_json

VARIABLE = "NEUROMAMBA_CACHE"


def user_cache_folder() -> Path:
    """The folder; it need not exist."""
    if os.environ.get(VARIABLE):
        return Path(os.path.expanduser(os.environ[VARIABLE])).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base)).absolute() / "neuromamba"


def read_facts(name: str) -> dict[str, Any]:
    """What is kept under a name; {} if nothing is, or it cannot be trusted.

    Args:
        name: of the file, without its ending.
    """
    path = user_cache_folder() / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with open(path, encoding="utf-8") as stream:
            ours = not hasattr(os, "geteuid") or os.fstat(stream.fileno()).st_uid in (
                os.geteuid(),
                0,
            )
            found = parse_json(stream.read()) if ours else None
        if isinstance(found, dict):
            return found
    return {}


def keep_fact(name: str, key: str, value: Any) -> None:
    """Add a fact to those kept under a name, for later processes.

    Args:
        name: of the file, without its ending.
        key: what the fact is about: everything that it depends on belongs in here.
        value: of plain containers, numbers and text.
    """
    with contextlib.suppress(OSError):
        folder = user_cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        facts = read_facts(name) | {key: value}
        write_text_atomically(folder / f"{name}.json", json.dumps(facts, indent=1) + "\n")
