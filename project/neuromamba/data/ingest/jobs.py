"""Conversion or checking of runs in several processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from neuromamba.common.workers import in_processes
from neuromamba.data.ingest.convert import Outcome, convert_run
from neuromamba.data.ingest.sources import Source

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
    task = functools.partial(_do, job=job, folder=folder, options=options)
    return in_processes(task, sources, workers, _killed)


def _do(source: Source, job: Job, folder: Path, options: Any) -> Outcome:
    return job(source, folder, options)


def _killed(source: Source) -> Outcome:
    message = (
        f"{source.path}: a worker process was killed, probably for lack of memory. Use fewer "
        f"--num_workers and call again: finished runs are kept."
    )
    return Outcome(source=source, status="failed", message=message)
