"""No flag of ``regions extract`` and ``regions explain-reference`` is decoration.

Each changes numbers, files or what is said. ``ROI`` and ``ANALYSIS`` have an entry for every flag;
one without an entry fails ``test_every_flag_has_a_test``. Their defaults are frozen here, too. The
flags of ``regions train`` are in ``test_neurossm_flags.py``.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neuromamba.commands import regions_explain_reference as analysis
from neuromamba.commands import regions_extract as roi
from neuromamba.commands import regions_train as tester
from neuromamba.data.regions import atlases
from neuromamba.neurossm import reference_maps
from tests.helpers.neurosynth_files import needs_nimare, write_database
from tests.helpers.region_flags import (
    OWN,
    ROIS,
    Commands,
    assert_frozen,
    commands_in,
    twice,
    write_atlas,
    write_scans,
)


@pytest.fixture
def commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Commands:
    """In a folder with data."""
    return commands_in(tmp_path, capsys, monkeypatch)


# --------------------------------------------------------------------------- roi.py

FRAMES = 60
EXTRACT = "--input runs --atlas six.nii.gz --output series.pickle --data_dir data"


def write_runs() -> None:
    """Two runs over the atlas in fMRIPrep's folders, one in two spaces, with confounds; TR 2 s."""
    rng = np.random.default_rng(0)
    atlas = nib.load("six.nii.gz")
    labels = np.asanyarray(atlas.dataobj)
    for subject in ("1", "2"):
        folder = Path("runs") / f"sub-{subject}" / "func"
        folder.mkdir(parents=True)
        for space in ("MNI152NLin2009cAsym", "MNI152NLin6Asym")[: int(subject)]:
            series = rng.standard_normal((ROIS + 1, FRAMES)).cumsum(1) + 1000
            volume = np.where(labels[..., None] > 0, series[labels], 0).astype(np.float32)
            image = nib.Nifti1Image(volume, atlas.affine)
            image.header.set_zooms((12.0, 12.0, 12.0, 2.0))
            image.header.set_xyzt_units("mm", "sec")
            name = f"sub-{subject}_task-rest_space-{space}_desc-preproc_bold.nii.gz"
            nib.save(image, folder / name)
        names = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "csf", "white_matter"]
        table = pd.DataFrame(rng.standard_normal((FRAMES, 8)), columns=names)
        table["cosine00"] = np.cos(np.pi * (np.arange(FRAMES) + 0.5) / FRAMES)
        stem = folder / f"sub-{subject}_task-rest_desc-confounds_timeseries"
        table.to_csv(f"{stem}.tsv", sep="\t", index=False)
        Path(f"{stem}.json").write_text("{}")
    Path("people.csv").write_text("participant_id,sex\nsub-1,F\nsub-2,M\n")


def extracted(commands: Commands, flags: str) -> Any:
    """Status, what was said, the series, what is known of the subjects, and the record."""
    for path in Path().glob("*series.*"):
        path.unlink()
    status = commands(roi.main, f"{EXTRACT} {flags}")
    files = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in Path().glob("*series.*")}
    return status, commands.said, files


ROI: dict[str, str] = {
    "input": "--input runs/sub-1",
    "output": "--output other_series.npy",
    "atlas": "--atlas AAL3v2",
    "data_dir": "--atlas AAL3v2 --data_dir nowhere",
    "layout": "--layout hcp",
    "space": "--space MNI152NLin6Asym",
    "label_csv": "--label_csv people.csv",
    "confounds": "--confounds basic",
    "low_pass": "--low_pass 0.2",
    "high_pass": "--high_pass 0.01",
    "tr": "--low_pass 0.2 --tr 1.5",
    "min_dof": "--min_dof 60",
}
ROI_BASE = {"data_dir": "--atlas AAL3v2", "tr": "--low_pass 0.2"}
ROI_DEFAULTS: dict[str, Any] = {
    "input": None,
    "output": None,
    "atlas": None,
    "data_dir": "Dataset/Data",
    "layout": "auto",
    "space": "",
    "label_csv": None,
    "confounds": "none",
    "low_pass": None,
    "high_pass": None,
    "tr": None,
    "min_dof": 40.0,
}


@pytest.mark.parametrize("flag", ROI)
def test_flag_of_roi_changes_something(
    commands: Commands, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atlases, "ATLASES", {"AAL3v2": unreachable})
    write_runs()
    base = f"--space MNI152NLin2009cAsym {ROI_BASE.get(flag, '')}"
    assert f"--{flag}" in ROI[flag]
    before = twice(extracted, commands, base)
    assert before[0] == 0, before[1]
    assert extracted(commands, f"{base} {ROI[flag]}") != before


def unreachable() -> None:
    """A download where there is no network."""
    raise OSError("no network")


# --------------------------------------------------------------------------- run_cpa_analysis.py

ANALYSE = "--root Analysis/Explainability --out out --data_dir data --terms terms.yaml --draws 20"


def analysed(commands: Commands, flags: str) -> Any:
    """Status, and all that is written but pages, by its place."""
    for folder in ("out", "out2"):
        shutil.rmtree(folder, ignore_errors=True)
    status = commands(analysis.main, f"{ANALYSE} {flags}")
    files = [p for p in Path().glob("out*/**/*") if p.suffix in (".gz", ".json")]
    return status, {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}


ANALYSIS: dict[str, str] = {
    "root": "--root elsewhere",
    "out": "--out out2",
    "datasets": "--datasets Own",
    "data_dir": "--data_dir nowhere",
    "terms": "--terms other_terms.yaml",
    "atlas": "--atlas bigger.nii.gz",
    "null": "--null permutation",
    "draws": "--draws 30",
    "seed": "--seed 5",
}
ANALYSIS_DEFAULTS: dict[str, Any] = {
    "root": None,
    "out": None,
    "datasets": None,
    "data_dir": "Dataset/Data",
    "terms": str(analysis.TERMS),
    "atlas": None,
    "null": "moran",
    "draws": 1000,
    "seed": 0,
}


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with maps of two data sets, NiMARE's sample of Neurosynth, and terms."""
    folder = tmp_path_factory.mktemp("explained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_atlas(Path("six.nii.gz"))
        write_atlas(Path("bigger.nii.gz"), size=14)
        write_scans(Path("mine.pickle"))
        flags = f"{OWN} --baselines --analysis --atlas six.nii.gz --epochs 20"
        assert tester.main(flags.split()) == 0
        shutil.copytree("Analysis/Explainability/Own", "Analysis/Explainability/Second")
        shutil.copytree("Analysis/Explainability/Second", "elsewhere/Second")
        write_database(Path("data"), ("activations", "acquisition", "12"))
        terms = "Own: {a: [activations], b: [acquisition]}\n"
        Path("terms.yaml").write_text(terms + terms.replace("Own", "Second"))
        Path("other_terms.yaml").write_text(terms.replace("acquisition", "12"))
    return folder


@needs_nimare
@pytest.mark.parametrize("flag", ANALYSIS)
def test_flag_of_the_reference_analysis_changes_something(
    commands: Commands, explained: Path, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(explained)
    # Pictures take most of the time, and no flag is about them.
    monkeypatch.setattr(reference_maps, "write_reference_page", lambda folder, *_: folder)
    base = "--atlas six.nii.gz"
    assert f"--{flag}" in ANALYSIS[flag]
    before = twice(analysed, commands, base)
    assert before[0] == 0, commands.said
    assert analysed(commands, f"{base} {ANALYSIS[flag]}") != before


# --------------------------------------------------------------------------- both


def test_every_flag_has_a_test() -> None:
    """And its default is what it was."""
    assert_frozen(roi.build_parser(), ROI, ROI_DEFAULTS)
    assert_frozen(analysis.build_parser(), ANALYSIS, ANALYSIS_DEFAULTS)
