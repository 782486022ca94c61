"""Converting runs in several processes, and what Ctrl-C does to them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from project.module.utils.data_preprocess_and_load.conversion import (
    ConversionOptions,
    Outcome,
    convert_run,
)
from project.module.utils.data_preprocess_and_load.sources import Source


def convert_runs(
    sources: Sequence[Source], folder: Path, options: ConversionOptions, workers: int
) -> Iterator[Outcome]:
    """Outcomes in the order in which they come; one worker is this process itself.

    Raises:
        KeyboardInterrupt: Ctrl-C. One worker discards its run; several finish theirs first.
    """
    if workers == 1:
        for source in sources:
            yield convert_run(source, folder, options)
        return
    # spawn: a fork would copy threads and locks of the libraries loaded here.
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(sources))
    running: dict[Future[Outcome], Source] = {}
    with (
        ProcessPoolExecutor(
            workers, mp_context=context, initializer=_end_with, initargs=(os.getpid(),)
        ) as pool,
        _ctrl_c_noted() as stop,
    ):
        while running or (waiting and not stop.is_set()):
            # One more than there are workers, so that none waits for us.
            while waiting and len(running) <= workers and not stop.is_set():
                source = waiting.pop()
                running[_submit(pool, source, folder, options)] = source
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield _outcome_of(future, running.pop(future))
    if stop.is_set():
        raise KeyboardInterrupt


def _end_with(parent: int) -> None:
    """Have this worker end soon after its parent; one that was killed cannot say goodbye."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _submit(
    pool: ProcessPoolExecutor, source: Source, folder: Path, options: ConversionOptions
) -> Future[Outcome]:
    # A worker started here inherits the blocked signal: it never sees Ctrl-C. Here the signal is
    # only put off.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(convert_run, source, folder, options)
    except BrokenProcessPool as error:
        broken: Future[Outcome] = Future()
        broken.set_exception(error)
        return broken
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outcome_of(future: Future[Outcome], source: Source) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        message = (
            f"{source.path}: a worker process was killed, perhaps for want of memory. Use fewer "
            f"--num_workers and call again: finished runs are kept."
        )
        return Outcome(source, "failed", message)


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
