"""Memory that the training process and its loading processes share.

A block is a file without a name, mapped by every process, and gone with the last of them, however
they end: nothing is left in /dev/shm. Loading processes write batches into slots of a block that
are used again and again, because fresh shared memory costs four times the copy (page faults).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_FLAGS = 1 << 14  # where the slots' flags begin, behind a number for each of 2,048 workers
# Token of a block -> the block, in this process.
_BLOCKS: weakref.WeakValueDictionary[str, SharedBlock] = weakref.WeakValueDictionary()


def round_up(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple


class SharedBlock:
    """``nbytes`` of zeros that processes share; pickled only to a process that is being started.

    Memory is taken when it is first written to.
    """

    def __init__(self, nbytes: int) -> None:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("neuromamba")  # unlike /dev/shm, of no fixed size
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, nbytes)
        self._map(nbytes, uuid.uuid4().hex, descriptor)

    def _map(self, nbytes: int, token: str, descriptor: int) -> None:
        self.nbytes, self.token, self._descriptor = nbytes, token, descriptor
        self.memory = mmap.mmap(descriptor, nbytes)
        weakref.finalize(self, os.close, descriptor)
        _BLOCKS[token] = self

    def __getstate__(self) -> dict[str, Any]:
        descriptor = reduction.DupFd(self._descriptor)
        return {"nbytes": self.nbytes, "token": self.token, "descriptor": descriptor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._map(state["nbytes"], state["token"], state["descriptor"].detach())

    def array(self, dtype: Any, count: int, offset: int) -> np.ndarray:
        """A view [count] of the block from byte ``offset`` on; it keeps the memory mapped."""
        return np.frombuffer(self.memory, dtype, count, offset)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Excludes other processes; the system takes the lock back from one that dies."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


class Slots:
    """Places for batches on their way to the training process.

    A loading process (or the training process itself, where there are none) takes a free slot and
    fills it; the slot is free again when the training process has dropped every view of the batch.

    Args:
        count: batches that can be under way or in use at once.
        nbytes: of the largest batch.
        workers: loading processes.
    """

    def __init__(self, count: int, nbytes: int, workers: int) -> None:
        self.count, self.nbytes, self.workers = count, round_up(nbytes, mmap.PAGESIZE), workers
        self._start = round_up(_FLAGS + count, mmap.PAGESIZE)
        self.block = SharedBlock(self._start + count * self.nbytes)
        self.reading[:] = -1

    @property
    def reading(self) -> np.ndarray:
        """int64 [workers]: number of the window that each process is reading; -1: none."""
        return self.block.array(np.int64, self.workers, 0)

    @property
    def _taken(self) -> np.ndarray:
        return self.block.array(np.bool_, self.count, _FLAGS)

    def take(self) -> int | None:
        """A slot for this process to fill; None if none is free."""
        with self.block.locked():
            free = np.flatnonzero(~self._taken)
            if not free.size:
                return None
            self._taken[free[0]] = True
            return int(free[0])

    def memory(self, slot: int) -> np.ndarray:
        """Bytes of a slot, uint8 [nbytes]."""
        return self.block.array(np.uint8, self.nbytes, self._start + slot * self.nbytes)

    def ticket(self, slot: int) -> Ticket:
        """What to send for a filled slot."""
        return Ticket(self.block.token, slot, self._start + slot * self.nbytes, self.nbytes)


class Ticket(NamedTuple):
    """Says where a filled slot is, without its content."""

    block: str
    slot: int
    offset: int
    nbytes: int

    def bytes(self) -> Tensor:
        """The slot as uint8 [nbytes]; it is free again when no view of this tensor is left."""
        block = _BLOCKS[self.block]
        array = block.array(np.uint8, self.nbytes, self.offset)
        in_use = block.array(np.bool_, self.slot + 1, _FLAGS)
        # The tensor's memory holds the array, and a view's memory is the tensor's.
        weakref.finalize(array, in_use.__setitem__, self.slot, False).atexit = False
        return torch.from_numpy(array)
