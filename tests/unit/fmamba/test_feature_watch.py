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


def fact(name: str, value: float, limit: float) -> dict[str, float]:
    return {f"val/watch_{name}": value, f"val/watch_{name}_limit": limit}


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


def test_a_fall_within_chance_is_left_alone() -> None:
    """As of features that hold the signal's dynamics and hardly the subject, or of few subjects."""
    for best, later, facts in (
        (0.146, 0.042, {}),
        (0.6, 0.45, fact("sex", 0.6, 0.7)),
    ):
        name = "val/knn_sex" if facts else "val/knn_subject"
        watch = FeatureWatch()
        watch.look(values(0.5, knn=0.1) | facts | {name: best})
        assert watch.look(values(0.4, knn=0.1) | facts | {name: later}) == {}
    watch = FeatureWatch()
    watch.look(values(0.5) | fact("sex", 0.9, 0.7) | {"val/knn_sex": 0.9})
    said = watch.look(values(0.4) | fact("sex", 0.6, 0.7) | {"val/knn_sex": 0.6})
    assert "val/knn_sex has fallen from 0.900 to 0.600" in said["val/knn_sex"]


def test_what_is_not_defined_is_no_reason_to_warn() -> None:
    watch = FeatureWatch()
    nan = float("nan")
    for _ in range(3):
        assert watch.look(values(0.5, rank=nan, std=nan, knn=nan)) == {}


def seen(watch: FeatureWatch, skills: list[float], **more: float) -> list[dict[str, str]]:
    """What is said after each of several validations with a falling loss."""
    found = []
    for i, skill in enumerate(skills):
        one = values(1 / (1 + i)) | {"val/dynamic_skill": skill} | more
        found.append(watch.look(one))
    return found


def test_a_dynamic_skill_that_stays_below_0() -> None:
    """After five validations, and not before, however far below."""
    found = seen(FeatureWatch("znorm_minback"), [-12.0, -8.2, -5.9, -4.7, -4.7, -4.6])
    assert found[:4] == [{}] * 4
    (said,) = found[5].values()
    assert "stays below 0: -4.600 after 6 validations, -12.000 after the first" in said
    assert "--input_scaling_method voxelnorm_zeroback" in said
    (other,) = seen(FeatureWatch("voxelnorm_zeroback"), [-0.3] * 5)[-1].values()
    assert "more steps" in other and "voxelnorm" not in other


def test_a_dynamic_skill_that_does_not_rise() -> None:
    found = seen(FeatureWatch("voxelnorm_zeroback"), [0.0001] * 5)
    assert found[:4] == [{}] * 4 and "does not rise above 0" in found[4]["dynamics"]


def test_a_dynamic_skill_that_rises_or_is_there_is_left_alone() -> None:
    """The first are those of a pre-training whose features tell the planted effect (docs)."""
    for healthy in (
        [-0.0045, 0.001, 0.0035, 0.0041, 0.005, 0.005],
        [-3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0],
        [0.3] * 8,  # learned before the first validation
        [-5.0, -5.0, -5.0, -5.0],  # too short to tell
        [float("nan")] * 8,  # masked tokens
    ):
        assert seen(FeatureWatch("voxelnorm_zeroback"), healthy) == [{}] * len(healthy)


SITE, TR = fact("site", 0.9, 0.5), fact("tr", 0.5, 0.7)
NO_SEX, NO_AGE = fact("sex", 0.55, 0.7), fact("age", 0.1, 0.3)


def test_features_that_tell_the_site_and_nothing_else() -> None:
    found = seen(FeatureWatch("znorm_minback"), [0.0, 0.005] * 3, **SITE, **TR, **NO_SEX, **NO_AGE)
    assert found[:4] == [{}] * 4
    said = found[5]["identity"]
    assert "predict subject (0.80 of their windows), site (0.90), but not sex, age, after 6" in said
    assert "voxelnorm_zeroback" in said and "neuromamba probe" in said


def test_features_that_tell_something_else_too_are_left_alone() -> None:
    nan = fact("sex", float("nan"), float("nan"))
    for skill, facts in (
        (0.01, SITE | fact("sex", 0.8, 0.7)),
        (0.3, SITE | NO_SEX),  # the dynamics are something else
        (0.01, SITE),  # nothing else is known
        (0.01, SITE | nan),
        (0.01, NO_SEX | TR | {"val/knn_subject": 0.1}),  # tell nothing yet, as untrained ones
    ):
        found = seen(FeatureWatch("znorm_minback"), [skill - 0.005, *[skill] * 6], **facts)
        assert found == [{}] * 7


def test_features_that_are_nearly_the_same() -> None:
    watch = FeatureWatch()
    assert "nearly the same for all windows" in watch.look(values(0.5, std=1e-6))["collapse"]


def test_the_level_of_chance_is_not_forgotten() -> None:
    watch = FeatureWatch()
    watch.look(values(0.5) | {"val/knn_subject_chance": 0.5})
    assert watch.look(values(0.4) | {"val/knn_subject_chance": 0.1}) == {}
