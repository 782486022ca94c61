"""``explain`` of a NeuroSSM finds planted regions, and with random weights it does not."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import neuromamba
from neuromamba.commands.regions_train import main as train
from neuromamba.data.synthetic.regions import Recipe, scan
from neuromamba.inference.group_maps import group_map
from neuromamba.inference.region_explain import RegionExplanation
from neuromamba.inference.region_model import RegionModel
from neuromamba.inference.score_map import rank_correlation

ROIS, FRAMES, FITTED, TESTED = 100, 200, 300, 30
# A third class has neither signal: with two, the absence of one would tell the other.
KINDS = ("slow", "fast", "none")
FOUND, LOST = 0.9, 0.65


class Maps(NamedTuple):
    """Areas under the ROC curve for "region planted for the class that is explained".

    Attributes:
        single: of the absolute values of single scans, their mean.
        group: of the mean over the scans of a class.
        cpa: of CPA of single scans.
        random: of absolute values with random weights, mean over draws and scans.
        agreement: lowest rank correlation of integrated gradients and occlusion.
        completeness: what integrated gradients miss, as a share of the changes of the score.
    """

    single: float
    group: float
    cpa: float
    random: float
    agreement: float
    completeness: float


def trained_on_planted(folder: Path, recipe: Recipe, seed: int) -> RegionModel:
    samples = [
        {
            "roiTimeseries": scan(recipe, i % 3, i),
            "pheno": {"subjectId": f"p{i:03d}", "kind": KINDS[i % 3]},
        }
        for i in range(FITTED)
    ]
    with open(folder / "planted.pickle", "wb") as stream:
        pickle.dump(samples, stream)
    flags = (
        f"--dataset Own --data_file {folder / 'planted.pickle'} --target kind --device cpu "
        f"--results_dir {folder / 'results'} --skip_cross_validation --dynamic_length 100 "
        f"--epochs 15 --batch_size 16 --embed_dim 32 --depth 1 --learning_rate 1e-3 "
        f"--max_learning_rate 2e-3 --seeds {seed} --baselines"
    )
    assert train(flags.split()) == 0
    model = neuromamba.load(folder / "results" / "Own" / "NeuroSSM", device="cpu")
    assert isinstance(model, RegionModel)
    return model


def measured(model: RegionModel, recipe: Recipe) -> Maps:
    """Explain new scans; see ``Maps``."""
    planted = dict(zip(KINDS, recipe.planted_regions(), strict=False))
    single, cpa, random, agreement, completeness = [], [], [], [], []
    own: dict[str, list[np.ndarray]] = {"slow": [], "fast": []}

    def auc(values: np.ndarray, kind: str) -> float:
        truth = np.isin(np.arange(ROIS), planted[kind])
        return float(roc_auc_score(truth, np.abs(values)))

    for number in range(FITTED, FITTED + TESTED):
        kind = KINDS[number % 3]
        prepared = model.prepare(scan(recipe, number % 3, number))
        found = model.explain(prepared, seed=number)
        change = found.score - found.baseline_score
        completeness.append((abs(found.values.sum() - change), abs(change)))
        if kind == "none" or found.target != kind:
            continue
        single.append(auc(found.values, kind))
        cpa.append(auc(found.pathway.cpa, kind))
        random.append(auc(found.randomised_values, kind))
        own[kind].append(found.values)
        if len(single) <= 4:
            other = model.explain(prepared, method="occlusion")
            assert isinstance(other, RegionExplanation)
            agreement.append(rank_correlation(found.values, other.values))
    assert len(single) >= 0.8 * TESTED * 2 / 3  # it has learned the classes
    regions = np.arange(ROIS)
    means = {
        kind: group_map(maps, [regions] * len(maps), permutations=100).mean
        for kind, maps in own.items()
    }
    return Maps(
        single=float(np.mean(single)),
        group=min(auc(mean, kind) for kind, mean in means.items()),
        cpa=float(np.mean(cpa)),
        random=float(np.mean(random)),
        agreement=min(agreement),
        completeness=float(np.divide(*np.sum(completeness, axis=0))),
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_explanations_find_the_planted_regions(tmp_path: Path, seed: int) -> None:
    recipe = Recipe(ROIS, FRAMES, KINDS, seed=seed)
    model = trained_on_planted(tmp_path, recipe, seed)
    maps = measured(model, recipe)
    print(maps)
    assert maps.group >= FOUND
    assert maps.single >= FOUND
    assert (
        maps.cpa >= 0.75
    )  # 0.83, 0.88 and 0.91; a larger model has more than 0.95 (test_planted.py)
    assert maps.random <= LOST
    assert maps.agreement >= 0.5
    assert maps.completeness < 0.02
