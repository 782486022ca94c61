"""The table of the study of pre-training objectives, from the jobs that have finished."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.csv_cells import CsvWriter
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import read_json, read_json_record
from neuromamba.config.names import LAST_LAYER
from neuromamba.evaluation.intervals import CONFIDENCE, Interval
from neuromamba.evaluation.probe_rows import PRETRAINED, UNTRAINED
from neuromamba.reports.objectives import (
    EFFECTS,
    LABELS,
    OBJECTIVES,
    POOLS,
    REFERENCE,
    ObjectivesStudy,
    Place,
)
from neuromamba.reports.reproduction_run import MARKER

SKILL = "dynamic_skill"
# Rows of backbones with random weights, under other scalings and orders than the measured one.
UNTRAINED_ROWS: Mapping[str, str] = {
    "runwide": "untrained, run-wide z-norm",
    "demean": "untrained, demean_zeroback",
    "space_first": "untrained, voxel-wise, space first",
}
# Key of a value -> heading of its column.
COLUMNS: Mapping[str, str] = {
    SKILL: "dynamic skill",
    **{
        f"{pool}/{size or 'all'}": f"{pool.replace('_', ' and ').replace('sd', 'SD')}, "
        + (f"{size} a class" if size else "all labels")
        for pool in POOLS
        for size in (None, *LABELS)
    },
}
COMPARED = "mean_sd/8"  # what differences from the reference row are of


class StudyRow(NamedTuple):
    """A row of an effect.

    Attributes:
        effect: of ``EFFECTS``.
        label: what was trained.
        objective: of ``OBJECTIVES``.
        model: ``PRETRAINED``, or ``UNTRAINED`` for the untrained backbone beside its probes.
        values: key of ``COLUMNS`` -> seed -> value; only what is defined.
        steps: optimiser steps of each finished seed.
    """

    effect: str
    label: str
    objective: str
    model: str
    values: Mapping[str, Mapping[int, float]]
    steps: Mapping[int, int]


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean over seeds with its 95 % interval by Student's t; bounds are NaN for one seed."""
    if not values:
        return Interval(math.nan, math.nan, math.nan)
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Interval(mean, math.nan, math.nan)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count)
    return Interval(mean, mean - float(half), mean + float(half))


def difference(row: StudyRow, reference: StudyRow, key: str = COMPARED) -> Interval:
    """Mean over the seeds of both rows of the difference of a value, by Student's t."""
    ours, theirs = row.values[key], reference.values[key]
    return over_seeds([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def study_rows(study: ObjectivesStudy) -> list[StudyRow]:
    """All rows, from the jobs that have finished."""
    rows = []
    for effect in EFFECTS:
        places = [place for place in study.places() if place.effect == effect]
        for name, label in UNTRAINED_ROWS.items():
            rows.append(_row(places, name, label, UNTRAINED))
        rows += [
            _row(places, name, objective.label, PRETRAINED)
            for name, objective in OBJECTIVES.items()
        ]
    return rows


_REMEDY = "Remove its folder and call neuromamba reproduce again."


def with_added(rows: Sequence[StudyRow], files: Sequence[Path]) -> list[StudyRow]:
    """Add the seeds that were run elsewhere.

    Args:
        rows: of the jobs here.
        files: ``study_objectives.json`` of others.

    Raises:
        UserInputError: a file is not one of the study, or holds a seed that is there already.
    """
    for path in files:
        others = {(one.effect, one.objective, one.model): one for one in _read_rows(path)}
        merged = []
        for row in rows:
            other = others.get((row.effect, row.objective, row.model))
            if other is None:
                merged.append(row)
                continue
            if twice := sorted(row.steps.keys() & other.steps.keys()):
                raise UserInputError(
                    f"--add: '{path}' holds seed {twice[0]} of the {row.effect} effect, which is "
                    f"there already. Give each seed once."
                )
            values = {key: {**row.values[key], **other.values.get(key, {})} for key in COLUMNS}
            merged.append(row._replace(values=values, steps={**row.steps, **other.steps}))
        rows = merged
    return list(rows)


def _read_rows(path: Path) -> list[StudyRow]:
    remedy = "Give study_objectives.json files of this command."
    record = read_json_record(path, remedy, "--add")
    try:
        return [
            StudyRow(
                effect=str(row["effect"]),
                label=str(row["label"]),
                objective=str(row["objective"]),
                model=str(row["model"]),
                values={
                    str(key): {int(seed): float(v) for seed, v in value["seeds"].items()}
                    for key, value in row["values"].items()
                },
                steps={int(seed): int(count) for seed, count in row["steps"].items()},
            )
            for row in record["rows"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserInputError(f"--add: '{path}' is another kind of file. {remedy}") from None


def _row(places: Sequence[Place], name: str, label: str, model: str) -> StudyRow:
    values: dict[str, dict[int, float]] = {key: {} for key in COLUMNS}
    steps: dict[int, int] = {}
    for place in places:
        if not (place.probe(name) / MARKER).is_file():
            continue
        path = place.run(name) / "metrics.json"
        metrics = read_json_record(path, _REMEDY)
        if not isinstance(metrics.get("train/steps"), int | float):
            raise UserInputError(f"{path}: is damaged (no train/steps). {_REMEDY}")
        steps[place.seed] = int(metrics["train/steps"])
        found = _probe_values(place.probe(name) / "probe.json", model)
        if model == PRETRAINED:
            found[SKILL] = metrics.get(f"val/{SKILL}")
        for key, value in found.items():
            if value is not None:
                values[key][place.seed] = value
    return StudyRow(places[0].effect, label, name, model, values, steps)


def _probe_values(path: Path, model: str) -> dict[str, float | None]:
    """Linear probes of the last features."""
    listed = read_json(path, _REMEDY)
    try:
        return {
            f"{row['pool']}/{row['subjects_a_class'] or 'all'}": row["value"]
            for row in listed
            if row["layer"] == LAST_LAYER and row["model"] == model and row["probe"] == "linear"
        }
    except (KeyError, TypeError):
        raise UserInputError(f"{path}: is damaged. {_REMEDY}") from None


# ------------------------------------------------------------------------------ writing


def _text(value: Interval) -> str:
    if math.isnan(value.value):
        return "not defined"
    if math.isnan(value.low):
        return f"{value.value:.3f}"
    return str(value)


def cells(rows: Sequence[StudyRow], planned: int) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one effect, as texts."""
    header = ["pre-training", *COLUMNS.values(), f"{COLUMNS[COMPARED]}: less the reference"]
    header.append("seeds")
    reference = next(row for row in rows if row.objective == REFERENCE and row.model == PRETRAINED)
    lines = []
    for row in rows:
        seeds = len(row.steps)
        line = [row.label]
        for key in COLUMNS:
            measured = row.values[key]
            if not seeds:
                line.append("not run")
            elif key == SKILL and row.model == UNTRAINED:
                line.append("not measured")
            else:
                line.append(_text(over_seeds(list(measured.values()))))
        same = row is reference
        line.append("reference" if same else _text(difference(row, reference)) if seeds else "")
        lines.append([*line, f"{seeds} of {planned}"])
    return header, lines


def write_study(study: ObjectivesStudy, command: str) -> list[Path]:
    """Write ``study_objectives.md``, ``.csv`` and ``.json``; returns the paths."""
    rows = with_added(study_rows(study), study.added)
    seeds = sorted({*study.seeds, *(seed for row in rows for seed in row.steps)})
    planned = len(seeds)
    steps = {n for row in rows if row.objective != "untrained" for n in row.steps.values()}
    text = _introduction(command, planned, steps)
    table: list[list[str]] = []
    for effect, flags in EFFECTS.items():
        header, lines = cells([row for row in rows if row.effect == effect], planned)
        text += f"\n## {effect.capitalize()} effect\n\n`neuromamba synthetic {' '.join(flags)}`\n\n"
        text += f"| {' | '.join(header)} |\n|{'---|' * len(header)}\n"
        text += "".join(f"| {' | '.join(line)} |\n" for line in lines)
        table = table or [["effect", *header]]
        table += [[effect, *line] for line in lines]
    stream = io.StringIO()
    CsvWriter(stream).writerows(table)
    record = {
        "synthetic": True,
        "command": command,
        "seeds": seeds,
        "rows": [_record(row, rows) for row in rows],
    }
    study.folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, content in (
        (".md", text),
        (".csv", stream.getvalue()),
        (".json", json.dumps(record, indent=1) + "\n"),
    ):
        path = study.folder / f"study_objectives{suffix}"
        write_text_atomically(path, content)
        paths.append(path)
    return paths


def _introduction(command: str, seeds: int, steps: set[int]) -> str:
    counts = ", ".join(map(str, sorted(steps))) or "no"
    bounds = (
        "95 % interval over seeds by Student's t. It is not cut off at 1, and has no width where "
        "all seeds agree"
        if seeds > 1
        else "one seed, so there is no interval over seeds"
    )
    return (
        f"# Objectives of pre-training at equal compute\n\n**Synthetic data, tiny models.** Made "
        f"by `{command}`. Every pre-training had {counts} optimiser steps on the same windows, the "
        f"untrained model one at a rate of nearly 0. A seed is that of data, split and weights. "
        f"Columns: dynamic skill on the validation subjects (docs/pretraining.md), and AUROC on "
        f"the test subjects of linear probes of the frozen last features, with all labels and "
        f"with few (mean over draws). Values: mean over seeds; in brackets: {bounds}. Differences "
        f"are from the row '{OBJECTIVES[REFERENCE].label}', paired by seed.\n"
    )


def _record(row: StudyRow, rows: Sequence[StudyRow]) -> dict[str, Any]:
    """A row in plain containers."""
    reference = next(
        one
        for one in rows
        if one.effect == row.effect and one.objective == REFERENCE and one.model == PRETRAINED
    )
    return {
        "effect": row.effect,
        "label": row.label,
        "objective": row.objective,
        "model": row.model,
        "steps": {str(seed): count for seed, count in row.steps.items()},
        "values": {
            key: {
                "seeds": {str(seed): value for seed, value in values.items()},
                "mean_and_interval": _plain(over_seeds(list(values.values()))),
            }
            for key, values in row.values.items()
        },
        "difference": {COMPARED: _plain(difference(row, reference))},
    }


def _plain(value: Interval) -> list[float | None]:
    return [None if math.isnan(one) else one for one in value]
