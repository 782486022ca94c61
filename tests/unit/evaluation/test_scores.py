"""Scores of subjects, their intervals, calibration, thresholds and confounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from neuromamba.common.errors import UserInputError
from neuromamba.evaluation.calibration import best_threshold, brier_score, reliability
from neuromamba.evaluation.confounds import confound_report, explained
from neuromamba.evaluation.intervals import (
    Together,
    bootstrap_interval,
    difference,
    paired_difference,
)
from neuromamba.evaluation.metrics import METRICS
from neuromamba.evaluation.resampled import resampled_metric
from neuromamba.evaluation.scores import (
    Holdouts,
    SubjectScores,
    read_scores,
    write_scores,
)


def scores_of(classes: int = 2, subjects: int = 50, seed: int = 3) -> SubjectScores:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, subjects)
    raw = rng.normal(size=(subjects, classes)) + 1.0 * np.eye(classes)[target]
    probability = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    return SubjectScores(tuple(f"s{i}" for i in range(subjects)), target, probability)


def values_of(subjects: int = 50, seed: int = 3) -> SubjectScores:
    rng = np.random.default_rng(seed)
    target = rng.normal(30, 5, subjects)
    guess = target[:, None] + rng.normal(0, 4, (subjects, 1))
    return SubjectScores(tuple(f"s{i}" for i in range(subjects)), target, guess)


@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_are_scikit_learns(classes: int) -> None:
    one = scores_of(classes)
    found, told = one.metrics(), one.score.argmax(axis=1)
    score = one.score[:, 1] if classes == 2 else one.score
    assert found == pytest.approx(
        {
            "auroc": sk.roc_auc_score(one.target, score, multi_class="ovr"),
            "accuracy": sk.accuracy_score(one.target, told),
            "balanced_accuracy": sk.balanced_accuracy_score(one.target, told),
        },
        abs=1e-9,
    )
    assert one.per_class == np.bincount(one.target).tolist()


def test_regression_metrics_are_scikit_learns() -> None:
    one = values_of()
    assert one.metrics() == pytest.approx(
        {
            "mse": sk.mean_squared_error(one.target, one.score[:, 0]),
            "mae": sk.mean_absolute_error(one.target, one.score[:, 0]),
            "pearson_r": stats.pearsonr(one.target, one.score[:, 0]).statistic,
            "r2": sk.r2_score(one.target, one.score[:, 0]),
        },
        abs=1e-9,
    )


@pytest.mark.parametrize("one", [scores_of(3), values_of()])
def test_files(one: SubjectScores, tmp_path: Path) -> None:
    """Written and read, and several windows a subject averaged."""
    path = tmp_path / "scores.csv"
    write_scores(one, path)
    again = read_scores(path)
    assert again.subjects == one.subjects and again.task_type == one.task_type
    np.testing.assert_array_equal(again.score, one.score)
    head, *rows = path.read_text().splitlines()
    shifted = [row.rsplit(",", 1)[0] + f",{float(row.rsplit(',', 1)[1]) + 0.5}" for row in rows]
    path.write_text("\n".join([head, *rows, *shifted]))
    np.testing.assert_allclose(read_scores(path).score[:, -1], one.score[:, -1] + 0.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "damaged"),
        ("subject,target,prob_0\nx,y,0.5\n", "damaged"),
        ("subject,target\nx,1\n", "no predictions"),
        ("", "no predictions"),
        (None, "cannot be read"),
    ],
)
def test_files_that_hold_no_predictions(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserInputError, match=message):
        read_scores(tmp_path / "p.csv")


# ------------------------------------------------------------------------------ intervals


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("name", ["auroc", "accuracy", "balanced_accuracy"])
def test_resampled_metrics_are_the_metrics(name: str, classes: int) -> None:
    """With ties between scores, repeated subjects, and samples that lack a class."""
    rng = np.random.default_rng(classes)
    target = np.arange(40) % classes
    score = rng.integers(0, 5, (40, classes)) / 4
    statistic = resampled_metric(name, score, target)
    absent = 0
    for trial in range(200):
        chosen = rng.integers(0, 40, 3 + trial)
        wanted = METRICS[name](torch.from_numpy(score[chosen]), torch.from_numpy(target[chosen]))
        absent += bool(torch.isnan(wanted))
        assert statistic(chosen) == pytest.approx(float(wanted), abs=1e-14, nan_ok=True)
    assert absent > 0 or name != "auroc"


@pytest.mark.parametrize("name", ["mse", "mae", "pearson_r", "r2"])
def test_resampled_errors_are_the_metrics(name: str) -> None:
    """In single precision far from zero, with repeated subjects, and samples that are all alike."""
    rng = np.random.default_rng(4)
    target = 1000 + 5 * rng.standard_normal(40).astype(np.float32)
    score = (target + rng.standard_normal(40).astype(np.float32))[:, None]
    score[:3], target[2:5] = score[0], target[2]
    statistic = resampled_metric(name, score, target)
    absent = 0
    for trial in range(200):
        chosen = rng.integers(0, 6 if trial < 80 else 40, 1 + trial // 4)
        wanted = METRICS[name](torch.from_numpy(score[chosen]), torch.from_numpy(target[chosen]))
        absent += bool(torch.isnan(wanted))
        assert statistic(chosen) == pytest.approx(float(wanted), rel=1e-12, nan_ok=True)
    assert absent > 0 or name in ("mse", "mae")


@pytest.mark.parametrize("name", ["auroc", "accuracy", "balanced_accuracy", "pearson_r", "r2"])
def test_many_resamples_at_once_are_those_one_by_one(name: str) -> None:
    """A resample's value does not depend on those that it is computed with; so do differences."""
    rng = np.random.default_rng(5)
    labels = np.arange(30) % 3
    target = labels if name in ("auroc", "accuracy", "balanced_accuracy") else rng.random(30)
    one, other = (
        resampled_metric(name, rng.random((30, 3 if target is labels else 1)), target)
        for _ in range(2)
    )
    rows = rng.integers(0, 30, (50, 4))
    rows[0] = rows[0, 0]  # a single class, or a constant
    for statistic in (one, difference(one, other)):
        assert isinstance(statistic, Together)
        alone = [statistic(row) for row in rows]
        np.testing.assert_array_equal(statistic.many(rows), alone)
        assert np.isfinite(alone).any()
    assert difference(one, other)(rows[1]) == one(rows[1]) - other(rows[1])
    plain = difference(one, lambda chosen: 1.0)
    assert not isinstance(plain, Together) and plain(rows[1]) == one(rows[1]) - 1


def test_holdouts_drawn_at_once_have_the_intervals_of_one_by_one() -> None:
    """Their test subjects overlap in part, and one of them has subjects of its own only."""
    rng = np.random.default_rng(6)
    sets = []
    for numbers in (range(8), range(4, 12), range(20, 22)):
        names, target = tuple(f"s{i}" for i in numbers), np.arange(len(numbers)) % 2
        sets.append(SubjectScores(names, target, rng.random((len(numbers), 2))))
    holdouts = Holdouts(sets)
    for name in ("auroc", "balanced_accuracy", "accuracy"):
        at_once = [one.statistic(name) for one in sets]
        assert holdouts.draws.together(2, at_once[2]) is not None
        plain = [lambda chosen, one=one: one(chosen) for one in at_once]
        assert holdouts.draws.together(2, plain[2]) is None
        assert holdouts._bootstrap(at_once, 0) == pytest.approx(
            holdouts._bootstrap(plain, 0), rel=1e-12, nan_ok=True
        )
    assert np.isfinite(holdouts.interval("accuracy").low)
    with np.errstate(all="raise"):
        together = holdouts.draws.together(2, sets[2].statistic("auroc"))
        assert together is not None
        assert np.isnan(together(np.array([0, 1])))  # none of its subjects was drawn


def test_rows_of_a_unit_are_drawn_together() -> None:
    """Twenty copies of each subject make no interval narrower if they are known to be copies."""
    one = scores_of(subjects=30)
    copies = SubjectScores(
        tuple(f"{name}/{i}" for name in one.subjects for i in range(20)),
        np.repeat(one.target, 20),
        np.repeat(one.score, 20, axis=0),
    )
    known = copies._replace(resampling_unit=tuple(name.split("/")[0] for name in copies.subjects))
    width = {}
    for label, scores in (("one", one), ("copies", copies), ("known", known)):
        found = scores.interval("balanced_accuracy")
        width[label] = found.high - found.low
    for name in ("auroc", "balanced_accuracy"):
        assert tuple(known.interval(name)) == pytest.approx(tuple(one.interval(name)))
    # Sixty right answers of thirty subjects are not sixty trials.
    accuracy = [scores.interval("accuracy") for scores in (copies, known)]
    assert accuracy[0].high - accuracy[0].low < 0.5 * (accuracy[1].high - accuracy[1].low)
    assert width["copies"] < 0.5 * width["one"]
    order = np.random.default_rng(0).permutation(len(known.subjects))
    same = known.difference(known.subset(order), "auroc")
    assert same.value == pytest.approx(0) and np.isnan([same.low, same.high]).all()


def test_units_of_several_classes_are_drawn_from_one_stratum() -> None:
    """Every subject has a scan of each class: whole subjects are drawn, and AUROC is defined."""
    rng = np.random.default_rng(0)
    target = np.tile([0, 1], 20)
    raw = rng.normal(size=40) + target
    score = np.stack([-raw, raw], axis=1)
    names = tuple(f"{i // 2}/{i % 2}" for i in range(40))
    found = SubjectScores(names, target, score, tuple(str(i // 2) for i in range(40)))
    low, value, high = (found.interval("auroc")[i] for i in (1, 0, 2))
    assert 0.5 < low < value < high <= 1


def test_holdouts_that_are_the_same_are_one() -> None:
    """The mean over two equal splits has the interval of one: overlap adds no subjects."""
    one = scores_of()
    other = one._replace(score=scores_of(seed=4).score)
    assert Holdouts([one] * 2).interval("auroc") == pytest.approx(one.interval("auroc"))
    wanted = one.difference(other, "auroc")
    assert Holdouts([one] * 2).difference(Holdouts([other] * 2), "auroc") == pytest.approx(wanted)


def test_holdouts_without_overlap_narrow_the_interval() -> None:
    parts = [scores_of(subjects=60, seed=seed) for seed in range(4)]
    parts = [
        p._replace(subjects=tuple(f"{i}-{n}" for n in p.subjects)) for i, p in enumerate(parts)
    ]
    found = Holdouts(parts).interval("auroc")
    assert found.value == pytest.approx(np.mean([p.metrics()["auroc"] for p in parts]))
    alone = [p.interval("auroc") for p in parts]
    assert found.high - found.low < 0.75 * min(i.high - i.low for i in alone)


def test_intervals_cover_at_the_nominal_rate() -> None:
    """AUROC of normal scores with a known true value: 95 % of 400 intervals hold it.

    The rate of 400 trials has a standard error of 1.1 %; small samples cover a little less.
    """
    rng = np.random.default_rng(0)
    shift, subjects, trials = 1.0, 60, 400
    truth = stats.norm.cdf(shift / np.sqrt(2))
    target = np.arange(subjects) % 2
    covered = 0
    for trial in range(trials):
        score = rng.normal(size=subjects) + shift * target

        def area(chosen: np.ndarray, score: np.ndarray = score) -> float:
            # Ties only among copies of a subject, which share its class: ranks need no averaging.
            y = target[chosen][np.argsort(score[chosen], kind="stable")]
            ones, ranks = y.sum(), np.arange(1, len(y) + 1)
            return float((ranks[y == 1].sum() - ones * (ones + 1) / 2) / (ones * (len(y) - ones)))

        found = bootstrap_interval(area, target, seed=trial, resamples=600)
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / trials <= 0.98


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(1).normal(size=200)
    found = bootstrap_interval(lambda chosen: values[chosen].mean(), np.zeros(200))
    half = 1.96 * values.std() / np.sqrt(200)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.1 * half
    )


def test_what_has_no_interval() -> None:
    one = SubjectScores(tuple("abc"), np.array([0, 0, 1]), np.array([[0.9, 0.1]] * 3))
    found = one.interval("auroc")
    assert found.value == 0.5 and np.isnan(found.low) and str(found).startswith("0.500")
    alone = SubjectScores(tuple("ab"), np.array([0, 0]), np.array([[0.9, 0.1]] * 2))
    assert str(alone.interval("auroc")) == "not defined"


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    """Two models that fail on the same subjects are compared on these."""
    rng = np.random.default_rng(2)
    target = np.arange(100) % 2
    shared = rng.normal(size=100) + target
    a, b = shared + 0.1 * rng.normal(size=100), shared + 0.1 * rng.normal(size=100)

    def of(score: np.ndarray):  # type: ignore[no-untyped-def]
        return lambda chosen: sk.roc_auc_score(target[chosen], score[chosen])

    paired = paired_difference(of(a), of(b), target, resamples=300)
    alone = bootstrap_interval(of(a), target, resamples=300)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    assert paired.value == pytest.approx(of(a)(np.arange(100)) - of(b)(np.arange(100)))


def test_a_difference_is_of_the_same_subjects_in_any_order() -> None:
    one = scores_of()
    order = np.random.default_rng(0).permutation(50)
    turned = SubjectScores(
        tuple(one.subjects[i] for i in order), one.target[order], one.score[order]
    )
    assert str(one.difference(turned, "auroc")) == "0.000 [not defined]"  # no sample differs
    with pytest.raises(UserInputError, match="same subjects"):
        one.difference(turned._replace(subjects=tuple(map(str, range(50)))), "auroc")
    with pytest.raises(UserInputError, match="same targets"):
        one.difference(turned._replace(target=1 - turned.target), "auroc")


# ------------------------------------------------------------------------------ calibration


def test_reliability_is_scikit_learns() -> None:
    """Of two classes, scikit-learn's curve of the confidence being right."""
    one = scores_of(subjects=400)
    found = reliability(one.score, one.target)
    confidence = one.score.max(axis=1)
    hit = one.score.argmax(axis=1) == one.target
    right, predicted = calibration_curve(hit, confidence, n_bins=10)
    filled = found.size > 0
    np.testing.assert_allclose(found.accuracy[filled], right)
    np.testing.assert_allclose(found.confidence[filled], predicted)
    by_hand = sum(
        n * abs(a - c) for n, a, c in zip(found.size[filled], right, predicted, strict=True)
    )
    assert found.expected_calibration_error == pytest.approx(by_hand / 400)


def test_calibrated_probabilities_have_little_error() -> None:
    rng = np.random.default_rng(5)
    p = rng.uniform(size=20_000)
    target = (rng.uniform(size=20_000) < p).astype(int)
    fair = np.stack([1 - p, p], axis=1)
    assert reliability(fair, target).expected_calibration_error < 0.02
    bold = np.stack([1 - (p > 0.5), p > 0.5], axis=1).astype(float)
    assert reliability(bold, target).expected_calibration_error > 0.2
    assert brier_score(fair, target) == pytest.approx(2 * sk.brier_score_loss(target, p))


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 2, 30)
    score = np.round(rng.uniform(size=30) * 0.5 + 0.3 * target, 1)  # with ties
    chosen = best_threshold(score, target)
    at = [sk.balanced_accuracy_score(target, score >= t) for t in np.linspace(0, 1.01, 1000)]
    assert sk.balanced_accuracy_score(target, score >= chosen) == pytest.approx(max(at))


def test_a_threshold_stays_at_a_half_where_that_is_as_good() -> None:
    assert best_threshold(np.array([0.1, 0.9]), np.array([0, 1])) == pytest.approx(0.5)


# ------------------------------------------------------------------------------ confounds


def test_explained_variance_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=80)
    y = 0.5 * x + rng.normal(size=80)
    found = explained(x[:, None], y)
    line = stats.linregress(x, y)
    assert found.p == pytest.approx(line.pvalue)
    assert found.share == pytest.approx(1 - (1 - line.rvalue**2) * 79 / 78)


def confounded(seed: int = 7) -> tuple[SubjectScores, dict[str, dict[str, str]], dict[str, int]]:
    """Scores that know age, of which the class knows a part; motion means nothing."""
    rng = np.random.default_rng(seed)
    target = np.arange(300) % 2
    age = 40 + 8 * target + rng.normal(0, 6, 300)
    motion = rng.normal(0.2, 0.05, 300)
    logit = 0.3 * (age - 44) + rng.normal(0, 0.5, 300)
    p = 1 / (1 + np.exp(-logit))
    names = [f"s{i}" for i in range(300)]
    columns = {
        "age": {n: f"{v:.3f}" for n, v in zip(names, age, strict=True)},
        "motion": {n: f"{v:.4f}" for n, v in zip(names, motion, strict=True)},
        "site": {n: "ab"[i % 3 == 0] for i, n in enumerate(names)},
    }
    tested = SubjectScores(tuple(names[100:]), target[100:], np.stack([1 - p, p], 1)[100:])
    return tested, columns, {n: int(target[i]) for i, n in enumerate(names[:100])}


def test_a_score_that_is_a_confound_is_unmasked() -> None:
    scores, columns, fitted = confounded()
    found = confound_report(fitted, scores, columns)
    assert found.before.value > 0.75
    assert found.after.low < 0.5 < found.after.high + 0.05
    assert found.of_score["age"].share > 0.8 and found.of_score["age"].p < 1e-6
    assert abs(found.of_score["motion"].share) < 0.05
    assert found.of_target["site"].p > 0.05
    assert found.alone.metrics()["auroc"] == pytest.approx(found.before.value, abs=0.05)
    assert any("confounds regressed out" in line for line in found.lines())
    assert set(found.record()["of_target"]) == {"age", "motion", "site"}


def test_a_score_without_confounds_keeps_its_metric() -> None:
    scores, columns, fitted = confounded()
    rng = np.random.default_rng(8)
    p = 1 / (1 + np.exp(-rng.normal(0, 1, 200) - 3 * (scores.target - 0.5)))
    own = scores._replace(score=np.stack([1 - p, p], axis=1))
    only = {"motion": columns["motion"]}
    found = confound_report(fitted, own, only)
    assert found.after.value == pytest.approx(found.before.value, abs=0.02)


def test_subjects_without_a_value_are_left_out() -> None:
    scores, columns, fitted = confounded()
    for i in range(90, 150):
        del columns["age"][f"s{i}"]
    assert confound_report(fitted, scores, columns).complete == 150
    columns["age"] = {"s0": "1"}
    with pytest.raises(UserInputError, match=r"^--confounds: 1 subjects to fit on and 0 test"):
        confound_report(fitted, scores, columns)
    columns["age"] = dict.fromkeys(columns["site"], "3")
    with pytest.raises(UserInputError, match=r"^--confounds: 'age' has the same value"):
        confound_report(fitted, scores, columns)


def test_units_of_a_confound_do_not_matter() -> None:
    """Not even where squares would overflow."""
    scores, columns, fitted = confounded()
    plain = confound_report(fitted, scores, {"age": columns["age"]})
    for factor in (1e300, 1e-200):
        scaled = {n: repr(float(v) * factor) for n, v in columns["age"].items()}
        found = confound_report(fitted, scores, {"age": scaled})
        assert found.after.value == pytest.approx(plain.after.value, abs=1e-6)
        assert found.of_score["age"].share == pytest.approx(plain.of_score["age"].share)
