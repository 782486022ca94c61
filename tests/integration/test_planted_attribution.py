"""Maps find what was planted: the region that alone differs between two classes of subjects."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import neuromamba
from neuromamba.commands.train import run
from neuromamba.data.ingest.convert import ConversionOptions
from neuromamba.data.ingest.folder import convert_folder
from neuromamba.data.synthetic.brain import planted_weight
from neuromamba.data.synthetic.runs import write_nifti_dataset
from neuromamba.data.synthetic.spec import SyntheticSpec
from neuromamba.inference.explain import Explanation
from neuromamba.inference.group_maps import group_map
from neuromamba.inference.score_map import rank_correlation
from neuromamba.reports.demo_pipeline import CONFIG

GRID = (30, 36, 30)
PATCH = 3  # voxels; with the 6 of the demo, 35 mm, no map could reach an AUC above 0.92
SMOOTH = 20.0  # mm, a little more than a patch
FOUND, LOST = 0.9, 0.65
DRAWS = range(1, 6)  # further random weights: one draw's AUC has a standard deviation of 0.07


class Maps(NamedTuple):
    """Area under the ROC curve for "inside the planted region" of absolute values.

    Attributes:
        group: of the mean map of the test subjects, each explained for its predicted class.
        random: the same of random weights, mean over several.
        single: of the maps of single subjects, their mean.
        agreement: rank correlation of integrated gradients and occlusion over cells.
        completeness: largest error.
        compared: of the maps of single subjects, compared with eight training subjects and
            smoothed; their mean.
        compared_random: the same of random weights.
    """

    group: float
    random: float
    single: float
    agreement: float
    completeness: float
    compared: float
    compared_random: float


def trained_on_planted(folder: Path, seed: int) -> SyntheticSpec:
    """A data set, its store, and the run folder of a small model, below ``folder``."""
    spec = SyntheticSpec(
        subjects=60, frames=40, grid=GRID, effect_size=3, network_radius=22, seed=seed
    )
    write_nifti_dataset(spec, folder / "nifti")
    options = ConversionOptions(img_size=GRID, dataset="Dummy")
    convert_folder(folder / "nifti", folder / "store", options, num_workers=1, report=len)
    (folder / "store" / "metadata").mkdir(exist_ok=True)
    shutil.copy(folder / "nifti" / "participants.csv", folder / "store" / "metadata")
    run(
        f"--config {CONFIG} --image_path {folder / 'store'} --patch_size {PATCH} {PATCH} {PATCH} 2 "
        f"--downstream_task sex --embed_dim 64 --pool mean_sd --head_norm batch --max_epochs 5 "
        f"--seed {seed} --output_dir {folder / 'run'}".split()
    )
    return spec


def cell_sums(found: Explanation, edge: int) -> np.ndarray:
    """Sums of a map over cubes of ``edge`` voxels that hold a voxel."""
    index = np.stack(np.unravel_index(found.vox, GRID)) // edge
    cell = np.ravel_multi_index(tuple(index), [-(-size // edge) for size in GRID])
    return np.bincount(cell, found.values)[np.unique(cell)]


def auc(values: np.ndarray, weight: np.ndarray, vox: np.ndarray) -> float:
    return float(roc_auc_score(weight.ravel()[vox] > 0, np.abs(values)))


def measured(folder: Path, spec: SyntheticSpec) -> Maps:
    """Explain the test subjects of the run; see ``Maps``."""
    model = neuromamba.load(folder / "run", "cpu")
    rows = (folder / "run" / "predictions.csv").read_text().splitlines()[1:]
    subjects = sorted({row.split(",")[0] for row in rows})
    found, weights, agreement, others, compared = [], [], [], [], []
    runs = sorted((folder / "store" / "hdf5").glob("*.h5"))
    references = [model.prepare(p) for p in runs if p.stem.split("_")[0] not in subjects][:8]
    for number, subject in enumerate(subjects):
        # The store is LAS; the spec's volumes are RAS.
        weights.append(planted_weight(spec, int(subject.split("-")[1]) - 1)[::-1])
        with model.prepare(folder / "store" / "hdf5" / f"{subject}_task-rest.h5") as scan:
            found.append(model.explain(scan, steps=4, seed=0))
            if number < 2:
                coarse = model.explain(scan, method="occlusion", edge=2, windows=1)
                fine = model.explain(scan, steps=4, windows=1)
                sums = [cell_sums(one, 2 * PATCH) for one in (fine, coarse)]
                agreement.append(rank_correlation(*sums))
            if number % 2:  # subjects of both classes
                one = model.explain(scan, references=references, steps=8, smooth=SMOOTH)
                both = (one.values, one.randomised_values)
                compared.append([auc(values, weights[-1], one.vox) for values in both])
            if number < 6:
                others += [model.explain(scan, method="gradxinput", seed=s) for s in DRAWS]
    voxels = [one.vox for one in found]
    mean = group_map([one.values for one in found], voxels, permutations=200)
    inside = np.mean([weight > 0 for weight in weights], axis=0) >= 0.5  # of the subjects
    random = [group_map([one.randomised_values for one in found], voxels, permutations=200).mean]
    for seed in DRAWS:
        some = [one for one in others if one.options.seed == seed]
        maps = group_map([o.randomised_values for o in some], [o.vox for o in some])
        random.append(maps.mean[np.isin(maps.vox, mean.vox)])
    return Maps(
        group=auc(mean.mean, inside, mean.vox),
        random=float(np.mean([auc(one, inside, mean.vox) for one in random])),
        single=float(
            np.mean([auc(o.values, w, o.vox) for o, w in zip(found, weights, strict=True)])
        ),
        agreement=float(np.mean(agreement)),
        completeness=max(one.completeness_error for one in found),
        compared=float(np.mean(compared, axis=0)[0]),
        compared_random=float(np.mean(compared, axis=0)[1]),
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_maps_find_the_planted_region(tmp_path: Path, seed: int) -> None:
    spec = trained_on_planted(tmp_path, seed)
    maps = measured(tmp_path, spec)
    print(maps)
    assert maps.group >= FOUND
    assert maps.random <= LOST
    assert maps.group > maps.single > maps.random
    assert maps.compared >= FOUND
    assert maps.compared_random <= LOST
    assert maps.agreement >= 0.5
    assert maps.completeness < 0.02  # with 4 steps
