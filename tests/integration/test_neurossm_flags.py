"""No flag of ``regions train`` is decoration: each changes numbers, files or what is said.

``TESTER`` has an entry for every flag; one without an entry fails ``test_every_flag_has_a_test``.
Their defaults are frozen here, too. The other commands are in ``test_region_flags.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from neuromamba.commands import regions_train as tester
from neuromamba.neurossm.attribution_files import read_scan_map
from neuromamba.neurossm.config import RECIPES, FitConfig, NeuroSSMConfig
from tests.helpers.region_flags import OWN, SMALL, Commands, assert_frozen, commands_in, twice


@pytest.fixture
def commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Commands:
    """In a folder with data."""
    return commands_in(tmp_path, capsys, monkeypatch)


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


def test_every_flag_has_a_test() -> None:
    """And its default is what it was."""
    assert_frozen(tester.build_parser(), TESTER, TESTER_DEFAULTS)
