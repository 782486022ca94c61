"""A trained model used on scans: ``neuromamba check``, ``predict``, ``embed``, and in Python."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import neuromamba
from neuromamba.commands import check, predict
from neuromamba.common.errors import UserInputError
from neuromamba.inference.loaded import LoadedModel
from neuromamba.inference.output_folder import OutputFolder
from tests.helpers.scans import LAS, RAS, SHAPE, brain, save, save_mask
from tests.helpers.store_files import write_store_file
from tests.helpers.trained_model import Trained, bold


@pytest.fixture(scope="module")
def sex(trained: Trained) -> LoadedModel:
    return neuromamba.load(trained.sex, device="cpu")


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def held_out(run: Path) -> list[dict[str, str]]:
    """The windows of the test subjects, as the run wrote them."""
    return rows(run / "predictions.csv")


# --- predict ------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_run(trained: Trained, tmp_path: Path) -> None:
    """From the NIfTI files, without a flag of the training, window by window."""
    for run in (trained.sex, trained.age):
        tested = held_out(run)
        subjects = sorted({row["subject"] for row in tested})
        scans = [str(trained.nifti / f"{name}_task-rest_bold.nii.gz") for name in subjects]
        out = tmp_path / run.name
        assert predict.main([str(run), *scans, "-o", str(out)]) == 0
        names = [name for name in tested[0] if name.startswith("pr")]
        expected = {(r["subject"], r["window"]): [float(r[n]) for n in names] for r in tested}
        ours = [name for name in rows(out / "windows.csv")[0] if name.startswith("pr")]
        found = {
            (r["subject"], r["window"]): [float(r[n]) for n in ours]
            for r in rows(out / "windows.csv")
        }
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            assert found[key] == pytest.approx(values, rel=1e-5, abs=1e-6)


def test_table_of_predictions(trained: Trained, tmp_path: Path) -> None:
    """One row a scan, whatever became of it; the mean over its windows; exit status 1."""
    short = save(tmp_path / "short_bold.nii.gz", bold(0, frames=3))
    native = save(tmp_path / "native_bold.nii.gz", bold(0), LAS + np.eye(4)[3] * 60, code=1)
    names = [trained.scan(0), short, native, tmp_path / "gone.nii.gz"]
    out = tmp_path / "out"
    assert predict.main([str(trained.sex), *map(str, names), "-o", str(out)]) == 1
    table = rows(out / "predictions.csv")
    columns = "scan subject session run status reason windows prediction spread in_range"
    assert list(table[0]) == [*columns.split(), "prob_female", "prob_male"]
    assert [row["scan"] for row in table] == [
        "sub-00_task-rest",
        "short_bold",
        "native_bold",
        "gone",
    ]
    first, *others = table
    windows = rows(out / "windows.csv")
    probability = [float(row["prob_male"]) for row in windows]
    assert len(windows) == int(first["windows"]) == 3
    assert float(first["prob_male"]) == pytest.approx(np.mean(probability))
    assert float(first["spread"]) == pytest.approx(np.std(probability, ddof=1))
    assert first["prediction"] == ("male" if np.mean(probability) > 0.5 else "female")
    assert [row["status"] for row in others] == ["refused"] * 3
    assert "3 frames" in others[0]["reason"]
    assert "MNI" in others[1]["reason"]
    assert "no such file" in others[2]["reason"]
    assert all(row["prediction"] == row["prob_male"] == "" for row in others)


def test_age_is_in_years(trained: Trained) -> None:
    model = neuromamba.load(trained.age, device="cpu")
    found = model.predict(model.prepare(trained.scan(1)))
    assert isinstance(found.value, float)
    assert 10 < found.value < 60  # the training subjects are 20 to 47
    assert str(found).endswith(" years")
    assert found.probabilities == {}
    assert found.interval is None  # two validation subjects define none


def test_an_interrupted_call_goes_on(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuromamba.inference import loaded as predicting

    argv = [str(trained.sex), *map(str, (trained.scan(0), trained.scan(1)))]
    done: list[str] = []
    once = predicting.predict_scan

    def interrupted(model: LoadedModel, scan: object) -> object:
        if done:
            raise KeyboardInterrupt
        done.append("first")
        return once(model, scan)  # type: ignore[arg-type]

    monkeypatch.setattr(predicting, "predict_scan", interrupted)
    assert predict.main([*argv, "-o", str(tmp_path / "out"), "--no-report"]) == 130
    kept = rows(tmp_path / "out" / "predictions.csv")
    assert [row["status"] != "refused" for row in kept] == [True]  # what is finished is kept
    monkeypatch.setattr(predicting, "predict_scan", once)
    again = tmp_path / "out" / "scans" / "sub-00_task-rest.json"
    before = again.stat().st_mtime_ns
    assert predict.main([*argv, "-o", str(tmp_path / "out"), "--no-report"]) == 0
    assert again.stat().st_mtime_ns == before
    table = rows(tmp_path / "out" / "predictions.csv")
    assert len(table) == 2
    assert table[0] == kept[0]


def test_a_folder_holds_results_of_one_model(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert predict.main([str(trained.sex), str(trained.scan(0)), "-o", out, "--no-report"]) == 0
    assert predict.main([str(trained.age), str(trained.scan(0)), "-o", out, "--no-report"]) == 2
    assert "another model" in capsys.readouterr().err


def test_store_and_nifti_agree(trained: Trained, sex: LoadedModel) -> None:
    by_file = sex.predict(sex.prepare(trained.scan(2)))
    by_store = sex.predict(sex.prepare(trained.store / "hdf5" / "sub-02_task-rest.h5"))
    assert np.array_equal(by_file.windows, by_store.windows)


def test_a_backbone_predicts_nothing(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(trained.backbone), str(trained.scan(0)), "-o", str(tmp_path / "out")]
    assert predict.main(argv) == 2
    assert "neuromamba embed" in capsys.readouterr().err


def test_the_page(trained: Trained, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.nii.gz")
    argv = [str(trained.sex), str(trained.scan(0)), gone, "-o", str(tmp_path / "out")]
    assert predict.main(argv) == 1
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for text in ("Prediction of sex", "no such file", "What the model expects", "tsnr", "Balanced"):
        assert text in page
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["model"]["sha256"]
    assert [scan["status"] != "refused" for scan in record["scans"]] == [True, False]
    assert record["scans"][0]["prepared"]["sha256"]
    assert any("mask" in action for action in record["scans"][0]["prepared"]["actions"])


# --- what is done to a scan ---------------------------------------------------------------------


def test_orientation_of_the_file_does_not_matter(
    trained: Trained, sex: LoadedModel, tmp_path: Path
) -> None:
    turned = save(tmp_path / "turned_bold.nii.gz", bold(0)[::-1], RAS)
    scan = sex.prepare(turned)
    assert "axes: RAS to LAS" in scan.actions
    expected = sex.predict(sex.prepare(trained.scan(0)))
    assert np.array_equal(sex.predict(scan).windows, expected.windows)


def test_another_box_is_placed_by_its_affine(
    trained: Trained, sex: LoadedModel, tmp_path: Path
) -> None:
    """Two planes less on one side: centred by its shape, the brain would lie one voxel away."""
    cut = LAS.copy()
    cut[:3, 3] += LAS[:3, :3] @ [0, 0, 2]
    assert not brain()[..., :2].any()
    path = save(tmp_path / "box_bold.nii.gz", bold(0)[:, :, 2:], cut)
    scan = sex.prepare(path)
    expected = sex.prepare(trained.scan(0))
    assert scan.header.crop_offset[2] == expected.header.crop_offset[2] + 2
    assert np.array_equal(sex.predict(scan).windows, sex.predict(expected).windows)


def test_other_voxels_are_resampled_to_the_grid(
    trained: Trained, sex: LoadedModel, tmp_path: Path
) -> None:
    fine = bold(0).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    affine = LAS @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = LAS[:3, 3] - LAS[:3, :3].sum(axis=1) / 4
    scan = sex.prepare(save(tmp_path / "fine_bold.nii.gz", fine, affine))
    assert any("resampled" in action and "8 x 8 x 8" in action for action in scan.actions)
    expected = sex.prepare(trained.scan(0))
    assert np.allclose(scan.header.affine, expected.header.affine)
    difference = sex.predict(scan).windows - sex.predict(expected).windows
    assert np.abs(difference).max() < 0.05


def test_another_repetition_time_is_resampled(
    trained: Trained, sex: LoadedModel, tmp_path: Path
) -> None:
    path = save(tmp_path / "slow_bold.nii.gz", bold(0), tr=3.0)
    scan = sex.prepare(path)
    assert scan.header.tr == 2.0
    assert scan.header.n_frames == 35  # 69 s in steps of 2 s
    assert any("windowed sinc" in action for action in scan.actions)
    assert any("repetition time is 3 s" in str(problem) for problem in scan.problems)
    with pytest.raises(UserInputError, match="--strict"):
        sex.prepare(path, strict=True)
    near = sex.prepare(save(tmp_path / "near_bold.nii.gz", bold(0), tr=2.1))
    assert near.header.n_frames == 24
    assert any("left alone" in action for action in near.actions)


def test_a_short_scan_is_mirrored_and_said_to_be(sex: LoadedModel, tmp_path: Path) -> None:
    scan = sex.prepare(save(tmp_path / "short_bold.nii.gz", bold(0, frames=5)))
    assert scan.header.n_frames == 8
    assert any("mirror" in str(problem) for problem in scan.problems)
    assert sex.predict(scan).windows.shape == (1, 2)
    with pytest.raises(UserInputError, match="half"):
        sex.prepare(save(tmp_path / "tiny_bold.nii.gz", bold(0, frames=3)))


def test_upside_down_and_elsewhere_are_told(sex: LoadedModel, tmp_path: Path) -> None:
    flipped = save(tmp_path / "flipped_bold.nii.gz", bold(0)[:, :, ::-1], LAS)
    assert any("top and bottom" in str(problem) for problem in sex.prepare(flipped).problems)
    mask = np.zeros(SHAPE, np.uint8)
    mask[:3, :3, :3] = 1
    corner = save(tmp_path / "mask.nii.gz", mask, LAS)
    rng = np.random.default_rng(0)
    whole = save(tmp_path / "whole_bold.nii.gz", rng.normal(500, 20, (*SHAPE, 24)), LAS)
    with pytest.raises(UserInputError, match="does not cover the brain"):
        sex.prepare(whole, mask=corner)


def test_measures_tell_another_kind_of_scan(
    trained: Trained, sex: LoadedModel, tmp_path: Path
) -> None:
    assert sex.prepare(trained.scan(1)).in_range
    rng = np.random.default_rng(3)
    noisy = bold(1) + (rng.normal(0, 400, bold(1).shape) * brain()[..., None]).astype(np.int16)
    scan = sex.prepare(save(tmp_path / "noisy_bold.nii.gz", noisy))
    assert scan.in_range is False
    assert "tsnr" in {one.name for one in scan.out_of_range}


def test_z_scored_data_lack_what_a_run_wide_scaling_needs(
    trained: Trained, sex: LoadedModel, tmp_path: Path
) -> None:
    values = bold(0).astype(np.float32)
    z = (values - values.mean(-1, keepdims=True)) / (values.std(-1, keepdims=True) + 1e-6)
    path = save(tmp_path / "z_bold.nii.gz", z * brain()[..., None])
    assert not any("z-scored" in str(one) for one in sex.prepare(path).problems)
    run_wide = sex.with_scaling("znorm_minback")
    assert any("z-scored" in str(one) for one in run_wide.prepare(path).problems)


def test_a_scan_of_the_training_is_told(trained: Trained, sex: LoadedModel) -> None:
    names = (trained.sex / "splits").rglob("*.txt")
    text = next(names).read_text().split("val_subjects")[0]
    number = int(text.split("sub-")[1][:2])
    scan = sex.prepare(trained.scan(number))
    assert any("trained on these very values" in str(one) for one in scan.problems)
    backbone = neuromamba.load(trained.backbone, device="cpu")
    assert not any("trained" in str(one) for one in backbone.prepare(trained.scan(1)).problems)


def test_errors_of_what_is_in_memory_name_no_temporary_file(
    trained: Trained, sex: LoadedModel
) -> None:
    image = nibabel.load(trained.scan(0))
    short, zeros = image.slicer[..., :3], nibabel.Nifti1Image(bold(0) * 0, LAS, image.header)
    for scan, options, name in (
        (bold(0, frames=3), {"tr": 2.0, "affine": LAS}, "array in memory: "),
        (bold(0) * 0, {"tr": 2.0, "affine": LAS}, "array in memory: "),
        (short, {}, "image in memory: "),
        (zeros, {}, "image in memory: "),
        (image, {"strict": True, "tr": 3.0}, f"image in memory ({trained.scan(0).name}): "),
    ):
        with pytest.raises(UserInputError) as found:
            sex.prepare(scan, **options)
        message = str(found.value)
        assert message.startswith(name) and "neuromamba-" not in message
    assert sex.prepare(image).source == f"image in memory ({trained.scan(0).name})"
    assert image.get_filename() == str(trained.scan(0))  # saving has not changed it


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.diag([-16.0, 16, 16, 1]), "differ from those of the training in size, direction"),
        (LAS, "voxels beside those of the training, so positions differ"),
        (LAS @ np.diag([0.5, 1, 1, 1]), "differ from those of the training in size, direction"),
    ],
)
def test_runs_of_a_store_on_another_grid(
    trained: Trained, sex: LoadedModel, tmp_path: Path, affine: np.ndarray, words: str
) -> None:
    vox = np.arange(1728)
    values = np.random.default_rng(0).normal(900, 20, (24, len(vox)))
    there = {"grid": (12, 12, 12), "affine": affine, "tr": 2.0, "space": "MNI152"}
    write_store_file(tmp_path / "a.h5", values.astype(np.float32), vox, subject="a", **there)
    with pytest.raises(UserInputError, match=words) as found:
        sex.prepare(tmp_path / "a.h5")
    assert "None" not in str(found.value)


def test_numbers_of_tables_have_no_digits_beyond_single_precision(tmp_path: Path) -> None:
    folder = OutputFolder.__new__(OutputFolder)
    folder.path = tmp_path
    folder.write_table("a.csv", ["a", "b", "c"], [[20.470000000000002, 1e-12 / 3, None]])
    assert (tmp_path / "a.csv").read_text().splitlines() == ["a,b,c", "20.47,3.33333333e-13,"]


def test_the_mask_of_the_user(trained: Trained, sex: LoadedModel, tmp_path: Path) -> None:
    scan = sex.prepare(trained.scan(0), mask=save_mask(tmp_path / "mask.nii.gz"))
    assert any("file:mask.nii.gz" in action for action in scan.actions)


def test_the_prepared_run_is_removed(trained: Trained, sex: LoadedModel) -> None:
    with sex.prepare(trained.scan(0)) as scan:
        folder = scan.windows.paths[0].parent
        assert folder.is_dir()
    assert not folder.exists()


def test_metadata_without_measures_still_serve(trained: Trained, tmp_path: Path) -> None:
    """A checkpoint as written before the measures were recorded."""
    path = trained.sex / "checkpoints" / "best.ckpt"
    contents = torch.load(path, map_location="cpu", weights_only=True)
    del contents["neuromamba"]["data"]["inputs"]
    torch.save(contents, tmp_path / "old.ckpt")
    model = neuromamba.load(tmp_path / "old.ckpt", device="cpu")
    scan = model.prepare(trained.scan(0))
    assert scan.in_range is None
    assert any("centred" in str(problem) for problem in scan.problems)
    assert np.isfinite(model.predict(scan).windows).all()


# --- load and check -----------------------------------------------------------------------------


def test_what_cannot_be_loaded(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="no file or folder"):
        neuromamba.load("organisation/name")
    torch.save({"norm.weight": torch.ones(16)}, tmp_path / "bare.pt")
    with pytest.raises(UserInputError, match="weights only"):
        neuromamba.load(tmp_path / "bare.pt")
    with pytest.raises(UserInputError, match="--device"):
        neuromamba.load(trained.sex, device="nonsense")


def test_check_says_what_would_be_done(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert check.main([str(trained.backbone), str(trained.scan(0))]) == 0
    text = capsys.readouterr().out
    for part in ("repetition time   2 s", "12 x 12 x 12", "voxelnorm_zeroback", "mask", "lag1"):
        assert part in text
    assert check.main([str(trained.sex), str(tmp_path / "gone.nii.gz")]) == 2
    assert sorted(tmp_path.rglob("*")) == before
    flawed = save(tmp_path / "tiny_bold.nii.gz", bold(0, frames=2))
    assert check.main([str(trained.sex), str(flawed)]) == 1
    assert "refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--tr 2000", "--tr"),
        ("--mask nowhere.nii.gz", "--mask"),
        ("--num_workers 0", "--num_workers"),
    ],
)
def test_wrong_flags(
    trained: Trained, tmp_path: Path, flags: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(trained.sex), str(trained.scan(0)), "-o", str(tmp_path / "out"), *flags.split()]
    assert predict.main(argv) == 2
    assert capsys.readouterr().err.startswith(f"error: {named}")
    assert not (tmp_path / "out").exists()


def test_a_moved_run_folder_is_still_a_model(trained: Trained, tmp_path: Path) -> None:
    """Nothing of the data is needed: neither the store nor its path."""
    shutil.copytree(trained.sex, tmp_path / "moved")
    model = neuromamba.load(tmp_path / "moved", device="cpu")
    assert np.isfinite(model.predict(model.prepare(trained.scan(0))).windows).all()
