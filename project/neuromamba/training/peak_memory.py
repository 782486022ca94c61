"""Memory of this process: what it has, and the most that it had."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most bytes so far: of this process (``host``), of its tensors on a GPU (``device``)."""
    found = {"host": resident_peak()}
    if device.type != "cpu":
        backend = getattr(torch, device.type)
        found["device"] = backend.max_memory_allocated(device)
        found["device_reserved"] = backend.max_memory_reserved(device)
    return found


def resident_peak() -> int:
    """The most bytes of this process in memory (``VmHWM``).

    ``ru_maxrss``, the fallback outside Linux, begins at the peak of the process that started it.
    """
    found = _status("VmHWM")
    if found is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_now() -> int:
    """Bytes of this process in memory; outside Linux the most that it had."""
    found = _status("VmRSS")
    return resident_peak() if found is None else found


def _status(field: str) -> int | None:
    """A field of the kernel's account of this process, in bytes; None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines)
    return next((int(words[1]) * 1024 for words in found if words[0] == f"{field}:"), None)
