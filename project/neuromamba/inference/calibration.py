"""How far predictions were off on the validation subjects of the training.

An exported file holds what is needed of them, without names; of a checkpoint in a run folder it is
read from ``validation_predictions.csv``, if the checkpoint is the one that was evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.checkpoints.paths import find_checkpoint
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.evaluation.result_files import EVALUATION, PREDICTIONS, read_predictions

COVERAGE = 0.9  # of the prediction interval
_LEAST_PER_CLASS = 10  # validation subjects to fit a temperature on
CALIBRATION_KEY, EVALUATION_KEY = "calibration", "evaluation"  # of an exported file


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the validation subjects say about new predictions.

    The early stopping of the training looked at the same subjects, so both are a little
    optimistic.

    Attributes:
        subjects: validation subjects.
        half_width: of a regression's 90 % prediction interval, in the target's units: the quantile
            ceil(0.9 (n + 1)) / n of the absolute errors (split conformal prediction, Vovk et al.
            2005; Lei et al. 2018, JASA). None below 9 subjects, where it is not defined.
        power: of a classification, the exponent that makes probabilities p ** power / sum fit the
            validation subjects best, 1 / T of temperature scaling (Guo et al. 2017, ICML). None
            below 10 subjects of a class, and where no power is the best because higher ones always
            fit better: all subjects are classified correctly.
    """

    subjects: int
    half_width: float | None = None
    power: float | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as an exported file holds it."""
        return {"subjects": self.subjects, "half_width": self.half_width, "power": self.power}


def calibration_of(checkpoint: Path, export: Mapping[str, Any]) -> Calibration | None:
    """Read or compute the calibration of a checkpoint; None where there is none.

    Args:
        checkpoint: its path.
        export: what an exported file says of its origin.
    """
    known = export.get(CALIBRATION_KEY)
    if isinstance(known, Mapping):
        return Calibration(
            subjects=known.get("subjects", 0),
            half_width=known.get("half_width"),
            power=known.get("power"),
        )
    run = evaluated_run(checkpoint)
    if run is None or not (run / PREDICTIONS["val"]).is_file():
        return None
    try:
        found = read_predictions(run / PREDICTIONS["val"], "")
    except UserInputError:
        return None  # a damaged file beside a good checkpoint: predictions need none of it
    subjects, index = np.unique(np.asarray(found.subject), return_inverse=True)
    count = np.bincount(index)
    score = np.stack([np.bincount(index, column) / count for column in found.score.T], axis=1)
    target = np.zeros(len(subjects), found.target.dtype)
    target[index] = found.target
    if target.dtype.kind in "iu":
        return Calibration(subjects=len(subjects), power=_power(score, target))
    return Calibration(subjects=len(subjects), half_width=_half_width(np.abs(score[:, 0] - target)))


def _half_width(errors: np.ndarray) -> float | None:
    rank = math.ceil(COVERAGE * (len(errors) + 1))
    return float(np.sort(errors)[rank - 1]) if rank <= len(errors) else None


def _power(probability: np.ndarray, target: np.ndarray) -> float | None:
    counts = np.bincount(target, minlength=probability.shape[1])
    if counts.min() < _LEAST_PER_CLASS or (probability.argmax(axis=1) == target).all():
        return None
    logs = np.log(np.clip(probability, 1e-12, None))

    def loss(power: float) -> float:
        scaled = power * logs
        scaled -= scaled.max(axis=1, keepdims=True)
        total = np.log(np.exp(scaled).sum(axis=1))
        return float((total - scaled[np.arange(len(target)), target]).mean())

    powers = np.geomspace(0.05, 1000, 401)
    return float(powers[int(np.argmin([loss(power) for power in powers]))])


def evaluation_of(checkpoint: Path, export: Mapping[str, Any]) -> dict[str, Any]:
    """The run's own test of a checkpoint, as in ``evaluation.json``; {} where there is none."""
    known = export.get(EVALUATION_KEY)
    if isinstance(known, Mapping):
        return dict(known)
    run = evaluated_run(checkpoint)
    if run is None:
        return {}
    try:
        found = parse_json((run / EVALUATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def evaluated_run(checkpoint: Path) -> Path | None:
    """The run folder of a checkpoint, if it is the one whose weights the run evaluated."""
    checkpoint = checkpoint.resolve()
    if checkpoint.parent.name != "checkpoints":
        return None
    run = checkpoint.parent.parent
    try:
        evaluated = find_checkpoint(run, "MODEL")
    except UserInputError:
        return None
    return run if evaluated == checkpoint else None
