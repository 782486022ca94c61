"""The mean-volume control: what it sees, on whom it is fitted, and what it can and cannot learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from project.module.analysis.baselines import (
    PENALTIES,
    fit_logistic,
    logistic_pipeline,
    mean_volume_control,
    mean_volumes,
    union_of_masks,
)
from project.module.analysis.run_folder import SubjectScores
from project.module.config import DataConfig, DownstreamConfig, UserInputError
from project.module.utils.data_module import FMRIDataModule
from project.module.utils.data_preprocess_and_load.hdf5_writer import write_run

GRID = (6, 6, 6)
AFFINE = np.diag([-2.0, 2.0, 2.0, 1.0])
MakeData = Callable[..., FMRIDataModule]


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    """A store of 40 subjects, two windows each; ``bright`` lifts one voxel in class 1."""

    def make(bright: float = 0.0, task: DownstreamConfig | None = None, **config: Any) -> Any:
        rng = np.random.default_rng(0)
        (tmp_path / "hdf5").mkdir(parents=True)
        (tmp_path / "metadata").mkdir()
        rows = ["subject,sex"]
        for i in range(40):
            # Masks differ: the first voxel is missing in every third subject.
            vox = np.arange(1 if i % 3 == 0 else 0, 100, dtype=np.int32)
            frames = rng.normal(1000, 50, (8, vox.size)).astype(np.float32)
            frames[:, 50 - vox[0]] += bright * (i % 2)
            name = f"sub-{i:02d}"
            write_run(
                tmp_path / "hdf5" / f"{name}.h5",
                frames,
                vox,
                subject=name,
                grid=GRID,
                affine=AFFINE,
                tr=2.0,
            )
            rows.append(f"{name},{'FM'[i % 2]}")
        (tmp_path / "metadata" / "participants.csv").write_text("\n".join(rows) + "\n")
        settings = DataConfig(
            dataset_name=("Dummy",),
            image_path=(str(tmp_path),),
            img_size=GRID,
            sequence_length=4,
            train_split=0.5,
            val_split=0.1,
            **config,
        )
        return FMRIDataModule(settings, task or DownstreamConfig())

    return make


def test_it_finds_a_difference_in_the_mean(make_data: MakeData) -> None:
    data = make_data(bright=400.0)
    result = mean_volume_control(data)
    assert result.metrics["auroc"] > 0.9
    assert result.fitted_on == 24  # training and validation
    assert result.scores.subjects == data.subjects["test"][0]
    assert result.voxels == 100
    np.testing.assert_allclose(result.scores.probability.sum(axis=1), 1)


def test_shuffled_labels_are_scored_as_such(make_data: MakeData) -> None:
    data = make_data(bright=400.0, task=DownstreamConfig(shuffle_labels=3))
    result = mean_volume_control(data)
    labels = data.stores[0].labels
    assert labels is not None
    assert result.scores.target.tolist() == [labels[s] for s in result.scores.subjects]
    assert result.metrics["auroc"] < 0.95


def test_volumes_are_the_mean_of_what_the_model_sees(make_data: MakeData) -> None:
    data = make_data()
    voxels = union_of_masks(data, ("train",))
    np.testing.assert_array_equal(voxels, np.arange(100))
    volumes = mean_volumes(data, ("test",), voxels)
    windows = data.parts["test"]
    assert windows is not None
    for row, subject in enumerate(volumes.subjects):
        items = [w for w in (windows[i] for i in range(len(windows))) if w["subject"] == subject]
        assert len(items) == 2
        expected = np.full(100, items[0]["background"])
        bold = np.concatenate([w["bold"].numpy() for w in items]).astype(float)
        expected[items[0]["vox"].numpy()] = (bold * items[0]["gain"] + items[0]["shift"]).mean(0)
        np.testing.assert_allclose(volumes.volume[row], expected, atol=1e-5)


def test_voxels_of_test_subjects_alone_are_no_features(make_data: MakeData) -> None:
    data = make_data()
    voxels = union_of_masks(data, ("train", "val"))[:30]
    assert mean_volumes(data, ("test",), voxels).volume.shape == (16, 30)


def test_penalty_comes_from_inner_folds() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 200)).astype(np.float32), np.arange(40) % 2
    x[:, 0] += 3 * y
    pipeline, penalty = fit_logistic(x, y)
    assert penalty in PENALTIES
    assert pipeline.predict(x).shape == (40,)


def test_one_subject_of_a_class_leaves_nothing_to_choose() -> None:
    x = np.random.default_rng(1).normal(size=(6, 10))
    _, penalty = fit_logistic(x, np.array([0, 0, 0, 0, 0, 1]))
    assert penalty == 1.0


def test_the_rotation_changes_nothing() -> None:
    """PCA with all components: the same decision as the penalised fit on all voxels."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(30, 80)), np.arange(30) % 2
    new = rng.normal(size=(10, 80))
    whole = logistic_pipeline(10.0).set_params(pca="passthrough")
    whole.set_params(logisticregression__tol=1e-10)
    rotated = logistic_pipeline(10.0).set_params(logisticregression__tol=1e-10)
    # Only what lies in the span of the training subjects can matter to the L2 fit.
    expected = whole.fit(x, y).decision_function(new)
    np.testing.assert_allclose(rotated.fit(x, y).decision_function(new), expected, atol=1e-5)


def test_one_class_or_no_labels_is_an_error(make_data: MakeData) -> None:
    with pytest.raises(UserInputError, match="one class"):
        fit_logistic(np.zeros((4, 3)), np.zeros(4, dtype=int))
    with pytest.raises(UserInputError, match="classification"):
        mean_volume_control(FMRIDataModule(make_data().config, None))


def test_scores_agree_with_scikit_learn() -> None:
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    rng = np.random.default_rng(3)
    target, one = rng.integers(0, 2, 50), rng.uniform(size=50)
    names = tuple(f"s{i}" for i in range(50))
    scores = SubjectScores(names, target, np.stack([1 - one, one], axis=1))
    metrics = scores.metrics()
    assert metrics["auroc"] == pytest.approx(roc_auc_score(target, one), abs=1e-6)
    expected = balanced_accuracy_score(target, one > 0.5)
    assert metrics["balanced_accuracy"] == pytest.approx(expected, abs=1e-9)
    assert scores.per_class == np.bincount(target).tolist()
