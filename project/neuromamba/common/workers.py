"""Work on runs in several processes, and what Ctrl-C does to it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def in_processes(
    task: Callable[[ItemT], ResultT],
    items: Sequence[ItemT],
    workers: int,
    killed: Callable[[ItemT], ResultT],
    first: Callable[[], None] | None = None,
) -> Iterator[ResultT]:
    """Yield results in the order in which they finish; one worker is this process itself.

    Args:
        task: what to do with an item; it is pickled for the workers.
        items: one for each call of ``task``.
        workers: processes, 1 or more.
        killed: the result for an item whose process died.
        first: what a process does before it even imports ``task``, such as loading libraries.

    Raises:
        KeyboardInterrupt: Ctrl-C. One worker breaks off; several finish their items first.
    """
    if workers == 1:
        for item in items:
            yield task(item)
        return
    # spawn: a fork would copy threads and locks of the libraries loaded here.
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(items))
    running: dict[Future[ResultT], ItemT] = {}
    with (
        ProcessPoolExecutor(
            workers, mp_context=context, initializer=_begin, initargs=(os.getpid(), first)
        ) as pool,
        _ctrl_c_noted() as stop,
    ):
        while running or (waiting and not stop.is_set()):
            # One more than there are workers, so that none waits for us.
            while waiting and len(running) <= workers and not stop.is_set():
                item = waiting.pop()
                running[_submit(pool, task, item)] = item
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    result = killed(item)
                yield result
    if stop.is_set():
        raise KeyboardInterrupt


def _begin(parent: int, first: Callable[[], None] | None) -> None:
    """Have this worker end soon after its parent: one that was killed cannot say goodbye."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if first is not None:
        first()


def _submit(
    pool: ProcessPoolExecutor, task: Callable[[ItemT], ResultT], item: ItemT
) -> Future[ResultT]:
    # A worker started here inherits the blocked signal: it never sees Ctrl-C. Here the signal is
    # only put off.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(task, item)
    except BrokenProcessPool as error:
        broken: Future[ResultT] = Future()
        broken.set_exception(error)
        return broken
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _ctrl_c_noted() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, so that no outcome is lost; a second one interrupts."""
    stop = threading.Event()

    def note(*_: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("interrupted: finishing the runs in progress", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers, and only it gets Ctrl-C
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def available_cpus() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
