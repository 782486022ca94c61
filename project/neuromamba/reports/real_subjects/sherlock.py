"""The table ``sherlock``: a film seen and retold by thirteen people, decoded from real voxels.

Which of 50 scenes is seen, and whether the film is seen or retold, of people who were left out:
frozen features beside an untrained backbone and raw voxels; and for film or recall FMamba and
SwiFT trained on the labels for the same number of steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuromamba.common.json_text import read_json_record
from neuromamba.reports.real_subjects.real_table import Group, RealTable, Request, Step, hash_of

_FOLDS = (1, 2, 3, 4)
WORK = "neuromamba.reports.real_subjects.sherlock_steps"
_FILE = "sherlock_pmc_dev.npz"
GRID = ("--img_size", "9", "12", "9", "6", "--batch_size", "16")
SCALING = ("--input_scaling_method", "voxelnorm_zeroback")
# As in docs/frozen_features.md; not chosen by results on these data.
FMAMBA = ("--patch_size", "3", "3", "3", "2", "--embed_dim", "64", "--depth", "2")
SWIFT = (
    *("--model", "swift", "--patch_size", "3", "3", "3", "2", "--embed_dim", "16"),
    *("--swin_depths", "2", "2", "--swin_heads", "2", "4"),
)
PRETRAINING = ("--pretraining", "--use_autoregressive", "--learning_rate", "3e-3")
MODELS = {
    "scratch": "FMamba, from scratch",
    "swift": "SwiFT, from scratch",
    "finetuned": "FMamba, pre-trained, fine-tuned",
}
CONNECTIVITY = "FC between patches"
_REMEDY = "Remove it, and give the command again."


def _present(data: Path) -> bool:
    return (data / _FILE).is_file()


def _steps(request: Request) -> list[Step]:
    out = request.out
    prepared = out / "prepared"
    ready = prepared / "store" / "splits" / f"split_fixed_{_FOLDS[-1]}.txt"
    words: tuple[str, ...] = ("prepare", str(request.data), str(prepared))
    steps = [Step("prepare", words, ready, training=False, module=WORK)]
    words = ("connectivity", str(request.data), "-o", str(out / "connectivity.json"))
    made = out / "connectivity.json"
    steps.append(Step("connectivity", words, made, training=False, module=WORK))
    for seed in request.seeds:
        for fold in _FOLDS:
            steps += _frozen(request, fold, seed)
    for name in MODELS:
        steps += [_trained(request, name, fold) for fold in _FOLDS]
    return steps


def _training(request: Request, fold: int, seed: int) -> tuple[str, ...]:
    """Words that all trainings share."""
    return (
        *("train", "--dataset_name", "Own", "--image_path", str(request.out / "prepared/store")),
        *("--dataset_split_num", str(fold), "--seed", str(seed), *GRID, *SCALING),
    )


def _pretraining(out: Path, fold: int, seed: int) -> Path:
    return out / f"pretraining_{fold}_seed_{seed}"


def _frozen(request: Request, fold: int, seed: int) -> list[Step]:
    """Pre-train without labels, and score frozen features."""
    before, scores = _pretraining(request.out, fold, seed), _scores(request.out, fold, seed)
    training = (*_training(request, fold, seed), *FMAMBA, *PRETRAINING, "--max_epochs", "2")
    decoding = (
        *("decode", str(request.data), str(request.out / "prepared"), str(before)),
        *("--seed", str(seed), "-o", str(scores)),
    )
    return [
        Step(before.name, (*training, "--output_dir", str(before)), before / "metrics.json"),
        Step(scores.stem, decoding, scores, training=False, module=WORK),
    ]


def _trained(request: Request, name: str, fold: int) -> Step:
    """Train on film or recall."""
    out, seed = request.out, request.seeds[0]
    run = _run(out, name, fold, seed)
    before = str(_pretraining(out, fold, seed))
    words = (
        *_training(request, fold, seed),
        *(SWIFT if name == "swift" else FMAMBA),
        *("--events", str(out / "prepared" / "segments.tsv"), "--event_delay", "0"),
        *("--stride_between_seq", "1", "--eval_batch_size", "32", "--learning_rate", "1e-3"),
        *("--pool", "mean_sd", "--max_epochs", "1"),
        *(("--load_model_path", before) if name == "finetuned" else ()),
        *("--output_dir", str(run)),
    )
    return Step(run.name, words, run / "predictions.csv")


def _scores(out: Path, fold: int, seed: int) -> Path:
    return out / f"scores_{fold}_seed_{seed}.json"


def _run(out: Path, name: str, fold: int, seed: int) -> Path:
    return out / f"{name}_{fold}_seed_{seed}"


def _collect(request: Request) -> Sequence[Group]:
    # Imported here: statistics need NumPy and SciPy, and listing the steps does not.
    from neuromamba.reports.real_subjects.sherlock_scores import (
        RAW,
        RAW_LEVEL,
        RAW_STANDARDISED,
        merged,
    )
    from neuromamba.reports.real_subjects.subject_rows import mean_rows

    out, seeds = request.out, request.seeds
    done = [seed for seed in seeds if all(_scores(out, fold, seed).is_file() for fold in _FOLDS)]
    if not done:
        return []
    parts = [read_json_record(_scores(out, f, seed), _REMEDY) for seed in done for f in _FOLDS]
    scene = merged([part["scene"] for part in parts])
    state = merged([part["state"]["auroc"] for part in parts])
    seconds = _supervised(out, seeds[0], state)
    if (out / "connectivity.json").is_file():
        state[CONNECTIVITY] = read_json_record(out / "connectivity.json", _REMEDY)["auroc"]
    skills = [part["dynamic_skill"] for part in parts]
    shared: dict[str, Any] = {
        "subjects": len(next(iter(scene.values()))),
        "splits": len(_FOLDS),
        "split_hash": hash_of(
            [sorted(next(iter(part["scene"].values()))) for part in parts[: len(_FOLDS)]]
        ),
        "intervals": "Brackets: 95 % BCa bootstrap intervals over subjects; thirteen are few, so "
        "that they are somewhat too narrow, and they do not cover the training data that folds "
        "share.",
    }
    about = (
        f"{len(done)} seed{'s' if len(done) > 1 else ''} of frozen features, averaged for each "
        f"subject; dynamic skill of the pre-trainings {sum(skills) / len(skills):.2f} (mean), "
        f"{min(skills):.2f} to {max(skills):.2f}.",
    )
    raw = {RAW, RAW_STANDARDISED, RAW_LEVEL}
    assert raw <= set(scene)
    state_rows = [row._replace(seconds=seconds.get(row.model)) for row in mean_rows("auroc", state)]
    return [
        Group(
            name="scene",
            title="Which of 50 scenes is seen, subjects left out",
            main="accuracy",
            rows=tuple(mean_rows("accuracy", scene)),
            chance=0.02,
            notes=about,
            **shared,
        ),
        Group(
            name="state",
            title="Film seen or retold, segments of 45 s of subjects left out",
            main="auroc",
            rows=tuple(state_rows),
            chance=0.5,
            notes=(
                *about,
                "AUROC within each subject. Rows that are trained on labels: one seed, the same "
                "windows and the same number of steps for FMamba and SwiFT.",
                "Film and retelling are scanner runs of their own, so that what separates them "
                "need not be memory (docs/frozen_features.md).",
            ),
            **shared,
        ),
    ]


def _supervised(out: Path, seed: int, state: dict[str, dict[str, float]]) -> Mapping[str, float]:
    """Add the models that were trained on labels to ``state``; the seconds of a fit."""
    from neuromamba.reports.real_subjects.sherlock_scores import auroc_within_subjects
    from neuromamba.reports.real_subjects.subject_rows import scores_of_run, seconds_of_run

    seconds = {}
    for name, model in MODELS.items():
        runs = [_run(out, name, fold, seed) for fold in _FOLDS]
        if not all((run / "predictions.csv").is_file() for run in runs):
            continue
        state[model] = {}
        for run in runs:
            state[model] |= auroc_within_subjects(scores_of_run(run))
        seconds[model] = statistics.median(map(seconds_of_run, runs))
    return seconds


TABLE = RealTable(
    name="sherlock",
    title="Sherlock: scenes of a film, and film against retelling, from real voxels",
    folder="sherlock_pmc",
    source="481 voxels of posterior medial cortex of thirteen people who see and retell a film "
    "(Chen et al. 2017, Nature Neuroscience).",
    document="docs/results.md",
    seeds=(0, 1),
    present=_present,
    steps=_steps,
    collect=_collect,
)
