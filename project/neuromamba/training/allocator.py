"""What the C library does with freed memory, chosen by ``--allocator`` for the whole process.

glibc gives blocks above 32 MB, and whatever lies free at the end of its heap, back to the operating
system at once; the next tensor of that size is then built from pages that the kernel must find and
clear first (docs/performance.md says what that costs), step after step. ``retain`` tells it to keep
what it has: the process stays as large as its largest step, and grows beyond what that step needs,
because small blocks come to lie in the holes that large ones leave. ``compact`` is the other end:
every tensor of a megabyte or more gets pages of its own, so that there are no holes, and the
process is as small as it can be.

Only entry points apply it: a library has no business with the allocator of its host.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from collections.abc import Mapping
from typing import NamedTuple

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.names import ALLOCATORS

logger = logging.getLogger(__name__)

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_NEVER = -1
_SETTINGS: Mapping[str, Mapping[int, int]] = {
    "default": {},
    "retain": {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER},
    "compact": {_M_MMAP_THRESHOLD: 1 << 20},
}
_EFFECT = {
    "retain": "freed memory stays with the process",
    "compact": "freed memory goes back at once",
}
_REPLACEMENTS = ("jemalloc", "tcmalloc", "mimalloc")


class Allocator(NamedTuple):
    """A choice made.

    Attributes:
        name: "default", "retain" or "compact".
        why: the reason, for the log.
    """

    name: str
    why: str

    def apply(self) -> None:
        """Set the process up and log how; ``default`` leaves everything as it is.

        Raises:
            UserInputError: the C library refuses.
        """
        logger.info("memory allocator: %s (%s)", self.name, self.why)
        settings = _SETTINGS[self.name]
        if not settings:
            return
        library = ctypes.CDLL(None)
        if not all(library.mallopt(key, value) for key, value in settings.items()):
            raise UserInputError(
                f"--allocator: the C library refuses the settings of {self.name}; use default."
            )


def choose_allocator(requested: str, accelerator: str) -> Allocator:
    """What to use for a run.

    Args:
        requested: ``--allocator``.
        accelerator: "cpu" or "cuda"; on a GPU, torch's own allocator holds the large tensors.

    Raises:
        UserInputError: an unknown name, or one that has no effect here.
    """
    look_up(requested, ALLOCATORS, "--allocator")
    if requested == "default":
        return Allocator("default", "requested")
    obstacle = _obstacle()
    if requested in _EFFECT:
        if obstacle:
            raise UserInputError(
                f"--allocator: {requested} needs glibc's malloc, but {obstacle}; use auto."
            )
        return Allocator(requested, f"requested; {_EFFECT[requested]}")
    if accelerator != "cpu":
        return Allocator("default", f"auto on {accelerator}")
    if obstacle:
        return Allocator("default", f"auto; {obstacle}")
    return Allocator("retain", f"auto on cpu with glibc; {_EFFECT['retain']}")


def _obstacle() -> str | None:
    """Why glibc's malloc is not the one in use, or None."""
    library = platform.libc_ver()[0]
    if library != "glibc":
        return f"the C library here is {library or 'not known'} ({platform.system()})"
    preloaded = os.environ.get("LD_PRELOAD", "")
    for name in _REPLACEMENTS:
        if name in preloaded:
            return f"LD_PRELOAD replaces it by {name}"
    return None
