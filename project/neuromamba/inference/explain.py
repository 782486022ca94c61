"""Explain the prediction of a scan: a map of its voxels, and the same map of random weights.

The map of a scan is the mean of the maps of its windows (``attribution``): positive where the
signal speaks for the class that is explained (or raises the value), negative where it speaks
against it. Beside it stands always the map of a network of the same architecture whose weights are
random (Adebayo et al. 2018, NeurIPS). Where the two are alike, by their rank correlation over
voxels, the map shows the input or the architecture and not what the model has learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import nibabel
import numpy as np
from scipy.stats import spearmanr
from tqdm import tqdm

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.bounds import require_positive
from neuromamba.config.model import HeadConfig
from neuromamba.config.names import EXPLAIN_METHODS, EXPLAIN_RESOLUTIONS
from neuromamba.config.serialise import from_dict
from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.reader import RunFile
from neuromamba.inference.attribution import (
    STEPS,
    Network,
    Objective,
    WindowAttribution,
    baseline_value,
    explain_window,
    patch_means,
    randomised_network,
    token_window,
)
from neuromamba.inference.model import TrainedModel
from neuromamba.inference.predict import Prediction, predict_scan, require_head
from neuromamba.inference.prepared import PreparedScan
from neuromamba.inference.source_space import to_source_image

_MOST_FRAMES = 40  # of the mean image


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """How to explain.

    Attributes:
        method: "ig" (integrated gradients), "gradxinput" or "occlusion".
        target: class that is explained; "" for the one that is predicted.
        steps: points of integrated gradients.
        edge: of an occluded cell, in patches.
        windows: explain only so many of a scan's windows, evenly spaced; 0 for all.
        resolution: "patch", the mean over the voxels of each spatial patch, or "voxel".
        seed: of the random weights.

    Raises:
        UserInputError: a value out of range; names the flag.
    """

    method: str = "ig"
    target: str = ""
    steps: int = STEPS
    edge: int = 1
    windows: int = 0
    resolution: str = "patch"
    seed: int = 0

    def __post_init__(self) -> None:
        look_up(self.method, EXPLAIN_METHODS, "--method")
        look_up(self.resolution, EXPLAIN_RESOLUTIONS, "--resolution")
        require_positive("--steps", self.steps)
        require_positive("--edge", self.edge)
        for flag, value in (("--windows", self.windows), ("--seed", self.seed)):
            if value < 0:
                raise UserInputError(f"{flag}: got {value}, expected 0 or more.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """The explanation of a scan; N brain voxels.

    Attributes:
        scan, subject: names.
        options: how it was made.
        target: the class that is explained; "" of a regression.
        unit: of the values: of the logit of the class minus the others', or of the label.
        prediction: of the scan, over all of its windows.
        values: float64 [N], signed; they add up to about ``score - baseline_score``.
        randomised_values: float64 [N], of random weights.
        vox: int32 [N], flat indices into the grid of ``header``.
        mean: float32 [N], mean of some frames of the scan, in its units: anatomy for pictures.
        header: of the prepared run.
        score, baseline_score: mean over windows.
        completeness_error: of integrated gradients: mean over windows of what the values miss of
            score - baseline_score, absolute, over the mean absolute difference; else NaN.
        windows: how many were explained.
    """

    scan: str
    subject: str
    options: ExplainOptions
    target: str
    unit: str
    prediction: Prediction
    values: np.ndarray
    randomised_values: np.ndarray
    vox: np.ndarray
    mean: np.ndarray
    header: RunHeader
    score: float
    baseline_score: float
    completeness_error: float
    windows: int

    @property
    def image(self) -> nibabel.Nifti1Image:
        """The map with shape and affine of the scan's file; 0 outside the mask."""
        return to_source_image(self.values, self.vox, self.header)

    @property
    def randomised(self) -> nibabel.Nifti1Image:
        """The map of random weights, likewise."""
        return to_source_image(self.randomised_values, self.vox, self.header)

    @property
    def rank_correlation(self) -> float:
        """Spearman's correlation over voxels with the map of random weights; NaN of a constant."""
        return rank_correlation(self.values, self.randomised_values)

    @property
    def rank_correlation_absolute(self) -> float:
        """The same without the signs."""
        return rank_correlation(np.abs(self.values), np.abs(self.randomised_values))

    def record(self) -> dict[str, Any]:
        """The numbers in plain containers; null where not defined."""
        numbers = {
            "score": self.score,
            "baseline_score": self.baseline_score,
            "sum_of_values": float(self.values.sum()),
            "completeness_error": self.completeness_error,
            "rank_correlation_with_random_weights": self.rank_correlation,
            "rank_correlation_of_absolute_values": self.rank_correlation_absolute,
        }
        return {
            "target": self.target or None,
            "unit": self.unit,
            "predicted": self.prediction.value,
            "windows": self.windows,
            "voxels": len(self.vox),
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        }


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation of two maps [N]; NaN where one is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(spearmanr(one, other).statistic)


class _Mean(NamedTuple):
    """Means over windows; see ``Explanation``."""

    values: np.ndarray
    score: float
    baseline_score: float
    completeness_error: float


def explain_scan(
    model: TrainedModel, scan: PreparedScan, options: ExplainOptions | None = None
) -> Explanation:
    """Explain the prediction of a prepared scan.

    Args:
        model: of a task.
        scan: prepared for it.
        options: how; default: integrated gradients of the predicted class.

    Raises:
        UserInputError: the model has no task; a class that it does not know.
    """
    options = options or ExplainOptions()
    require_head(model, "explain")
    assert model.head is not None
    prediction = predict_scan(model, scan)
    target = target_index(model, options.target or prediction.value)
    scaling = model.target_scaling
    objective = Objective(target=target, center=scaling.center, scale=scaling.scale)
    head = from_dict(HeadConfig, model.contents.metadata["head"], str(model.path))
    networks = (
        Network(model.backbone, model.head),
        randomised_network(model.contract.model, head, options.seed, model.device),
    )
    numbers = _chosen(len(scan.windows), options.windows)
    found: tuple[list[WindowAttribution], ...] = ([], [])
    baseline = baseline_value(scan.header, model.contract.data.input_scaling_method)
    for number in tqdm(numbers, desc=scan.name, unit="window", disable=None):
        window = token_window(scan.windows[number], model.contract.model, model.device, baseline)
        for network, maps in zip(networks, found, strict=True):
            maps.append(
                explain_window(
                    network,
                    objective,
                    window,
                    options.method,
                    steps=options.steps,
                    edge=options.edge,
                )
            )
    own, random = (_mean(maps, options.method) for maps in found)
    vox = scan.windows.voxels(0)
    if not np.isfinite(own.values).all():
        raise UserInputError(
            f"{scan.source}: the map has values that are not finite. Check the scan for extreme "
            f"values, and the model by a scan of its training."
        )
    shown = [own.values, random.values]
    if options.resolution == "patch":
        shown = [patch_means(one, vox, model.contract.model) for one in shown]
    name = "" if target is None else model.class_names[target]
    return Explanation(
        scan=scan.name,
        subject=scan.subject,
        options=options,
        target=name,
        unit=model.unit if target is None else f"logit of {name} minus the others'",
        prediction=prediction,
        values=shown[0],
        randomised_values=shown[1],
        vox=vox,
        mean=_mean_image(scan),
        header=scan.header,
        score=own.score,
        baseline_score=own.baseline_score,
        completeness_error=own.completeness_error,
        windows=len(numbers),
    )


def target_index(model: TrainedModel, wanted: str | float) -> int | None:
    """Index of a class by its name; None for a regression."""
    names = model.class_names
    if not names:
        if isinstance(wanted, str):
            raise UserInputError(
                f"--target: got '{wanted}', but the model predicts a value and no classes; leave "
                f"--target away."
            )
        return None
    if wanted not in names:
        raise UserInputError(
            f"--target: got '{wanted}', expected a class of the model: {', '.join(names)}."
        )
    return names.index(str(wanted))


def _chosen(count: int, wanted: int) -> list[int]:
    """Numbers of the windows to explain: all, or ``wanted`` evenly spaced ones."""
    if not wanted or wanted >= count:
        return list(range(count))
    return np.floor((np.arange(wanted) + 0.5) * count / wanted).astype(int).tolist()


def _mean_image(scan: PreparedScan) -> np.ndarray:
    """Mean of evenly spaced frames, float32 [N], in the units of the source."""
    header, file = scan.header, RunFile(scan.windows.paths[0])
    step = -(-header.n_frames // _MOST_FRAMES)
    stored = file.read(range(0, header.n_frames, step)).mean(axis=0, dtype=np.float64)
    file.close()
    return (stored * header.scale + header.offset).astype(np.float32)


def _mean(maps: list[WindowAttribution], method: str) -> _Mean:
    error = float("nan")
    if method == "ig":
        changes = [abs(one.score - one.baseline_score) for one in maps]
        errors = [abs(one.completeness_error) for one in maps]
        error = float(np.sum(errors) / np.sum(changes)) if np.sum(changes) > 0 else float("nan")
    return _Mean(
        values=np.mean([one.values for one in maps], axis=0),
        score=float(np.mean([one.score for one in maps])),
        baseline_score=float(np.mean([one.baseline_score for one in maps])),
        completeness_error=error,
    )
