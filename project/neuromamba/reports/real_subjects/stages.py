"""The table ``stages``: which of 28 people was scanned again, by embeddings and by connectivity."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.csv_cells import csv_records
from neuromamba.common.json_text import read_json_record
from neuromamba.reports.real_subjects.real_table import Group, RealTable, Request, Step, hash_of

PARTS = (1, 2, 3, 4)
WORK = "neuromamba.reports.real_subjects.stages_steps"
_TR = "2"  # seconds, of all scans
_CROP = "100"
_SERIES = "scans.pickle"


def _present(data: Path) -> bool:
    return next(data.glob("stages*.npz"), None) is not None


def _steps(request: Request) -> list[Step]:
    out, seed = request.out, str(request.seeds[0])
    series = out / _SERIES
    words: tuple[str, ...] = (
        "regions",
        "import",
        str(request.data),
        "-o",
        str(series),
        "--tr",
        _TR,
    )
    steps = [Step("import", words, series, training=False)]
    words = ("divide", str(series), str(out / "parts"), "--seed", seed)
    made = out / "parts" / f"without_{PARTS[-1]}.pickle"
    steps.append(Step("divide", words, made, training=False, module=WORK))
    for part in PARTS:
        results = out / f"model_{part}"
        words = (
            *("regions", "train", "--dataset", "Own", "--target", "group"),
            *("--data_file", str(out / "parts" / f"without_{part}.pickle")),
            *("--dynamic_length", _CROP, "--recipe", "robust", "--skip_cross_validation"),
            *("--seeds", seed, "--baselines", "--results_dir", str(results), "--device", "cpu"),
        )
        model = results / "Own" / "NeuroSSM"
        steps.append(Step(results.name, words, model / "results.csv"))
        embedded = out / f"embedded_{part}"
        words = ("embed", str(model), str(out / "parts" / "series"), "-o", str(embedded))
        words = (*words, "--tr", _TR, "--device", "cpu", "--no-report")
        made = embedded / "embeddings.parquet"
        steps.append(Step(embedded.name, words, made, training=False))
    words = ("identify", str(series), str(out / "parts"))
    words = (*words, "--embeddings", *(str(out / f"embedded_{part}") for part in PARTS))
    made = out / "identified.json"
    steps.append(Step("identify", (*words, "-o", str(made)), made, training=False, module=WORK))
    return steps


def _collect(request: Request) -> Sequence[Group]:
    # Imported here: statistics need NumPy and SciPy, and listing the steps does not.
    from neuromamba.reports.real_subjects.stages_steps import rows_of

    path = request.out / "identified.json"
    if not path.is_file():
        return []
    found = read_json_record(path, "Remove it, and give the command again.")
    subjects = found["subjects"]
    return [
        Group(
            name="identification",
            title="Whose second scan is it, of 28 people scanned twice",
            main="first_to_second",
            rows=tuple(rows_of(found, _seconds_a_fit(request.out))),
            subjects=len(subjects),
            splits=len(PARTS),
            split_hash=hash_of(found["parts"]),
            intervals="Brackets: exact 95 % intervals (Clopper and Pearson 1934), as if people "
            "were identified independently; of differences, 95 % BCa bootstrap intervals over "
            "people.",
            chance=1 / len(subjects),
            notes=(
                "A scan of one session is assigned to the person whose scan of the other session "
                "correlates best with it.",
                "NeuroSSM was trained to tell medication from placebo, which these data do not "
                "show, on people other than the one who is identified.",
                "No atlas of the 419 regions comes with the data, so that their series cannot be "
                "painted for FMamba.",
            ),
        )
    ]


def _seconds_a_fit(out: Path) -> float:
    seconds = []
    for part in PARTS:
        path = out / f"model_{part}" / "Own" / "NeuroSSM" / "results.csv"
        with open(path, newline="", encoding="utf-8") as stream:
            seconds += [float(row["seconds"]) for row in csv_records(stream)]
    return statistics.median(seconds)


TABLE = RealTable(
    name="stages",
    title="STAGES: people scanned twice, identified by their second scan",
    folder="stages_schaefer419",
    source="series of 419 regions of 42 patients, 28 of them scanned twice (Pope et al. 2025, "
    "Biological Psychiatry GOS 100589).",
    document="docs/results.md",
    seeds=(0,),
    one_seed=True,
    present=_present,
    steps=_steps,
    collect=_collect,
)
