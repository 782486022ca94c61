"""Samples of ``frozen_decoding.py``: stores, events and features of haxby2001 and sherlock_pmc.

Shapes: S samples (events), N voxels, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from neuromamba.checkpoints.io import load_backbone
from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.config.serialise import from_dict
from neuromamba.data.store.header import RunSource, WriteOptions, run_file_name
from neuromamba.data.store.writer import write_run
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.probe_rows import LAST_LAYER, PRETRAINED, UNTRAINED
from neuromamba.fmamba.frozen_features import frozen_features, untrained_backbone
from neuromamba.fmamba.probe_flags import parse_probe, probe_request
from neuromamba.fmamba.stores import locate_data
from neuromamba.fmamba.subject_features import grid_parcellation, subject_features, union_of_masks

POOLS = ("places", "mean")
PARTS = ("train", "val", "test")
CPU = torch.device("cpu")
MOVIE, RECALL = "movie", "recall"
SHERLOCK_FILE = "sherlock_pmc_dev.npz"
SHERLOCK_GRID = (9, 12, 9)  # the box of the voxels, and one empty plane
SCENES = 50
SEGMENT = 30  # frames, 45 s: five windows of six


class Samples(NamedTuple):
    """Events with their features.

    Attributes:
        names: S, ``RUN#NUMBER``.
        target: int [S].
        held_out: bool [S], of the test part of the split.
        features: (model, pool) -> float32 [S, D], averaged over an event's windows.
        volume: float32 [S, N], the mean over the same frames of each voxel as the model sees it.
    """

    names: tuple[str, ...]
    target: np.ndarray
    held_out: np.ndarray
    features: dict[tuple[str, str], np.ndarray]
    volume: np.ndarray

    @property
    def runs(self) -> np.ndarray:
        """The run of each sample, [S]."""
        return np.array([name.split("#")[0] for name in self.names])

    @property
    def subjects(self) -> np.ndarray:
        """The subject of each sample, [S]."""
        return np.array([name.split("_")[0] for name in self.names])


def read_samples(run: Path, events: Path, seed: int, flags: Sequence[str]) -> Samples:
    """Features of all events, of a checkpoint and of an untrained backbone of its architecture.

    Args:
        run: folder of a pre-training; data and split are its own.
        events: file of ``--events``.
        seed: of the untrained backbone.
        flags: further ones of ``neuromamba probe``.

    Raises:
        UserInputError: data, events or checkpoint cannot be used.
    """
    words = [str(run), "--events", str(events), "--seed", str(seed), *flags]
    request = probe_request(*parse_probe(words))
    config = request.config
    data = RunData(locate_data(config, make_dummy=False), config.downstream, write_split=False)
    model = from_dict(ModelConfig, request.metadata["model"], str(request.checkpoint))
    models = {name: untrained_backbone(model, seed) for name in (PRETRAINED, UNTRAINED)}
    load_backbone(models[PRETRAINED], request.checkpoint, "RUN")
    samples, rows = frozen_features(
        models, data, PARTS, layers=[LAST_LAYER], pools=POOLS, device=CPU
    )
    voxels = union_of_masks(data, PARTS)
    raw = subject_features(data, PARTS, voxels, grid_parcellation(config.data.grid, voxels))
    assert raw.subjects == samples.names
    tested = set(data.sample_names("test").values())
    return Samples(
        samples.names,
        samples.target,
        np.array([name in tested for name in samples.names]),
        {(name, pool): rows[name][LAST_LAYER, pool] for name in models for pool in POOLS},
        raw.volume,
    )


# ------------------------------------------------------------------------------------ sherlock_pmc


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
        raise UserInputError(f"--sherlock_pmc: '{path}' does not exist.")
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
    for number in range(1, SCENES + 1):
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
    (folder / "store" / "hdf5").mkdir(parents=True)
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
