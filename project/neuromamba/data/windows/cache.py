"""A cache of windows that all loading processes share: ``--window_cache``.

It pays where reading is slower than copying: compressed stores, network file systems, memory too
small for the system's own cache of files. On a local, uncompressed store that cache does the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.data.windows.shared_memory import SharedBlock, round_up

AUTO_SHARE = 0.25  # of the free memory that --window_cache auto takes at most
_FILLING = np.iinfo(np.int64).max  # time of last use of a slot that is being written


class WindowCache:
    """Keeps the windows used last, as stored, within a bound.

    A lock guards the index alone. Copies run beside it: a reader looks afterwards whether its
    slot was given away meanwhile, and then the window counts as absent.

    Args:
        windows: how many there are, numbered from 0.
        nbytes: of the largest window.
        capacity: bytes to keep at most; at least one window.
    """

    def __init__(self, windows: int, nbytes: int, capacity: int) -> None:
        self.windows, self.nbytes = windows, nbytes
        self.n_slots = min(windows, capacity // round_up(nbytes, 64))
        assert self.n_slots > 0
        sizes = (8 * windows, 8 * self.n_slots, 8 * self.n_slots, 8 * self.n_slots, 8)
        self._offsets = np.cumsum([0, *sizes]).tolist()
        self._start = round_up(self._offsets[-1], 4096)
        self._block = SharedBlock(self._start + self.n_slots * round_up(nbytes, 64))
        self._slot_of[:] = -1
        self._window_in[:] = -1

    def _index(self, field: int, count: int) -> np.ndarray:
        return self._block.array(np.int64, count, self._offsets[field])

    @property
    def _slot_of(self) -> np.ndarray:
        return self._index(0, self.windows)

    @property
    def _window_in(self) -> np.ndarray:
        return self._index(1, self.n_slots)

    @property
    def _used(self) -> np.ndarray:
        return self._index(2, self.n_slots)

    @property
    def _version(self) -> np.ndarray:
        return self._index(3, self.n_slots)

    def _now(self) -> int:
        clock = self._index(4, 1)
        clock[0] += 1
        return int(clock[0])

    def _content(self, slot: int, like: np.ndarray) -> np.ndarray:
        offset = self._start + slot * round_up(self.nbytes, 64)
        return self._block.array(like.dtype, like.size, offset).reshape(like.shape)

    def __len__(self) -> int:
        """Windows that are there."""
        return int((self._slot_of >= 0).sum())

    def get(self, window: int, out: np.ndarray) -> bool:
        """Copy a window into ``out``; False if it is not there, ``out`` is undefined then."""
        with self._block.locked():
            slot = int(self._slot_of[window])
            if slot < 0:
                return False
            version = int(self._version[slot])
            self._used[slot] = self._now()
        np.copyto(out, self._content(slot, out))
        with self._block.locked():
            return int(self._version[slot]) == version

    def put(self, window: int, values: np.ndarray) -> None:
        """Keep a window; the one used longest ago gives way."""
        with self._block.locked():
            if self._slot_of[window] >= 0:
                return  # another process was faster
            slot = int(self._used.argmin())
            if self._used[slot] == _FILLING:
                return
            if self._window_in[slot] >= 0:
                self._slot_of[self._window_in[slot]] = -1
            self._window_in[slot] = -1
            self._used[slot] = _FILLING
            self._version[slot] += 1
        np.copyto(self._content(slot, values), values)
        with self._block.locked():
            self._used[slot] = self._now()
            if self._slot_of[window] < 0:
                self._window_in[slot], self._slot_of[window] = window, slot
            else:
                self._used[slot] = 0  # another process was faster: the next one to give way


def cache_bytes(wanted: float | str, windows: int, nbytes: int, processes: int = 1) -> int:
    """Bytes that the cache of each training process gets; 0 for none.

    Args:
        wanted: ``--window_cache``: GB (1e9 bytes), or "auto" for all windows if they fit into a
            quarter of the free memory and else none.
        windows, nbytes: number of training windows, and size of the largest.
        processes: training processes of this machine, which share its memory.

    Raises:
        UserInputError: more than is free, or less than a window.
    """
    whole = windows * round_up(nbytes, 64)
    free = free_memory()
    if wanted == "auto":
        fits = free is not None and processes * whole <= AUTO_SHARE * free
        return whole if fits else 0
    capacity = min(int(float(wanted) * 1e9), whole)
    if capacity and capacity < nbytes:
        raise UserInputError(
            f"--window_cache: got {wanted} GB, but one window takes {nbytes / 1e9:.3g}; give more, "
            f"or 0 for no cache."
        )
    if free is not None and processes * capacity > free:
        raise UserInputError(
            f"--window_cache: got {wanted} GB for each of {processes} process(es), but "
            f"{free / 1e9:.3g} GB of memory are free here; give less, or auto."
        )
    return capacity


def free_memory(root: str = "/") -> int | None:
    """Bytes that this process may still take; None where the system does not say.

    The least of what the machine has and what control groups (batch jobs, containers) leave.
    """
    left = []
    try:
        for line in (Path(root) / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                left.append(int(line.split()[1]) * 1024)
        groups = (Path(root) / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return min(left, default=None)
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, used = "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            used = "memory.usage_in_bytes"
        else:
            continue
        top = Path(root) / base
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            try:
                most = int((folder / limit).read_text())
                files = _cached_files(folder / "memory.stat")
                left.append(most - int((folder / used).read_text()) + files)
            except (OSError, ValueError):  # no such limit here, or "max"
                pass
            if folder == top:
                break
    return min(left, default=None)


def _cached_files(path: Path) -> int:
    """Bytes of a control group that the system gives back when memory is short."""
    rows = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return sum(int(row[1]) for row in rows if row[0] in ("active_file", "inactive_file"))
