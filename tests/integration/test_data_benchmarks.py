"""Benchmarks of the data layer: peers' formats hold the run, each script runs end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import _peer_formats as peers
from benchmarks import _report, ingest, loader
from tests.helpers.paths import ROOT

GRID, FRAMES, WINDOW = (24, 24, 24), 17, 8


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("formats")
    return folder, loader.write_formats(str(folder), list(GRID), FRAMES, 2, None)


def scaled(nifti: Path) -> np.ndarray:
    """A run as the formats should hold it, by numpy alone."""
    import nibabel

    data = np.asarray(nibabel.load(nifti).dataobj, dtype=np.float64)
    brain = data != 0
    data = (data - data[brain].mean()) / data[brain].std()
    data[~brain] = data[brain].min()
    return data


def test_formats_hold_the_run(formats: tuple[Path, dict[str, int]]) -> None:
    folder, sizes = formats
    names = ("sub-01", "sub-02")
    right = np.stack([scaled(folder / "nifti" / f"{name}.nii") for name in names])
    windows: list[tuple[peers.DenseWindows, torch.dtype, float]] = [
        (
            peers.SwiftWindows([folder / loader.SWIFT / n for n in names], FRAMES, WINDOW),
            torch.float16,
            2e-3,
        )
    ]
    for name in (loader.INT8_FIRST, loader.INT8_LAST):
        folders = [folder / name / n for n in names]
        dataset = peers.Int8Windows(folders, FRAMES, WINDOW, name == loader.INT8_FIRST)
        windows.append((dataset, torch.float32, float(np.abs(right).max()) / 254 * 1.001))
    for dataset, dtype, error in windows:
        assert len(dataset) == 4
        for index in range(4):
            found = dataset[index]["fmri"]
            start = index % 2 * WINDOW
            assert found.dtype == dtype and found.shape == (1, *GRID, WINDOW)
            expected = right[index // 2, ..., start : start + WINDOW]
            assert np.abs(found[0].numpy() - expected).max() <= error
    assert sizes[loader.SWIFT] > 2 * right[0].size * 2
    assert sizes[loader.OURS] < sizes[loader.SWIFT]


def test_crop_and_pad(tmp_path: Path) -> None:
    """Centred, along each axis by itself; padding is the brain's minimum."""
    import nibabel

    data = np.zeros((5, 2, 4, 3), np.float32)
    data[1:4] = np.random.default_rng(0).normal(100, 5, (3, 2, 4, 3))
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "run.nii")
    whole = peers.scaled_volumes(tmp_path / "run.nii", data.shape[:3])
    changed = peers.scaled_volumes(tmp_path / "run.nii", (3, 4, 4))
    assert changed.shape == (3, 4, 4, 3)
    torch.testing.assert_close(changed[:, 1:3], whole[1:4])
    assert (changed[:, [0, 3]] == whole.min()).all()


def test_every_format_gives_the_same_tokens(formats: tuple[Path, dict[str, int]]) -> None:
    folder, _ = formats
    model = _report.TINY
    found = loader.loaders(folder, model, FRAMES)
    for name in found:
        if "fmri" in (batch := next(iter(found[name]))):
            assert batch["fmri"].shape == (2, 1, *model.img_size)
    errors = loader.largest_errors(found, model)
    assert errors[loader.OURS] == errors[loader.OURS_LZ4] == 0
    assert 0 < errors[loader.SWIFT] < 4e-3 < errors[loader.INT8_LAST] < 0.1
    right = loader.PRECISION[loader.SWIFT]
    loader.PRECISION[loader.SWIFT] = -1.0
    try:
        with pytest.raises(AssertionError):
            loader.largest_errors(found, model)
    finally:
        loader.PRECISION[loader.SWIFT] = right


def test_a_run_of_yours(tmp_path: Path) -> None:
    import nibabel

    data = np.random.default_rng(0).uniform(0, 7, (6, 7, 5, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(data, np.diag([9.0, 9, 9, 1])), tmp_path / "low.nii")
    loader.write_real(tmp_path / "run.nii", tmp_path / "low.nii", GRID, 7)
    found = np.asarray(nibabel.load(tmp_path / "run.nii").dataobj)
    brain = (found != 0).all(-1)
    assert found.shape == (*GRID, 7) and found.dtype == np.int16
    assert 0.1 < brain.mean() < 0.6 and (found[~brain] == 0).all()
    np.testing.assert_array_equal(found[..., 3], found[..., 2])  # to and fro
    np.testing.assert_array_equal(found[..., 5], found[..., 0])


def test_ratios() -> None:
    medians = {
        loader.SWIFT: 8.0,
        loader.INT8_FIRST: 9.0,
        loader.INT8_LAST: 6.0,
        loader.OURS: 2.0,
        loader.OURS_LZ4: 4.0,
    }
    seconds = {name: {"median": value} for name, value in medians.items()}
    assert loader.ratios(seconds) == {loader.SWIFT: 4.0, "NeuroSTORM": 3.0}


@pytest.mark.parametrize("name", list(ingest.CONTENDERS))
def test_conversions(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    nifti = tmp_path / "in" / "sub-01_task-rest_bold.nii.gz"
    facts = ingest.make_run(str(nifti), [11, 13, 11], 24, "float32")
    assert 0 < facts["brain_voxels"] < 11 * 13 * 11
    found = ingest.convert(name, str(nifti), str(tmp_path), [12, 12, 12])
    assert found["seconds"] > 0 and found["peak_mb"] > 50 and found["mb"] > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loader", "ingest"])
def test_quick_run(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"{name}.json"
    flags = ["--quick", "--threads", "1", "--json", str(path), "--scratch", str(tmp_path)]
    flags += ["--tiny"] if name == "ingest" else []
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record: dict[str, Any] = json.loads(path.read_text())
    assert record["quick"] is True and record["machine"]["threads"] == 1
    rows = record["rows"]
    if name == "loader":
        assert [row["comparison"] for row in rows] == ["tokens", "delivery"]
        assert record["windows"] == 6 and record["errors"][loader.OURS] == 0
        assert all(row["ratios"].keys() == {loader.SWIFT, "NeuroSTORM"} for row in rows)
    else:
        assert [row["dtype"] for row in rows] == ["int16", "float32"]
        for row in rows:
            assert list(row["contenders"]) == list(ingest.CONTENDERS)
            assert row["ratios"].keys() == {ingest.SWIFT, ingest.INT8}
    table = path.with_suffix(".md").read_text()
    assert table in done.stdout and "Target" in table
    assert list(tmp_path.iterdir()) == [tmp_path / "new"], "nothing is left in the scratch folder"


@pytest.mark.slow
def test_quick_run_of_use_a_model(tmp_path: Path) -> None:
    path = tmp_path / "use_a_model.json"
    flags = ["--quick", "--threads", "1", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, "benchmarks/use_a_model.py", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record: dict[str, Any] = json.loads(path.read_text())
    commands = record["one"]["commands"]
    assert list(commands) == ["check", "predict", "embed"]
    assert all(row["seconds"] > 0 and row["peak_mb"] > 50 for row in commands.values())
    assert 0 < record["many"]["together_cpu"] < record["many"]["apart_cpu"]
