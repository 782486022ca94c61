"""Synthetic ROI time series with planted signals, in the files that a data set is read from.

    neuromamba regions synthetic --dataset HCP_REST --output Dataset/Data

Every region has autocorrelated noise, and most have a share of a few networks. Each class has
regions of its own, half of the classes with a slow oscillation (20 to 30 frames a period), half
with transients of one frame up and one down; further regions have either in scans of all classes.
These regions belong to no network, phases and times are drawn for each of them, and every region
has variance 1 at the end: neither correlations nor variances distinguish the classes.
``<file>.truth.json`` says what is where.
"""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuromamba.common.atomic_files import atomic_path, write_text_atomically
from neuromamba.data.regions.atlases import FOLDER
from neuromamba.data.regions.registry import DATASETS, DatasetDetails
from neuromamba.data.regions.scan_files import ScanFile

PLANTED = 8  # regions of a class
NETWORKS = 7
SMOOTH = 0.4  # share of a frame's noise that the next one has
KINDS = ("slow", "fast")  # a class may also have "none"


SPELLING = {"Female": "F", "Male": "M"}  # of HCP's table


class Recipe(NamedTuple):
    """What is planted.

    Attributes:
        rois: N.
        frames: T.
        kinds: what the regions of each class have.
        strength: standard deviation of the planted signal where the noise has 1; 0 for none.
        seed: of everything.
    """

    rois: int
    frames: int
    kinds: tuple[str, ...]
    strength: float = 2.5
    seed: int = 0

    def planted_regions(self) -> np.ndarray:
        """int [classes + 1, PLANTED], regions of each class; last, regions without information."""
        order = np.random.default_rng([self.seed, 0]).permutation(self.rois)
        return np.sort(order[: (len(self.kinds) + 1) * PLANTED].reshape(-1, PLANTED), axis=1)


def slow(rng: np.random.Generator, regions: int, frames: int) -> np.ndarray:
    """[regions, T] oscillations with standard deviation 1."""
    period = rng.uniform(20, 30, (regions, 1))
    phase = rng.uniform(0, 2 * np.pi, (regions, 1))
    return np.sqrt(2) * np.sin(2 * np.pi * np.arange(frames) / period + phase)


def fast(rng: np.random.Generator, regions: int, frames: int) -> np.ndarray:
    """[regions, T] about one in ten frames a frame up and one down, or the reverse; deviation 1."""
    signs = rng.choice([-1.0, 1.0], (regions, frames + 1))
    beginnings = signs * (rng.random((regions, frames + 1)) < 0.1)
    return (beginnings[:, 1:] - beginnings[:, :-1]) / np.sqrt(0.2)


def scan(recipe: Recipe, label: int, number: int) -> np.ndarray:
    """float32 [N, T], the n-th scan of a data set."""
    rng = np.random.default_rng([recipe.seed, 1, number])
    n, t = recipe.rois, recipe.frames
    series = rng.standard_normal((n, t))
    for frame in range(1, t):
        series[:, frame] += SMOOTH * series[:, frame - 1]
    series /= series.std(1, keepdims=True)
    shared = rng.standard_normal((NETWORKS, t))
    loading = np.random.default_rng([recipe.seed, 2]).random((n, NETWORKS)) < 2 / NETWORKS
    informative = recipe.planted_regions()
    loading[informative.ravel()] = False  # a signal on top would thin out their correlations
    series += 0.5 * loading @ shared
    make = {"slow": slow, "fast": fast}
    noise = series.std(1, keepdims=True)
    planted = zip(KINDS, np.array_split(informative[-1], len(KINDS)), strict=True)
    for kind, regions in [(recipe.kinds[label], informative[label]), *planted]:
        if kind == "none":
            continue
        series[regions] += recipe.strength * noise[regions] * make[kind](rng, len(regions), t)
    series -= series.mean(1, keepdims=True)
    return (series / series.std(1, keepdims=True)).astype(np.float32)


# ------------------------------------------------------------------------------ files


def write_dataset(
    name: str, folder: Path, subjects: int, recipe: Recipe, atlas: bool = True
) -> Path:
    """The files of a data set, in their places; returns the file of the scans.

    Subjects are named from 100001 on. Those of HCP_TASK have a scan of every task; every second
    scan is time x regions, as in real files.
    """
    details = DATASETS[name]
    path = folder / details.file
    path.parent.mkdir(parents=True, exist_ok=True)
    samples: list[dict[str, Any]] = []
    rows: list[tuple[str, str, str]] = []
    tasks, classes = name == "HCP_TASK", len(recipe.kinds)
    for number in range(subjects):
        subject = str(100001 + number)
        labels = range(classes) if tasks else [number % classes]
        sex = "FM"[number % 2]
        rows.append((subject, "Q1", sex))
        for label in labels:
            word = details.classes[label]
            series = scan(recipe, label, len(samples))
            pheno = {"subjectId": subject, details.target: SPELLING.get(word, word)}
            turned = series.T.copy() if len(samples) % 2 else series
            samples.append({"roiTimeseries": turned, "pheno": pheno})
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        if path.suffix == ".npy":
            np.save(stream, np.array(samples, dtype=object), allow_pickle=True)
        else:
            pickle.dump(samples, stream)
    if details.pheno_file is not None:
        table = folder / details.pheno_file
        table.parent.mkdir(parents=True, exist_ok=True)
        lines = ["Subject,Release,Gender", *(",".join(row) for row in rows)]
        # HCP's data sets share it: the same subjects have the same rows, and the larger one stays.
        before = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
        longest = max(lines, before, key=len)
        write_text_atomically(table, "\n".join(longest) + "\n")
    if atlas:
        write_atlas(folder / FOLDER / f"{details.atlas}.nii.gz", recipe.rois)
    write_truth(path, details, recipe)
    return path


def write_truth(path: Path, details: DatasetDetails, recipe: Recipe) -> None:
    """``<file>.truth.json``: class -> kind and regions (from 0)."""
    planted = recipe.planted_regions()
    truth = {
        details.classes[label]: {
            "kind": recipe.kinds[label],
            "regions": planted[label].tolist(),
        }
        for label in range(len(recipe.kinds))
    }
    text = json.dumps({"synthetic": recipe._asdict(), "classes": truth}, indent=1)
    write_text_atomically(ScanFile(path).truth, text + "\n")


def write_atlas(path: Path, rois: int) -> None:
    """Regions of the MNI152 brain: each voxel (4 mm) belongs to the nearest of so many centres."""
    import nibabel as nib
    from nilearn.datasets import load_mni152_brain_mask
    from scipy.cluster.vq import kmeans2
    from scipy.spatial import cKDTree

    mask = load_mni152_brain_mask(resolution=4)
    brain = np.argwhere(np.asanyarray(mask.dataobj) > 0)
    rng = np.random.default_rng(0)
    chosen = brain[rng.choice(len(brain), rois, replace=False)].astype(float)
    centres, _ = kmeans2(brain.astype(float), chosen, iter=5, minit="matrix", seed=0)
    nearest = cKDTree(centres).query(brain)[1]
    labels = np.zeros(mask.shape, dtype=np.int16)
    labels[tuple(brain.T)] = nearest + 1
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        image = nib.Nifti1Image(labels, mask.affine)
        temporary.write_bytes(gzip.compress(image.to_bytes(), mtime=0))
    rows = ["index,name", *(f"{i},synthetic-{i}" for i in range(1, rois + 1))]
    table = path.with_name(path.name.removesuffix(".nii.gz") + ".csv")
    write_text_atomically(table, "\n".join(rows) + "\n")
