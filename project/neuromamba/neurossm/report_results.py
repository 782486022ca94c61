"""The first section of the page of an evaluation: models beside each other, over all fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from neuromamba.data.regions.holdout import EXTERNAL, HOLDOUT_NAME, LEFT_OUT
from neuromamba.neurossm.results import (
    COMPARED,
    METRIC_NAMES,
    PARTS,
    Results,
    baseline_text,
    summary,
    task_type_of,
)
from neuromamba.pages.page import Section, Table
from neuromamba.pages.tables import metric_label

if TYPE_CHECKING:
    from neuromamba.neurossm.comparison import Comparison

PART_TITLES = {
    "cross_validation": "Cross-validation",
    HOLDOUT_NAME: "Holdout",
    EXTERNAL: "External cohort",
}

_BRACKETS = (
    "In brackets: corrected resampled t intervals over splits (Nadeau and Bengio 2003), which "
    "cover the choice of training subjects and seeds."
)


def _cell(values: Mapping[str, float] | None) -> str:
    if values is None:
        return "-"
    if math.isnan(values["std"]):
        return f"{values['mean']:.3f}"
    return f"{values['mean']:.3f} ± {values['std']:.3f}"


def _rows(results: Results, part: str) -> list[list[str]]:
    """One row per model: name, fits, metrics over scans, and over subjects where they differ."""
    rows = []
    for name, of_model in results.items():
        found = summary(of_model).get(part)
        if found is None:
            continue
        metrics = METRIC_NAMES[task_type_of(results)]
        fits = int(found[metrics[0]]["fits"])
        rows.append([name, str(fits), *(_cell(found.get(metric)) for metric in metrics)])
        if f"subject/{metrics[0]}" in found:
            cells = (_cell(found.get(f"subject/{metric}")) for metric in metrics)
            rows.append([f"{name}, subjects", str(fits), *cells])
    return rows


def _header(results: Results) -> tuple[str, ...]:
    return ("", "Fits", *(metric_label(name) for name in METRIC_NAMES[task_type_of(results)]))


def summary_text(results: Results) -> str:
    """Mean and standard deviation over fits, for the terminal."""
    lines = []
    for part in PARTS:
        rows = _rows(results, part)
        if not rows:
            continue
        table = [[PART_TITLES[part], *_header(results)[1:]], *rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines += [
            "",
            *("  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) for r in table),
        ]
    return "\n".join(lines) + "\n"


def results_section(results: Results, compared: Sequence[Comparison]) -> Section:
    """Means over fits, and the differences of the first model from the others over splits."""
    header, task_type = _header(results), task_type_of(results)
    tables = [
        Table(rows, header, PART_TITLES[part], numbers=range(1, len(header)), strong=0)
        for part in PARTS
        if (rows := _rows(results, part))
    ]
    text = ["All models see the same scans in the same splits."]
    known = {name: baseline_text(name, task_type) for name in results}
    explained = [f"{name}: {said}." for name, said in known.items() if said]
    if explained:
        text.append(f"{' '.join(explained)} Their penalty is chosen in inner folds.")
    model = next(iter(results))
    for one in compared:
        names = next(iter(one.differences.values()))
        rows = [
            [f"{model} less {name}", *(str(interval) for interval in of.values())]
            for name, of in one.differences.items()
        ]
        tables.append(
            Table(
                rows,
                ("", *(metric_label(name) for name in names)),
                f"Differences over the {one.splits} splits: {PART_TITLES[one.part].lower()}",
                " ".join((_BRACKETS, *one.reasons)),
                numbers=range(1, len(names) + 1),
            )
        )
    return Section("Results", text, tables)


def left_out_section(results: Results, column: str) -> Section | None:
    """Every value of ``--leave_out`` by itself, the hardest first; None where none was left out.

    Args:
        results: of the model and its baselines.
        column: that was left out.
    """
    own, *_ = results.values()
    metric = COMPARED[task_type_of(results)][0]
    of = {name: {fit.split: fit for fit in fits} for name, fits in results.items()}
    splits = [fit for fit in own if fit.split.startswith(LEFT_OUT)]
    if not splits:
        return None
    once = {fit.split: fit for fit in splits}  # all seeds leave out the same
    rows = []
    for split, fit in once.items():
        value = fit.metrics.get(f"subject/{metric}", fit.metrics[metric])
        cells = [_value(found[split].metrics, metric) for found in of.values() if split in found]
        tested = len(set(fit.predictions.subject))
        rows.append((value, [split.removeprefix(LEFT_OUT), str(tested), *cells]))
    rows.sort(key=lambda row: (math.isnan(row[0]), row[0]))
    table = Table(
        [cells for _, cells in rows],
        (column, "subjects", *(f"{metric_label(metric)}, {name}" for name in of)),
        note=f"The hardest first, by {metric_label(metric)} of {next(iter(of))}. With the few "
        f"subjects of one {column} a value is uncertain: among 30 an AUROC by about 0.1.",
        numbers=range(1, 2 + len(of)),
        sortable=True,
    )
    return Section(f"Each {column} left out", (), (table,))


def _value(metrics: Mapping[str, float], metric: str) -> str:
    value = metrics.get(f"subject/{metric}", metrics[metric])
    return "not defined" if math.isnan(value) else f"{value:.3f}"
