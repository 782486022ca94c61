"""``neuromamba rollout`` as a user types it, and in Python."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

import neuromamba
from neuromamba.commands import rollout
from neuromamba.commands.train import run as train
from neuromamba.inference.loaded import LoadedModel
from neuromamba.inference.rollout import doubts_of
from tests.helpers.scans import RAS, save
from tests.helpers.trained_model import Trained, bold


@pytest.fixture(scope="module")
def backbone(trained: Trained) -> LoadedModel:
    return neuromamba.load(trained.backbone, device="cpu")


def part_of(trained: Trained, part: str) -> int:
    """Number of a subject of the training or validation set of the backbone's run."""
    record = json.loads(next((trained.backbone / "splits").rglob("*.json")).read_text())
    return int(record[part][0].removeprefix("sub-"))


def test_files_of_a_rollout(
    trained: Trained, backbone: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of axes of the scan's own file; 24 frames, of which the model reads 4."""
    number = part_of(trained, "val")
    path = save(tmp_path / "sub-x_bold.nii.gz", bold(number)[::-1], RAS)
    out = tmp_path / "out"
    argv = [str(trained.backbone), str(path), "-o", str(out), "--frames", "22", "--prompt", "4"]
    assert rollout.main([*argv, "--device", "cpu"]) == 0
    assert "22 frames generated after 4; 20 have a true frame" in capsys.readouterr().out
    source, true = nibabel.load(path), nibabel.load(out / "true.nii.gz")
    predicted = nibabel.load(out / "predicted.nii.gz")
    assert true.shape == (*source.shape[:3], 20) and predicted.shape == (*source.shape[:3], 22)
    assert np.allclose(true.affine, source.affine) and true.header.get_zooms()[3] == 2.0
    brain = true.get_fdata()[..., 0] != 0
    later = np.asarray(source.dataobj)[..., 4:]
    np.testing.assert_allclose(true.get_fdata()[brain], later[brain], atol=0.2)
    in_units = predicted.get_fdata()[brain]
    assert np.isfinite(in_units).all() and in_units.std() > 0
    record = json.loads((out / "rollout.json").read_text())
    assert record["statistics"] == "prompt" and record["true_frames"] == 20
    assert not any("very scan" in doubt for doubt in record["doubts"])
    assert not any("run statistics" in action for action in record["prepared"]["actions"])
    with open(out / "rollout.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 22 and rows[0]["first_window"] == "1" and rows[-1]["model"] == ""
    errors = [float(row["model"]) for row in rows[:20]]
    assert record["all"]["model"] == pytest.approx(np.mean(errors))
    with Image.open(out / "rollout.gif") as animation:
        assert animation.n_frames == 22
    page = (out / "report.html").read_text(encoding="utf-8")
    for text in ("data:image/gif;base64,", "extrapolation", "mean of the prompt", "--frames 22"):
        assert text in page
    with backbone.prepare(path) as scan:
        found = backbone.rollout(scan, frames=22, prompt=4)
    np.testing.assert_allclose(found.errors["model"][:20], errors, rtol=1e-5)
    np.testing.assert_allclose(
        np.sort(found.intensities(found.predicted)[0]), np.sort(in_units[:, 0]), rtol=1e-4
    )


def test_doubts(trained: Trained, backbone: LoadedModel, tmp_path: Path) -> None:
    with backbone.prepare(trained.scan(part_of(trained, "train"))) as known:
        assert "trained on this very scan" in doubts_of(known)[0]
    with backbone.prepare(save(tmp_path / "slow_bold.nii.gz", bold(0), tr=3.0)) as slow:
        assert any("looks ahead" in doubt for doubt in doubts_of(slow))
    with backbone.prepare(save(tmp_path / "short_bold.nii.gz", bold(0, frames=6))) as short:
        assert short.mirrored == 2
        found = backbone.rollout(short, frames=4, prompt=4)
        assert len(found.true) == 2, "the mirror image of the past is no true frame"


def test_a_scan_that_ends_with_the_prompt(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = save(tmp_path / "short_bold.nii.gz", bold(0, frames=4)), tmp_path / "out"
    argv = [str(trained.backbone), str(path), "-o", str(out), "--frames", "3", "--device", "cpu"]
    assert rollout.main(argv) == 0
    said = capsys.readouterr().out
    assert "0 have a true frame, skill not defined" in said
    assert f"page: {out / 'report.html'}" in said
    assert not (out / "true.nii.gz").exists()
    record = json.loads((out / "rollout.json").read_text())
    assert record["all"]["model"] is None and record["all"]["skill"] is None
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "there are no true frames to compare with" in page and "image/gif" in page


def test_what_cannot_generate_is_refused(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked = tmp_path / "masked"
    train(
        f"--pretraining --use_mim --dataset_name Dummy --image_path {trained.store} --img_size "
        f"12 12 12 8 --patch_size 6 6 6 2 --embed_dim 16 --depth 1 --max_steps 1 "
        f"--train_split 0.5 --val_split 0.2 "
        f"--accelerator cpu --output_dir {masked}".split()
    )
    scan, out = str(trained.scan(0)), str(tmp_path / "out")
    for model, flags, message in (
        (trained.sex, "--frames 4", "no next-token layer"),
        (masked, "--frames 4", "trained to fill in masked tokens"),
        (trained.backbone, "--frames 0", "--frames: got 0"),
        (trained.backbone, "--frames 4 --prompt 3", "--prompt: got 3 frames, expected a multiple"),
        (trained.backbone, "--frames 4 --statistics run", "BOLD: got 2 scans"),
    ):
        scans = [scan] * (2 if "2 scans" in message else 1)
        argv = [str(model), *scans, "-o", out, *flags.split(), "--device", "cpu"]
        assert rollout.main(argv) == 2
        assert message in capsys.readouterr().err
        assert not Path(out).exists()
