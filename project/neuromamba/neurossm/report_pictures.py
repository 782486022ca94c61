"""Figures of the page of an evaluation that are over all fits: confusions, training curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from neuromamba.data.regions.holdout import HOLDOUT_NAME
from neuromamba.evaluation.result_files import CURVES, curve
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.neurossm.report_results import PART_TITLES
from neuromamba.neurossm.results import PARTS, FitResult
from neuromamba.pages.figures import BLUE, GREY, ORANGE, confusion_figure, save_figure, styled
from neuromamba.pages.page import Picture


def all_confusions(
    folder: Path, part: str, results: Sequence[FitResult], classes: Sequence[str]
) -> Picture:
    """Confusion matrix of the test scans of several fits together.

    Args:
        folder: receives the figure.
        part: of ``PARTS``.
        results: the fits.
        classes: names.
    """
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
    caption = f"{PART_TITLES[part]}: test scans of {fits}."
    return Picture(path, caption, f"Confusion matrix of the {PART_TITLES[part].lower()} scans.")


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
def curves_figure(curves: Sequence[Curve], loss: str) -> Figure:
    """Training loss of each fit.

    Args:
        curves: of ``training_curves``.
        loss: what it is, with its unit.
    """
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    labelled: set[str] = set()
    for split, steps, losses in curves:
        part = HOLDOUT_NAME if split == HOLDOUT_NAME else PARTS[0]
        color, style = (ORANGE, "-") if part == HOLDOUT_NAME else (BLUE, "--")
        label = None if part in labelled else PART_TITLES[part].lower()
        labelled.add(part)
        axes.plot(steps, losses, color=color, ls=style, alpha=0.6, lw=1.2, label=label)
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set(xlabel="optimiser step", ylabel=f"{loss} of a batch")
    axes.set_title("Training loss")
    axes.legend()
    return figure
