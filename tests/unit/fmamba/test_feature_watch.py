"""What is said of a pre-training that seems not to help."""

from __future__ import annotations

from neuromamba.fmamba.feature_watch import PATIENCE, FeatureWatch


def values(loss: float, rank: float = 20.0, std: float = 1.0, knn: float = 0.8) -> dict[str, float]:
    return {
        "val/loss": loss,
        "val/feature_rank": rank,
        "val/feature_std": std,
        "val/knn_subject": knn,
    }


def test_a_pre_training_that_helps_is_left_alone() -> None:
    watch = FeatureWatch()
    for i in range(20):
        assert watch.look(values(1 / (1 + i), rank=10 + i, knn=0.5 + i / 50)) == {}


def test_a_loss_that_has_stopped_falling() -> None:
    watch = FeatureWatch()
    watch.look(values(0.5))
    for _ in range(PATIENCE - 1):
        assert watch.look(values(0.6)) == {}
    found = watch.look(values(0.55))
    assert "has not fallen below 0.5 for 5 validations" in found["stalled"]
    assert watch.look(values(0.4)) == {}


def test_a_collapse() -> None:
    watch = FeatureWatch()
    watch.look(values(0.5, rank=20))
    assert watch.look(values(0.4, rank=8)) == {}
    assert "effective rank 4.0, at most 20.0" in watch.look(values(0.3, rank=4))["collapse"]
    spread = FeatureWatch()
    spread.look(values(0.5, std=1.0))
    assert "spread 0.2, 1 at first" in spread.look(values(0.4, std=0.2))["collapse"]


def test_forgotten_subjects() -> None:
    watch = FeatureWatch()
    watch.look(values(0.5, knn=0.8))
    assert watch.look(values(0.4, knn=0.75)) == {}
    found = watch.look(values(0.3, knn=0.65))
    assert "val/knn_subject has fallen from 0.800 to 0.650" in found["val/knn_subject"]


def test_what_is_not_defined_is_no_reason_to_warn() -> None:
    watch = FeatureWatch()
    nan = float("nan")
    for _ in range(3):
        assert watch.look(values(0.5, rank=nan, std=nan, knn=nan)) == {}
