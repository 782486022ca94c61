"""The figure of label efficiency shows the values and intervals that it is given."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.container import ErrorbarContainer

from neuromamba.evaluation.intervals import Interval
from neuromamba.pages.label_figure import Curve, label_figure


def curve(name: str, points: dict[str, Interval]) -> Curve:
    return Curve(name=name, color="#0072B2", line="-", marker="o", points=points)


def test_points_stand_over_their_numbers() -> None:
    some = curve("some", {"16": Interval(0.8, 0.7, 0.9), "4": Interval(0.6, 0.5, 0.65)})
    every = curve("every", {"4": Interval(0.5, math.nan, math.nan), "all": Interval(1.0, 1.0, 1.0)})
    figure = label_figure([some, every], title="t", label="AUROC", chance=0.5)
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["4", "16", "all"]
    drawn = [one for one in axes.containers if isinstance(one, ErrorbarContainer)]
    assert [one.get_label() for one in drawn] == ["some", "every"]
    line, _, (bars,) = drawn[0].lines
    assert np.round(line.get_xdata()).tolist() == [1, 0]
    assert list(line.get_ydata()) == [0.8, 0.6]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[0.7, 0.9], [0.5, 0.65]])
    _, _, (none,) = drawn[1].lines
    np.testing.assert_allclose(none.get_segments()[0][:, 1], [0.5, 0.5])  # not defined: no bar
