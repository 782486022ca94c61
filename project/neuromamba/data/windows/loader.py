"""Windows to batches: order, loading processes, and where to continue within an epoch.

    EpochSampler -> BatchReader (in a loading process) -> Delivery -> WindowLoader -> batch

The batches are the same, bit for bit, for any number of loading processes.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, DataLoader, Sampler

from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.data.windows.batch_reader import BatchReader, Delivery
from neuromamba.data.windows.cache import WindowCache
from neuromamba.data.windows.shared_memory import Slots

# Sent to all processes of a job before it is ended.
_OF_CLUSTERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_IN_USE = 4  # batches that the training process holds at once, beside those loaded ahead
State = dict[str, int]


class EpochSampler(Sampler[int]):
    """Indices of an epoch, in an order that depends on the seed and the epoch alone.

    Lightning calls ``set_epoch``, so that a resumed run has the same orders as an undisturbed one.
    After ``load_state_dict`` the next iteration continues where the state was saved.

    Args:
        size: indices of an epoch, over all ranks.
        seed: seed of the shuffled order.
        order: epoch -> its ``size`` indices; by default a permutation drawn from seed and epoch.
        rank, ranks: of several processes each takes every ``ranks``-th index, so that a step of all
            ranks takes what one process with as large a batch would take.

    All ranks have as many indices, since they wait for each other in every batch: the epoch's first
    ones are repeated at its end, fewer than ``ranks`` of them. These are padding.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        *,
        order: Callable[[int], np.ndarray] | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        assert 0 <= rank < ranks
        self.size, self.seed, self.epoch = size, seed, 0
        self.rank, self.ranks = rank, ranks
        self._order = order or self._shuffled
        self._start = self._position = 0

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; a new epoch starts with its first index."""
        if epoch != self.epoch:
            self.epoch, self._start, self._position = epoch, 0, 0

    def __len__(self) -> int:
        """Indices of an epoch on this rank."""
        return -(-self.size // self.ranks)

    def indices(self) -> np.ndarray:
        """All of the epoch's indices on this rank, int64 [len(self)]."""
        order = np.asarray(self._order(self.epoch))
        assert order.shape == (self.size,)
        return np.resize(order, len(self) * self.ranks)[self.rank :: self.ranks]

    def is_padding(self, position: int) -> bool:
        """Whether the index at a position of ``indices`` is a repeated one."""
        return self.rank + position * self.ranks >= self.size

    def __iter__(self) -> Iterator[int]:
        self._position, self._start = self._start, 0
        return self._count(self.indices()[self._position :].tolist())

    def _count(self, indices: list[int]) -> Iterator[int]:
        for index in indices:
            self._position += 1
            yield index

    @property
    def start(self) -> int:
        """Indices that the next iteration leaves out."""
        return self._start

    def state_dict(self) -> State:
        """Epoch, and how many of its indices were handed out."""
        return {"epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue after ``position`` in the next iteration; nothing is read to get there."""
        self.epoch, self._start = state["epoch"], state["position"]
        self._position = self._start


def in_order(size: int) -> Callable[[int], np.ndarray]:
    """Return the order of evaluation, the same in every epoch."""
    return lambda epoch: np.arange(size)


def _same(delivery: Any) -> Any:
    """Return a batch unchanged: the reader has already collated it."""
    return delivery


def _start_server() -> None:
    """Start the process that forks the loading processes, with a cluster's signals ignored.

    The loading processes inherit this; otherwise the signals would end them, and torch would report
    their death.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in _OF_CLUSTERS}
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def _end_with_parent(worker: int) -> None:
    """End a loading process together with the training process, and not earlier.

    A cluster sends its signals to all processes of a job, and the training process may need some
    more batches until it stops.
    """
    for signum in _OF_CLUSTERS:
        signal.signal(signum, signal.SIG_IGN)  # torch has put in a handler of its own
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class WindowLoader(DataLoader[Any]):
    """A DataLoader of batches of windows whose state says which batch comes next.

    Lightning keeps the state in its checkpoints. It counts the batches that were handed out, not
    those that were read ahead. Made by ``window_loader``; has the signature of ``DataLoader``
    because Lightning makes copies of it.
    """

    _epoch = -1
    _delivered = 0
    _listed: tuple[tuple[int, int], np.ndarray] | None = None

    def __iter__(self) -> Any:
        self._epoch = -1  # nothing of it was handed out yet
        return _Batches(self)

    def start(self) -> Iterator[Delivery]:
        """Begin an iteration: what torch's DataLoader delivers."""
        reader = self.dataset
        assert isinstance(reader, BatchReader)
        self._epoch, self._delivered = self._current_epoch(), self._skipped()
        kept = self.persistent_workers and self._iterator is not None
        if reader.slots is None or (self.num_workers and not kept):
            assert self.batch_size is not None
            count = self.num_workers * (self.prefetch_factor or 0) + _IN_USE
            # New ones for new processes: those before may have ended with a slot in their hands.
            reader.slots = Slots(count, self.batch_size * reader.largest(), self.num_workers)
        if self.num_workers and not kept:
            _start_server()
        return super().__iter__()

    def _current_epoch(self) -> int:
        return getattr(self.sampler, "epoch", 0)

    def _skipped(self) -> int:
        """Batches that the next iteration leaves out."""
        assert self.batch_size is not None
        return -(-getattr(self.sampler, "start", 0) // self.batch_size)

    def positions(self, batch: int) -> range:
        """Return the positions of an epoch's batch among this rank's windows."""
        assert self.batch_size is not None
        end = min((batch + 1) * self.batch_size, len(self.sampler))  # type: ignore[arg-type]
        return range(batch * self.batch_size, end)

    def is_padding(self, batch: int) -> tuple[bool, ...]:
        """Whether each window of an epoch's batch is a repeated one (see ``EpochSampler``)."""
        sampler = self.sampler
        return tuple(
            isinstance(sampler, EpochSampler) and sampler.is_padding(position)
            for position in self.positions(batch)
        )

    def items(self, batch: int) -> list[int]:
        """Return the numbers of the windows of a batch of this epoch, without padding."""
        key = (self._current_epoch(), id(self.sampler))
        if self._listed is None or self._listed[0] != key:
            sampler = self.sampler
            listed = (
                sampler.indices() if isinstance(sampler, EpochSampler) else np.array([*sampler])
            )
            self._listed = (key, listed)
        found = zip(self.positions(batch), self.is_padding(batch), strict=True)
        return [int(self._listed[1][position]) for position, padding in found if not padding]

    def state_dict(self) -> State:
        """Epoch, batches of it that were handed out, and windows of an epoch."""
        now = self._epoch == self._current_epoch() and not self._skipped()
        return {
            "epoch": self._current_epoch(),
            "batches": self._delivered if now else self._skipped(),
            "windows": getattr(self.sampler, "size", len(self.dataset)),  # type: ignore[arg-type]
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Start the next iteration with the batch after those that were handed out.

        Raises:
            UserInputError: the epoch has another number of windows now.
        """
        sampler = self.sampler
        assert isinstance(sampler, EpochSampler) and self.batch_size is not None
        if state["windows"] != sampler.size:
            raise UserInputError(
                f"--resume_ckpt_path: it was taken inside an epoch of {state['windows']} windows, "
                f"and now an epoch has {sampler.size}. Resume from a checkpoint taken at the end "
                f"of an epoch, or with the same runs in the store."
            )
        position = min(state["batches"] * self.batch_size, len(sampler))
        sampler.load_state_dict({"epoch": state["epoch"], "position": position})


class _Batches(Iterator[dict[str, Any]]):
    """An iteration over a loader; begins at the first batch that is asked for.

    Lightning makes it before it tells the sampler the epoch, and a DataLoader would by then have
    read ahead in another epoch's order.
    """

    def __init__(self, loader: WindowLoader) -> None:
        self._loader = loader
        self._deliveries: Iterator[Delivery] | None = None

    def __next__(self) -> dict[str, Any]:
        if self._deliveries is None:
            self._deliveries = self._loader.start()
        try:
            batch = next(self._deliveries).batch()
        except RuntimeError as error:
            raise self._explained(error) from None
        batch["is_padding"] = self._loader.is_padding(self._loader._delivered)
        self._loader._delivered += 1
        return batch

    def _explained(self, error: RuntimeError) -> RuntimeError | UserInputError:
        """What to say of a loading process that has died: torch knows its number only."""
        reader = self._loader.dataset
        assert isinstance(reader, BatchReader)
        for number, process in enumerate(getattr(self._deliveries, "_workers", ())):
            if process.exitcode and reader.slots is not None:
                index = int(reader.slots.reading[number])
                doing = f"while it read '{reader.path(index)}'" if index >= 0 else "between reads"
                return UserInputError(
                    f"--num_workers: a loading process ended {doing} ({_end(process.exitcode)}). "
                    f"If memory ran short, use fewer processes, a smaller --prefetch_factor or "
                    f"--window_cache; --num_workers 0 reads without them."
                )
        return error


def _end(status: int) -> str:
    """How a process ended, in words."""
    if status > 0:
        return f"exit status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"


def window_loader(
    windows: ConcatDataset[dict[str, Any]],
    sampler: Sampler[int] | None,
    config: DataConfig,
    batch_size: int,
    cache: WindowCache | None = None,
) -> WindowLoader:
    """The loader of a part of the data.

    Args:
        windows: of one or several data sets.
        sampler: which ones, in which order; None: all, as they come.
        config: loading processes, how far they read ahead, page-locked memory.
        batch_size: windows of a batch.
        cache: of windows, shared by the loading processes.
    """
    processes: dict[str, Any] = {}
    if config.num_workers:
        # A process that holds OpenMP threads or HDF5 locks should not be forked. The server that
        # is forked instead has torch imported, once for all loaders.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        processes = {
            "multiprocessing_context": context,
            "prefetch_factor": config.prefetch_factor,
            "persistent_workers": config.persistent_workers,
            "worker_init_fn": _end_with_parent,
        }
    return WindowLoader(
        BatchReader(windows, cache),
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=_same,
        num_workers=config.num_workers,
        pin_memory=config.pin_memory,
        **processes,
    )
