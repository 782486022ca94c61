"""The folders of fMRIPrep, HCP, UK Biobank and ABCD through the command, on miniature trees."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from neuromamba.commands.preprocess import main
from neuromamba.data.store.reader import RunFile, list_runs
from project.module.utils.data_preprocess_and_load import preprocessing_HCP_v2
from tests.helpers.scans import (
    GRID,
    LAS,
    RAS,
    brain,
    names_in,
    save,
    save_mask,
    scan,
    write_json,
)


def ingest(folder: Path, store: Path, *flags: str) -> int:
    arguments = ["--input", str(folder), "--output", str(store), *GRID, "--num_workers", "1"]
    return main([*arguments, *flags])


def headers(store: Path) -> dict[str, RunFile]:
    return {path.stem: RunFile(path) for path in list_runs(store)}


def fill_fmriprep(shared_data: Path, root: Path) -> Path:
    """The real listing, with small images for the names that end in .nii.gz."""
    listing = (shared_data / "layouts" / "fmriprep_ds000001_listing.txt").read_text().split()
    description = (shared_data / "layouts" / "fmriprep_dataset_description.json").read_text()
    sidecar = (shared_data / "layouts" / "desc-preproc_bold.json").read_text()
    for seed, name in enumerate(listing):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("desc-brain_mask.nii.gz"):
            save_mask(path, RAS)
        elif name.endswith("_bold.nii.gz"):
            # Not masked, as fMRIPrep leaves it, and without a usable TR in the header.
            values = scan(seed) + np.int16(7)
            save(path, values[::-1], RAS, tr=0)
        elif name.endswith(".nii.gz"):
            save(path, scan(seed)[..., 0], RAS)
        elif name.endswith("desc-preproc_bold.json"):
            path.write_text(sidecar)
        else:
            path.write_text(description if name.endswith("dataset_description.json") else "")
    return root / "ds000001-fmriprep"


def test_fmriprep(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, store = fill_fmriprep(shared_data, tmp_path), tmp_path / "store"
    assert ingest(folder, store, "--dry_run") == 0
    plan = capsys.readouterr().out
    assert plan.startswith("layout bids: BIDS names, as fMRIPrep's derivatives")
    (line,) = (x for x in plan.splitlines() if re.match(r"sub-10_task-\w+_run-2 ", x))
    assert re.split("  +", line)[1:] == [
        "12 x 14 x 12 x 24",
        "2 s (sidecar)",
        "MNI152NLin2009cAsym (name)",
        "desc-brain_mask",
        "RAS, crop 0 2 0",
        "convert",
    ]
    assert "fsaverage5_hemi-L_bold.func.gii: surface or CIFTI" in plan
    assert re.search(r"to convert +6\nrefused +0\n", plan)
    assert not store.exists()

    assert ingest(folder, store) == 0
    found = headers(store)
    assert len(found) == 6
    header = found["sub-11_task-balloonanalogrisktask_run-3"].header
    assert (header.tr, header.tr_source) == (2.0, "sidecar")
    assert header.mask_source.startswith("sibling:sub-11_")
    assert header.space == "MNI152NLin2009cAsym"
    assert header.n_voxels == np.count_nonzero(brain()[:, 1:13])
    # A second space of the same runs makes another store.
    flags = ("--space", "MNI152NLin6Asym")
    assert ingest(folder, tmp_path / "other", *flags) == 0
    assert {run.header.space for run in headers(tmp_path / "other").values()} == {flags[1]}


def test_a_space_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "sub-01/func/sub-01_task-x_space-{}_desc-preproc_bold.nii.gz"
    save(tmp_path / "in" / name.format("T1w"), scan(), code=1)
    assert ingest(tmp_path / "in", tmp_path / "store", "--dry_run") == 1
    assert "in native space, expected MNI. Normalise it first" in capsys.readouterr().out
    assert ingest(tmp_path / "in", tmp_path / "store", "--space", "native") == 0
    assert headers(tmp_path / "store")["sub-01_task-x"].header.space == "native"
    # The store is of native images now.
    save(tmp_path / "mni" / name.format("MNI152NLin6Asym").replace("01", "02"), scan(1))
    capsys.readouterr()
    assert ingest(tmp_path / "mni", tmp_path / "store") == 2
    assert "the store holds runs in the space 'native'" in capsys.readouterr().err
    assert names_in(tmp_path / "store") == ["sub-01_task-x"]


@pytest.fixture
def hcp(tmp_path: Path) -> Path:
    root = tmp_path / "hcp"
    for seed, (subject, run, end) in enumerate(
        [
            ("100206", "rfMRI_REST1_LR", "_hp2000_clean"),
            ("100206", "tfMRI_WM_RL", ""),
            ("100307", "rfMRI_REST1_LR", "_hp2000_clean"),
        ]
    ):
        folder = root / subject / "MNINonLinear" / "Results" / run
        # HCP's headers do not say MNI by their code; FIX leaves TR = 1 in some.
        save(
            folder / f"{run}{end}.nii.gz", scan(seed), LAS, tr=1.0 if subject == "100307" else 0.72
        )
        save(folder / f"{run}_SBRef.nii.gz", scan(seed)[..., 0])
        if run.startswith("rfMRI"):
            mask = brain()
            mask[:6] = False
            save(folder / "brainmask_fs.2.nii.gz", mask.astype(np.float32))
    return root


def test_hcp(hcp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    flags = ["--input", str(hcp), "--output", str(store), *GRID, "--num_workers", "1"]
    assert preprocessing_HCP_v2.main(flags) == 0
    assert "layout hcp" in capsys.readouterr().out
    found = headers(store)
    assert list(found) == [
        "100206_task-REST1_run-LR",
        "100206_task-WM_run-RL",
        "100307_task-REST1_run-LR",
    ]
    rest, task, other = (run.header for run in found.values())
    assert (rest.dataset, rest.subject, rest.space) == ("S1200", "100206", "MNI152NLin6Asym")
    assert (rest.mask_source, task.mask_source) == ("sibling:brainmask_fs.2.nii.gz", "nonzero")
    assert rest.n_voxels == np.count_nonzero(brain()[6:, 1:13])
    assert (rest.tr, rest.tr_source) == (pytest.approx(0.72), "header")
    assert (other.tr, other.tr_source) == (0.72, "layout")
    assert ingest(hcp, store, "--dataset_name", "S1200") == 0  # the same as by hand
    assert re.search(r"skipped +3", capsys.readouterr().out)


def test_ukb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, store = tmp_path / "ukb", tmp_path / "store"
    ica = folder / "1000011_20227_2_0" / "fMRI" / "rfMRI.ica"
    native = LAS.copy()
    native[:3, 3] += 12, 25, -20
    save(ica / "filtered_func_data_clean.nii.gz", scan(), native, tr=0.735, code=1)
    save(ica / "mask.nii.gz", brain().astype(np.uint8), native, code=1)
    save(ica / "reg" / "example_func2standard_warp.nii.gz", scan(frames=3))
    assert ingest(folder, store, "--dry-run") == 1
    plan = capsys.readouterr().out
    assert "refused: " in plan
    assert (
        f"in native space, expected MNI. Warp it with FSL: applywarp "
        f"--ref=$FSLDIR/data/standard/MNI152_T1_2mm --in={ica}/filtered_func_data_clean.nii.gz "
        f"--warp={ica}/reg/example_func2standard_warp.nii.gz "
        f"--out={ica}/filtered_func_data_clean_MNI152.nii.gz"
    ) in plan
    # As the command would write it.
    save(ica / "filtered_func_data_clean_MNI152.nii.gz", scan(1), LAS, tr=0.735)
    assert ingest(folder, store, "--dataset_name", "UKB") == 0
    (header,) = (run.header for run in headers(store).values())
    assert (header.subject, header.session, header.task) == ("1000011", "2", "rest")
    assert header.source.endswith("filtered_func_data_clean_MNI152.nii.gz")
    assert header.mask_source == "nonzero"
    # The native ones, on purpose.
    assert ingest(folder, tmp_path / "native", "--space", "native") == 0
    (header,) = (run.header for run in headers(tmp_path / "native").values())
    assert (header.space, header.mask_source) == ("native", "sibling:mask.nii.gz")


def test_abcd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, store = tmp_path / "abcd", tmp_path / "store"
    name = "sub-NDARINV003RTV85_ses-baselineYear1Arm1_task-rest_run-01_space-MNI152NLin6Asym"
    func = folder / "sub-NDARINV003RTV85" / "ses-baselineYear1Arm1" / "func"
    save(func / f"{name}_desc-preproc_bold.nii.gz", scan(), tr=0.8)
    save_mask(func / f"{name}_desc-brain_mask.nii.gz")
    write_json(func / f"{name}_desc-preproc_bold.json", {"RepetitionTime": 0.8})
    save(folder / "NDAR_INV005V6D2C_baseline_year_1_arm_1_rest.nii.gz", scan(1), tr=0.8)
    assert ingest(folder, store, "--dataset_name", "ABCD") == 0
    assert "layout abcd" in capsys.readouterr().out
    plain, bids = (run.header for run in headers(store).values())
    assert (bids.subject, bids.session, bids.task) == (
        "sub-NDARINV003RTV85",
        "baselineYear1Arm1",
        "rest",
    )
    assert bids.mask_source.startswith("sibling:")
    assert (plain.subject, plain.session, plain.run) == (
        "NDAR_INV005V6D2C",
        "baselineYear1Arm1",
        "rest",
    )


def test_ras_and_las_copies_of_a_real_run(shared_data: Path, tmp_path: Path) -> None:
    """Bit-identical store and tokens."""
    import nibabel
    import torch

    from neuromamba.config.model import ModelConfig
    from neuromamba.data.store.normalisation import scaling_of
    from neuromamba.fmamba.tokenizer import pack_compact, plan_compact

    source = shared_data / "gift_mni_bold" / "sub-007_lowres.nii"
    image = nibabel.Nifti1Image.from_filename(source)
    values = np.asarray(image.dataobj)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = values.shape[0] - 1
    save(tmp_path / "ras" / "sub-007_lowres.nii", values, image.affine)
    save(tmp_path / "las" / "sub-007_lowres.nii", values[::-1], image.affine @ flip)
    grid = ["--img_size", "30", "36", "24"]
    runs = []
    for name in ("ras", "las"):
        assert ingest(tmp_path / name, tmp_path / f"store-{name}", *grid) == 0
        runs.append(RunFile(tmp_path / f"store-{name}" / "hdf5" / "sub-007.h5"))
    ras, las = runs
    axes = [nibabel.aff2axcodes(np.asarray(run.header.source_affine))[0] for run in runs]
    assert axes == ["R", "L"]
    assert np.array_equal(ras.vox, las.vox)
    assert np.array_equal(ras.read(range(50)), las.read(range(50)))
    assert ras.header.content_sha256 == las.header.content_sha256
    assert ras.header.affine == las.header.affine
    config = ModelConfig(img_size=(30, 36, 24, 20), embed_dim=64)
    tokens = []
    for run in runs:
        scaling = scaling_of(run.header, "znorm_minback")
        packed = pack_compact(
            [torch.from_numpy(run.read(range(20)))],
            plan_compact([torch.from_numpy(np.array(run.vox))], config),
            *([value] for value in (scaling.gain, scaling.shift, scaling.background)),
            config,
        )
        tokens.append(packed)
    assert torch.equal(tokens[0].tokens, tokens[1].tokens)
    assert torch.equal(tokens[0].token_index, tokens[1].token_index)
    assert tokens[0].tokens.abs().sum() > 0
