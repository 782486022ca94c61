"""What is said of scans unlike those of the training, and of calls without an answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import neuromamba
from neuromamba.commands import embed, explain, predict, rollout
from neuromamba.common.errors import UserInputError
from neuromamba.inference.loaded import LoadedModel
from tests.helpers.scans import LAS, save
from tests.helpers.trained_model import Trained, bold
from tests.helpers.trained_regions import TrainedRegions


@pytest.fixture(scope="module")
def sex(trained: Trained) -> LoadedModel:
    return neuromamba.load(trained.sex, device="cpu")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan with ten times the training's fluctuations."""
    scan = bold(1).astype(np.float32)
    mean = scan.mean(-1, keepdims=True)
    path = tmp_path_factory.mktemp("odd") / "sub-77_task-rest_bold.nii.gz"
    save(path, mean + 10 * (scan - mean), LAS)
    return path


def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_page_names_the_measures_out_of_range(
    trained: Trained, odd: Path, tmp_path: Path
) -> None:
    for name, main, model, more in (
        ("predict", predict.main, trained.sex, ()),
        ("embed", embed.main, trained.backbone, ()),
        ("explain", explain.main, trained.sex, ("--method", "gradxinput")),
    ):
        out = tmp_path / name
        assert main([str(model), str(odd), "-o", str(out), *more]) == 0
        text = page(out)
        assert "1 of 1 scans differ from the training" in text, name
        assert "Does the scan look like those of the training?" in text, name
        assert odd.name in text, name  # two scans may have one name


def test_rollout_says_its_doubts_where_they_are_seen(
    trained: Trained, odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = [str(trained.backbone), str(odd), "-o", str(out), "--frames", "4", "--no-report"]
    assert rollout.main(argv) == 0
    assert "in the training" in capsys.readouterr().err


def test_a_page_says_what_its_model_was_trained_on(trained: Trained, tmp_path: Path) -> None:
    assert predict.main([str(trained.sex), str(trained.scan(0)), "-o", str(tmp_path / "a")]) == 0
    assert "(Dummy: synthetic" in page(tmp_path / "a")


def test_flags_of_images_are_refused_once_for_a_store(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(trained.sex), str(trained.store), "-o", str(tmp_path / "out"), "--tr", "2"]
    assert predict.main(argv) == 2
    assert capsys.readouterr().err.count("is a run of a store") == 1
    assert not (tmp_path / "out").exists()


def test_methods_say_what_they_take(
    trained: Trained, sex: LoadedModel, trained_regions: TrainedRegions
) -> None:
    regions = trained_regions.model
    scan = sex.prepare(trained.scan(0))
    array = next(iter(trained_regions.held_out.values()))
    series = regions.prepare(array)
    affine = np.eye(4)
    for words, call in (
        ("model of the other family", lambda: sex.predict(series)),  # type: ignore[arg-type]
        ("model of the other family", lambda: regions.predict(scan)),  # type: ignore[arg-type]
        ("references: got str", lambda: sex.explain(scan, references=["a.nii"])),  # type: ignore[list-item]
        ("references are for models of volumes", lambda: regions.explain(series, references=[])),
        ("generates no frames", lambda: regions.rollout(series, 4)),
        ("--statistics: got none", lambda: sex.embed(scan, statistics=[])),
        ("tr is -1, expected", lambda: regions.prepare(array, tr=-1)),
        ("has no inverse|no inverse", lambda: sex.prepare(bold(0), affine=0 * affine, tr=2)),
        ("tr is the text '2'", lambda: sex.prepare(bold(0), affine=affine, tr="2")),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserInputError, match=words):
            call()
    assert sex.embed(scan, statistics="mean").values.ndim == 2
