"""Explain the prediction of a scan: a map of its voxels, and the same map of random weights.

The map of a scan is the mean of the maps of its windows (``attribution``): positive where the
signal speaks for the class that is explained (or raises the value), negative where it speaks
against it. Beside it stands always the map of a network of the same architecture whose weights are
random (Adebayo et al. 2018, NeurIPS), for the class that these predict. Where the two are alike, by
their rank correlation over voxels, the map shows the input or the architecture and not what the
model has learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch
from tqdm import tqdm

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.bounds import require_positive
from neuromamba.config.model import HeadConfig
from neuromamba.config.names import EXPLAIN_RESOLUTIONS
from neuromamba.config.serialise import from_dict
from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.reader import RunFile
from neuromamba.fmamba.window_tokens import pack_windows
from neuromamba.inference.attribution import (
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
from neuromamba.inference.predict import predict_scan, require_head
from neuromamba.inference.prepared import PreparedScan
from neuromamba.inference.references import Reference, compared_with, of_others, smoothed
from neuromamba.inference.score_map import (
    ScoreMap,
    ScoreOptions,
    require_not_negative,
    target_index,
    unit_of_class,
)
from neuromamba.inference.source_space import to_source_image

_MOST_FRAMES = 40  # of the mean image


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(ScoreOptions):
    """How to explain; see ``ScoreOptions`` for the other attributes.

    Attributes:
        edge: of an occluded cell, in patches.
        windows: explain only so many of a scan's windows, evenly spaced; 0 for all.
        resolution: "patch", the mean over the voxels of each spatial patch, or "voxel".
        smooth: full width at half maximum, in mm, of a Gaussian that the maps are smoothed by.

    Raises:
        UserInputError: a value out of range; names the flag.
    """

    edge: int = 1
    windows: int = 0
    resolution: str = "patch"
    smooth: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        look_up(self.resolution, EXPLAIN_RESOLUTIONS, "--resolution")
        require_positive("--edge", self.edge)
        require_not_negative("--windows", self.windows)
        if not 0 <= self.smooth < math.inf:
            raise UserInputError(f"--smooth: got {self.smooth:g}, expected mm, 0 or more.")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Explanation(ScoreMap):
    """The explanation of a scan; N brain voxels.

    Scores and maps are means over windows, the completeness error is the mean of the absolute
    errors over the mean absolute difference; the prediction is over all windows of the scan. See
    ``ScoreMap`` for the other attributes.

    Attributes:
        options: how it was made.
        vox: int32 [N], flat indices into the grid of ``header``.
        mean: float32 [N], mean of some frames of the scan, in its units: anatomy for pictures.
        header: of the prepared run.
        windows: how many were explained.
        references: scans of other people that were the baselines; 0: the mean.
    """

    options: ExplainOptions
    vox: np.ndarray
    mean: np.ndarray
    header: RunHeader
    windows: int
    references: int = 0

    @property
    def image(self) -> nibabel.Nifti1Image:
        """The map with shape and affine of the scan's file; 0 outside the mask."""
        return to_source_image(self.values, self.vox, self.header)

    @property
    def randomised(self) -> nibabel.Nifti1Image:
        """The map of random weights, likewise."""
        return to_source_image(self.randomised_values, self.vox, self.header)

    def record(self) -> dict[str, Any]:
        """The numbers in plain containers; null where not defined."""
        return super().record() | {
            "windows": self.windows,
            "references": self.references,
            "voxels": len(self.vox),
        }


class _Mean(NamedTuple):
    """Means over windows; see ``Explanation``."""

    values: np.ndarray
    score: float
    baseline_score: float
    completeness_error: float


def explain_scan(
    model: TrainedModel,
    scan: PreparedScan,
    options: ExplainOptions | None = None,
    references: Sequence[Reference] = (),
) -> Explanation:
    """Explain the prediction of a prepared scan.

    Args:
        model: of a task.
        scan: prepared for it.
        options: how; default: integrated gradients of the predicted class.
        references: what the scan is compared with, those of its own subject left out; without any
            it is compared with its mean. ``steps`` is shared out among them.

    Raises:
        UserInputError: the model has no task; a class that it does not know; no reference of
            another person.
    """
    options = options or ExplainOptions()
    require_head(model, "explain")
    assert model.head is not None
    prediction = predict_scan(model, scan)
    target = target_index(model.class_names, options.target or prediction.value)
    head = from_dict(HeadConfig, model.contents.metadata["head"], str(model.path))
    networks = (
        Network(model.backbone, model.head),
        randomised_network(model.contract.model, head, options.seed, model.device),
    )
    numbers = _chosen(len(scan.windows), options.windows)
    targets = (target, target if options.target else _predicted(networks[1], model, scan, numbers))
    scaling = model.target_scaling
    objectives = [Objective(target=t, center=scaling.center, scale=scaling.scale) for t in targets]
    others = of_others(references, scan) if references else []
    found: tuple[list[WindowAttribution], ...] = ([], [])
    baseline = baseline_value(scan.header, model.contract.data.input_scaling_method)
    for number in tqdm(numbers, desc=scan.name, unit="window", disable=None):
        window = token_window(scan.windows[number], model.contract.model, model.device, baseline)
        compared = [compared_with(window, one.window) for one in others] or [window]
        for network, objective, maps in zip(networks, objectives, found, strict=True):
            parts = [
                explain_window(
                    network,
                    objective,
                    one,
                    options.method,
                    steps=-(-options.steps // len(compared)),
                    edge=options.edge,
                )
                for one in compared
            ]
            maps.append(_mean_of_references(parts))
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
    shown = [smoothed(one, vox, scan.header, options.smooth) for one in shown]
    name, random_name = ("" if t is None else model.class_names[t] for t in targets)
    return Explanation(
        scan=scan.name,
        subject=scan.subject,
        options=options,
        target=name,
        randomised_target=random_name,
        unit=model.unit if target is None else unit_of_class(name),
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
        references=len(others),
    )


@torch.inference_mode()
def _predicted(
    network: Network, model: TrainedModel, scan: PreparedScan, numbers: Sequence[int]
) -> int | None:
    """The class that a network predicts of some windows, index; None of a regression.

    By the rule of ``predict_scan``: the largest mean probability.
    """
    if not model.class_names:
        return None
    mean = torch.zeros(len(model.class_names), dtype=torch.float64, device=model.device)
    for number in numbers:
        packed = pack_windows([scan.windows[number]], model.contract.model, model.device)
        features = network.backbone.forward_tokens(packed).features
        mean += torch.softmax(network.head(features, packed)[0].double(), 0)
    return int(mean.argmax())


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


def _mean_of_references(parts: list[WindowAttribution]) -> WindowAttribution:
    """One window's map over several baselines; the sum of its parts is compared with their mean."""
    return WindowAttribution(
        np.mean([one.values for one in parts], axis=0),
        parts[0].score,
        float(np.mean([one.baseline_score for one in parts])),
    )


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
