"""The table ``painted``: FMamba, SwiFT and FC on painted series of ABIDE, on the same two folds.

Series of regions are painted into their atlas, which gives 4D images with labels: the whole way
from an image to a score with a signal of people, not of their voxels. Subjects are drawn, so that
the table takes a quarter of an hour of one core.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.json_text import read_json_record
from neuromamba.reports.real_subjects.real_table import Group, RealTable, Request, Step, hash_of

FOLDS = (1, 2)
# Column -> title of its group; the second of two values in alphabetical order is class 1.
LABELS = {
    "EYE_STATUS_AT_SCAN": "Eyes open or closed",
    "diagnosis": "Autism against control",
}
SUBJECTS = "100"
TRAINED = ("EYE_STATUS_AT_SCAN",)  # labels that models are trained on, for the time it takes
GRID = ("48", "66", "54")
WORK = "neuromamba.reports.real_subjects.painted_steps"
_ATLAS, _SERIES = "cc200_atlas_3mm.nii.gz", "cc200.pickle"
# Chosen once for the time that they take, not by results.
FMAMBA = ("--patch_size", "6", "6", "6", "2", "--embed_dim", "64", "--depth", "2")
SWIFT = (
    *("--model", "swift", "--patch_size", "6", "6", "6", "2", "--embed_dim", "16"),
    *("--swin_depths", "2", "2", "--swin_heads", "2", "4"),
)
PRETRAINING = ("--pretraining", "--use_autoregressive", "--learning_rate", "3e-3")
TRAINING = ("--learning_rate", "1e-3", "--pool", "mean_sd", "--max_epochs", "1")
MODELS = {
    "finetuned": "FMamba, pre-trained, fine-tuned",
    "swift": "SwiFT, from scratch",
    "scratch": "FMamba, from scratch",
}


def _present(data: Path) -> bool:
    return (data / _ATLAS).is_file() and next(data.glob("*cc200*.npz"), None) is not None


def _steps(request: Request) -> list[Step]:
    out, seed = request.out, str(request.seeds[0])
    series, painted, store = out / _SERIES, out / "painted", out / "store"
    table = store / "metadata" / "participants.tsv"
    importing = ("regions", "import", str(request.data), "--atlas", "cc200", "-o", str(series))
    painting = (
        *("regions", "paint", "--data_file", str(series), "--atlas", str(request.data / _ATLAS)),
        *("-o", str(painted), "--subjects", SUBJECTS, "--stratify_by", "site", "--seed", seed),
    )
    converting = (
        *("preprocess", "--input", str(painted), "--output", str(store), "--dataset_name", "Own"),
        *("--img_size", *GRID, "--voxel_norm"),
    )
    splits = store / "splits" / f"split_fixed_{FOLDS[-1]}.txt"
    steps = [
        Step("import", (*importing, "--drop_duplicates"), series, training=False),
        Step("paint", painting, painted / "painted.json", training=False),
        Step("convert", converting, table, training=False),
        Step("splits", ("splits", str(store), "--seed", seed), splits, training=False, module=WORK),
    ]
    for fold in FOLDS:
        steps += _frozen(request, fold)
    for label in TRAINED:
        for name in MODELS:
            steps += [_trained(request, name, label, fold) for fold in FOLDS]
    return steps


def _training(request: Request, fold: int) -> tuple[str, ...]:
    """Words that all trainings share."""
    return (
        *("train", "--dataset_name", "Own", "--image_path", str(request.out / "store")),
        *("--dataset_split_num", str(fold), "--img_size", *GRID, "20"),
        *("--seed", str(request.seeds[0]), "--input_scaling_method", "voxelnorm_zeroback"),
        *("--batch_size", "2", "--stride_between_seq", "3"),
    )


def _frozen(request: Request, fold: int) -> list[Step]:
    """Pre-train without labels, and score frozen features and FC."""
    before, scores = request.out / f"pretraining_{fold}", request.out / f"scores_{fold}.json"
    training = (*_training(request, fold), *FMAMBA, *PRETRAINING, "--max_epochs", "2")
    scoring = (
        *("scores", str(before), "--series", str(request.out / _SERIES)),
        *("--seed", str(request.seeds[0]), "--labels", *LABELS, "-o", str(scores)),
    )
    return [
        Step(before.name, (*training, "--output_dir", str(before)), before / "metrics.json"),
        Step(scores.stem, scoring, scores, training=False, module=WORK),
    ]


def _trained(request: Request, name: str, label: str, fold: int) -> Step:
    """Train on a label."""
    out = request.out
    run = out / f"{name}_{label}_{fold}"
    words = (
        *_training(request, fold),
        *(SWIFT if name == "swift" else FMAMBA),
        *("--label_csv", str(out / "store" / "metadata" / "participants.tsv")),
        *("--target_column", label, "--downstream_task_type", "classification", *TRAINING),
        *(("--load_model_path", str(out / f"pretraining_{fold}")) if name == "finetuned" else ()),
        *("--output_dir", str(run)),
    )
    return Step(run.name, words, run / "predictions.csv")


def _collect(request: Request) -> Sequence[Group]:
    return [group for label in LABELS if (group := _group(request.out, label)) is not None]


def _group(out: Path, label: str) -> Group | None:
    # Imported here: statistics need NumPy and SciPy, and listing the steps does not.
    from neuromamba.reports.real_subjects.subject_rows import (
        OVER_SUBJECTS,
        Scored,
        auroc_rows,
        scores_of_run,
        seconds_of_run,
    )

    folds = [fold for fold in FOLDS if (out / f"scores_{fold}.json").is_file()]
    if not folds:
        return None
    found = [
        read_json_record(out / f"scores_{fold}.json", "Remove it, and give the command again.")
        for fold in folds
    ]
    runs = {name: [out / f"{name}_{label}_{fold}" for fold in folds] for name in MODELS}
    parts = [one["labels"][label] for one in found]
    truth = {name: value for part in parts for name, value in part["truth"].items()}
    fold = {name: i for i, part in enumerate(parts) for name in part["truth"]}
    models = []
    for name, folders in runs.items():
        if not all((run / "predictions.csv").is_file() for run in folders):
            continue
        scores = {k: v for run in folders for k, v in scores_of_run(run).items()}
        seconds = statistics.median(map(seconds_of_run, folders))
        models.append(Scored(MODELS[name], scores, seconds))
    for row in parts[0]["scores"]:
        scores = {k: v for part in parts for k, v in part["scores"][row].items()}
        models.append(Scored(row, scores, note=_NOTES.get(row, "")))
    skills = ", ".join(f"{one['dynamic_skill']:.2f}" for one in found)
    return Group(
        name=label,
        title=f"{LABELS[label]}, painted series",
        main="auroc",
        rows=tuple(auroc_rows(models, truth, fold)),
        subjects=len(truth),
        splits=len(folds),
        split_hash=hash_of([sorted(part["truth"]) for part in parts]),
        intervals=OVER_SUBJECTS,
        chance=0.5,
        notes=(
            f"Class 1: {parts[0]['positive']}, {sum(truth.values())} subjects.",
            f"Dynamic skill of the pre-trainings on validation subjects: {skills}.",
            *(
                ("FMamba and SwiFT are trained for the same number of steps on the same windows.",)
                if len(models) > len(parts[0]["scores"])
                else ()
            ),
        ),
    )


_NOTES = {
    "site alone": "no brain data: what the choice of subjects gives away",
    "FC of the series": "all frames of a scan, 200 regions, logistic regression",
}

TABLE = RealTable(
    name="painted",
    title="Painted ABIDE: FMamba, SwiFT and functional connectivity on the same folds",
    folder="abide_roi",
    source="series of the 200 regions of CC200, a table of phenotypes and the atlas, from the "
    "Preprocessed Connectomes Project, painted into the atlas at 3 mm.",
    document="docs/results_abide.md",
    seeds=(0,),
    one_seed=True,
    present=_present,
    steps=_steps,
    collect=_collect,
)
