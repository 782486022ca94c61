"""Explanations that compare a scan with scans of other people, and smoothed maps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuromamba
from neuromamba.commands.explain import main as explain
from neuromamba.common.errors import UserInputError
from neuromamba.common.seeds import seed_run
from neuromamba.config.model import HeadConfig
from neuromamba.config.serialise import from_dict
from neuromamba.fmamba.build import build_model
from neuromamba.inference.attribution import randomised_network, token_window
from neuromamba.inference.loaded import LoadedModel
from neuromamba.inference.prepared import PreparedScan
from neuromamba.inference.references import compared_with, evenly, reference_of, smoothed
from neuromamba.inference.region_attribution import randomised_model
from neuromamba.neurossm.config import NeuroSSMConfig
from neuromamba.neurossm.model import NeuroSSM
from tests.helpers.trained_model import Trained


@pytest.fixture(scope="module")
def model(trained: Trained) -> LoadedModel:
    return neuromamba.load(trained.sex, "cpu")


@pytest.fixture(scope="module")
def scans(trained: Trained, model: LoadedModel) -> list[PreparedScan]:
    return [model.prepare(trained.scan(number)) for number in range(4)]


def score(model: LoadedModel, scan: PreparedScan, window: int, target: str) -> float:
    """Logarithm of the odds of a class in a window, from the prediction."""
    chance = model.predict(scan).windows[window][model.class_names.index(target)]
    return math.log(chance / (1 - chance))


def test_values_add_up_to_the_difference_from_the_references(
    model: LoadedModel, scans: list[PreparedScan]
) -> None:
    """All scans of the fixture have one mask, so baselines are the references' very windows."""
    found = model.explain(scans[0], references=scans[1:], steps=24)
    assert found.references == 3
    middle = [len(scan.windows) // 2 for scan in scans[1:]]
    expected = np.mean(
        [score(model, s, i, found.target) for s, i in zip(scans[1:], middle, strict=True)]
    )
    assert found.baseline_score == pytest.approx(expected, abs=1e-4)
    np.testing.assert_allclose(
        found.values.sum(), found.score - found.baseline_score, rtol=0.02, atol=1e-3
    )
    alone = [model.explain(scans[0], references=[other], steps=8) for other in scans[1:]]
    mean = np.mean([one.values for one in alone], axis=0)
    np.testing.assert_allclose(found.values, mean, rtol=1e-3, atol=1e-6)
    assert found.record()["references"] == 3


@pytest.mark.parametrize("method", ["ig", "gradxinput", "occlusion"])
def test_a_reference_changes_every_method(
    model: LoadedModel, scans: list[PreparedScan], method: str
) -> None:
    options: dict[str, Any] = {"method": method, "steps": 2}
    usual = model.explain(scans[0], **options)
    assert usual.references == 0
    other = model.explain(scans[0], references=scans[1:2], **options)
    assert np.abs(other.values - usual.values).max() > 0
    assert np.abs(other.randomised_values - usual.randomised_values).max() > 0


def test_a_subject_is_not_its_own_reference(
    model: LoadedModel, scans: list[PreparedScan], trained: Trained
) -> None:
    with_own = model.explain(scans[0], references=scans[:2], steps=2)
    without = model.explain(scans[0], references=scans[1:2], steps=2)
    np.testing.assert_array_equal(with_own.values, without.values)
    with pytest.raises(UserInputError, match="none of --references is a scan of another person"):
        model.explain(scans[0], references=scans[:1])
    with pytest.raises(UserInputError, match="none of --references is a scan of another person"):
        model.explain(scans[0], references=[model.prepare(trained.scan(0))])


def test_voxels_outside_the_mask_of_a_reference(
    model: LoadedModel, scans: list[PreparedScan]
) -> None:
    """They keep the mean, 0; voxels of both masks have the reference's values."""
    config = model.contract.model
    items = [dict(scan.windows[0]) for scan in scans[:2]]
    kept = np.arange(len(items[1]["vox"])) % 3 != 0
    whole = token_window(items[1], config, model.device, 0.0)
    values = whole.to_voxels(whole.by_place(whole.packed.tokens)[:, 0, :, 0])
    items[1] |= {"vox": items[1]["vox"][kept], "bold": items[1]["bold"][:, kept]}
    window, other = (token_window(item, config, model.device, 0.0) for item in items)
    found = compared_with(window, other)
    baseline = found.by_place(found.baseline.tokens)[:, 0, :, 0]
    np.testing.assert_allclose(found.to_voxels(baseline), np.where(kept, values, 0))
    own = window.by_place(window.packed.tokens), found.by_place(found.packed.tokens)
    assert own[0].equal(own[1])


def test_smoothing(model: LoadedModel, scans: list[PreparedScan]) -> None:
    header, vox = scans[0].header, scans[0].windows.voxels(0)
    ones = smoothed(np.ones(len(vox)), vox, header, 8.0)
    np.testing.assert_allclose(ones, 1)  # nothing is drawn towards 0 at the edge
    np.testing.assert_array_equal(
        smoothed(np.arange(len(vox)), vox, header, 0), np.arange(len(vox))
    )
    at = np.stack(np.unravel_index(vox, header.grid), axis=1)
    centre = int(np.abs(at - at.mean(0)).sum(1).argmin())
    delta = np.zeros(len(vox))
    delta[centre] = 1
    edge = float(np.linalg.norm(np.asarray(header.affine)[:3, 0]))
    spread = smoothed(delta, vox, header, 2 * edge)
    beside = np.flatnonzero((at == at[centre] + [1, 0, 0]).all(1))
    assert spread[beside[0]] / spread[centre] == pytest.approx(0.5, rel=0.05)  # half of the width
    usual = model.explain(scans[0], steps=2)
    found = model.explain(scans[0], steps=2, smooth=10.0)
    expected = smoothed(usual.values, vox, header, 10.0)
    np.testing.assert_allclose(found.values, expected)
    assert found.completeness_error == usual.completeness_error
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(UserInputError, match="--smooth: got"):
            model.explain(scans[0], smooth=wrong)


def test_references_are_spread_over_what_is_given(
    model: LoadedModel, scans: list[PreparedScan]
) -> None:
    assert evenly(3) == [0, 1, 2]
    assert evenly(16) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert len(evenly(100)) == 8
    assert reference_of(model, scans[1]).subject == "sub-01"


def test_in_the_shell(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(trained.sex), str(trained.scan(0)), "-o", str(tmp_path / "out"), "--steps", "8"]
    assert explain([*words, "--references", str(trained.nifti), "--smooth", "20"]) == 0
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    found = run["maps"]["sub-00_task-rest"]
    assert found["references"] == 7  # 8 of 10 scans, evenly spaced, without the subject's own
    assert run["options"]["references"] == [str(trained.nifti)]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "scans of other people" in page and "smoothed by 20 mm" in page
    capsys.readouterr()
    gone = ["--references", str(tmp_path / "gone.nii.gz")]
    for flags, message in (
        (gone, "--references: "),
        (["--references", str(trained.scan(0))], "none of --references"),
        (["--smooth", "-2"], "--smooth: got -2"),
    ):
        status = explain([*words[:3], str(tmp_path / "other"), *flags, "--no-report"])
        assert status in (1, 2)
        assert message in capsys.readouterr().err


def test_random_weights_are_not_those_that_a_training_began_with(
    model: LoadedModel,
) -> None:
    """With the same seed, in both families: else a map of little training would seem random."""
    head = from_dict(HeadConfig, model.contents.metadata["head"], "model")
    regions = NeuroSSMConfig(rois=20, classes=2, embed_dim=32, depth=1)
    for seed in (0, 1, 777):
        seed_run(seed)
        began = build_model(model.contract.model, output_layer=False).state_dict()
        random = randomised_network(model.contract.model, head, seed, model.device)
        found = random.backbone.state_dict()
        name = "embedder.projection"
        assert abs(np.corrcoef(began[name].flatten(), found[name].flatten())[0, 1]) < 0.2
        seed_run(seed)
        began = NeuroSSM(regions).state_dict()
        found = randomised_model(regions, seed, model.device).state_dict()
        name = "pathways.0.embed.weight"
        assert abs(np.corrcoef(began[name].flatten(), found[name].flatten())[0, 1]) < 0.2
