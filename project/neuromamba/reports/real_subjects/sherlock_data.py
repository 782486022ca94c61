"""Thirteen people who see a film and retell it: the file of sherlock_pmc, its store and events.

Shapes: N voxels, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.data.store.header import RunSource, WriteOptions, run_file_name
from neuromamba.data.store.writer import write_run

MOVIE, RECALL = "movie", "recall"
SHERLOCK_FILE = "sherlock_pmc_dev.npz"
SHERLOCK_GRID = (9, 12, 9)  # the box of the voxels, and one empty plane
SEGMENT = 30  # frames, 45 s: five windows of six
FOLDS = (1, 2, 3, 4)


class Sherlock(NamedTuple):
    """The file, as float32.

    Attributes:
        subjects: their names.
        runs: (subject, "movie" or "recall") -> [T, N], z-scored per voxel.
        scene: int [T] of the film: 0 for none, or 1 to 50.
        run_break: first frame of the second half of the film.
        voxel_ijk: int [N, 3] in the 3 mm grid (RAS).
        affine: 4 x 4 of that grid.
        tr: seconds.
    """

    subjects: tuple[str, ...]
    runs: dict[tuple[str, str], np.ndarray]
    scene: np.ndarray
    run_break: int
    voxel_ijk: np.ndarray
    affine: np.ndarray
    tr: float


def load_sherlock(folder: Path) -> Sherlock:
    """Read the recordings.

    Raises:
        UserInputError: the file is not there.
    """
    path = folder / SHERLOCK_FILE
    if not path.is_file():
        raise UserInputError(f"--data_dir: '{path}' does not exist.")
    with np.load(path, allow_pickle=False) as file:
        subjects = tuple(str(name) for name in file["subject"])
        ends = np.cumsum(file["recall_length"])
        recall = np.split(file["recall"].astype(np.float32), ends[:-1])
        movie = file["movie"].astype(np.float32)
        runs = {(name, MOVIE): movie[i] for i, name in enumerate(subjects)}
        runs |= {(name, RECALL): recall[i] for i, name in enumerate(subjects)}
        return Sherlock(
            subjects,
            runs,
            file["movie_scene"],
            int(file["run_break"]),
            file["voxel_ijk"],
            file["affine"],
            float(file["TR"]),
        )


def segments(sherlock: Sherlock, task: str, subject: str) -> list[int]:
    """First frames of segments of 45 s, one after the other; none spans the break of the film."""
    frames = len(sherlock.runs[subject, task])
    parts = [(0, frames)]
    if task == MOVIE:
        parts = [(0, sherlock.run_break), (sherlock.run_break, frames)]
    return [first for start, end in parts for first in range(start, end - SEGMENT + 1, SEGMENT)]


def scene_frames(sherlock: Sherlock) -> list[tuple[int, int]]:
    """First frame and the one after the last of each scene, in their order."""
    found = []
    for number in range(1, int(sherlock.scene.max()) + 1):
        frames = np.flatnonzero(sherlock.scene == number)
        assert len(frames) == frames[-1] - frames[0] + 1, f"scene {number} is interrupted"
        found.append((int(frames[0]), int(frames[-1]) + 1))
    return found


def write_sherlock(sherlock: Sherlock, folder: Path) -> None:
    """A store of two runs a subject (axes in the order LAS), and files of events."""
    low = sherlock.voxel_ijk.min(axis=0)
    place = (sherlock.voxel_ijk - low).astype(int)
    place[:, 0] = SHERLOCK_GRID[0] - 1 - place[:, 0]  # right to left
    affine = sherlock.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ (low + np.array([SHERLOCK_GRID[0] - 1, 0, 0]))
    affine[:3, 0] *= -1
    flat = np.ravel_multi_index(tuple(place.T), SHERLOCK_GRID)
    order = np.argsort(flat)
    (folder / "store" / "hdf5").mkdir(parents=True, exist_ok=True)
    for (subject, task), series in sherlock.runs.items():
        write_run(
            folder / "store" / "hdf5" / run_file_name(subject, task=task),
            np.ascontiguousarray(series[:, order]),
            flat[order],
            grid=SHERLOCK_GRID,
            affine=affine,
            source=RunSource(subject=subject, task=task, tr=sherlock.tr, tr_source="SOURCES.md"),
            options=WriteOptions(voxel_statistics=True),
        )
    head = "subject\ttask\tonset\tduration\ttrial_type"
    scenes, parts = [head], [head]
    tr = sherlock.tr
    for subject in sherlock.subjects:
        for number, (first, end) in enumerate(scene_frames(sherlock), start=1):
            label = f"scene{number:02d}"
            scenes.append(_line((subject, MOVIE), (first, end - first), tr, label=label))
        for task in (MOVIE, RECALL):
            for first in segments(sherlock, task, subject):
                parts.append(_line((subject, task), (first, SEGMENT), tr, label=task))
    (folder / "scenes.tsv").write_text("\n".join(scenes) + "\n", encoding="utf-8")
    (folder / "segments.tsv").write_text("\n".join(parts) + "\n", encoding="utf-8")


def _line(run: tuple[str, str], frames: tuple[int, int], tr: float, *, label: str) -> str:
    """An event of a run (subject, task), from its first frame and their number."""
    first, count = frames
    return f"{run[0]}\t{run[1]}\t{first * tr}\t{count * tr}\t{label}"


def segment_series(sherlock: Sherlock, name: str) -> np.ndarray:
    """The frames of a segment, [30, N], by its name ``SUBJECT_task-TASK#NUMBER``."""
    run, number = name.split("#")
    subject, task = run.split("_task-")
    first = segments(sherlock, task, subject)[int(number) - 1]
    return sherlock.runs[subject, task][first : first + SEGMENT]


def sherlock_splits(subjects: Sequence[str]) -> dict[int, dict[str, list[str]]]:
    """Four folds of three or four subjects; the first of the next fold validates."""
    tested = [list(subjects[i :: len(FOLDS)]) for i in range(len(FOLDS))]
    found = {}
    for i, test in enumerate(tested):
        val = tested[(i + 1) % len(tested)][:1]
        train = [name for name in subjects if name not in (*test, *val)]
        found[i + 1] = {"train": train, "val": val, "test": test}
    return found


def write_split(store: Path, number: int, parts: Mapping[str, Sequence[str]]) -> None:
    """A split of a store: ``--dataset_split_num`` NUMBER.

    Args:
        store: its folder.
        number: of the split.
        parts: "train", "val", "test" -> names of subjects.
    """
    (store / "splits").mkdir(exist_ok=True)
    lines = [line for part, names in parts.items() for line in (f"{part}_subjects", *names)]
    text = "\n".join(lines) + "\n"
    (store / "splits" / f"split_fixed_{number}.txt").write_text(text, encoding="utf-8")


def prepare_sherlock(data: Path, out: Path) -> None:
    """The store with its splits, and the events, in a folder.

    Raises:
        UserInputError: the file is not there.
    """
    sherlock = load_sherlock(data)
    out.mkdir(parents=True, exist_ok=True)
    write_sherlock(sherlock, out)
    for fold, parts in sherlock_splits(sherlock.subjects).items():
        write_split(out / "store", fold, parts)
