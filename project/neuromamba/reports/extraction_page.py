"""The quality page of an extraction: degrees of freedom, coverage, correlations."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.text import clause
from neuromamba.data.regions.atlases import Atlas
from neuromamba.data.regions.extraction import Extracted, Extraction
from neuromamba.pages.figures import BLUE, GREY, save_figure, styled
from neuromamba.pages.page import Page, Picture, Section, Table, render

POOR = 0.5  # coverage below which a region is told of


def write_page(
    path: Path,
    runs: Sequence[Extracted],
    refused: Sequence[str],
    atlas: Atlas,
    extraction: Extraction,
) -> None:
    """Write the page."""
    rows = [
        [
            one.source.name,
            str(one.series.shape[1]),
            f"{one.tr:.3g}",
            str(one.confounds),
            f"{one.dof:.0f}",
            str(int((one.coverage == 0).sum())),
            str(int(((one.coverage > 0) & (one.coverage < POOR)).sum())),
            "; ".join(map(clause, one.notes)),
        ]
        for one in sorted(runs, key=lambda one: one.dof)
    ]
    header = (
        "run",
        "frames",
        "TR (s)",
        "confounds",
        "residual df",
        "empty regions",
        f"below {POOR:.0%}",
        "notes",
    )
    filters = [
        f"{flag} {value:g} Hz"
        for flag, value in (("high-pass", extraction.high_pass), ("low-pass", extraction.low_pass))
        if value
    ]
    summary = (
        f"{len(runs)} runs, {len(atlas.ids)} regions of {atlas.name}; confounds: "
        f"{extraction.confounds}; {', '.join(filters) or 'no filter'}.",
    )
    with tempfile.TemporaryDirectory() as folder:
        pictures = [
            Picture(
                save_figure(correlation_figure(runs), Path(folder) / "correlation.png"),
                "Mean correlation between regions over runs. Networks should show as blocks; "
                "one colour all over suggests global noise, none suggests no signal.",
                "Matrix of mean correlations between regions.",
            ),
            Picture(
                save_figure(coverage_figure(runs), Path(folder) / "coverage.png"),
                "Share of each region's voxels with signal: the mean over runs, and the worst.",
                "Coverage of each region.",
            ),
        ]
        sections = [Section("Correlations and coverage", pictures=pictures, side_by_side=True)]
        note = "Fewest residual degrees of freedom first."
        numbers = range(1, 7)
        sections.append(Section("Runs", tables=[Table(rows, header, note=note, numbers=numbers)]))
        if refused:
            table = Table([[text] for text in refused])
            sections.append(Section("Left out", tables=[table]))
        write_text_atomically(path, render(Page("ROI time series", summary, sections)))


@styled
def correlation_figure(runs: Sequence[Extracted]) -> Figure:
    """Mean over runs of the correlations; regions without signal are grey."""
    total = np.zeros((len(runs[0].series),) * 2)
    count = np.zeros_like(total)
    for one in runs:
        centred = one.series - one.series.mean(1, keepdims=True)
        length = np.linalg.norm(centred, axis=1)
        known = length > 0
        unit = centred[known] / length[known, None]
        place = np.ix_(known, known)
        total[place] += unit @ unit.T
        count[place] += 1
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("#d9d9d9")
    image = axes.imshow(mean, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.grid(False)
    axes.set(xlabel="region", ylabel="region")
    axes.set_title("Mean correlation")
    figure.colorbar(image, shrink=0.85)
    return figure


@styled
def coverage_figure(runs: Sequence[Extracted]) -> Figure:
    """Coverage of regions, sorted."""
    coverage = np.stack([one.coverage for one in runs])
    order = np.argsort(coverage.mean(0))
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(coverage.mean(0)[order], color=BLUE, label="mean over runs")
    axes.plot(coverage.min(0)[order], ".", color=GREY, ms=3, label="worst run")
    axes.set(xlabel="regions, sorted", ylabel="share of voxels with signal", ylim=(-0.03, 1.03))
    axes.set_title("Coverage")
    axes.legend(loc="lower right")
    return figure
