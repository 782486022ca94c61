"""The page of the reference analysis: the matrix of scores, and both maps of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.data.regions.atlases import Atlas
from neuromamba.neurossm.attribution_files import map_name
from neuromamba.neurossm.attribution_report import GroupMap, glass_brain
from neuromamba.neurossm.reference_scores import Scores
from neuromamba.pages.figures import save_figure, styled
from neuromamba.pages.page import Page, Picture, Section, Table, render


class _Class(Protocol):
    """``run_cpa_analysis.ClassMaps``."""

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> GroupMap: ...
    @property
    def terms(self) -> tuple[str, ...]: ...
    @property
    def reference(self) -> np.ndarray: ...
    @property
    def similarity_to_random_weights(self) -> float | None: ...


def write_reference_page(
    folder: Path,
    name: str,
    classes: Sequence[_Class],
    scores: Scores,
    atlas: Atlas,
    record: Mapping[str, Any],
) -> Path:
    """Draw ``*.png`` and write ``report.html`` into a folder; returns the page."""
    names = [one.name for one in classes]
    matrix = []
    if len(classes) > 1:  # one number needs no picture
        drawn = save_figure(matrix_figure(scores.correlation, names), folder / "matrix.png")
        matrix = [Picture(drawn, "All classes against all references.", "Matrix of scores.")]
    rows = [
        [
            one.name,
            str(one.group.scans),
            ", ".join(one.terms),
            f"{scores.correlation[i, i]:.3f}",
            f"{scores.p[i, i]:.3f}",
            "-"
            if one.similarity_to_random_weights is None
            else f"{one.similarity_to_random_weights:.2f}",
        ]
        for i, one in enumerate(classes)
    ]
    header = ("class", "scans", "terms", "partial correlation", "p", "like random weights")
    note = (
        f"p: share of {record['draws']} random maps ({record['null']}) that agree as much or more. "
        f"Like random weights: rank correlation of the CPA map with that of an untrained model."
    )
    text = (
        "Maps are ranked; constant, region size, and the mean CPA and reference maps of the other "
        "classes are regressed out of both before they are correlated.",
    )
    sections = [
        Section(
            "Scores",
            text,
            (Table(rows, header, note=note, numbers=(1, 3, 4, 5)),),
            matrix,
        )
    ]
    for one in classes:
        pictures = []
        for what, values in (("cpa", one.group.cpa), ("reference", one.reference)):
            path = folder / f"{map_name(one.name)}_{what}.png"
            title = f"CPA, {one.name}" if what == "cpa" else f"Neurosynth, {one.name}"
            signed, alt = what == "reference", f"Glass brain: {title}."
            pictures.append(
                glass_brain(atlas.image_of(values), path, title, title, alt, signed=signed)
            )
        sections.append(Section(one.name, pictures=pictures))
    summary = (
        f"Calibrated Pathway Attribution of {name} beside the Neurosynth association maps of each "
        f"class's terms, in the regions of {atlas.name}.",
    )
    path = folder / "report.html"
    write_text_atomically(path, render(Page(f"CPA and Neurosynth: {name}", summary, sections)))
    return path


@styled
def matrix_figure(correlation: np.ndarray, names: Sequence[str]) -> Figure:
    """Partial correlations, CPA maps in rows and references in columns."""
    size = 2.0 + 0.5 * len(names)  # seven classes are 6.3 inches, which a phone still shows
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(correlation, cmap="RdBu_r", vmin=-1, vmax=1)
    for row, column in np.ndindex(correlation.shape):
        value = correlation[row, column]
        color = "white" if abs(value) > 0.6 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=color)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="Neurosynth reference of", ylabel="CPA map of")
    axes.set_title("Partial correlation")
    axes.grid(False)
    figure.colorbar(image, shrink=0.8)
    return figure
