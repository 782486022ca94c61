"""Converting runs in several processes, and what Ctrl-C does to them."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from project.module.utils.data_preprocess_and_load.conversion import Outcome, convert_run
from project.module.utils.data_preprocess_and_load.sources import Source

# What is done with a run: (source, folder of the store's files, options) -> outcome. It raises
# nothing, and both it and the options can be pickled.
Job = Callable[[Source, Path, Any], Outcome]


def convert_runs(
    sources: Sequence[Source], folder: Path, options: Any, workers: int, job: Job = convert_run
) -> Iterator[Outcome]:
    """Outcomes in the order in which they come; one worker is this process itself.

    Args:
        sources: given to ``job`` one by one.
        folder: of the store's files.
        options: whatever ``job`` takes.
        workers: processes.
        job: what is done with each source.

    Raises:
        KeyboardInterrupt: Ctrl-C. One worker discards its run; several finish theirs first.
    """
    if workers == 1:
        for source in sources:
            yield job(source, folder, options)
        return
    # spawn: a fork would copy threads and locks of the libraries loaded here.
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(sources))
    running: dict[Future[Outcome], Source] = {}
    with ProcessPoolExecutor(workers, mp_context=context) as pool, _ctrl_c_noted() as stop:
        while running or (waiting and not stop.is_set()):
            # One more than there are workers, so that none waits for us.
            while waiting and len(running) <= workers and not stop.is_set():
                source = waiting.pop()
                running[_submit(pool, job, source, folder, options)] = source
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield _outcome_of(future, running.pop(future))
    if stop.is_set():
        raise KeyboardInterrupt


def _submit(
    pool: ProcessPoolExecutor, job: Job, source: Source, folder: Path, options: Any
) -> Future[Outcome]:
    # A worker started here inherits the blocked signal: it never sees Ctrl-C. Here the signal is
    # only put off.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(job, source, folder, options)
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
