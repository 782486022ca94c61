"""The page of ``neuromamba explain`` for a model of regions: parts of regions and pathways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from neuromamba.common.csv_cells import csv_records
from neuromamba.inference.batch import summary
from neuromamba.inference.explanation_files import ExplainedCall, Group
from neuromamba.inference.region_explain import RegionExplainOptions
from neuromamba.inference.region_explanation_files import TABLE
from neuromamba.pages.figures import BLUE, GREY, save_figure, styled
from neuromamba.pages.page import FileLink, Picture, Section, Table
from neuromamba.reports.attribution_pictures import VIEW, write_view
from neuromamba.reports.explanation_page import (
    HEAD,
    METHODS,
    MOST_SCANS,
    group_pictures,
    group_sections,
    group_text,
    group_title,
    number,
    scan_pictures,
    score_cells,
    score_note,
    write_page,
)

_SHOWN = 12  # regions of a table
_CPA = (
    "CPA (Calibrated Pathway Attribution) adds up to 1 over regions: maps of the pathways, "
    "weighted by what the {score} loses without each; all 0 if it loses nothing without any."
)

# By whether the model predicts classes: what signs mean.
_SIGNS = {
    True: "A positive value speaks for the class that is explained, a negative one against it",
    False: "A positive value raises the predicted value, a negative one lowers it",
}


def write_region_page(call: ExplainedCall) -> Path:
    """Write ``report.html`` and, where there is an atlas, ``<scan>_view.html``.

    Returns:
        The page's path.
    """
    folder = call.batch.folder.path
    for record in call.answered:
        if "attribution" in record["result"]:
            write_view(folder, record["scan"])

    def maps(temporary: Path) -> list[Section]:
        return [
            _scores(call.answered, call.options),
            *group_sections(call, partial(_group, temporary=temporary)),
            *(_scan(record, folder, temporary) for record in call.answered[:MOST_SCANS]),
        ]

    title = f"Which regions predictions of {call.batch.model.task.task} rest on"
    return write_page(call, title, _summary(call), maps)


def _summary(call: ExplainedCall) -> list[str]:
    options, answered = call.options, len(call.answered)
    replaced = "its mean over the training" if options.ablation == "mean" else "zero"
    text = [
        f"{call.model_name} on {summary(call.batch)}; {METHODS[options.method]}.",
        f"{_SIGNS[bool(call.batch.model.class_names)]}, compared with a scan whose regions all "
        f"stay at their mean. It describes what this model uses, which need not be what differs "
        f"between people. For CPA a pathway is replaced by {replaced}.",
    ]
    if answered > MOST_SCANS:
        text.append(f"The first {MOST_SCANS} of {answered} scans are shown; all have tables.")
    return text


def _scores(answered: Sequence[Mapping[str, Any]], options: RegionExplainOptions) -> Section:
    # All scans of a call have an image, or none has.
    images = "attribution" in answered[0]["result"]
    rows: list[Sequence[str | FileLink]] = [
        (
            *score_cells(record),
            FileLink("table", record["result"]["table"]),
            *([FileLink("view", f"{record['scan']}{VIEW}")] if images else []),
        )
        for record in answered
    ]
    head = (*HEAD, "all regions", *(["interactive"] if images else []))
    note = score_note(answered[0], "regions", options)
    return Section("Scores", tables=[Table(rows, head, note=note, numbers=range(3, 8))])


def _group(group: Group, folder: Path, temporary: Path) -> Section:
    rows = _largest(_read(folder / group.files["table"]), "mean")
    names = [name for name in ("region", "mean", "random", "t", "p") if name in rows[0]]
    cells = [[row["region"], *(number(float(row[name])) for name in names[1:])] for row in rows]
    table = Table(
        cells,
        ["region", *("random weights" if name == "random" else name for name in names[1:])],
        note=f"The {len(rows)} regions with the largest absolute mean; all are in "
        f"{group.files['table']}.",
        numbers=range(1, len(names)),
    )
    pictures = group_pictures(group, folder, temporary) if "mean" in group.files else []
    return Section(group_title(group), group_text(group), [table], pictures, side_by_side=True)


def _scan(record: Mapping[str, Any], folder: Path, temporary: Path) -> Section:
    found = record["result"]
    everything = _read(folder / found["table"])
    score = "logit" if found["target"] else "predicted value"
    unit = "logit" if found["target"] else found["unit"]
    rows = [
        [
            row["region"],
            number(float(row["value"])),
            number(float(row["random"])),
            f"{float(row['cpa']):.4f}",
            row["dominant_pathway"] or "none",
        ]
        for row in _largest(everything, "value")
    ]
    table = Table(
        rows,
        ("region", "value", "random weights", "CPA", "dominant pathway"),
        note=f"The {len(rows)} of {len(everything)} regions with the largest absolute value; all "
        f"are in {record['scan']}{TABLE}. {_CPA.format(score=score)}",
        numbers=range(1, 4),
    )
    names = list(found["pathways"])
    sums = [sum(float(row[f"value_{name}"]) for row in everything) for name in names]
    weights = [found["pathways"][name]["weight"] for name in names]
    pictures = [
        Picture(
            save_figure(pathway_figure(names, sums, weights, unit), temporary / "pathways.png"),
            "Left: sum of the regions' values in each pathway. Right: its weight in CPA.",
            f"Sums of values and weights of the pathways {', '.join(names)}.",
        )
    ]
    if "attribution" in found:
        pictures = [*scan_pictures(record, folder, temporary), *pictures]
    return Section(record["scan"], tables=[table], pictures=pictures, side_by_side=True)


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv_records(stream))


def _largest(rows: Sequence[Mapping[str, str]], column: str) -> list[Mapping[str, str]]:
    return sorted(rows, key=lambda row: -abs(float(row[column])))[:_SHOWN]


@styled
def pathway_figure(
    names: Sequence[str], sums: Sequence[float], weights: Sequence[float], unit: str
) -> Figure:
    """Bars of the pathways: the sum of their values, and their weight in CPA.

    Args:
        names: P pathways.
        sums: of the values of all regions.
        weights: of CPA, adding up to 1 or all 0.
        unit: of the values; "" where none is known.
    """
    figure = Figure(figsize=(5.6, 0.9 + 0.32 * len(names)), layout="constrained")
    places = np.arange(len(names))
    for axes, values, label, colour in zip(
        figure.subplots(1, 2, sharey=True),
        (sums, weights),
        (f"sum of values ({unit})" if unit else "sum of values", "weight in CPA"),
        (BLUE, GREY),
        strict=True,
    ):
        axes.barh(places, values, color=colour)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel(label)
        axes.set_yticks(places, names)
    figure.axes[0].invert_yaxis()
    return figure
