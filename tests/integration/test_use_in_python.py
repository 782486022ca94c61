"""A trained model in Python: what a notebook shows, many scans, scikit-learn, doubts in words."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

import neuromamba
from neuromamba.common.errors import UserInputError
from neuromamba.inference.loaded import LoadedModel
from tests.helpers.scans import LAS, save
from tests.helpers.trained_model import Trained, bold


@pytest.fixture(scope="module")
def sex(trained: Trained) -> LoadedModel:
    return neuromamba.load(trained.sex, device="cpu")


def test_what_a_notebook_shows_is_one_line(trained: Trained, sex: LoadedModel) -> None:
    """A model, a scan and every result; not the fields that they hold."""
    scan = sex.prepare(trained.scan(0))
    backbone = neuromamba.load(trained.backbone, device="cpu")
    shown = {
        "<LoadedModel: model of sex, ": sex,
        "<LoadedModel: pre-trained backbone, ": backbone,
        "<PreparedScan: sub-00_task-rest, ": scan,
        "<Prediction: sub-00_task-rest, ": sex.predict(scan),
        "<Embedding: 2 x 16 of the layer features": sex.embed(scan),
        "<Explanation: sub-00_task-rest, ": sex.explain(scan, method="gradxinput"),
        "<Rollout: sub-00_task-rest, 4 frames after 4": backbone.rollout(
            backbone.prepare(trained.scan(0)), frames=4
        ),
        "<Outcome: gone, refused: ": sex.predict_many("gone.nii.gz")[0],
    }
    for beginning, one in shown.items():
        text = repr(one)
        assert text.startswith(beginning) and text.endswith(">"), text
        assert "\n" not in text and len(text) < 200, text


def test_predict_many_is_predict(trained: Trained, sex: LoadedModel) -> None:
    found = sex.predict_many([trained.nifti], workers=2)
    assert [one.scan.subject for one in found] == [f"sub-{i:02d}" for i in range(10)]
    assert found[3].result is not None
    alone = sex.predict(sex.prepare(trained.scan(3)))
    assert np.array_equal(found[3].result.windows, alone.windows)


def test_a_transformer_of_scikit_learn(trained: Trained, sex: LoadedModel) -> None:
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline

    embedder = neuromamba.NeuroMambaEmbedder(sex, statistics=("mean", "lag1"))
    assert embedder.get_params()["layer"] == -1
    copy = clone(embedder)
    assert copy is not embedder
    assert copy.model is sex  # the weights are shared
    scans = [str(trained.scan(i)) for i in range(6)]
    rows = copy.fit_transform(scans)
    expected = sex.embed(sex.prepare(scans[2]), statistics=("mean", "lag1")).values.ravel()
    assert rows.shape == (6, 32)
    assert np.array_equal(rows[2], expected)
    pipeline = make_pipeline(embedder, LogisticRegression())
    scores = cross_val_score(pipeline, scans, [0, 1, 0, 1, 0, 1], cv=3)
    once = cross_val_score(LogisticRegression(), rows, [0, 1, 0, 1, 0, 1], cv=3)
    assert scores.shape == (3,)
    assert np.array_equal(scores, once)  # nothing is fitted to the scans of a fold
    assert pipeline.set_params(neuromambaembedder__layer=1)[0].layer == 1
    with pytest.raises(UserInputError, match="pool 'token'"):
        neuromamba.NeuroMambaEmbedder(sex, pool="token").fit(scans)
    for one in (scans[0], trained.scan(0)):  # a name is a sequence too, of letters
        with pytest.raises(UserInputError, match="got one scan, expected a list"):
            embedder.transform(one)
    with pytest.raises(UserInputError, match="got a model of type dict"):
        neuromamba.NeuroMambaEmbedder({"model": sex}).fit(scans)  # type: ignore[arg-type]


def test_doubts_are_sentences(trained: Trained, sex: LoadedModel, tmp_path: Path) -> None:
    """A note of the converter that leads to docs/troubleshooting.md has its full stop already."""
    one_second = save(tmp_path / "sub-01_bold.nii.gz", bold(1), LAS, tr=1)
    doubts = [str(one) for one in sex.prepare(one_second).problems]
    assert any("#tr-placeholder" in one for one in doubts)
    assert all(one.endswith(".") and not one.endswith("..") for one in doubts)


def test_images_and_arrays(trained: Trained, sex: LoadedModel) -> None:
    expected = sex.predict(sex.prepare(trained.scan(0))).windows
    image = nibabel.load(trained.scan(0))
    assert np.array_equal(sex.predict(sex.prepare(image)).windows, expected)
    array = sex.prepare(bold(0), tr=2.0, affine=LAS)
    assert np.array_equal(sex.predict(array).windows, expected)
    with pytest.raises(UserInputError, match="affine="):
        sex.prepare(bold(0))


def test_doubts_name_what_they_mean(trained: Trained, sex: LoadedModel, tmp_path: Path) -> None:
    """The meaning of a measure, and the scan's own frames where it was resampled."""
    loud = bold(0).astype(np.int32)
    loud[..., ::2] *= 3
    (outcome,) = sex.predict_many(save(tmp_path / "loud_bold.nii.gz", loud))
    assert "tsnr (temporal signal-to-noise ratio, median over voxels) is " in outcome.reason
    short = save(tmp_path / "short_bold.nii.gz", bold(0, frames=5), tr=1.0)
    with pytest.raises(UserInputError, match="5 frames of 1 s, which are 3 of 2 s as in training"):
        sex.prepare(short)
