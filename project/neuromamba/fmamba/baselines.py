"""Models that any deep one must beat, on exactly its subjects and splits.

FC is a linear model of the correlations between regions, "mean volume" one of each subject's
temporal mean volume: anatomy, scaling and the shape of the brain, but no dynamics. Both are
penalised logistic or ridge regressions, fitted on the training and the validation subjects, which
the model has used as well (the latter to choose its epoch), and scored once on the test subjects.
"majority" (or "mean") needs no images at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neuromamba.common.atomic_files import make_folder, write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.scores import SubjectScores, read_scores, write_scores

if TYPE_CHECKING:
    from neuromamba.fmamba.subject_features import SubjectFeatures

FC, MEAN_VOLUME, SVM = "FC", "mean volume", "mean volume, SVM"
RECORD = "baselines.json"


class Baseline(NamedTuple):
    """A baseline on the test subjects.

    Attributes:
        name: of it.
        scores: of the test subjects.
        text: what it is, a sentence.
    """

    name: str
    scores: SubjectScores
    text: str


def fit_baselines(data: RunData, seed: int = 0, atlas: Path | None = None) -> list[Baseline]:
    """Fit and score all of them on the subjects of a run.

    Features of the mean volume are the voxels in the union of the fitted subjects' masks, and the
    regions of FC without an atlas are cubes of these; the test subjects' masks have no say.

    Args:
        data: made for a downstream task, test subjects included.
        seed: of the inner folds that choose the penalty.
        atlas: image of labels for FC, instead of cubes.

    Raises:
        UserInputError: no task, no test subjects, or one class only.
    """
    if data.task is None:
        raise UserInputError("baselines: need the data of a downstream task.")
    if not data.windows_in("test"):
        raise UserInputError("baselines: there are no test subjects.")
    parts = ("train",) if data.config.include_valid_to_train else ("train", "val")
    # Imported here: baselines are kept, and scikit-learn takes seconds to load.
    from neuromamba.evaluation.linear_models import fit_linear, fit_svm
    from neuromamba.fmamba.subject_features import (
        atlas_parcellation,
        grid_parcellation,
        subject_features,
        union_of_masks,
    )

    voxels = union_of_masks(data, parts)
    regions = (
        grid_parcellation(data.config.grid, voxels)
        if atlas is None
        else atlas_parcellation(data, atlas)
    )
    fitted = subject_features(data, parts, voxels, regions)
    tested = subject_features(data, ("test",), voxels, regions)
    classes = max(1, len(data.task.class_names))
    kind = "Ridge regression" if classes == 1 else "L2 logistic regression"

    def linear(name: str, x: np.ndarray, new: np.ndarray, what: str, model: str) -> Baseline:
        fit = fit_svm if model.startswith("Linear support") else fit_linear
        found = fit(x, fitted.target, seed, classes)
        text = f"{model} on {what}, penalty C = {found.penalty:g} chosen in inner folds"
        return Baseline(name, _scores(tested, found.score(new)), f"{text}; {who}.")

    who = f"fitted on {len(fitted.subjects)} training and validation subjects"
    if len(parts) == 1:
        who = f"fitted on {len(fitted.subjects)} training subjects"
    volumes = f"the temporal mean of {len(voxels)} voxels"
    found = [
        linear(
            FC,
            fitted.connectivity,
            tested.connectivity,
            f"Fisher's z of the correlations between {regions.name}",
            kind,
        ),
        linear(MEAN_VOLUME, fitted.volume, tested.volume, volumes, kind),
    ]
    if data.task.events is not None and classes > 1:  # the usual method of decoding
        svm = "Linear support vector machine"
        found.append(linear(SVM, fitted.volume, tested.volume, volumes, svm))
    return [*found, _constant(fitted, tested, classes)]


def _scores(tested: SubjectFeatures, score: np.ndarray) -> SubjectScores:
    return SubjectScores(tested.subjects, tested.target, score)


def _constant(fitted: SubjectFeatures, tested: SubjectFeatures, classes: int) -> Baseline:
    count = len(tested.target)
    if classes == 1:
        text = f"The mean of the {len(fitted.target)} subjects fitted on, for everybody."
        return Baseline("mean", _scores(tested, np.full((count, 1), fitted.target.mean())), text)
    share = np.bincount(fitted.target, minlength=classes) / len(fitted.target)
    text = f"The most frequent class of the {len(fitted.target)} subjects fitted on, for everybody."
    return Baseline("majority", _scores(tested, np.tile(share, (count, 1))), text)


# ------------------------------------------------------------------------------ files


def write_baselines(folder: Path, found: Sequence[Baseline], key: Mapping[str, Any]) -> None:
    """Write a CSV of scores for each, and last ``baselines.json``.

    Args:
        folder: of these files.
        found: what to write.
        key: what they depend on, in plain containers.

    Raises:
        UserInputError: the folder cannot be written.
    """
    make_folder(folder, "run folder")
    record = []
    for one in found:
        name = one.name.replace(" ", "_").replace(",", "").lower()
        write_scores(one.scores, folder / f"{name}.csv")
        record.append({"name": one.name, "file": f"{name}.csv", "text": one.text})
    text = json.dumps({"key": dict(key), "baselines": record}, indent=1)
    write_text_atomically(folder / RECORD, text + "\n")


def read_baselines(folder: Path, key: Mapping[str, Any]) -> list[Baseline] | None:
    """Those of an earlier call; None if there are none, or they depend on something else."""
    try:
        record = parse_json((folder / RECORD).read_text(encoding="utf-8"))
        if record["key"] != json.loads(json.dumps(dict(key))):
            return None
        return [
            Baseline(one["name"], read_scores(folder / one["file"]), one["text"])
            for one in record["baselines"]
        ]
    except (OSError, ValueError, KeyError, TypeError):  # damaged ones are made again
        return None


def data_key(data: RunData) -> dict[str, Any]:
    """What of the data a baseline depends on: windows, split, images and targets."""
    metadata = data.metadata()
    return {
        name: metadata[name] for name in ("config", "split_hash", "images_hash", "targets_hash")
    }


def baselines_of_data(
    data: RunData, folder: Path, seed: int = 0, atlas: Path | None = None
) -> list[Baseline]:
    """``fit_baselines``, unless the folder has them for the same data, split and targets."""
    key = data_key(data) | {"seed": seed, "atlas": str(atlas or "")}
    found = read_baselines(folder, key)
    if found is None:
        found = fit_baselines(data, seed, atlas)
        write_baselines(folder, found, key)
    return found
