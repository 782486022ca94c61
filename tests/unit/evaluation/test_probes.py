"""Probes against scikit-learn and numpy, and what they must and must not find."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits

from neuromamba.config.names import LAST_LAYER
from neuromamba.evaluation import linear_models, probes
from neuromamba.evaluation.linear_models import PENALTIES, logistic_pipeline, ridge_pipeline
from neuromamba.evaluation.probe_rows import (
    PRETRAINED,
    RAW,
    ROW_KEYS,
    UNTRAINED,
    FeatureTable,
    ProbeRow,
    ProbeStudy,
    Samples,
    flat_probes,
    read_rows,
)
from neuromamba.evaluation.probes import knn_probe, linear_probe


def planted(
    rng: np.random.Generator, count: int, width: int, effect: float, classes: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Features in units of their own, the first of which differs between classes."""
    y = np.arange(count) % classes
    x = rng.normal(size=(count, width))
    x[:, 0] += effect * y
    return x * rng.uniform(0.1, 50, width) + rng.normal(0, 100, width), y


def samples(y: np.ndarray, name: str = "s") -> Samples:
    names = tuple(f"{name}{i}" for i in range(len(y)))
    return Samples(names, y, names)


def table(fitted: np.ndarray, tested: np.ndarray, **changes: Any) -> FeatureTable:
    settings = {"layer": LAST_LAYER, "pool": "mean", "model": PRETRAINED} | changes
    return FeatureTable(fitted=fitted, tested=tested, **settings)


@pytest.mark.parametrize(("width", "classes"), [(7, 2), (300, 2), (40, 3)])
def test_logistic_probe_is_that_of_scikit_learn(width: int, classes: int) -> None:
    rng = np.random.default_rng(width)
    x, y = planted(rng, 45, width, 1.5, classes)
    x[:, 1] = 3.3  # a constant
    new, _ = planted(rng, 30, width, 1.5, classes)
    new[:, 1] = 3.3
    unit = np.arange(45) // 3 if classes == 2 else np.arange(45)
    found = linear_probe(x, y, new, classes=classes, unit=unit, seed=3)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=3)
    means = [
        cross_val_score(
            logistic_pipeline(c),
            x,
            y,
            groups=unit,
            cv=folds,
            scoring="roc_auc" if classes == 2 else "roc_auc_ovr",
        ).mean()
        for c in PENALTIES
    ]
    best = [c for c, mean in zip(PENALTIES, means, strict=True) if mean > max(means) - 1e-9]
    assert found.penalty == best[0]
    expected = logistic_pipeline(found.penalty).fit(x, y).predict_proba(new)
    assert np.allclose(found.score, expected, atol=2e-3)


def test_ridge_probe_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 80)) * 5
    y = x[:, 0] + rng.normal(size=30)
    new = rng.normal(size=(9, 80)) * 5
    found = linear_probe(x, y, new, classes=1, unit=np.arange(30), seed=0)
    assert found.penalty in PENALTIES
    expected = ridge_pipeline(found.penalty).fit(x, y).predict(new)
    assert np.allclose(found.score[:, 0], expected)


def test_neighbours_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    x, y = planted(rng, 40, 6, 1.0, 3)
    new, _ = planted(rng, 20, 6, 1.0, 3)
    scaler = StandardScaler().fit(x)
    model = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(scaler.transform(x), y)
    expected = model.predict_proba(scaler.transform(new))
    assert np.allclose(knn_probe(x, y, new, classes=3).score, expected)
    few = knn_probe(x[:2], y[:2].astype(float), new, classes=1)
    assert np.allclose(few.score, y[:2].mean())


def test_planted_effect_is_found_and_shuffled_labels_are_at_chance() -> None:
    rng = np.random.default_rng(2)
    found, shuffled = [], []
    for _ in range(20):
        x, y = planted(rng, 60, 100, 4.0)
        new, truth = planted(rng, 60, 100, 4.0)
        # One scale for both: the second call has drawn units of its own.
        x, new = (StandardScaler().fit_transform(one) for one in (x, new))
        for labels, scores in ((y, found), (rng.permutation(y), shuffled)):
            score = linear_probe(x, labels, new, classes=2, unit=np.arange(60), seed=0).score
            scores.append(roc_auc_score(truth, score[:, 1]))
    assert np.mean(found) > 0.8
    assert abs(np.mean(shuffled) - 0.5) < 0.12


def study_of(classes: int = 2, **changes: Any) -> tuple[ProbeStudy, FeatureTable]:
    rng = np.random.default_rng(4)
    x, y = planted(rng, 70, 30, 2.0, classes)
    fitted, tested = samples(y[:40]), samples(changes.get("truth", y[40:]), "t")
    return ProbeStudy(fitted, tested, classes, seed=5), table(x[:40], x[40:])


def test_test_labels_change_the_score_and_nothing_else() -> None:
    """Penalty and predictions depend on fitted samples alone: wrong test labels mirror AUROC."""
    study, features = study_of()
    truth = study.tested.target
    mirrored, _ = study_of(truth=1 - truth)
    for one, other in zip(
        [*study.all_labels([features]), *study.few_labels([features], [4], 3)],
        [*mirrored.all_labels([features]), *mirrored.few_labels([features], [4], 3)],
        strict=True,
    ):
        assert one.value == pytest.approx(1 - other.value)
        assert one.value > 0.55


def test_rows_against_scikit_learn() -> None:
    study, features = study_of()
    linear, knn = study.all_labels([features])
    assert (linear.probe, knn.probe) == ("linear", "knn")
    score = linear_probe(
        features.fitted,
        study.fitted.target,
        features.tested,
        classes=2,
        unit=study.fitted.unit_numbers,
        seed=5,
    ).score
    assert linear.value == pytest.approx(roc_auc_score(study.tested.target, score[:, 1]))
    assert linear.low < linear.value < linear.high
    assert (linear.n_train, linear.n_test, linear.draws) == (40, 30, 1)
    assert linear.subjects_a_class is None and tuple(linear.plain()) == ROW_KEYS


def test_few_labels_are_the_mean_over_draws_of_so_many_of_each_class() -> None:
    study, features = study_of()
    (row,) = study.few_labels([features], [8], 6)
    values = []
    for draw in range(6):
        chosen = study.draw(8, draw)
        assert np.bincount(study.fitted.target[chosen]).tolist() == [8, 8]
        fitted, y = features.fitted[chosen], study.fitted.target[chosen]
        unit = study.fitted.unit_numbers[chosen]
        score = linear_probe(fitted, y, features.tested, classes=2, unit=unit, seed=5).score
        values.append(roc_auc_score(study.tested.target, score[:, 1]))
    assert len(set(values)) > 1
    assert row.value == pytest.approx(np.mean(values))
    assert row.low < row.value < row.high
    assert (row.subjects_a_class, row.n_train, row.draws) == (8, 16, 6)
    assert study.few_labels([features], [8], 6) == [row]


def test_sizes_that_the_training_set_cannot_give_are_left_out_with_a_note() -> None:
    study, _ = study_of()
    sizes, notes = study.possible_sizes([2, 16, 20, 32, 64])
    assert sizes == [2, 16, 20]
    assert len(notes) == 1 and "32, 64" in notes[0] and "has 20" in notes[0]
    assert study.possible_sizes([2]) == ([2], [])


def test_few_labels_are_drawn_from_the_training_set() -> None:
    """The penalty is chosen and few labels are drawn without the validation samples."""
    study, features = study_of()
    training = study.fitted.names[:14]
    limited = ProbeStudy(study.fitted, study.tested, 2, 5, training)
    assert {study.fitted.names[i] for i in limited.draw(7, 0)} == set(training)
    assert limited.possible_sizes([7, 8])[0] == [7]
    assert limited.all_labels([features]) == study.all_labels([features])


def test_more_classes_have_balanced_accuracy_and_values_a_correlation() -> None:
    study, features = study_of(classes=3)
    found = study.all_labels([features]) + study.few_labels([features], [3], 2)
    assert {row.metric for row in found} == {"balanced_accuracy"}
    score = linear_probe(
        features.fitted,
        study.fitted.target,
        features.tested,
        classes=3,
        unit=study.fitted.unit_numbers,
        seed=5,
    ).score
    expected = balanced_accuracy_score(study.tested.target, score.argmax(axis=1))
    assert found[0].value == pytest.approx(expected)
    rng = np.random.default_rng(6)
    x = rng.normal(size=(60, 5))
    y = x[:, 0] + 0.1 * rng.normal(size=60)
    regression = ProbeStudy(samples(y[:40]), samples(y[40:], "t"), 1, 0)
    rows = regression.all_labels([table(x[:40], x[40:])])
    assert [row.metric for row in rows] == ["pearson_r", "r2"] * 2
    assert rows[0].value > 0.95 and rows[1].value > 0.9
    sizes, notes = regression.possible_sizes([2, 4])
    assert sizes == [] and "regression" in notes[0]


def test_families_are_drawn_and_folded_together() -> None:
    rng = np.random.default_rng(8)
    x, y = planted(rng, 40, 10, 2.0)
    names = tuple(f"s{i}" for i in range(40))
    families = tuple(f"f{i // 4}" for i in range(40))
    alone = ProbeStudy(Samples(names, y, names), Samples(names, y, names), 2, 0)
    together = ProbeStudy(Samples(names, y, families), Samples(names, y, families), 2, 0)
    features = table(rng.normal(size=(40, 10)), x)
    for rows in (alone.all_labels, lambda t: alone.few_labels(t, [4], 2)):
        assert rows([features])
    one, other = (study.few_labels([features], [4], 2)[0] for study in (alone, together))
    assert (one.low, one.high) != (other.low, other.high)


def test_an_interval_that_is_not_defined_is_null() -> None:
    names = ("a", "b", "c")
    y = np.array([0, 1, 1])
    study = ProbeStudy(samples(np.arange(20) % 2), Samples(names, y, names), 2, 0)
    rng = np.random.default_rng(9)
    features = table(rng.normal(size=(20, 3)), rng.normal(size=(3, 3)))
    for row in (study.all_labels([features])[0], study.few_labels([features], [2], 2)[0]):
        assert math.isnan(row.low)
        assert row.plain()["low"] is None and row.plain()["value"] == row.value


def test_flat_probes_are_the_last_features_with_all_labels() -> None:
    def row(**changes: Any) -> ProbeRow:
        settings: dict[str, Any] = {
            "layer": LAST_LAYER,
            "pool": "mean",
            "model": PRETRAINED,
            "probe": "linear",
            "metric": "auroc",
            "value": 0.7,
            "low": 0.6,
            "high": 0.8,
            "subjects_a_class": None,
            "n_train": 9,
            "n_test": 9,
            "draws": 1,
        }
        return ProbeRow(**(settings | changes))

    rows = [
        row(),
        row(model=UNTRAINED, value=0.5),
        row(pool="mean_sd", value=0.9),
        row(layer="embedding", value=0.1),
        row(probe="knn", value=0.2),
        row(subjects_a_class=4, value=0.3),
        row(layer=RAW, model=RAW, pool="fc", value=0.4),
    ]
    assert flat_probes(rows) == {
        "probe/mean/auroc": 0.7,
        "probe/untrained_mean/auroc": 0.5,
        "probe/mean_sd/auroc": 0.9,
    }


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    study, features = study_of()
    rows = [*study.all_labels([features]), *study.few_labels([features], [4], 2)]
    undefined = dataclasses.replace(rows[0], low=math.nan, high=math.nan)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row.plain() for row in (*rows, undefined)]))
    found = read_rows(path)
    assert found[:-1] == rows
    assert math.isnan(found[-1].low) and found[-1].value == rows[0].value


def blas_threads() -> set[int]:
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_small_fits_use_one_thread_of_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more, its threads wait for each other most of the time."""
    seen: list[set[int]] = []

    class Watched(LogisticRegression):
        def fit(self, *arguments: Any) -> Any:
            seen.append(blas_threads())
            return super().fit(*arguments)

    for module in (probes, linear_models):
        monkeypatch.setattr(module, "LogisticRegression", Watched)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 5)), np.arange(24) % 2
    with threadpool_limits(2, "blas"):
        before = blas_threads()
        probes.linear_probe(x, y, x, classes=2, unit=np.arange(24), seed=0)
        assert set.union(*seen) == {1}
        seen.clear()
        linear_models.fit_logistic(x, y)
        assert set.union(*seen[:-1]) == {1}  # the last one is the fit on everything
        assert blas_threads() == before
