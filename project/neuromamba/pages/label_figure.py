"""Draw a metric over the number of labelled subjects, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuromamba.evaluation.intervals import Interval
from neuromamba.pages.figures import GREY, new_axes, styled


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A model's values.

    Attributes:
        name: for the legend.
        color, line, marker: as matplotlib has them.
        points: number of labelled subjects a class, or "all" -> value with its interval.
    """

    name: str
    color: str
    line: str
    marker: str
    points: Mapping[str, Interval]


def draw_curve(axes: Axes, x: np.ndarray, curve: Curve) -> None:
    """Draw the points at x [n] with bars for their intervals."""
    values = np.array([point.value for point in curve.points.values()])
    low = np.array([point.low for point in curve.points.values()])
    high = np.array([point.high for point in curve.points.values()])
    axes.errorbar(
        x,
        values,
        yerr=np.nan_to_num(np.clip([values - low, high - values], 0, None)),
        elinewidth=1,
        capsize=2,
        label=curve.name,
        color=curve.color,
        linestyle=curve.line,
        marker=curve.marker,
        markersize=4.5,
    )


@styled
def label_figure(curves: Sequence[Curve], *, title: str, label: str, chance: float) -> Figure:
    """Draw all curves over the numbers of labels that any of them has.

    Args:
        curves: of the models.
        title: of the figure.
        label: of the values.
        chance: a dotted line is drawn there.
    """
    figure, axes = new_axes(5.0, 5.6)
    ticks = list(dict.fromkeys(tick for curve in curves for tick in curve.points))
    ticks.sort(key=lambda tick: (not tick.isdigit(), int(tick) if tick.isdigit() else 0))
    for number, curve in enumerate(curves):
        shift = 0.06 * (number - (len(curves) - 1) / 2)  # bars of one number side by side
        draw_curve(axes, np.array([ticks.index(tick) for tick in curve.points]) + shift, curve)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlabel("labelled subjects a class")
    axes.axhline(chance, color=GREY, linestyle=":", linewidth=1, label=f"chance: {chance:.2g}")
    axes.set_ylabel(label)
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
