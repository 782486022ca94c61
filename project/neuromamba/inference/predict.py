"""Predictions of a downstream model: all windows of a scan, averaged as in evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from neuromamba.common.errors import UserInputError
from neuromamba.evaluation.target_scaling import scores_of
from neuromamba.inference.brief import Brief
from neuromamba.inference.calibration import Calibration
from neuromamba.inference.model import TrainedModel
from neuromamba.inference.prepared import PreparedScan


@dataclass(frozen=True, kw_only=True, repr=False)
class Prediction(Brief):
    """What a model says of a scan.

    Attributes:
        scan: name of the scan.
        value: name of the most probable class, or the value in the label's units.
        probabilities: class -> probability, mean over windows; {} of a regression.
        windows: of each window, float64 [W, classes] probabilities or [W, 1] values.
        starts: first frame of each window, int [W].
        spread: standard deviation over windows, of the probability of the class that is predicted
            or of the value; NaN of one window.
        in_range: whether the scan resembles those of the training (``PreparedScan.in_range``).
        problems: doubts about the scan, in words.
        unit: of the value, such as "years"; "" where none is known.
        calibration: from the validation subjects of the training, for ``interval`` and
            ``calibrated``; None where none is known. Neither is defined for a scan out of the
            training's range: the validation subjects say nothing of such a scan.
    """

    scan: str
    value: str | float
    probabilities: dict[str, float]
    windows: np.ndarray
    starts: np.ndarray
    spread: float
    in_range: bool | None
    problems: tuple[str, ...]
    unit: str
    calibration: Calibration | None = None

    @property
    def brief(self) -> str:
        """Name of the scan and what is predicted."""
        return f"{self.scan}, {self}"

    @property
    def interval(self) -> tuple[float, float] | None:
        """90 % prediction interval of a value; None where not defined (``Calibration``)."""
        width = None if self.calibration is None else self.calibration.half_width
        if width is None or not isinstance(self.value, float) or self.in_range is False:
            return None
        return self.value - width, self.value + width

    @property
    def calibrated(self) -> dict[str, float] | None:
        """Class -> calibrated probability; None where not defined (``Calibration``)."""
        power = None if self.calibration is None else self.calibration.power
        if power is None or not self.probabilities or self.in_range is False:
            return None
        scaled = np.array(list(self.probabilities.values())) ** power
        return dict(zip(self.probabilities, (scaled / scaled.sum()).tolist(), strict=True))

    def __str__(self) -> str:
        if self.probabilities:
            assert isinstance(self.value, str)
            return f"{self.value} (probability {self.probabilities[self.value]:.3f})"
        return f"{self.value:.4g}{f' {self.unit}' if self.unit else ''}"

    def record(self) -> dict[str, Any]:
        """The prediction in plain containers; null where not defined."""
        return {
            "value": self.value,
            "probabilities": self.probabilities,
            "spread": self.spread if np.isfinite(self.spread) else None,
            "windows": self.windows.tolist(),
            "starts": self.starts.tolist(),
            "unit": self.unit,
            "in_range": self.in_range,
            "interval": None if self.interval is None else list(self.interval),
            "calibrated": self.calibrated,
        }


def require_head(model: TrainedModel, command: str) -> None:
    """Refuse a pre-trained backbone where a prediction is asked for.

    Raises:
        UserInputError: names the remedy.
    """
    if model.head is None or model.task is None:
        raise UserInputError(
            f"MODEL: '{model.path}' is a pre-trained backbone without a task, so neuromamba "
            f"{command} has nothing to say. Fine-tune it (neuromamba train --load_model_path ...), "
            f"or use neuromamba embed."
        )


def predict_scan(model: TrainedModel, scan: PreparedScan) -> Prediction:
    """Predict of all windows of a scan.

    The mean over windows is that of ``evaluation.subject_metrics``: of probabilities, or of values
    in the target's units.

    Raises:
        UserInputError: the model has no task; predictions that are not finite.
    """
    require_head(model, "predict")
    assert model.head is not None and model.task is not None
    found = []
    with torch.inference_mode():
        for _, packed in model.batches(scan):
            features = model.backbone.forward_tokens(packed).features
            scores = scores_of(
                model.head(features, packed), model.task.task_type, model.target_scaling
            )
            found.append(scores.cpu().numpy())
    windows = np.concatenate(found)
    if not np.isfinite(windows).all():
        raise UserInputError(
            f"{scan.source}: {int((~np.isfinite(windows)).any(1).sum())} of {len(windows)} windows "
            f"have predictions that are not finite. Check the scan for extreme values, and the "
            f"model by a scan of its training."
        )
    mean = windows.mean(axis=0)
    best = int(mean.argmax())
    names = model.class_names
    classes = dict(zip(names, mean.tolist(), strict=True)) if names else {}
    spread = float(windows[:, best].std(ddof=1)) if len(windows) > 1 else float("nan")
    return Prediction(
        scan=scan.name,
        value=names[best] if names else float(mean[0]),
        probabilities=classes,
        windows=windows,
        starts=np.array([window.start for window in scan.windows.windows]),
        spread=spread,
        in_range=scan.in_range,
        problems=tuple(str(problem) for problem in scan.problems),
        unit=model.unit,
        calibration=model.calibration,
    )
