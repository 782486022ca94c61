"""Intervals and calibrated probabilities from validation subjects, and where there are none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from neuromamba.evaluation.result_files import Predictions, write_predictions
from neuromamba.inference.calibration import Calibration, calibration_of
from neuromamba.inference.predict import Prediction


def run_with(path: Path, target: np.ndarray, score: np.ndarray) -> Path:
    """A run folder with two windows a subject; returns its checkpoint."""
    (path / "checkpoints").mkdir(parents=True)
    (path / "checkpoints" / "best.ckpt").write_bytes(b"")
    names = [f"sub-{i}" for i in range(len(target)) for _ in range(2)]
    shift = np.tile([[0.01], [-0.01]], (len(target), 1)) * (1 if score.shape[1] == 1 else 0)
    found = Predictions(
        names, [0, 1] * len(target), np.repeat(target, 2), np.repeat(score, 2, axis=0) + shift
    )
    write_predictions(found, path / "validation_predictions.csv")
    return path / "checkpoints" / "best.ckpt"


def prediction(
    value: str | float, probabilities: dict[str, float], found: Calibration
) -> Prediction:
    return Prediction(
        scan="a",
        value=value,
        probabilities=probabilities,
        windows=np.zeros((1, 1)),
        starts=np.zeros(1),
        spread=float("nan"),
        in_range=None,
        problems=(),
        unit="years",
        calibration=found,
    )


def test_interval_is_the_conformal_quantile(tmp_path: Path) -> None:
    errors = np.arange(1.0, 20.0)  # of 19 subjects: rank ceil(0.9 * 20) = 18
    checkpoint = run_with(tmp_path / "run", np.zeros(19), errors[:, None])
    found = calibration_of(checkpoint, {})
    assert found is not None
    assert found.half_width == pytest.approx(18)
    assert prediction(50.0, {}, found).interval == pytest.approx((32, 68))


def test_a_scan_out_of_range_has_neither(tmp_path: Path) -> None:
    found = Calibration(subjects=30, half_width=5.0, power=2.0)
    value, chosen = prediction(50.0, {}, found), prediction("a", {"a": 0.8, "b": 0.2}, found)
    assert value.interval == (45, 55) and chosen.calibrated is not None
    assert dataclasses.replace(value, in_range=False).interval is None
    assert dataclasses.replace(chosen, in_range=False).calibrated is None


def test_interval_covers_what_it_promises() -> None:
    """Of new values drawn as the validation subjects were, 90 % or a little more are covered."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        errors = np.abs(rng.standard_t(3, 30))
        half_width = np.sort(errors)[int(np.ceil(0.9 * 31)) - 1]
        covered.append((np.abs(rng.standard_t(3, 100)) <= half_width).mean())
    assert 0.89 < np.mean(covered) < 0.93


def test_few_subjects_define_no_interval(tmp_path: Path) -> None:
    checkpoint = run_with(tmp_path / "run", np.zeros(8), np.ones((8, 1)))
    found = calibration_of(checkpoint, {})
    assert found is not None
    assert found.half_width is None
    assert prediction(50.0, {}, found).interval is None


def test_overconfident_probabilities_are_drawn_to_the_middle(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    target = np.repeat([0, 1], 60)
    right = rng.random(120) < 0.75  # right three times in four, at a confidence of 0.99
    said = np.where(right, target, 1 - target)
    score = np.where(np.arange(2) == said[:, None], 0.99, 0.01)
    found = calibration_of(run_with(tmp_path / "run", target, score), {})
    assert found is not None
    assert found.power is not None
    assert found.power < 1
    calibrated = prediction("b", {"a": 0.01, "b": 0.99}, found).calibrated
    assert calibrated is not None
    assert calibrated["b"] == pytest.approx(right.mean(), abs=0.01)
    assert sum(calibrated.values()) == pytest.approx(1)


def test_few_of_a_class_define_no_calibration(tmp_path: Path) -> None:
    target = np.array([0] * 30 + [1] * 9)
    found = calibration_of(run_with(tmp_path / "run", target, np.full((39, 2), 0.5)), {})
    assert found is not None
    assert found.power is None
    assert prediction("a", {"a": 0.6, "b": 0.4}, found).calibrated is None


@pytest.mark.parametrize("confidence", [0.51, 0.7, 0.999])
def test_no_subject_wrong_defines_no_calibration(tmp_path: Path, confidence: float) -> None:
    """Ever higher powers fit such subjects better, whatever the model's confidence."""
    target = np.repeat([0, 1], 12)
    score = np.where(np.arange(2) == target[:, None], confidence, 1 - confidence)
    found = calibration_of(run_with(tmp_path / "run", target, score), {})
    assert found is not None
    assert found.power is None
    score[0] = 1 - score[0]  # one of them wrong
    found = calibration_of(run_with(tmp_path / "wrong", target, score), {})
    assert found is not None
    assert found.power is not None


def test_another_checkpoint_of_the_run_has_none(tmp_path: Path) -> None:
    """The predictions are of the weights that were evaluated, and of no others."""
    checkpoint = run_with(tmp_path / "run", np.zeros(19), np.ones((19, 1)))
    other = checkpoint.with_name("last.ckpt")
    other.write_bytes(b"")
    assert calibration_of(checkpoint, {}) is not None
    assert calibration_of(other, {}) is None


def test_an_export_brings_its_own(tmp_path: Path) -> None:
    known = Calibration(subjects=20, half_width=3.5)
    file = tmp_path / "model.safetensors"
    assert calibration_of(file, {"calibration": known.plain()}) == known
