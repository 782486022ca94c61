"""Controls that see the same subjects as the model: here, the mean volume.

The logistic regression on each subject's temporal mean volume has the anatomy, the scaling and the
shape of the brain, but no dynamics. Where it does as well as the model, the model need not have
learned anything from time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from project.module.analysis.run_folder import SubjectScores
from project.module.config import UserInputError
from project.module.utils.data_module import FMRIDataModule
from project.module.utils.data_preprocess_and_load.hdf5_store import RunFile

PENALTIES = tuple(float(c) for c in np.logspace(-3, 3, 7))  # C: the inverse of the L2 penalty
_FOLDS = 5


@dataclass(frozen=True)
class MeanVolumeResult:
    """The control on the test subjects.

    Attributes:
        scores: of the test subjects.
        metrics: AUROC, accuracy, balanced accuracy.
        penalty: the C chosen by inner cross-validation.
        fitted_on: number of training and validation subjects.
        voxels: features, the union of the fitted subjects' brain masks.
    """

    scores: SubjectScores
    metrics: dict[str, float]
    penalty: float
    fitted_on: int
    voxels: int


@dataclass(frozen=True)
class MeanVolumes:
    """Temporal mean volumes of subjects.

    Attributes:
        subjects: S names; with several data sets ``number/name``.
        target: int [S].
        volume: float32 [S, N], in the units of the model's input.
    """

    subjects: tuple[str, ...]
    target: np.ndarray
    volume: np.ndarray


def union_of_masks(data: FMRIDataModule, parts: Sequence[str]) -> np.ndarray:
    """Voxels that are brain in any run of the parts, sorted flat indices [N] into the grid."""
    brain = np.zeros(int(np.prod(data.config.img_size)), dtype=bool)
    for part in parts:
        windows = data.parts[part]
        for dataset in windows.datasets if windows is not None else ():
            for path in dataset.paths:  # type: ignore[attr-defined]
                run = RunFile(path)
                brain[run.vox] = True
                run.close()
    return np.flatnonzero(brain)


def mean_volumes(data: FMRIDataModule, parts: Sequence[str], voxels: np.ndarray) -> MeanVolumes:
    """Average each subject's windows over time, scaled as the model sees them.

    Args:
        data: made for a classification.
        parts: of "train", "val", "test".
        voxels: [N] flat indices to keep. Where one lies outside a subject's own mask it has the
            value the model sees there, that of the background.

    Returns:
        The subjects in the order of the parts; needs 4 * S * N bytes.
    """
    column = np.full(int(np.prod(data.config.img_size)), -1)
    column[voxels] = np.arange(len(voxels))
    total: dict[str, np.ndarray] = {}
    count: dict[str, int] = {}
    target: dict[str, int] = {}
    several = len(data.stores) > 1
    for part in parts:
        for item in _items(data, part):
            name = f"{item['dataset']}/{item['unit']}" if several else item["unit"]
            mean = item["bold"].numpy().mean(axis=0, dtype=np.float64)
            place = column[item["vox"].numpy()]
            volume = np.full(len(voxels), item["background"], dtype=np.float32)
            scaled = mean * item["gain"] + item["shift"]
            volume[place[place >= 0]] = scaled[place >= 0]
            total[name] = total[name] + volume if name in total else volume
            count[name] = count.get(name, 0) + 1
            target[name] = item["target"]
    return MeanVolumes(
        tuple(total),
        np.array([target[name] for name in total], dtype=int),
        np.stack([total[name] / count[name] for name in total]).astype(np.float32),
    )


def _items(data: FMRIDataModule, part: str) -> Any:
    windows = data.parts[part]
    return (windows[i] for i in range(len(windows))) if windows is not None else ()


def _by_sqrt_of_width(x: np.ndarray) -> np.ndarray:
    """Keeps the penalty's scale, and so the range to search, free of the number of voxels."""
    return x / np.sqrt(x.shape[1])


def logistic_pipeline(penalty: float = 1.0) -> Pipeline:
    """Standardised voxels -> rotation onto the training subjects -> L2 logistic regression.

    The PCA keeps every component: an L2 penalty does not notice a rotation, so the fit is that on
    all voxels, and there are as many coefficients as subjects instead of voxels.
    """
    return make_pipeline(
        StandardScaler(),
        FunctionTransformer(_by_sqrt_of_width),
        PCA(svd_solver="full"),
        LogisticRegression(C=penalty, max_iter=10_000),
    )


def fit_logistic(
    x: np.ndarray, y: np.ndarray, seed: int = 0, groups: np.ndarray | None = None
) -> tuple[Pipeline, float]:
    """Fit with the penalty of the best AUROC in stratified inner folds of the same samples.

    Args:
        x: [S, N] features; y: [S] classes.
        seed: of the folds.
        groups: [S] what stays together in the folds; None if samples are subjects.

    Returns:
        The fitted pipeline and its C, which is 1 when a class has a single subject.

    Raises:
        UserInputError: there is only one class.
    """
    together = np.arange(len(y)) if groups is None else groups
    counts = [len(np.unique(together[y == label])) for label in np.unique(y)]
    if len(counts) < 2:
        raise UserInputError("logistic regression: the samples to fit on are all of one class.")
    folds = min(_FOLDS, min(counts))
    if folds < 2:
        return logistic_pipeline().fit(x, y), 1.0
    inner = StratifiedKFold if groups is None else StratifiedGroupKFold
    with TemporaryDirectory() as cache:  # one rotation a fold, whatever the penalty
        search = GridSearchCV(
            logistic_pipeline().set_params(memory=cache),
            {"logisticregression__C": list(PENALTIES)},
            scoring="roc_auc" if len(counts) == 2 else "roc_auc_ovr",
            cv=inner(folds, shuffle=True, random_state=seed),
        ).fit(x, y, groups=groups)
    best = search.best_estimator_.set_params(memory=None)
    return best, float(search.best_params_["logisticregression__C"])


def mean_volume_control(data: FMRIDataModule, seed: int = 0) -> MeanVolumeResult:
    """Logistic regression on the temporal mean volume, on exactly the run's subjects.

    Fitted on the training and validation subjects, which the model has both used (the latter to
    choose its epoch), and scored once on the test subjects. Features are the voxels in the union
    of the fitted subjects' masks; the test subjects' masks have no say.

    Args:
        data: made for a classification, test subjects included.
        seed: of the inner folds.

    Raises:
        UserInputError: not a classification, no test subjects, or one class only.
    """
    if data.task is None or data.task.task_type != "classification":
        raise UserInputError("mean-volume control: needs the data of a classification.")
    if not data.windows_in("test"):
        raise UserInputError("mean-volume control: there are no test subjects.")
    fit_parts = ("train",) if data.config.include_valid_to_train else ("train", "val")
    voxels = union_of_masks(data, fit_parts)
    fitted = mean_volumes(data, fit_parts, voxels)
    tested = mean_volumes(data, ("test",), voxels)
    pipeline, penalty = fit_logistic(fitted.volume, fitted.target, seed)
    scores = SubjectScores(tested.subjects, tested.target, pipeline.predict_proba(tested.volume))
    return MeanVolumeResult(scores, scores.metrics(), penalty, len(fitted.subjects), len(voxels))
