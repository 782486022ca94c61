"""Tables, pictures and the page of ``Results/<DATASET>/<MODEL>/``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.data.regions.dataset import Cohort
from neuromamba.data.regions.holdout import HOLDOUT_NAME
from neuromamba.evaluation.result_files import CURVES, curve
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.neurossm.results import METRIC_NAMES, PARTS, FitResult, Results, summary
from neuromamba.pages.figures import BLUE, GREY, ORANGE, confusion_figure, save_figure, styled
from neuromamba.pages.page import Page, Picture, Section, Table, render
from neuromamba.pages.tables import version_table

_TITLES = {"cross_validation": "Cross-validation", HOLDOUT_NAME: "Holdout"}


def _cell(values: Mapping[str, float] | None) -> str:
    if values is None:
        return "-"
    if math.isnan(values["std"]):
        return f"{values['mean']:.3f}"
    return f"{values['mean']:.3f} ± {values['std']:.3f}"


def _rows(results: Results, part: str) -> list[list[str]]:
    """A row a model: name, fits, metrics over scans, and over subjects where they differ."""
    rows = []
    for name, of_model in results.items():
        found = summary(of_model).get(part)
        if found is None:
            continue
        fits = int(found["accuracy"]["fits"])
        rows.append([name, str(fits), *(_cell(found.get(metric)) for metric in METRIC_NAMES)])
        if "subject/accuracy" in found:
            cells = (_cell(found.get(f"subject/{metric}")) for metric in METRIC_NAMES)
            rows.append([f"{name}, subjects", str(fits), *cells])
    return rows


_HEADER = ("", "fits", *(name.replace("_", " ") for name in METRIC_NAMES))


def summary_text(results: Results) -> str:
    """Mean and standard deviation over fits, for the terminal."""
    lines = []
    for part in PARTS:
        rows = _rows(results, part)
        if not rows:
            continue
        table = [[_TITLES[part], *_HEADER[1:]], *rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(_HEADER))]
        lines += [
            "",
            *("  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) for r in table),
        ]
    return "\n".join(lines) + "\n"


def write_report(folder: Path, cohort: Cohort, results: Results, flags: Mapping[str, Any]) -> Path:
    """Draw ``curves.png`` and ``confusion_*.png``, write ``report.html``; returns its path.

    Args:
        folder: of the model.
        cohort: the data.
        results: the model's first, then those of the baselines.
        flags: of the command line.
    """
    name, own = next(iter(results.items()))
    sections = [_results_section(results)]
    pictures = []
    for part in PARTS:
        of_part = [result for result in own if result.part == part]
        if of_part:
            pictures.append(_confusion(folder, part, of_part, cohort.details.classes))
    sections.append(
        Section("Which classes are confused", pictures=pictures, side_by_side=len(pictures) > 1)
    )
    curves = training_curves(folder, own)
    if curves:
        figure = save_figure(_curves_figure(curves), folder / "curves.png")
        caption = "Training loss of each fit; the last epoch's weights are the ones that count."
        alt = f"Line plot of the cross entropy of {len(curves)} fits over optimiser steps."
        sections.append(Section("Training", pictures=[Picture(figure, caption, alt)]))
    sections.append(Section("Data", tables=[_data_table(cohort)]))
    given = [[key, str(value)] for key, value in sorted(flags.items()) if value is not None]
    sections.append(Section("Settings and versions", tables=[Table(given), version_table()]))
    page = Page(f"{name} on {cohort.name}", (_what(cohort, own),), sections)
    path = folder / "report.html"
    write_text_atomically(path, render(page))
    return path


def _what(cohort: Cohort, results: Sequence[FitResult]) -> str:
    seeds = sorted({result.seed for result in results})
    return (
        f"Classification of {cohort.details.target} from {len(cohort.scans)} scans of "
        f"{cohort.rois} regions. Seeds {', '.join(map(str, seeds))}; splits keep subjects "
        f"together. Values are mean ± standard deviation over fits; fits of one seed share "
        f"subjects, so that they are not independent."
    )


def _results_section(results: Results) -> Section:
    tables = [
        Table(rows, _HEADER, _TITLES[part], numbers=range(1, len(_HEADER)), strong=0)
        for part in PARTS
        if (rows := _rows(results, part))
    ]
    text = (
        "All models see the same scans in the same splits. FC: logistic regression on the "
        "correlations between regions (Fisher's z). MeanVariance: on each region's mean and "
        "variance, which NeuroSSM does not see. Their penalty is chosen in inner folds.",
    )
    return Section("Results", text, tables)


def _confusion(
    folder: Path, part: str, results: Sequence[FitResult], classes: Sequence[str]
) -> Picture:
    found = [result.predictions for result in results]
    scores = SubjectScores(
        tuple(str(scan) for one in found for scan in one.sample),
        np.concatenate([one.target for one in found]),
        np.concatenate([one.score for one in found]),
    )
    path = save_figure(
        confusion_figure(scores, classes, "test scans"), folder / f"confusion_{part}.png"
    )
    fits = "one fit" if len(results) == 1 else f"all {len(results)} fits together"
    caption = f"{_TITLES[part]}: test scans of {fits}."
    return Picture(path, caption, f"Confusion matrix of the {_TITLES[part].lower()} scans.")


Curve = tuple[str, np.ndarray, np.ndarray]


def training_curves(folder: Path, results: Sequence[FitResult]) -> list[Curve]:
    """(split, steps, losses) of each fit that has a curve."""
    curves = []
    for result in results:
        path = folder / f"seed_{result.seed}" / result.split / CURVES
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            curves.append((result.split, *curve(text, "train/loss")))
    return curves


@styled
def _curves_figure(curves: Sequence[Curve]) -> Figure:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    labelled: set[str] = set()
    for split, steps, losses in curves:
        part = HOLDOUT_NAME if split == HOLDOUT_NAME else PARTS[0]
        color, style = (ORANGE, "-") if part == HOLDOUT_NAME else (BLUE, "--")
        label = None if part in labelled else _TITLES[part].lower()
        labelled.add(part)
        axes.plot(steps, losses, color=color, ls=style, alpha=0.6, lw=1.2, label=label)
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set(xlabel="optimiser step", ylabel="cross entropy of a batch (nats)")
    axes.set_title("Training loss")
    axes.legend()
    return figure


def _data_table(cohort: Cohort) -> Table:
    details, scans = cohort.details, cohort.scans
    frames = [scan.series.shape[1] for scan in scans]
    rows = [
        ["scans", str(len(scans))],
        ["subjects", str(len({scan.subject for scan in scans}))],
        ["groups that are not split", str(len(set(cohort.groups)))],
        ["regions", f"{cohort.rois} ({details.atlas or 'atlas not named'})"],
        ["frames", f"{min(frames)} to {max(frames)}"],
        *(
            [name, f"{int((cohort.labels == label).sum())} scans"]
            for label, name in enumerate(details.classes)
        ),
        ["hash of the data", cohort.hash],
        *(["note", note] for note in cohort.notes),
    ]
    return Table(rows)
