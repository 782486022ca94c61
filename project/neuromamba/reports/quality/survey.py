"""Measure every run of a store in several processes, and remember what was measured.

An entry of the cache is one ``.npz`` file without pickled objects, named by a hash of the run's
header (which holds the hash of its content) and of the options: a run that changed, or other
options, give another name. Entries appear whole or not at all.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from neuromamba.common.atomic_files import atomic_path, make_folder
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.common.workers import in_processes
from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.reader import RunFile
from neuromamba.reports.quality.measure import VERSION, QualityOptions, RunNumbers, measure_run
from neuromamba.reports.quality.pictures import picture_of

# What reading a broken file may raise: h5py uses all of these.
_UNREADABLE = (UserInputError, OSError, RuntimeError, KeyError, ValueError, IndexError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surveyed:
    """A run file after the survey.

    Attributes:
        path: of the run.
        header, numbers, entry: what was found and the cache's file; None if it cannot be read.
        cached: the entry was there before.
        error: why the file cannot be read, or "".
        content: whether the values have the hash of the header; None if that was not compared, or
            the file holds none.
    """

    path: Path
    header: RunHeader | None = None
    numbers: RunNumbers | None = None
    entry: Path | None = None
    cached: bool = False
    error: str = ""
    content: bool | None = None

    def mask(self) -> np.ndarray:
        """The brain mask, bool [voxels of the grid]."""
        assert self.header is not None
        packed = self._array("mask")
        return np.unpackbits(packed, count=int(np.prod(self.header.grid))).astype(bool)

    def reduced(self) -> np.ndarray:
        """The mean image for comparisons (``reduced_image``)."""
        return self._array("reduced")

    def picture(self) -> dict[str, Any]:
        """What the page draws (``picture_of``)."""
        value: dict[str, Any] = parse_json(self._array("picture").tobytes())
        return value

    def _array(self, name: str) -> np.ndarray:
        assert self.entry is not None
        with np.load(self.entry, allow_pickle=False) as entry:
            array: np.ndarray = entry[name]
            return array


def cache_key(path: Path, header: RunHeader, options: QualityOptions) -> str:
    """Name of a run's entry.

    Files that hold no hash of their content are recognised by size and time of change.
    """
    identity: list[Any] = [VERSION, dataclasses.asdict(header), dataclasses.asdict(options)]
    if not header.content_sha256:
        status = path.stat()
        identity += [status.st_size, status.st_mtime_ns]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def survey_run(
    path: Path, folder: Path, options: QualityOptions, check_content: bool = False
) -> Surveyed:
    """Measure a run, or take it from the cache; a file that cannot be read is a result, too.

    ``check_content`` compares its values with the hash of its header as well.

    Raises:
        UserInputError: the cache cannot be written.
    """
    run = RunFile(path)
    try:
        header = run.header
        entry = folder / f"{cache_key(path, header, options)}.npz"
        equal = None
        if check_content and header.content_sha256:
            equal = run.content_sha256() == header.content_sha256
        known = _numbers_in(entry)
        if known is not None:
            return Surveyed(
                path=path, header=header, numbers=known, entry=entry, cached=True, content=equal
            )
        measured = measure_run(run, options)
        picture = picture_of(header, measured, options.patch_size)
    except _UNREADABLE as error:
        return Surveyed(path=path, error=_reason(error, path))
    finally:
        run.close()
    try:
        with atomic_path(entry) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(
                stream,
                numbers=_as_bytes(dataclasses.asdict(measured.numbers)),
                picture=_as_bytes(picture),
                mask=np.packbits(measured.mask),
                reduced=measured.reduced,
            )
    except OSError as error:
        raise UserInputError(
            f"--output: '{folder}' cannot be written ({error.strerror}). Check the free space and "
            f"the permissions, or choose another place; finished runs are kept."
        ) from error
    return Surveyed(path=path, header=header, numbers=measured.numbers, entry=entry, content=equal)


def _as_bytes(value: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(json.dumps(value, separators=(",", ":")).encode(), np.uint8)


def _numbers_in(entry: Path) -> RunNumbers | None:
    """The numbers of an entry; None if it is absent or damaged."""
    try:
        # Opened here, because numpy leaves a damaged file open.
        with open(entry, "rb") as stream, np.load(stream, allow_pickle=False) as found:
            if set(found.files) != {"numbers", "picture", "mask", "reduced"}:
                return None
            for name in found.files:
                found[name]  # a damaged member is noticed now
            return RunNumbers(**parse_json(found["numbers"].tobytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _reason(error: Exception, path: Path) -> str:
    """An error in one line; the row says which file it is."""
    text = str(error).split("\n")[0].removeprefix(f"{path}: ")
    return text if isinstance(error, UserInputError) else f"{type(error).__name__}: {text}"


def _killed(path: Path) -> Surveyed:
    return Surveyed(
        path=path,
        error="a worker process was killed, probably for lack of memory. Use fewer --num_workers "
        "and call again: finished runs are kept.",
    )


def survey_store(
    paths: list[Path],
    folder: Path,
    options: QualityOptions,
    workers: int,
    report: Callable[[str], None],
    *,
    check_content: bool = False,
) -> list[Surveyed]:
    """Measure the runs; results in the order of ``paths``, whatever the number of workers.

    Args:
        paths: run files.
        folder: of the cache; made if absent.
        options: what to measure.
        workers: processes; 1 works in this one.
        report: receives the lines of the log.
        check_content: see ``survey_run``.

    Raises:
        UserInputError: the cache cannot be written.
        KeyboardInterrupt: Ctrl-C; entries of finished runs stay.
    """
    make_folder(folder, "--output")
    task = functools.partial(
        survey_run, folder=folder, options=options, check_content=check_content
    )
    results = in_processes(task, paths, min(workers, len(paths)), _killed)
    found = {run.path: run for run in _progress(results, len(paths), report)}
    return [found[path] for path in paths]


def _progress(
    results: Iterator[Surveyed], total: int, report: Callable[[str], None]
) -> Iterator[Surveyed]:
    """A bar in a terminal, a line for every tenth of the way in a log; broken files at once."""
    terminal = sys.stderr.isatty()
    with tqdm(total=total, unit="run", disable=not terminal) as bar:
        for done, run in enumerate(results, start=1):
            bar.update()
            lines = [f"{run.path.name}: cannot be read: {run.error}"] if run.error else []
            if not terminal and (done == total or done * 10 // total > (done - 1) * 10 // total):
                lines.append(f"measured {done} of {total} runs")
            for line in lines:
                bar.clear()
                report(line)
                bar.refresh()
            yield run
