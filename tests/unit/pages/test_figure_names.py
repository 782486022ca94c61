"""Names from data that figures show: what cannot be seen in them is written as its code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from neuromamba.common.text import is_invisible
from neuromamba.evaluation.intervals import Interval
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.inference.subject_labels import SubjectLabels
from neuromamba.pages.figures import (
    class_roc_figure,
    confusion_figure,
    new_axes,
    precision_recall_figure,
    roc_figure,
    save_figure,
    scatter_figure,
)
from neuromamba.pages.label_figure import Curve, label_figure
from neuromamba.reports.embedding_page import map_figure
from neuromamba.reports.region_explanation_page import pathway_figure
from tests.helpers.paths import PACKAGE

NAME = "a\u202eb\x1b[31m$x_{$"  # turns the direction, colours a terminal, a broken formula
SHOWN = "a\\u202eb\\u001b[31m"
TWO = SubjectScores(
    ("a", "b", "c", "d"),
    np.array([0, 0, 1, 1]),
    np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]]),
)
VALUES = SubjectScores(("a", "b", "c"), np.array([1.0, 2, 3]), np.array([[1.5], [2], [2.5]]))
POINTS, SHARES = np.arange(8.0).reshape(4, 2), np.array([0.6, 0.3])


def _everywhere() -> Figure:
    """A figure with the name in every kind of text."""
    figure, axes = new_axes(4, 4)
    axes.plot([0, 1], [0, 1], label=NAME)
    axes.set(title=NAME, xlabel=NAME, ylabel=NAME)
    axes.set_xticks([0, 1], [NAME, "b"])
    axes.annotate(NAME, (0.5, 0.5))
    axes.legend(title=NAME)
    figure.suptitle(NAME)
    figure.colorbar(axes.imshow([[0.0, 1.0]]), label=NAME)
    return figure


FIGURES = {
    "every kind of text": _everywhere,
    "roc": lambda: roc_figure({NAME: TWO}, NAME),
    "roc of classes": lambda: class_roc_figure(TWO, [NAME, "b"]),
    "precision": lambda: precision_recall_figure({NAME: TWO}, NAME),
    "scatter": lambda: scatter_figure(VALUES, NAME, NAME),
    "confusion": lambda: confusion_figure(TWO, [NAME, "b"]),
    "labels": lambda: label_figure(
        [
            Curve(
                name=NAME,
                color="#0072B2",
                line="-",
                marker="o",
                points={NAME: Interval(0.5, 0.4, 0.6)},
            )
        ],
        title=NAME,
        label=NAME,
        chance=0.5,
    ),
    "map of classes": lambda: map_figure(
        POINTS, SHARES, "abcd", SubjectLabels(NAME, {"a": 0, "b": 1}, (NAME, "other"))
    ),
    "map of values": lambda: map_figure(
        POINTS, SHARES, "abcd", SubjectLabels(NAME, {"a": 1.5, "b": 2.5}, ())
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_all_texts_are_visible(name: str, tmp_path: Path) -> None:
    figure = FIGURES[name]()
    save_figure(figure, tmp_path / "a.png")
    save_figure(figure, tmp_path / "b.png")  # nothing is done twice
    FigureCanvasAgg(figure).draw()
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert any(SHOWN + "\\$x_{\\$" in text for text in texts)
    assert not [one for text in texts for one in text if is_invisible(one) and one != "\n"]
    assert not [text for text in texts if "\\\\$" in text]


def test_figures_are_written_in_one_place() -> None:
    """Else a figure could be written without that."""
    found = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\.(savefig|print_figure|print_png)\(", path.read_text(encoding="utf-8"))
    ]
    assert found == ["figures.py"]


def test_names_on_a_shared_axis_stay(tmp_path: Path) -> None:
    """The second axes has no names of its own: its empty ones are not those of both."""
    figure = pathway_figure(["raw_1", "diff_1"], [0.2, -0.1], [0.7, 0.3], "logit")
    save_figure(figure, tmp_path / "a.png")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["raw_1", "diff_1"]
