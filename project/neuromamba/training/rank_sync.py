"""What ranks tell each other: a few numbers at every step, and that one of them has failed."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

import torch
from torch import Tensor, distributed

from neuromamba.common.cli import FAILED


def several_ranks() -> bool:
    """Whether this process is one of several that work together."""
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


class RankSync:
    """The largest of all ranks' numbers.

    ``propose`` costs one small reduction. It is read a step later, when it has long been done and
    copied: so no rank waits for its device, and every rank reads the same at the same place.
    """

    def __init__(self) -> None:
        self._answer: tuple[Tensor, Any] | None = None

    def propose(self, numbers: Tensor) -> None:
        """Begin with this rank's numbers, integers on its device; every rank has to call it."""
        if several_ranks():
            # Not through Lightning: it would put a barrier before, where the host waits.
            distributed.all_reduce(numbers, op=distributed.ReduceOp.MAX)
        if numbers.device.type == "cpu":
            self._answer = (numbers, None)
            return
        on_host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        on_host.copy_(numbers, non_blocking=True)
        event = torch.Event(numbers.device)
        event.record()
        self._answer = (on_host, event)

    def read(self) -> list[int] | None:
        """What the last ``propose`` came to; None if it has been read, or there was none."""
        if self._answer is None:
            return None
        (numbers, event), self._answer = self._answer, None
        if event is not None:
            event.synchronize()
        return [int(number) for number in numbers]


class Siblings:
    """Ends all ranks soon when one fails.

    A rank that fails alone would leave the others in a collective, for half an hour or until the
    launcher notices. It tells them through the store by which they found each other; a thread in
    each rank looks there every second.
    """

    _KEY, _SEEN = "neuromamba/failed", "neuromamba/seen"
    _LINGER = 1.0  # seconds; the first rank may keep the store, which the failed one asks

    def __init__(self, every: float = 1.0) -> None:
        self.every = every
        self._store: Any = None
        self._ended = threading.Event()

    def watch(self) -> None:
        """Begin, once the ranks have found each other; does nothing for one rank alone."""
        if self._store is not None or not several_ranks():
            return
        self._store = distributed.distributed_c10d._get_default_store()
        self._ended.clear()
        threading.Thread(target=self._watch, daemon=True).start()

    def part(self) -> None:
        """Wait until all have done their work: one that ends before another looks as if lost."""
        if self._store is not None:
            distributed.barrier()
        self.end()

    def end(self) -> None:
        """Stop looking: from here on every rank ends for itself."""
        self._ended.set()
        self._store = None

    def tell(self, patience: float = 5.0) -> bool:
        """This rank has failed; whether it is the first, which says why.

        The first waits for a moment until the others have seen it, since they would complain of a
        lost connection otherwise.
        """
        store, ranks = self._store, distributed.get_world_size() if self._store else 1
        if store is None:
            return True
        self._ended.set()
        me = str(distributed.get_rank())
        try:
            if store.compare_set(self._KEY, "", me).decode() != me:
                self._seen(store)
                return False
            until = time.monotonic() + patience
            while store.add(self._SEEN, 0) < ranks - 1 and time.monotonic() < until:
                time.sleep(0.05)
        except (RuntimeError, OSError):
            pass  # the rank that keeps the store is gone; all end for themselves
        return True

    def _seen(self, store: Any) -> None:
        """Let the failed rank know that this one is about to end."""
        store.add(self._SEEN, 1)
        if distributed.get_rank() == 0:
            time.sleep(self._LINGER)

    def _watch(self) -> None:
        store = self._store
        while not self._ended.wait(self.every):
            try:
                failed = store.check([self._KEY])
                if failed:
                    self._seen(store)
            except (RuntimeError, OSError):
                # The rank that keeps it was killed, perhaps; or this one is about to end as well.
                if self._ended.wait(5) or not _nobody_listens():
                    return
                failed = True
            if failed and not self._ended.is_set():
                os._exit(FAILED)


def _nobody_listens() -> bool:
    """Whether the port at which the ranks have met is closed for certain."""
    place = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
    for _ in range(3):
        try:
            socket.create_connection(place, 5).close()
            return False
        except ConnectionRefusedError:
            time.sleep(1)
        except OSError:
            return False  # the network is to blame, and may recover
    return True


def where() -> str:
    """This rank, for a message; "" for one alone."""
    if not several_ranks():
        return ""
    return f"rank {distributed.get_rank()} on {socket.gethostname()}"
