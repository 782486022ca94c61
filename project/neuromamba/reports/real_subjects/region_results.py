"""Results of ``neuromamba regions train`` as rows of a table of real subjects.

They are read from ``results.csv`` and ``splits.json`` of each model's folder, so that models of
different calls on the same data and seeds can stand in one table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neuromamba.common.csv_cells import csv_records
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import read_json_record
from neuromamba.data.regions.holdout import HOLDOUT_NAME, LEFT_OUT
from neuromamba.evaluation.corrected_t import corrected_interval, why_no_interval
from neuromamba.evaluation.intervals import Interval
from neuromamba.reports.real_subjects.real_table import Group, Pair, Row, hash_of

Splits = Mapping[tuple[int, str], Mapping[str, float]]  # (seed, split) -> column -> value
INTERVALS = (
    "Brackets: 95 % corrected resampled t intervals over the splits (Nadeau and Bengio 2003), "
    "which cover the choice of training and test subjects; differences are of the same splits."
)
RANGES = {"pearson_r": (-1.0, 1.0), "r2": (-np.inf, 1.0), "mae": (0.0, np.inf)}  # others 0 to 1
CHANCE = {"auroc": 0.5, "pearson_r": 0.0}
_REMEDY = "Remove that folder, and give the command again."


class Entry(NamedTuple):
    """A row that a table is to have.

    Attributes:
        model: name of the row.
        folder: ``Results/<DATASET>/<MODEL>`` of it.
        note: what a reader must know of it.
    """

    model: str
    folder: Path
    note: str = ""


def held_out(split: str) -> bool:
    """Whether a split is the holdout of its seed."""
    return split == HOLDOUT_NAME


def left_out(split: str) -> bool:
    """Whether a split is a site that was left out."""
    return split.startswith(LEFT_OUT)


def region_group(
    name: str,
    title: str,
    entries: Sequence[Entry],
    of_part: Callable[[str], bool],
    metrics: Sequence[str],
    *,
    seeds: Sequence[int],
    unit: str = "",
    notes: Sequence[str] = (),
    pairs: Sequence[tuple[str, str]] = (),
) -> Group | None:
    """The rows of finished results; None where the first entry has none.

    Args:
        name, title, unit, notes: of the group.
        entries: the first is the model that the others are compared with.
        of_part: which splits: ``held_out`` or ``left_out``.
        metrics: the first is the main one; another that results of an older version lack is left
            out.
        seeds: whose results are taken; a folder may hold those of more.
        pairs: models of entries that are compared with each other, where both have results.

    Raises:
        UserInputError: a file of results is damaged.
    """
    found = {entry: _read(entry.folder, of_part, seeds) for entry in entries}
    own = found[entries[0]]
    if not own:
        return None
    everywhere = [values for splits in found.values() for values in splits.values()]
    others = [name for name in metrics[1:] if all(name in values for values in everywhere)]
    metrics = [metrics[0], *others]
    tested = _tested(entries[0].folder, own)
    rows = []
    reasons: dict[str, list[str]] = {}  # why an interval is not defined -> of what

    def known(values: Sequence[float], what: str) -> None:
        if why := why_no_interval(values):
            reasons.setdefault(why, []).append(what)

    for entry, splits in found.items():
        if not splits:
            continue
        less = None
        note = entry.note
        if entry is not entries[0]:
            apart = _apart(own, splits, metrics[0])
            less = corrected_interval(apart, _ratio(own, _both(own, splits)))
            known(apart, f"the difference from {entry.model}")
        if len(splits) < len(own):
            note = f"{note + '; ' if note else ''}{len(splits)} of {len(own)} splits"
        for metric in metrics:
            values_of = [values[metric] for values in splits.values()]
            known(values_of, f"{metric.replace('_', ' ')} of {entry.model}")
        rows.append(
            Row(
                model=entry.model,
                values={metric: _mean(splits, metric) for metric in metrics},
                less=less,
                seconds=float(np.median([values["seconds"] for values in splits.values()])),
                note=note,
            )
        )
    compared = []
    of_model = {entry.model: splits for entry, splits in found.items() if splits}
    for model, other in pairs:
        if model in of_model and other in of_model:
            one, two = of_model[model], of_model[other]
            both, apart = _both(one, two), _apart(one, two, metrics[0])
            difference = corrected_interval(apart, _ratio(one, both))
            compared.append(Pair(model, other, difference, len(both)))
            known(apart, compared[-1].name)
    return Group(
        name=name,
        title=title,
        main=metrics[0],
        rows=tuple(rows),
        subjects=len({subject for subjects in tested.values() for subject in subjects}),
        splits=len(own),
        split_hash=hash_of(tested),
        intervals=INTERVALS,
        chance=CHANCE.get(metrics[0]),
        unit=unit,
        notes=(
            *notes,
            *(f"Not defined {why}: {', '.join(what)}." for why, what in reasons.items()),
        ),
        pairs=tuple(compared),
    )


def _both(one: Splits, two: Splits) -> list[tuple[int, str]]:
    """The splits that both have results of."""
    return [key for key in one if key in two]


def _apart(one: Splits, two: Splits, metric: str) -> list[float]:
    """The metric of one less that of the other, of each split of both."""
    return [one[key][metric] - two[key][metric] for key in _both(one, two)]


def _mean(splits: Splits, metric: str) -> Interval:
    """Mean of a metric over splits; the interval ends where the metric's range does."""
    found = corrected_interval(
        [values[metric] for values in splits.values()], _ratio(splits, [*splits])
    )
    low, high = RANGES.get(metric, (0.0, 1.0))
    return Interval(found.value, *(float(np.clip(x, low, high)) for x in found[1:]))


def _ratio(splits: Splits, keys: Sequence[tuple[int, str]]) -> float:
    """Tested over fitted scans, the mean over splits."""
    return float(
        np.mean([splits[key]["scans_tested"] / splits[key]["scans_fitted"] for key in keys])
    )


def _read(folder: Path, of_part: Callable[[str], bool], seeds: Sequence[int]) -> Splits:
    """The rows of ``results.csv`` of these seeds; empty where it is not there yet."""
    path = folder / "results.csv"
    if not path.is_file():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            rows = list(csv_records(stream))
        return {
            (int(row["seed"]), row["split"]): {
                column: float(text) if text else math.nan
                for column, text in row.items()
                if column not in ("model", "seed", "split")
            }
            for row in rows
            if of_part(row["split"]) and int(row["seed"]) in seeds
        }
    except (ValueError, KeyError, TypeError):
        raise UserInputError(f"--output_dir: '{path}' is damaged. {_REMEDY}") from None


def _tested(folder: Path, splits: Splits) -> dict[str, list[str]]:
    """``<seed>/<split>`` -> names of the subjects tested, of the splits that have results."""
    record = read_json_record(folder / "splits.json", _REMEDY, "--output_dir")
    try:
        return {f"{seed}/{split}": record[str(seed)][split] for seed, split in splits}
    except (KeyError, TypeError):
        raise UserInputError(
            f"--output_dir: '{folder}/splits.json' is damaged. {_REMEDY}"
        ) from None
