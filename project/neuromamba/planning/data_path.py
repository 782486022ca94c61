"""Whether a training can read a store where it lies: disk, locks, speed, headers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from neuromamba.common.errors import UserInputError
from neuromamba.data.store.reader import RunFile, list_runs, read_header
from neuromamba.planning.machine import Check, gigabytes

HEADERS = 50  # that are read, spread over the store
SAMPLE = 64 << 20  # bytes that are read to measure
FILES = 4  # that they are read from
_CLEAN = "neuromamba check-store"


def check_data_path(path: str) -> list[Check]:
    """All checks of a folder given to ``--image_path``."""
    try:
        runs = list_runs(path)
    except UserInputError as error:
        found, _, remedy = str(error).removeprefix("--image_path: ").partition(". ")
        return [Check(path, "missing", found, remedy)]
    return [
        *_headers(path, runs),
        *_scaling(path, runs),
        *_disk(path),
        *_locks(path, runs),
        *_speed(path, runs),
    ]


def _spread(runs: list[Path], count: int) -> list[Path]:
    return runs[:: -(-len(runs) // count)]


def _headers(path: str, runs: list[Path]) -> Iterator[Check]:
    looked_at = _spread(runs, HEADERS)
    headers, bad = [], []
    for run in looked_at:
        try:
            headers.append(read_header(run))
        except UserInputError as error:
            bad.append(str(error))
    if bad:
        yield Check(
            f"{path}: store",
            "missing",
            f"{len(bad)} of {len(looked_at)} files cannot be used; the first: {bad[0]}",
            f"{_CLEAN} --image_path {path} moves such files away",
        )
    if headers:
        grids = {header.grid for header in headers}
        frames = sorted(header.n_frames for header in headers)
        subjects = {header.subject for header in headers}
        text = (
            f"{len(runs)} runs; {len(headers)} headers read: {len(subjects)} subjects, "
            f"{frames[0]} to {frames[-1]} frames, grid "
            + ", ".join("x".join(map(str, grid)) for grid in sorted(grids))
        )
        yield Check(f"{path}: runs", "ok", text)


def _scaling(path: str, runs: list[Path]) -> Iterator[Check]:
    """Recommend a scaling by purpose; a store serves all of them."""
    file = RunFile(runs[0])
    try:
        stored = file.voxel_statistics() is not None
    except UserInputError:
        return  # reported with the headers
    finally:
        file.close()
    source = "stored in the runs" if stored else "computed when a run is first read"
    yield Check(
        f"{path}: scaling",
        "ok",
        "by purpose: --input_scaling_method znorm_minback (default) for traits of anatomy and sex, "
        f"voxelnorm_zeroback for dynamics and states (statistics of voxels: {source})",
    )


def _disk(path: str) -> Iterator[Check]:
    usage, writable = shutil.disk_usage(path), os.access(path, os.W_OK)
    yield Check(
        f"{path}: disk",
        "ok" if writable else "note",
        f"{gigabytes(usage.free)} of {gigabytes(usage.total)} free"
        + ("" if writable else "; cannot be written"),
        "" if writable else "a new split cannot be kept there: put the files of splits/ in place",
    )


def _locks(path: str, runs: list[Path]) -> Iterator[Check]:
    """Check that files can be locked as HDF5 does; network file systems may refuse."""
    try:
        with open(runs[0], "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(stream, fcntl.LOCK_UN)
    except OSError as error:
        yield Check(
            f"{path}: file locks",
            "note",
            f"do not work ({error.strerror}); this program reads without them",
            "for other programs that read HDF5: export HDF5_USE_FILE_LOCKING=FALSE",
        )
    else:
        yield Check(f"{path}: file locks", "ok", "work")


def _speed(path: str, runs: list[Path]) -> Iterator[Check]:
    """Bytes a second from parts of some files, past the system's cache where it lets go of them."""
    total, dropped, begin = 0, True, time.perf_counter()
    try:
        for run in _spread(runs, FILES):
            with open(run, "rb", buffering=0) as stream:
                dropped &= _drop_cached(stream.fileno())
                left = SAMPLE // FILES
                while left and (piece := stream.read(min(left, 1 << 20))):
                    total, left = total + len(piece), left - len(piece)
    except OSError as error:
        yield Check(
            f"{path}: read speed", "missing", f"{run}: {error.strerror}", "check disk and rights"
        )
        return
    seconds = max(time.perf_counter() - begin, 1e-9)
    yield Check(
        f"{path}: read speed",
        "ok",
        f"{total / seconds / 1e6:,.0f} MB/s over {total / 1e6:.0f} MB"
        + ("" if dropped else ", perhaps from the system's cache"),
    )


def _drop_cached(descriptor: int) -> bool:
    """Ask the system to forget what it has of a file."""
    if not hasattr(os, "posix_fadvise"):
        return False
    with contextlib.suppress(OSError):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return True
    return False
