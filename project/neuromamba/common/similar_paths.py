"""What a path that does not exist was probably meant to be."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from neuromamba.common.text import visible

_ALIKE = 0.7  # share of letters that two names have in common


def did_you_mean(path: str | Path) -> str:
    """End of a message on a path that is not there: the entry that is spelt most like it.

    The first part of the path that does not exist is compared with what lies beside it.

    Returns:
        `` Did you mean '...'?``; "" if nothing there has a similar name.
    """
    missing = Path(path)
    try:
        while not missing.parent.exists():
            missing = missing.parent
        beside = os.listdir(missing.parent)
    except OSError:
        return ""
    close = difflib.get_close_matches(missing.name, beside, n=1, cutoff=_ALIKE)
    return f" Did you mean '{visible(str(missing.parent / close[0]))}'?" if close else ""
