"""Many scans one after the other: the next ones are prepared while the model computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from neuromamba.common.errors import UserInputError
from neuromamba.inference.brief import Brief
from neuromamba.inference.sources import ScanFile

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True, repr=False)
class Outcome(Brief, Generic[ResultT]):
    """What became of a scan.

    Attributes:
        scan: the scan.
        status: "ok"; "warned" if there are problems or measures out of range; "refused".
        reason: the problems, or why it was refused; "" if all is well.
        record: how it was prepared; {} if it was refused.
        result: what was computed; None if it was refused.
    """

    scan: ScanFile
    status: str
    reason: str
    record: dict[str, Any]
    result: ResultT | None

    @property
    def brief(self) -> str:
        """Which scan, its status, and the result or why there is none."""
        found = self.reason if self.result is None else str(self.result)
        return f"{self.scan.name}, {self.status}: {found}"


class Prepares(Protocol):
    """A model of either family, as far as its scans are prepared."""

    @property
    def prepare(self) -> Callable[..., Any]:
        """(scan, tr, mask, strict=) -> a prepared scan."""


def each_scan(
    model: Prepares,
    scans: Sequence[ScanFile],
    work: Callable[[Any], ResultT],
    *,
    tr: float | None = None,
    mask: str | Path | None = None,
    strict: bool = False,
    workers: int = 1,
) -> Iterator[Outcome[ResultT]]:
    """Prepare scans and do something with each, in their order; a failure is an outcome.

    Args:
        model: prepares the scans.
        scans: to use.
        work: what to do with a prepared scan, in this thread.
        tr, mask, strict: as of ``prepare_scan``.
        workers: scans that are prepared ahead at a time.
    """

    def prepare(scan: ScanFile) -> Any:
        return model.prepare(scan, tr, mask, strict=strict)

    waiting: deque[tuple[ScanFile, Future[Any]]] = deque()
    left = iter(scans)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        try:
            while True:
                while len(waiting) < max(1, workers) and (scan := next(left, None)) is not None:
                    waiting.append((scan, pool.submit(prepare, scan)))
                if not waiting:
                    return
                scan, future = waiting.popleft()
                if (ahead := next(left, None)) is not None:
                    waiting.append((ahead, pool.submit(prepare, ahead)))
                yield _outcome(scan, future, work)
        finally:
            pool.shutdown(cancel_futures=True)
            for _, future in waiting:
                if not future.cancelled() and future.exception() is None:
                    future.result().close()


def _outcome(
    scan: ScanFile, future: Future[Any], work: Callable[[Any], ResultT]
) -> Outcome[ResultT]:
    try:
        with future.result() as prepared:
            result = work(prepared)
            reason = prepared.doubts
            record = prepared.record()
    except UserInputError as error:
        reason = str(error)
    except MemoryError:
        reason = f"{scan.path}: out of memory. Use fewer --num_workers, or a larger machine."
    except Exception as error:  # one odd file must not end the others' work
        reason = f"{scan.path}: unexpected {type(error).__name__}: {error}"
    else:
        status = "warned" if reason else "ok"
        return Outcome(scan=scan, status=status, reason=reason, record=record, result=result)
    return Outcome(scan=scan, status="refused", reason=reason, record={}, result=None)
