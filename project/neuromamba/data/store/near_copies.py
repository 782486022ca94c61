"""Runs of two people that hold one scan: the same values, but for offset, unit or rounding.

Equal files are found by their hashes; a scan that was scaled, stored with other precision or
exported twice is not. Such runs have equal changes over time, which no two scans share.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.reader import RunFile

_SAME = 0.999  # correlation over voxels of the changes between frames
_VOXELS = 4096  # compared of each run, evenly spaced
_FEWEST = 64  # values of a run; fewer may agree by chance
_FRAMES = 3  # read of each run, evenly spaced


class NearCopy(NamedTuple):
    """Two runs that hold one scan."""

    one: RunHeader
    other: RunHeader


def near_copies(
    paths: Sequence[Path],
    headers: Sequence[RunHeader],
    key: Callable[[str], str] = str,
) -> list[NearCopy]:
    """Find runs of different people that are copies of each other.

    Only runs with equal numbers of frames and voxels are read, three frames of each, so most
    stores cost nothing or little.

    Args:
        paths, headers: of the runs.
        key: form of a subject's name in which people are compared.

    Raises:
        UserInputError: a run cannot be read.
    """
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, header in enumerate(headers):
        alike[header.n_frames, header.n_voxels].append(i)
    groups = [g for g in alike.values() if len({key(headers[i].subject) for i in g}) > 1]
    found: list[NearCopy] = []
    count = sum(map(len, groups))
    with tqdm(
        total=count, desc="copies", unit="run", leave=False, disable=not sys.stderr.isatty()
    ) as bar:
        for group in groups:
            prints = []
            for i in group:
                prints.append(_fingerprint(paths[i], headers[i]))
                bar.update()
            matrix = np.stack(prints)
            close = np.argwhere(np.triu(matrix @ matrix.T > _SAME, k=1))
            for a, b in close.tolist():
                one, other = headers[group[a]], headers[group[b]]
                if key(one.subject) != key(other.subject):
                    found.append(NearCopy(one, other))
    return found


def _fingerprint(path: Path, header: RunHeader) -> np.ndarray:
    """Changes between some frames at some voxels, standardised, as a vector of length 1.

    Of differences, because the mean images of two people are alike. Zeros if nothing changes, or
    if there are too few values to tell.
    """
    frames = np.unique(np.linspace(0, header.n_frames - 1, _FRAMES).round().astype(int))
    voxels = np.unique(np.linspace(0, header.n_voxels - 1, _VOXELS).round().astype(int))
    file = RunFile(path)
    stored = file.read(frames)[:, voxels].astype(np.float64)
    file.close()
    changes = np.diff(stored, axis=0)
    changes -= changes.mean()
    length = np.linalg.norm(changes)
    if changes.size < _FEWEST or not length > 0:
        return np.zeros(changes.size, np.float32)
    return (changes / length).ravel().astype(np.float32)
