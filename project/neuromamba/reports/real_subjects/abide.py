"""The table ``abide``: NeuroSSM beside linear models on people with autism and controls.

From 776 scans of 20 sites (docs/results_abide.md says where they come from): diagnosis, sex and age
on ten holdouts stratified by site and class or value, and diagnosis of each site by models of all
the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neuromamba.reports.real_subjects.real_table import Group, RealTable, Request, Step

_SERIES = "cc200.pickle"
_CROP = "100"  # frames of a training crop; 19 scans are shorter
BASELINES = ("Tangent", "FC", "PartialCorrelation", "MLP", "Confounds")
# Row after ComBat, of the diagnosis -> the same before.
HARMONISED = {f"{name}-ComBat": name for name in ("Tangent", "FC", "PartialCorrelation")}
_CONFOUNDS = ("age", "sex", "site", "motion")
_DECISIONS = (
    "Accuracy and balanced accuracy decide for the most probable class; balanced accuracy at "
    "prevalence decides for the class whose probability exceeds its share of the training scans "
    "most."
)
_PAPER_SEEDS = 3  # holdouts of the paper's recipe, which takes minutes a fit


def _present(data: Path) -> bool:
    return data.is_dir() and any(
        next(data.glob(pattern), None) is not None
        for pattern in ("*cc200*.npz", "*_rois_cc200.1D", "*/*/*_rois_cc200.1D")
    )


def _training(request: Request, folder: str, target: str, seeds: Sequence[int]) -> list[str]:
    return [
        *("regions", "train", "--dataset", "Own", "--data_file", str(request.out / _SERIES)),
        *("--target", target, "--dynamic_length", _CROP, "--stratify_by", "site"),
        *("--seeds", *map(str, seeds), "--results_dir", str(request.out / folder)),
    ]


def _steps(request: Request) -> list[Step]:
    series = request.out / _SERIES
    importing = ("regions", "import", str(request.data), "--atlas", "cc200", "-o", str(series))
    steps = [Step("import", (*importing, "--drop_duplicates"), series, training=False)]
    robust = ("--recipe", "robust", "--device", "cpu", "--baselines", *BASELINES)
    for target in ("diagnosis", "sex", "age"):
        words = _training(request, target, target, request.seeds)
        words += ["--skip_cross_validation", *robust]
        words += ["--confounds", *(name for name in _CONFOUNDS if name != target)]
        if target == "diagnosis":
            words += ["--harmonise", "site"]
        steps.append(Step(target, tuple(words), _results(request, target)))
    words = _training(request, "sites", "diagnosis", request.seeds[:1])
    # The site itself would be of no use: it is another one in every test.
    words += ["--leave_out", "site", *robust, "--confounds", "age", "sex", "motion"]
    steps.append(Step("sites", tuple(words), _results(request, "sites")))
    words = _training(request, "paper", "diagnosis", request.seeds[:_PAPER_SEEDS])
    words += ["--skip_cross_validation", "--recipe", "paper", "--device", "cpu", "--baselines"]
    steps.append(Step("paper", tuple(words), _results(request, "paper")))
    return steps


def _results(request: Request, folder: str, model: str = "NeuroSSM") -> Path:
    return request.out / folder / "Own" / model


def _collect(request: Request) -> list[Group]:
    # Imported here: reading results needs NumPy and SciPy, and listing the steps does not.
    from neuromamba.neurossm.results import AT_PREVALENCE
    from neuromamba.reports.real_subjects.region_results import (
        Entry,
        held_out,
        left_out,
        region_group,
    )

    def entries(folder: str, more: Sequence[str] = ()) -> list[Entry]:
        own = Entry("NeuroSSM, robust recipe", _results(request, folder))
        names = (*BASELINES, *more)
        return [own, *(Entry(name, _results(request, folder, name)) for name in names)]

    metrics = ("auroc", AT_PREVALENCE, "balanced_accuracy", "accuracy")
    paper = Entry("NeuroSSM, paper's recipe", _results(request, "paper"))
    found = [
        region_group(
            "diagnosis",
            "Autism against control, holdouts of a fifth",
            [*entries("diagnosis", tuple(HARMONISED)), paper],
            held_out,
            metrics,
            seeds=request.seeds,
            pairs=tuple(HARMONISED.items()),
            notes=(_DECISIONS,),
        ),
        region_group(
            "diagnosis_by_site",
            "Autism against control, each site left out in turn",
            entries("sites"),
            left_out,
            metrics,
            seeds=request.seeds,
            notes=(
                "Means over sites, each counting the same whatever its number of subjects.",
                _DECISIONS,
            ),
        ),
        region_group(
            "sex",
            "Sex, holdouts of a fifth",
            entries("sex"),
            held_out,
            metrics,
            seeds=request.seeds,
            notes=(_DECISIONS,),
        ),
        region_group(
            "age",
            "Age, holdouts of a fifth",
            entries("age"),
            held_out,
            ("pearson_r", "mae", "r2"),
            seeds=request.seeds,
            unit="years",
        ),
    ]
    return [group for group in found if group is not None]


TABLE = RealTable(
    name="abide",
    title="ABIDE: diagnosis, sex and age from series of regions",
    folder="abide_roi",
    source="series of the 200 regions of CC200 and a table of phenotypes, from the Preprocessed "
    "Connectomes Project, in any format that neuromamba regions import reads.",
    document="docs/results_abide.md",
    seeds=tuple(range(10)),
    present=_present,
    steps=_steps,
    collect=_collect,
)
