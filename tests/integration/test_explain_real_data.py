"""``neuromamba explain`` on real resting-state runs without labels, with labels made up."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neuromamba.commands.explain import main as explain
from neuromamba.commands.preprocess import main as preprocess
from neuromamba.commands.train import run
from tests.helpers.shared_files import GIFT, linked

pytestmark = [pytest.mark.real_data, pytest.mark.slow]
GRID = ("30", "36", "24")


def test_maps_of_real_runs(shared_data: Path, tmp_path: Path) -> None:
    folder = linked(shared_data / "gift_mni_bold", GIFT, tmp_path / "scans")
    scans, store = sorted(folder.glob("*.nii")), tmp_path / "store"
    arguments = ["--input", str(folder), "--output", str(store), "--img_size", *GRID]
    assert preprocess([*arguments, "--num_workers", "1"]) == 0
    (store / "metadata").mkdir()
    (store / "metadata" / "participants.csv").write_text(
        "subject,sex\n" + "".join(f"{p.name[:7]},{'FM'[i % 2]}\n" for i, p in enumerate(scans))
    )
    run(
        f"--downstream_task sex --dataset_name Dummy --image_path {store} --pool mean_sd "
        f"--img_size {' '.join(GRID)} 20 --embed_dim 32 --depth 2 --train_split 0.5 "
        f"--val_split 0.25 --batch_size 2 --max_epochs 2 --learning_rate 3e-3 --accelerator cpu "
        f"--input_scaling_method voxelnorm_zeroback --output_dir {tmp_path / 'run'}".split()
    )
    out = tmp_path / "out"
    flags = ["--steps", "8", "--windows", "2", "--device", "cpu"]
    assert explain([str(tmp_path / "run"), *map(str, scans), "-o", str(out), *flags]) == 0
    found = json.loads((out / "run.json").read_text())["maps"]
    assert len(found) == len(scans) == 4
    for scan, one in zip(scans, found.values(), strict=True):
        source, image = nibabel.load(scan), nibabel.load(out / one["attribution"])
        assert image.shape == source.shape[:3]
        np.testing.assert_allclose(image.affine, source.affine)
        volume = np.asarray(image.dataobj)
        assert np.count_nonzero(volume) > 0.9 * one["voxels"]
        # Brain voxels have signal: the map lies on the scan's brain and not beside it.
        mean = np.asarray(source.dataobj).mean(axis=-1)
        assert np.median(mean[volume != 0]) > 3 * np.median(mean[volume == 0])
        assert one["completeness_error"] < 0.05
    page = (out / "report.html").read_text()
    assert "Group: the predicted class" in page or "Group: female" in page or "Group: male" in page
    assert all(scan.name[:7] in page for scan in scans)
