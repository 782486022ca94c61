"""The page and the printed table of a probe: the curve over labelled subjects, then the rows."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from neuromamba.common.atomic_files import make_folder, write_text_atomically
from neuromamba.config.names import LAST_LAYER
from neuromamba.evaluation.intervals import CONFIDENCE, RESAMPLES, Interval
from neuromamba.evaluation.probe_rows import PRETRAINED, RAW, UNTRAINED, ProbeRow, metrics_of
from neuromamba.evaluation.probes import NEIGHBOURS
from neuromamba.fmamba.probing import ProbeResult
from neuromamba.fmamba.raw_features import (
    AUTOCORRELATION,
    CONNECTIVITY,
    DEVIATION,
    MEAN_IMAGE,
)
from neuromamba.pages.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    new_axes,
    save_figure,
    styled,
)
from neuromamba.pages.label_figure import Curve, draw_curve, label_figure
from neuromamba.pages.page import Page, Picture, Section, Table, render, wrap_command
from neuromamba.pages.tables import metric_label

_RAW_NAMES = {
    AUTOCORRELATION: "lag-1 autocorrelation of each place",
    DEVIATION: "temporal SD of each place",
    CONNECTIVITY: "FC (functional connectivity)",
    MEAN_IMAGE: "mean image",
}
_POOL_NAMES = {"mean": "mean", "mean_sd": "mean and SD", "regions": "regions", "places": "places"}
_COLORS = {
    PRETRAINED: BLUE,
    UNTRAINED: ORANGE,
    CONNECTIVITY: GREEN,
    DEVIATION: PURPLE,
    MEAN_IMAGE: GREY,
}
_STYLES: dict[str, tuple[str, str]] = {
    "mean_sd": ("-", "o"),
    "mean": ("--", "s"),
    "regions": (":", "D"),
    "places": ("-.", "P"),
    CONNECTIVITY: ("-.", "^"),
    DEVIATION: (":", "v"),
    MEAN_IMAGE: (":", "x"),
}


def write_page(found: ProbeResult, path: Path, run: str, command: str) -> None:
    """Draw the figures and write the page, one file that needs no network.

    Args:
        found: by ``fmamba.probing.probe``.
        path: of the page.
        run: what was probed, as the user named it.
        command: that made the page.

    Raises:
        UserInputError: its folder cannot be written.
    """
    make_folder(path.parent, "--output")
    with tempfile.TemporaryDirectory() as folder:
        text = render(probe_page(found, run, command, Path(folder)))
    write_text_atomically(path, text)


def probe_page(found: ProbeResult, run: str, command: str, figures: Path) -> Page:
    """Put the page together; the figures are drawn into a folder."""
    label = metric_label(metrics_of(len(found.class_names) or 1)[0])
    sections = [
        *_curve_section(found, label, figures),
        *_layer_sections(found, label, figures),
        _raw_section(found),
        Section("How to read it", _explanation(found), code=wrap_command(command)),
    ]
    return Page(
        title=f"Probes of frozen features: {found.task}",
        summary=(
            f"{run}: what linear and nearest-neighbour models read from its features, without "
            f"training it further. {_counted(found)}",
            *found.notes,
        ),
        sections=sections,
        notice=(
            "This checkpoint was trained with labels. Its features are not those of a "
            "pre-training, and say nothing of it."
            if found.supervised
            else ""
        ),
    )


def _counted(found: ProbeResult) -> str:
    if not found.class_names:
        return f"Fitted on {found.fitted[0]} subjects, tested on {found.tested[0]}."

    def listed(counts: Sequence[int]) -> str:
        pairs = zip(counts, found.class_names, strict=True)
        return ", ".join(f"{count} {name}" for count, name in pairs)

    return (
        f"Fitted on {sum(found.fitted)} subjects ({listed(found.fitted)}), tested on "
        f"{sum(found.tested)} ({listed(found.tested)})."
    )


def _curve_section(found: ProbeResult, label: str, figures: Path) -> list[Section]:
    rows = [row for row in found.rows if row.subjects_a_class is not None]
    if not rows:
        return []
    curves = _curves(rows)
    draws = rows[0].draws
    path = save_figure(probe_label_figure(found, label), figures / "labels.png")
    words = "; ".join(
        f"{name}: " + ", ".join(f"{row.value:.2f} with {row.subjects_a_class}" for row in curve)
        for name, curve in curves
    )
    caption = (
        f"Linear probes: mean over {draws} draws of the labelled subjects, all on the same test "
        f"subjects. Bars: {CONFIDENCE:.0%} intervals of {RESAMPLES} bootstrap samples of test "
        f"subjects and draws. 'all': every training and validation subject."
    )
    sizes = sorted({row.subjects_a_class for row in rows if row.subjects_a_class is not None})
    table = Table(
        [
            (
                name,
                *(
                    next((_shown(row) for row in curve if row.subjects_a_class == size), "")
                    for size in sizes
                ),
            )
            for name, curve in curves
        ],
        ("features", *(f"{size} a class" for size in sizes)),
        f"{label} with few labelled subjects",
        numbers=range(1, len(sizes) + 1),
    )
    picture = Picture(path, caption, f"{label} over labelled subjects a class. {words}")
    return [
        Section(f"{label} over the number of labelled subjects", pictures=[picture]),
        Section("Few labels in numbers", tables=[table]),
    ]


def _layer_sections(found: ProbeResult, label: str, figures: Path) -> list[Section]:
    path = save_figure(layer_figure(found, label), figures / "layers.png")
    picture = Picture(
        path,
        f"Linear probes with all labels, with {CONFIDENCE:.0%} intervals over test subjects. "
        f"Points of one layer are set side by side.",
        f"{label} of linear probes over layers, pre-trained and untrained",
    )
    tables = []
    for probe, name in (("linear", "Linear probe"), ("knn", "Nearest neighbours")):
        for metric in metrics_of(len(found.class_names) or 1):
            tables.append(_layer_table(found, probe, metric, f"{name}: {metric_label(metric)}"))
    return [
        Section("Layers and pools, all labels", pictures=[picture]),
        Section("Layers and pools in numbers", tables=tables),
    ]


def _layer_table(found: ProbeResult, probe: str, metric: str, title: str) -> Table:
    models = (PRETRAINED, UNTRAINED)
    rows = []
    for layer in found.layers:
        for pool in found.pools:
            cells = [
                _shown(_only(found.rows, layer, pool, model, probe, metric)) for model in models
            ]
            rows.append((layer, _POOL_NAMES[pool], *cells))
    return Table(rows, ("layer", "pool", *models), title, numbers=(2, 3))


def _raw_section(found: ProbeResult) -> Section:
    metrics = metrics_of(len(found.class_names) or 1)
    rows = []
    for feature, name in _RAW_NAMES.items():
        cells = [
            _shown(_only(found.rows, RAW, feature, RAW, probe, metric))
            for probe in ("linear", "knn")
            for metric in metrics
        ]
        rows.append((name, *cells))
    heads = [
        f"{probe}: {metric_label(metric)}"
        for probe in ("linear", "nearest neighbours")
        for metric in metrics
    ]
    table = Table(rows, ("feature", *heads), numbers=range(1, len(heads) + 1))
    text = (
        "Computed from the same windows, but not from the scaling of the model: each run is "
        "divided by one standard deviation, so that voxels keep their own means and deviations.",
    )
    return Section("Raw signal", text, tables=[table])


def _explanation(found: ProbeResult) -> tuple[str, ...]:
    model = "L2 logistic regression" if found.class_names else "Ridge regression"
    return (
        "The backbone is frozen. The output of a layer is pooled over the tokens of each window "
        "(mean; mean and standard deviation over time; both in each cell of a coarse grid; places: "
        "the mean over time at each place), and averaged over a subject's windows.",
        f"Linear: {model} of standardised features; its penalty is chosen in inner folds of the "
        f"training and validation subjects. Nearest neighbours: the {NEIGHBOURS} most similar "
        f"subjects by the cosine of standardised features.",
        "Untrained: the same architecture with random weights. What the pre-trained features "
        "hold more than these, and more than the raw signal, was learned.",
        f"In brackets: {CONFIDENCE:.0%} intervals over test subjects ({RESAMPLES} bootstrap "
        f"samples). They do not cover other seeds and splits. Layers and pools were not selected: "
        f"the highest of many values is too good.",
    )


def _only(
    rows: Iterable[ProbeRow], layer: str, pool: str, model: str, probe: str, metric: str
) -> ProbeRow:
    key = (layer, pool, model, probe, metric, None)
    for row in rows:
        found = (row.layer, row.pool, row.model, row.probe, row.metric, row.subjects_a_class)
        if found == key:
            return row
    raise KeyError(key)


def _shown(row: ProbeRow) -> str:
    return str(Interval(row.value, row.low, row.high))


def _name(row: ProbeRow) -> str:
    if row.model == RAW:
        return {CONNECTIVITY: "FC", DEVIATION: "raw temporal SD", MEAN_IMAGE: "mean volume"}[
            row.pool
        ]
    return f"{row.model}, {_POOL_NAMES[row.pool]}"


def _curves(rows: Sequence[ProbeRow]) -> list[tuple[str, list[ProbeRow]]]:
    """Name -> rows by size, in the order of the rows."""
    curves: dict[str, list[ProbeRow]] = {}
    for row in rows:
        curves.setdefault(_name(row), []).append(row)
    return list(curves.items())


def _curve(name: str, rows: Sequence[ProbeRow], everybody: ProbeRow | None = None) -> Curve:
    line, marker = _STYLES[rows[0].pool]
    points = {str(row.subjects_a_class): Interval(row.value, row.low, row.high) for row in rows}
    if everybody is not None:
        points["all"] = Interval(everybody.value, everybody.low, everybody.high)
    color = _COLORS[rows[0].pool if rows[0].model == RAW else rows[0].model]
    return Curve(name=name, color=color, line=line, marker=marker, points=points)


def _finish(axes: Axes, found: ProbeResult, label: str) -> None:
    classes = len(found.class_names)
    chance = 0.5 if classes == 2 else 1 / classes if classes else 0.0
    axes.axhline(chance, color=GREY, linestyle=":", linewidth=1, label=f"chance: {chance:.2g}")
    axes.set_ylabel(label)


def probe_label_figure(found: ProbeResult, label: str) -> Figure:
    """Scores of linear probes over the number of labelled subjects a class, with intervals."""
    curves = []
    for name, rows in _curves([row for row in found.rows if row.subjects_a_class is not None]):
        one = rows[0]
        everybody = _only(found.rows, one.layer, one.pool, one.model, "linear", one.metric)
        curves.append(_curve(name, rows, everybody))
    return label_figure(
        curves,
        title=f"Linear probes of frozen features: {found.task}",
        label=label,
        chance=1 / len(found.class_names),
    )


@styled
def layer_figure(found: ProbeResult, label: str) -> Figure:
    """Scores of linear probes with all labels over layers, with intervals."""
    figure, axes = new_axes(5.0, 5.6)
    metric = metrics_of(len(found.class_names) or 1)[0]
    kinds = [(model, pool) for model in (PRETRAINED, UNTRAINED) for pool in found.pools]
    for number, (model, pool) in enumerate(kinds):
        rows = [_only(found.rows, layer, pool, model, "linear", metric) for layer in found.layers]
        shift = 0.06 * (number - (len(kinds) - 1) / 2)
        points = {row.layer: Interval(row.value, row.low, row.high) for row in rows}
        look = dataclasses.replace(_curve(_name(rows[0]), rows), points=points)
        draw_curve(axes, np.arange(len(rows)) + shift, look)
    axes.xaxis.set_major_locator(FixedLocator(range(len(found.layers))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(found.layers)
    _finish(axes, found, label)
    axes.set_title("Layers, all labels")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def result_lines(found: ProbeResult) -> list[str]:
    """The linear probes of the last features and of the raw signal, for the terminal."""
    shown = [
        row
        for row in found.rows
        if row.probe == "linear" and (row.layer == LAST_LAYER or row.model == RAW)
    ]
    lines = [_counted(found), *found.notes, ""]
    lines.append(f"{'linear probe':<40}{'labels a class':>15}  {'metric':<18} value")
    for row in shown:
        name = row.pool.replace("_", " ")
        size = "all" if row.subjects_a_class is None else str(row.subjects_a_class)
        head = f"{row.model}, {name}"
        lines.append(f"{head:<40}{size:>15}  {metric_label(row.metric):<18} {_shown(row)}")
    return lines
