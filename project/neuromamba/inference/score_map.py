"""What an explanation of a scan is in both families: parts of a score, beside random weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.bounds import require_positive
from neuromamba.config.names import EXPLAIN_METHODS
from neuromamba.inference.attribution import STEPS
from neuromamba.inference.brief import Brief
from neuromamba.inference.predict import Prediction


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How to explain, in both families.

    Attributes:
        method: "ig" (integrated gradients), "gradxinput" or "occlusion".
        target: class that is explained; "" for the one that is predicted.
        steps: points of integrated gradients.
        seed: of the random weights.

    Raises:
        UserInputError: a value out of range; names the flag.
    """

    method: str = "ig"
    target: str = ""
    steps: int = STEPS
    seed: int = 0

    def __post_init__(self) -> None:
        look_up(self.method, EXPLAIN_METHODS, "--method")
        require_positive("--steps", self.steps)
        require_not_negative("--seed", self.seed)


def require_not_negative(flag: str, value: int) -> None:
    """Refuse a number below 0; ``flag`` is named in the message.

    Raises:
        UserInputError: it is.
    """
    if value < 0:
        raise UserInputError(f"{flag}: got {value}, expected 0 or more.")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ScoreMap(Brief):
    """Parts of a scan's score; N voxels or regions.

    Attributes:
        scan, subject: names.
        target: the class that is explained; "" of a regression.
        randomised_target: the same with random weights: the class that these predict themselves,
            unless one class is asked for. A map of the class that the trained model predicts would
            hold its knowledge of the classes, and the mean of a group their difference in the data.
        unit: of the values: of the logit of the class minus the others', or of the label.
        prediction: of the scan.
        values: float64 [N], signed.
        randomised_values: float64 [N], of random weights.
        score, baseline_score: of the scan and of its baseline.
        completeness_error: of integrated gradients: what the values miss of score -
            baseline_score, absolute, as a share of the absolute difference; else NaN.
    """

    scan: str
    subject: str
    target: str
    randomised_target: str
    unit: str
    prediction: Prediction
    values: np.ndarray
    randomised_values: np.ndarray
    score: float
    baseline_score: float
    completeness_error: float

    @property
    def brief(self) -> str:
        """Name of the scan, what is explained, and whether random weights give the same."""
        return (
            f"{self.scan}, {self.target or 'value'}, {len(self.values)} parts, rank correlation "
            f"with random weights {self.rank_correlation:.2f}"
        )

    @property
    def rank_correlation(self) -> float:
        """Spearman's correlation with the values of random weights; NaN where one is constant."""
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
            "target_of_random_weights": self.randomised_target or None,
            "unit": self.unit,
            "predicted": self.prediction.value,
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        }


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation of two maps [N]; NaN where one is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    from scipy.stats import spearmanr  # a second to import

    return float(spearmanr(one, other).statistic)


def target_index(class_names: Sequence[str], wanted: str | float) -> int | None:
    """Index of a class by its name; None for a regression.

    Args:
        class_names: of the model; () of a regression.
        wanted: name of a class, or a predicted value.

    Raises:
        UserInputError: the model has no classes, or not this one.
    """
    if not class_names:
        if isinstance(wanted, str):
            raise UserInputError(
                f"--target: got '{wanted}', but the model predicts a value and no classes; leave "
                f"--target away."
            )
        return None
    if wanted not in class_names:
        raise UserInputError(
            f"--target: got '{wanted}', expected a class of the model: {', '.join(class_names)}."
        )
    return list(class_names).index(str(wanted))


def unit_of_class(name: str) -> str:
    """Unit of the parts of a class's score."""
    return f"logit of {name} minus the others'"
