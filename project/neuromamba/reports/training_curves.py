"""Curves of a training, from its run folder."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from neuromamba.fmamba.run_folder import RunFolder
from neuromamba.pages.figures import BLUE, GREEN, GREY, ORANGE, _steps_axis, new_axes, styled


@styled
def pretraining_curves(run: RunFolder) -> Figure:
    """Training and validation loss over steps, beside the losses of the two naive predictors."""
    figure, axes = new_axes(5.6, 4.4)
    steps, losses = run.curve("train/loss")
    axes.plot(steps, losses, color=BLUE, alpha=0.45, linewidth=1.2, label="training batch")
    steps, losses = run.curve("val/loss")
    axes.plot(steps, losses, color=BLUE, marker="o", markersize=4, label="validation subjects")
    for name, label, color, line in (
        ("val/persistence_loss", "repeat the previous token", ORANGE, "--"),
        ("val/mean_token_loss", "predict the mean token", GREEN, "-."),
    ):
        _, values = run.curve(name)
        if values.size:
            label = f"{label} ({values[-1]:.3g})"
            axes.axhline(values[-1], color=color, linestyle=line, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("mean squared error (scaled units²)")
    _steps_axis(axes)
    axes.set_title("Pre-training: loss of next-token prediction")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def watched_names(run: RunFolder) -> list[str]:
    """Metrics that were watched beside their level of chance, and were defined once at least."""
    beside = "_chance"
    names = [name.removesuffix(beside) for name in run.metrics if name.endswith(beside)]
    return sorted(name for name in names if np.isfinite(run.curve(name)[1]).any())


@styled
def watched_figure(run: RunFolder) -> Figure:
    """How well the features predict known facts, over steps, each with the level of chance.

    Raises:
        ValueError: there are none, see ``watched_names``.
    """
    names = watched_names(run)
    columns = min(len(names), 2)  # more would be too small on a phone
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(5.6, 2.0 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes, name in zip(panels.flat, names, strict=False):
        watched = name.startswith("val/watch_")  # those of neighbours use the mean alone
        if watched:
            axes.plot(*run.curve(name), color=BLUE, marker="o", ms=3, label="mean and SD over time")
        of_mean = run.curve(f"{name}_mean" if watched else name)
        axes.plot(*of_mean, color=ORANGE, ls="--", marker="s", ms=3, label="mean over tokens")
        steps, chance = run.curve(f"{name}_chance")
        axes.plot(steps, chance, color=GREY, ls=":", label="level of chance")
        limit = run.curve(f"{name}_limit")[1]
        if limit.size:
            axes.fill_between(
                steps, chance, limit, color=GREY, alpha=0.2, lw=0, label="chance, 99 %"
            )
        axes.set_title(name.removeprefix("val/watch_").removeprefix("val/knn_"))
        axes.margins(y=0.15)
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    for axes in panels.flat[: len(names)][-columns:]:
        _steps_axis(axes)
        axes.xaxis.set_tick_params(labelbottom=True)
    found: dict[str, Any] = {}
    for axes in panels.flat[: len(names)]:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=2)
    return figure


@styled
def downstream_curves(run: RunFolder) -> Figure:
    """Training loss and validation metric over steps; the chosen epoch is marked."""
    classes = not run.curve("val/pearson_r")[0].size
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(*run.curve("train/loss"), color=BLUE, label="training batch")
    steps, losses = run.curve("val/loss")
    upper.plot(steps, losses, color=ORANGE, ls="--", marker="o", ms=4, label="validation")
    if losses.size and np.isfinite(losses).any():
        # What chose best.ckpt, TASK_TYPES[...].monitor, or what goes with it.
        best = int(np.nanargmin(losses))
        label = f"chosen epoch: {losses[best]:.2f}"
        upper.plot(steps[best], losses[best], "*", color=GREEN, ms=14, label=label)
    upper.set_ylabel("cross entropy (nats)" if classes else "mean squared error (scaled)")
    upper.legend(loc="best")
    label = "AUROC (0 to 1)" if classes else "Pearson r"
    upper.set_title(f"Fine-tuning: loss, and {label.split(' (')[0]} of the validation subjects")
    steps, values = run.curve("val/auroc" if classes else "val/pearson_r")
    lower.plot(steps, values, color=ORANGE, marker="o", ms=4)
    lower.axhline(0.5 if classes else 0.0, color=GREY, linestyle=":", label="chance")
    lower.set_ylim(-0.03 if classes else -1.03, 1.03)
    lower.set_ylabel(label)
    lower.legend(loc="lower right")
    _steps_axis(lower)
    return figure


@styled
def learning_rate_figure(run: RunFolder) -> Figure:
    """Learning rate over steps."""
    figure, axes = new_axes(5.6, 3.0)
    axes.plot(*run.curve("train/learning_rate"), color=BLUE)
    axes.set_ylabel("learning rate")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    _steps_axis(axes)
    axes.set_title("Learning rate")
    return figure
