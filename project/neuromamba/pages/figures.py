"""Figures of runs: curves, ROC, confusion matrix. Each function returns a matplotlib ``Figure``.

Colours are those of Okabe and Ito, which colour-blind readers can distinguish; lines also differ in
style. ``Figure`` is used without pyplot, so nothing is global and no display is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, MaxNLocator

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import visible
from neuromamba.evaluation.calibration import Reliability
from neuromamba.evaluation.curves import (
    area_under_roc,
    average_precision,
    precision_recall_points,
    roc_points,
)
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.pages.slices import slice_letters

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6b6b6b"
_LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"))
_STYLE: Any = {  # Any: matplotlib's stubs spell out the admissible keys
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "hatch.linewidth": 0.5,
}
_DPI = 160

DrawT = TypeVar("DrawT", bound=Callable[..., Figure])


def styled(draw: DrawT) -> DrawT:
    """Draw with the style of this module, whatever the caller's matplotlib settings."""

    @wraps(draw)
    def wrapped(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            return draw(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def save_figure(figure: Figure, path: Path, for_paper: bool = False, dpi: float = _DPI) -> Path:
    """Write a PNG (or the format of the suffix), and a PDF ``for_paper``; returns the path.

    Names from data are in all kinds of texts of a figure, which become ``visible`` here.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _show_names(figure)
    if figure.get_layout_engine() is not None:
        # Once: each file would lay it out twice, which takes half as long as drawing it. With
        # "none" in place of None each file would still be drawn twice.
        figure.set_dpi(dpi)
        figure.draw_without_rendering()
        with matplotlib.rc_context(
            {"figure.autolayout": False, "figure.constrained_layout.use": False}
        ):  # so that None stands for no layout
            figure.set_layout_engine(None)
    figure.savefig(path, dpi=dpi)
    if for_paper:
        figure.savefig(path.with_suffix(".pdf"))
    return path


def _show_names(figure: Figure) -> None:
    """Make the texts of a figure visible, and what is between dollar signs no formula."""

    def shown(text: str) -> str:
        return re.sub(r"(?<!\\)\$", r"\\$", visible(text, keep="\n"))

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(shown(text.get_text()))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_locator(), FixedLocator):  # they are names, not numbers
                labels = [shown(label.get_text()) for label in axis.get_ticklabels()]
                if any(labels):  # an axis that shares another's names has none of its own
                    axis.set_ticklabels(labels)


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of this size, in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def draw_letters(axes: Axes, axis: int) -> None:
    """Write the directions left and right into a slice, and remove ticks and frame."""
    left, right, *_ = slice_letters(axis)
    for letter, x, side in ((left, 0.02, "left"), (right, 0.98, "right")):
        axes.text(
            x, 0.98, letter, transform=axes.transAxes, ha=side, va="top", weight="bold", size=9
        ).set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1})
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.grid(False)


def _steps_axis(axes: Axes) -> None:
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


@styled
def roc_figure(scores: Mapping[str, SubjectScores], positive: str = "class 1") -> Figure:
    """ROC curves of a two-class problem, AUROC in the legend.

    Args:
        scores: label of the curve -> scores of the same test subjects.
        positive: name of class 1.

    Raises:
        UserInputError: more than two classes.
    """
    figure, axes = new_axes(5.0, 5.8)
    for (label, one), (color, line) in zip(scores.items(), _LINES, strict=False):
        if one.score.shape[1] != 2:
            raise UserInputError("ROC: drawn for two classes only.")
        if not one.is_finite or len(np.unique(one.target)) < 2 or not np.ptp(one.score[:, 1]):
            continue  # not defined, or the line of chance
        false, true, _ = roc_points(one.target, one.score[:, 1])
        label = f"{label}: {one.metrics()['auroc']:.3f}"
        axes.plot(false, true, color=color, linestyle=line, label=label)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="chance: 0.5")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), box_aspect=1)
    axes.set_xlabel(f"false positive rate (positive: {positive})")
    axes.set_ylabel("true positive rate")
    axes.set_title(f"ROC on {len(next(iter(scores.values())).target)} held-out subjects")
    below: Any = {"loc": "upper left", "bbox_to_anchor": (0, -0.14), "borderaxespad": 0}
    axes.legend(title="AUROC", alignment="left", **below)
    return figure


@styled
def class_roc_figure(scores: SubjectScores, class_names: Sequence[str]) -> Figure:
    """ROC curves of each class against the rest, for more than two classes."""
    figure, axes = new_axes(5.0, 5.8)
    colors = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for label, name in enumerate(class_names):
        truth = scores.target == label
        if truth.all() or not truth.any():
            continue  # not defined
        false, true, _ = roc_points(truth, scores.score[:, label])
        area = area_under_roc(truth, scores.score[:, label])
        axes.plot(false, true, color=colors[label % 20], label=f"{name}: {area:.3f}")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="chance: 0.5")
    axes.set(
        xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="share of the other classes called it",
        ylabel="share of the class found",
    )  # fmt: skip
    axes.set_title("Each class against the rest (AUROC)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def precision_recall_figure(scores: Mapping[str, SubjectScores], positive: str) -> Figure:
    """Precision over recall of a two-class problem, average precision in the legend."""
    figure, axes = new_axes(5.0, 5.8)
    first = next(iter(scores.values()))
    for (label, one), (color, line) in zip(scores.items(), _LINES, strict=False):
        if not one.is_finite or len(np.unique(one.target)) < 2 or not np.ptp(one.score[:, 1]):
            continue
        precision, recall = precision_recall_points(one.target, one.score[:, 1])
        label = f"{label}: {average_precision(one.target, one.score[:, 1]):.3f}"
        axes.plot(recall, precision, color=color, linestyle=line, label=label, ds="steps-post")
    share = float(first.target.mean())
    label = f"chance: {share:.3f}"
    axes.axhline(share, color=GREY, linestyle=":", linewidth=1, label=label)
    axes.set(
        xlim=(-0.01, 1.01), ylim=(-0.01, 1.03), xlabel=f"recall of {positive}",
        ylabel=f"precision of {positive}",
    )  # fmt: skip
    axes.set_title("Precision and recall (average precision)")
    figure.legend(loc="outside lower center", ncols=1)
    return figure


@styled
def reliability_figure(found: Reliability) -> Figure:
    """Accuracy over confidence in bins; the area of a dot is its number of subjects."""
    figure, axes = new_axes(5.0, 4.6)
    filled = found.size > 0
    area = 20 + 380 * found.size[filled] / found.size.sum()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="calibrated")
    axes.plot(found.confidence[filled], found.accuracy[filled], color=BLUE, lw=1)
    axes.scatter(found.confidence[filled], found.accuracy[filled], s=area, color=BLUE, alpha=0.6)
    axes.set(
        xlim=(0, 1.02), ylim=(-0.03, 1.05), xlabel="confidence (highest probability)",
        ylabel="share classified correctly",
    )  # fmt: skip
    axes.set_title(f"Calibration: expected error {found.expected_calibration_error:.3f}")
    axes.legend(loc="upper left")
    return figure


def hardly_varies(scores: SubjectScores) -> bool:
    """Whether the predictions of a regression vary by less than 5 % of the true values' SD."""
    return bool(scores.score[:, 0].std() < 0.05 * scores.target.std())


@styled
def scatter_figure(scores: SubjectScores, name: str, unit: str = "") -> Figure:
    """Predicted over true values of a regression, in ``unit`` if it has one.

    The title has no Pearson r where the predictions hardly vary: it would be that of their noise.
    """
    figure, axes = new_axes(5.0, 4.6)
    truth, guess = scores.target, scores.score[:, 0]
    low, high = float(min(truth.min(), guess.min())), float(max(truth.max(), guess.max()))
    axes.plot([low, high], [low, high], color=GREY, linestyle=":", label="equal")
    axes.plot(truth, guess, "o", color=BLUE, ms=5, alpha=0.6)
    shown = f" ({unit})" if unit else ""
    axes.set(xlabel=f"true {name}{shown}", ylabel=f"predicted {name}{shown}")
    found = scores.metrics()
    error = f"absolute error {found['mae']:.3g}{f' {unit}' if unit else ''}"
    if hardly_varies(scores):
        axes.set_title(f"Predictions hardly vary\n{error}")
    elif np.isnan(found["pearson_r"]):
        axes.set_title(f"Pearson r not defined\n{error}")
    else:
        axes.set_title(f"Pearson r {found['pearson_r']:.3f}\n{error}")
    axes.legend(loc="upper left")
    return figure


@styled
def confusion_figure(
    scores: SubjectScores, class_names: Sequence[str], what: str = "held-out subjects"
) -> Figure:
    """Confusion matrix: subjects (``what``), and per cent of the row (the true class)."""
    classes = len(class_names)
    counts = np.zeros((classes, classes), dtype=int)
    known = np.isfinite(scores.score).all(axis=1)  # the others have no predicted class
    np.add.at(counts, (scores.target[known], scores.score[known].argmax(axis=1)), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    many = classes > 3  # names no longer fit beside each other
    # Seven classes are to be readable on a phone, which shows 6.3 inches: hence no bar of colours,
    # whose values stand in the cells.
    figure, axes = new_axes(*((2.3 + 0.56 * classes, 1.8 + 0.54 * classes) if many else (5.0, 4.4)))
    image = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.ndindex(counts.shape):
        axes.text(
            column,
            row,
            f"{counts[row, column]}\n{100 * share[row, column]:.0f} %",
            ha="center",
            va="center",
            fontsize=9.5 if many else 13,
            color="white" if share[row, column] > 0.5 else "black",
        )
    labels = [f"{name} (n = {n})" for name, n in zip(class_names, counts.sum(axis=1), strict=True)]
    turned: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if many else {}
    axes.set_xticks(range(classes), class_names, **turned)
    axes.set_yticks(range(classes), labels, rotation=0 if many else 90, va="center")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"Confusion matrix of the {what}")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if not many:
        figure.colorbar(image, label="per cent of the true class", shrink=0.85)
    return figure
