"""How many cores other processes use right now: what a measurement or a training has to share."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
SECONDS = 0.5  # to look; the load average would hold what this user did a minute ago


def busy_cores(seconds: float = SECONDS) -> float | None:
    """Average number of busy cores over a short time; None where the system does not report it."""
    try:
        before = _times(_STAT.read_text())
        time.sleep(seconds)
        after = _times(_STAT.read_text())
    except (OSError, ValueError):
        return None
    busy, whole = (now - then for now, then in zip(after, before, strict=True))
    return (os.cpu_count() or 1) * busy / whole if whole > 0 else None


def _times(text: str) -> tuple[int, int]:
    """Ticks of all cores since the start, busy and in all: user, nice, system, idle, iowait ..."""
    ticks = [int(word) for word in text.splitlines()[0].split()[1:9]]
    return sum(ticks) - sum(ticks[3:5]), sum(ticks)
