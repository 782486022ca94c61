"""``neuromamba explain``: maps in the scan's own space, groups, pages, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel import orientations

import neuromamba
from neuromamba.commands.explain import main as explain
from neuromamba.common.errors import UserInputError
from neuromamba.config.model import HeadConfig
from neuromamba.config.serialise import from_dict
from neuromamba.inference.attribution import randomised_network
from neuromamba.inference.explain import Explanation
from neuromamba.inference.group_maps import group_map
from neuromamba.inference.loaded import LoadedModel
from neuromamba.reports.attribution_pictures import map_figures
from neuromamba.reports.explanation_page import notice
from tests.helpers.trained_model import Trained

QUICK = ["--method", "gradxinput", "--no-report"]


@pytest.fixture(scope="module")
def model(trained: Trained) -> LoadedModel:
    return neuromamba.load(trained.sex, "cpu")


def called(trained: Trained, out: Path, *flags: str, scans: int = 1) -> dict:
    paths = [str(trained.scan(number)) for number in range(scans)]
    assert explain([str(trained.sex), *paths, "-o", str(out), "--device", "cpu", *flags]) == 0
    return json.loads((out / "run.json").read_text())


def values(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def in_mm(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions [N, 3] and values [N] of what is not 0, in one order."""
    image, volume = nibabel.load(path), values(path)
    index = np.argwhere(volume)
    mm = index @ image.affine[:3, :3].T + image.affine[:3, 3]
    order = np.lexsort(mm.T)
    return mm[order], volume[tuple(index.T)][order]


def test_maps_of_reoriented_copies_agree_in_mm(trained: Trained, tmp_path: Path) -> None:
    original = nibabel.load(trained.scan(0))
    now = orientations.io_orientation(original.affine)
    files = []
    for number, codes in enumerate(("LAS", "RAS", "PSR")):
        wanted = orientations.ornt_transform(now, orientations.axcodes2ornt(codes))
        files.append(tmp_path / f"sub-{number}_task-rest_bold.nii.gz")
        nibabel.save(original.as_reoriented(wanted), files[-1])
    out = tmp_path / "out"
    names = [str(path) for path in files]
    assert explain([str(trained.sex), *names, "-o", str(out), *QUICK]) == 0
    maps = [out / f"sub-{number}_task-rest_attribution.nii.gz" for number in range(3)]
    for path, source in zip(maps, files, strict=True):
        scan = nibabel.load(source)
        assert values(path).shape == scan.shape[:3]
        np.testing.assert_allclose(nibabel.load(path).affine, scan.affine)
        np.testing.assert_array_equal(in_mm(path)[0], in_mm(maps[0])[0])
        np.testing.assert_array_equal(in_mm(path)[1], in_mm(maps[0])[1])
    assert np.ptp(in_mm(maps[0])[1]) > 0


def test_what_a_call_writes(
    trained: Trained, tmp_path: Path, model: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    run = called(trained, tmp_path, "--steps", "4")
    name = "sub-00_task-rest"
    found = run["maps"][name]
    assert found["target"] == found["predicted"]
    assert found["completeness_error"] < 0.01
    assert abs(found["rank_correlation_with_random_weights"]) < 1
    files = [tmp_path / found[key] for key in ("attribution", "random")]
    own, random = map(values, files)
    np.testing.assert_allclose(own.sum(), found["sum_of_values"], rtol=1e-3)
    np.testing.assert_array_equal(own != 0, random != 0)
    assert np.abs(own - random).max() > 0
    view, page = ((tmp_path / file).read_text() for file in (f"{name}_view.html", "report.html"))
    assert f'href="{name}_view.html"' in page
    for text in (view, page):  # offline: nothing is fetched
        assert not re.search(r'(?:src|href)="(?:https?:)?//', text)
    anatomy = map_figures(*files, "native", tmp_path / "scans" / f"{name}_mean.nii.gz")
    for native, mni in zip(anatomy, map_figures(*files, "MNI", None), strict=True):
        assert len(native.axes) < len(mni.axes)  # no glass brain
    scan = model.prepare(trained.scan(0))
    own = model.explain(scan, method="ig", steps=4)
    assert isinstance(own, Explanation)
    np.testing.assert_array_equal(
        np.asarray(own.image.dataobj), values(tmp_path / f"{name}_attribution.nii.gz")
    )
    np.testing.assert_array_equal(
        np.asarray(own.randomised.dataobj),
        values(tmp_path / f"{name}_attribution_random.nii.gz"),
    )
    np.testing.assert_allclose(own.values.sum(), own.score - own.baseline_score, rtol=0.01)
    capsys.readouterr()
    called(trained, tmp_path, "--steps", "4", "--no-report")
    assert "1 of 1 scans were finished by an earlier call" in capsys.readouterr().out


def test_random_weights_are_explained_for_the_class_that_they_predict(
    trained: Trained, model: LoadedModel
) -> None:
    """For that of the trained model they would hold what it knows of the classes."""
    config = model.contract.model
    head = from_dict(HeadConfig, model.contents.metadata["head"], "model")
    predicted = set()
    for number, seed in itertools.product(range(4), range(3)):
        scan = model.prepare(trained.scan(number))
        network = randomised_network(config, head, seed, model.device)
        random = dataclasses.replace(model, backbone=network.backbone, head=network.head)
        found = model.explain(scan, method="gradxinput", seed=seed)
        assert found.randomised_target == random.predict(scan).value
        expected = random.explain(scan, method="gradxinput", seed=seed)
        np.testing.assert_allclose(found.randomised_values, expected.values, atol=1e-9)
        predicted.add((found.target, found.randomised_target))
        asked = model.explain(scan, method="gradxinput", seed=seed, target="male")
        assert asked.target == asked.randomised_target == "male"
    assert any(own != random for own, random in predicted)


def test_groups_are_tested_where_that_is_defined(trained: Trained, tmp_path: Path) -> None:
    run = called(trained, tmp_path, *QUICK, "--target", "male", scans=6)
    (group,) = run["groups"]
    assert group["group"] == "male"
    assert group["permutations"] == 32
    assert run["no_groups"] == ""
    arrays = [np.load(tmp_path / "scans" / f"sub-{i:02d}_task-rest.npz") for i in range(6)]
    expected = group_map([one["values"] for one in arrays], [one["vox"] for one in arrays])
    for kind, outside in (("mean", 0), ("t", 0), ("p", 1)):
        volume = values(tmp_path / f"group_male_{kind}.nii.gz")
        assert volume.shape == (12, 12, 12)
        np.testing.assert_allclose(
            volume.ravel()[expected.vox], getattr(expected, kind), rtol=1e-5, atol=1e-12
        )
        rest = np.delete(volume.ravel(), expected.vox)
        assert (rest == outside).all()
    few = called(trained, tmp_path / "few", *QUICK, "--target", "male", scans=3)
    assert few["groups"][0]["smallest_p"] is None
    assert set(few["groups"][0]["files"]) == {"mean", "random"}
    alone = called(trained, tmp_path / "alone", *QUICK)
    assert alone["groups"] == []
    assert "two subjects" in alone["no_groups"]


def test_every_option_changes_the_map(trained: Trained, model: LoadedModel) -> None:
    scan = model.prepare(trained.scan(1))
    usual = model.explain(scan, method="ig", steps=2)
    for options in (
        {"steps": 3},
        {"resolution": "voxel"},
        {"windows": 1},
        {"method": "gradxinput"},
        {"method": "occlusion"},
    ):
        other = model.explain(scan, **({"method": "ig", "steps": 2} | options))
        assert np.abs(other.values - usual.values).max() > 0, options
    other = model.explain(scan, method="ig", steps=2, seed=1)
    np.testing.assert_array_equal(other.values, usual.values)
    assert np.abs(other.randomised_values - usual.randomised_values).max() > 0
    cells = [model.explain(scan, method="occlusion", edge=edge) for edge in (1, 2)]
    assert len(np.unique(cells[1].values)) < len(np.unique(cells[0].values))
    both = [model.explain(scan, method="ig", steps=2, target=t) for t in ("female", "male")]
    np.testing.assert_allclose(both[0].values, -both[1].values)  # two classes: one is the other's


def test_a_regression_is_explained_in_its_units(trained: Trained) -> None:
    model = neuromamba.load(trained.age, "cpu")
    scan = model.prepare(trained.scan(0))
    found = model.explain(scan, method="ig", steps=8)
    assert found.target == ""
    assert found.unit == "years"
    assert found.score == pytest.approx(found.prediction.value, rel=1e-4)
    assert found.completeness_error < 0.01
    with pytest.raises(UserInputError, match=r"--target: got 'male'.*predicts a value"):
        model.explain(scan, target="male")


def test_what_cannot_be_explained_is_refused(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, out = str(trained.scan(0)), str(tmp_path / "out")
    for run, flags, message in (
        (trained.backbone, [], "backbone without a task"),
        (trained.sex, ["--target", "old"], "expected a class of the model: female, male"),
        (trained.sex, ["--steps", "0"], "--steps: got 0"),
        (trained.sex, ["--edge", "0"], "--edge: got 0"),
        (trained.sex, ["--windows", "-1"], "--windows: got -1"),
        (trained.sex, ["--permutations", "5"], "--permutations: got 5"),
    ):
        assert explain([str(run), scan, "-o", out, *flags]) == 2
        assert message in capsys.readouterr().err
        assert not Path(out).exists()


def test_the_page_warns_of_maps_like_those_of_random_weights() -> None:
    signed, absolute = "rank_correlation_with_random_weights", "rank_correlation_of_absolute_values"
    results = [(0.1, 0.2), (-0.7, 0.1), (0.0, 0.6), (None, None)]
    answered = [{"result": {signed: one, absolute: other}} for one, other in results]
    assert notice(answered).startswith("2 of 4 maps resemble")
    assert notice(answered[:1]) == ""
