"""No flag of NeuroSSM's commands is decoration: each changes numbers, files or what is said.

``TESTER``, ``ROI`` and ``ANALYSIS`` have an entry for every flag; one without an entry fails
``test_every_flag_has_a_test``. Their defaults are frozen here, too.
"""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neuromamba.commands import regions_explain_reference as analysis
from neuromamba.commands import regions_extract as roi
from neuromamba.commands import regions_train as tester
from neuromamba.data.regions import atlases
from neuromamba.neurossm import evaluate, reference_maps
from neuromamba.neurossm.attribution_files import read_scan_map
from neuromamba.neurossm.config import RECIPES, FitConfig, NeuroSSMConfig
from tests.helpers.neurosynth_files import needs_nimare, write_database

ROIS, SUBJECTS = 6, 24
SMALL = "--epochs 2 --embed_dim 32 --depth 1 --folds 2 --dynamic_length 16 --device cpu"
OWN = f"--dataset Own --data_file mine.pickle --target group {SMALL} --skip_cross_validation"


class Commands:
    """Runs commands in a folder; ``said`` is what the last one printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.said = ""

    def __call__(self, main: Callable[[list[str]], int], flags: str) -> int:
        status = main(flags.split())
        printed = self._capsys.readouterr()
        self.said = (printed.out + printed.err).replace(str(self.folder), ".")
        return status

    def tester(self, flags: str) -> int:
        """Without results of an earlier call."""
        for name in ("Results", "elsewhere", "Analysis", "maps"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return self(tester.main, flags)


@pytest.fixture
def commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Commands:
    """In a folder with data of its own, in several versions.

    The page is not written: nothing here looks at it, and its pictures take most of the time.
    """
    monkeypatch.setattr(evaluate, "write_report", lambda *_: tmp_path / "report.html")
    monkeypatch.chdir(tmp_path)
    write_scans(Path("mine.pickle"))
    write_scans(Path("other.pickle"), seed=1)
    write_scans(Path("nan.pickle"), bad=True)
    write_scans(Path("many.pickle"), subjects=60)
    write_scans(Path("turned.pickle"), turned=True)
    write_scans(Path("strangers.pickle"), seed=2, prefix="x")
    write_atlas(Path("six.nii.gz"))
    Path("data/atlases").mkdir(parents=True)
    shutil.copy("six.nii.gz", "data/atlases/AAL3v2.nii.gz")
    return Commands(tmp_path, capsys)


def write_scans(
    path: Path,
    seed: int = 0,
    bad: bool = False,
    subjects: int = SUBJECTS,
    turned: bool = False,
    prefix: str = "",
) -> None:
    """Two scans a subject; a planted difference, two labels that disagree, and families."""
    rng = np.random.default_rng(seed)
    scans = []
    for number in range(subjects):
        label = number % 2
        for _ in range(2):
            series = rng.standard_normal((ROIS, 24)).cumsum(1) if label else rng.random((ROIS, 24))
            pheno = {
                "subjectId": f"{prefix}{number:02d}",
                "group": "ab"[label],
                "code": label + 1,
                "half": "xy"[2 * number // subjects],
                "third": "pqz"[number % 3],
                "family": f"{number // 4}",
                "age": 20 + 7 * number % 50,
            }
            series = series.astype(np.float32)
            scans.append({"roiTimeseries": series.T if turned else series, "pheno": pheno})
    if bad:
        scans[5]["roiTimeseries"][2, 3] = np.nan  # type: ignore[index]
    path.write_bytes(pickle.dumps(scans))


def write_atlas(path: Path, size: int = 12) -> None:
    labels = np.zeros((size,) * 3, dtype=np.int16)
    for region in range(ROIS):
        labels[2 * region : 2 * region + 2, 2:10, 2:10] = region + 1
    affine = np.diag([12.0, 12.0, 12.0, 1.0])
    affine[:3, 3] = -66
    nib.save(nib.Nifti1Image(labels, affine), path)


_SEEN: dict[tuple[Callable[[Commands, str], Any], str], Any] = {}


def twice(observe: Callable[[Commands, str], Any], commands: Commands, flags: str) -> Any:
    """What two calls show alike, the second in the folder of the first; many flags share it."""
    if (observe, flags) not in _SEEN:
        before = observe(commands, flags)
        assert observe(commands, flags) == before, "not reproducible"
        assert str(commands.folder) not in repr(before), "other tests have other folders"
        _SEEN[observe, flags] = before
    return _SEEN[observe, flags]


class Case(NamedTuple):
    """``changed`` is added to ``base``, which may be other flags than the usual ones."""

    changed: str
    observe: Callable[[Commands, str], Any]
    base: str = ""


# --------------------------------------------------------------------------- what is looked at


def predictions(commands: Commands, flags: str) -> Any:
    """Of all models, splits and seeds, by their place."""
    assert commands.tester(f"{OWN} --baselines {flags}") == 0, commands.said
    return {str(p): p.read_text() for p in sorted(Path("Results").rglob("predictions.csv"))}


def values(commands: Commands, flags: str) -> list[str]:
    """Of the predictions, without their places."""
    return list(predictions(commands, flags).values())


def weights(commands: Commands, flags: str) -> list[str]:
    """Hashes of the weights, in which backends differ by rounding."""
    predictions(commands, flags)
    files = sorted(Path("Results").rglob("weights.safetensors"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def places(commands: Commands, flags: str) -> list[str]:
    """Of the files that are not data."""
    assert commands.tester(f"{OWN} {flags}") == 0, commands.said
    return sorted(str(p) for p in Path().rglob("*") if p.suffix in (".npz", ".json", ".csv"))


def answer(commands: Commands, flags: str) -> tuple[int, str]:
    """Status and what was printed, without seconds."""
    status = commands.tester(flags)
    return status, "\n".join(line.split("(")[0] for line in commands.said.splitlines())


def evaluation(commands: Commands, flags: str) -> str:
    """Of the holdout."""
    assert commands.tester(f"{OWN} --baselines {flags}") == 0, commands.said
    return Path("Results/Own/FC/evaluation.json").read_text()


def splits(commands: Commands, flags: str) -> str:
    assert commands.tester(f"{OWN} --model FC --baselines {flags}") == 0, commands.said
    return Path("Results/Own/FC/splits.json").read_text()


def splits_of_folds(commands: Commands, flags: str) -> str:
    folds = OWN.replace("--skip_cross_validation", "")
    assert commands.tester(f"{folds} --model FC --baselines {flags}") == 0, commands.said
    return Path("Results/Own/FC/splits.json").read_text()


def maps(commands: Commands, flags: str) -> list[list[float]]:
    """CPA of each scan."""
    assert commands.tester(f"{OWN} --baselines --analysis {flags}") == 0, commands.said
    files = sorted(Path("Analysis").rglob("subj_*.npz"))
    return [read_scan_map(file).cpa.tolist() for file in files]


def pictures(commands: Commands, flags: str) -> list[str]:
    """Names of the pictures of the maps, and the atlas that the maps name."""
    assert commands.tester(f"{OWN} --baselines --analysis {flags}") == 0, commands.said
    atlas = {read_scan_map(file).atlas for file in Path("Analysis").rglob("subj_*.npz")}
    return sorted(p.name for p in Path("Analysis").rglob("*.png")) + sorted(atlas)


TESTER: dict[str, Case] = {
    "dataset": Case("--dataset PPMI", answer, OWN),
    "model": Case("--model GRU", values),
    "device": Case("--device 99", answer, OWN),
    "seeds": Case("--seeds 3", values),
    "skip_cross_validation": Case(
        "--skip_cross_validation", answer, f"{OWN.replace('--skip_cross_validation', '')} "
        "--model FC --baselines",
    ),
    "analysis": Case("--analysis", places, "--baselines"),
    "data_dir": Case("--data_dir nowhere", answer, f"{SMALL} --dataset PPMI --data_dir data"),
    "data_file": Case("--data_file other.pickle", values),
    "test_data": Case("--test_data strangers.pickle", values),
    "target": Case("--target half", values),
    "keep": Case("--keep third!=p age<99", values),
    "harmonise": Case("--harmonise half", predictions, "--model MeanVariance --baselines FC"),
    "task_type": Case("--task_type regression", values, "--target code"),
    "group_column": Case("--group_column family", splits),
    "confounds": Case("--confounds age", evaluation, "--model FC --data_file many.pickle"),
    "missing_codes": Case("--missing_codes z", values, f"{OWN} --target third --model FC"),
    "orientation": Case(
        "--orientation time_by_regions", answer, f"{OWN} --data_file turned.pickle --model FC"
    ),
    "drop_bad_scans": Case("--drop_bad_scans", answer, f"{OWN} --data_file nan.pickle --model FC"),
    "dynamic_length": Case("--dynamic_length 12", values),
    "short_scans": Case("--short_scans refuse", answer, f"{OWN} --dynamic_length 30 --baselines"),
    "atlas": Case("--atlas six.nii.gz", pictures),
    "signals": Case("--signals raw", values),
    "scales": Case("--scales 1 3", values),
    "embed_dim": Case("--embed_dim 64", values),
    "depth": Case("--depth 2", values),
    "recipe": Case("--recipe robust", values),
    "dropout": Case("--dropout 0.4", values),
    "region_dropout": Case("--region_dropout 0.4", values),
    "members": Case("--members 2", values),
    "second_order": Case("--second_order on", values),
    "ssd_backend": Case("--ssd_backend reference", weights),
    "folds": Case("--folds 3", splits_of_folds),
    "stratify_by": Case("--stratify_by third", splits, "--data_file many.pickle"),
    "leave_out": Case("--leave_out third", splits_of_folds, "--target half"),
    "epochs": Case("--epochs 3", values),
    "batch_size": Case("--batch_size 7", values),
    "learning_rate": Case("--learning_rate 1e-4", values),
    "max_learning_rate": Case("--max_learning_rate 1e-3", values),
    "weight_decay": Case("--weight_decay 10", values),
    "label_smoothing": Case("--label_smoothing 0.3", values),
    "baselines": Case("--baselines MeanVariance", places, "--model FC --baselines"),
    "results_dir": Case("--results_dir elsewhere", places, "--model FC --baselines"),
    "ablation": Case("--ablation zero", maps),
    "cpa_gradient": Case("--cpa_gradient single", maps),
    "analysis_dir": Case("--analysis_dir maps", places, "--analysis --baselines"),
}  # fmt: skip
TESTER_DEFAULTS: dict[str, Any] = {
    "dataset": None,
    "model": "NeuroSSM",
    "device": "0",
    "seeds": [0],
    "skip_cross_validation": False,
    "analysis": False,
    "data_dir": "Dataset/Data",
    "data_file": None,
    "test_data": None,
    "target": None,
    "task_type": None,
    "keep": [],
    "harmonise": None,
    "group_column": None,
    "confounds": [],
    "missing_codes": [],
    "orientation": "auto",
    "drop_bad_scans": False,
    "dynamic_length": None,
    "short_scans": "pad",
    "atlas": None,
    "recipe": "paper",
    "signals": None,
    "scales": None,
    "embed_dim": None,
    "depth": None,
    "dropout": None,
    "region_dropout": None,
    "members": None,
    "second_order": None,
    "ssd_backend": "auto",
    "folds": 5,
    "stratify_by": [],
    "leave_out": None,
    "epochs": None,
    "batch_size": None,
    "learning_rate": None,
    "max_learning_rate": None,
    "weight_decay": None,
    "label_smoothing": None,
    "baselines": None,
    "results_dir": "Results",
    "ablation": "mean",
    "cpa_gradient": "integrated",
    "analysis_dir": "Analysis/Explainability",
}


def test_recipes() -> None:
    """The paper's numbers, which are the default, and that a flag wins over its recipe."""
    needed = ["--dataset", "PPMI"]

    def of(*flags: str) -> Any:
        return tester.config_of(tester.build_parser().parse_args([*needed, *flags]))

    paper = of()
    assert paper == of("--recipe", "paper")
    assert paper.network(rois=400, classes=2) == NeuroSSMConfig(rois=400, classes=2)
    assert paper.fit == FitConfig(crop=100)
    robust = of("--recipe", "robust", "--members", "2")
    assert robust.architecture["members"] == 2
    assert {**RECIPES["robust"], "members": 2, "second_order": True}.items() == {
        name: value
        for name, value in {**robust.architecture, **vars(robust.fit)}.items()
        if name in RECIPES["robust"]
    }.items()
    assert robust.flags["embed_dim"] == "32", "the page shows what the recipe chose"


@pytest.mark.parametrize("flag", TESTER)
def test_flag_of_tester_changes_something(commands: Commands, flag: str) -> None:
    case = TESTER[flag]
    assert f"--{flag}" in case.changed
    before = twice(case.observe, commands, case.base)
    assert case.observe(commands, f"{case.base} {case.changed}") != before


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


# --------------------------------------------------------------------------- all of them


def test_every_flag_has_a_test() -> None:
    """And its default is what it was."""
    extract = roi.build_parser()
    for parser, cases, defaults in (
        (tester.build_parser(), TESTER, TESTER_DEFAULTS),
        (extract, ROI, ROI_DEFAULTS),
        (analysis.build_parser(), ANALYSIS, ANALYSIS_DEFAULTS),
    ):
        actions = [a for a in parser._actions if a.option_strings and a.dest != "help"]
        assert {a.dest: a.default for a in actions} == defaults
        assert set(cases) == set(defaults)
