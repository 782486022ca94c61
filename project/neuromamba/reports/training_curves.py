"""Curves of a training, from its run folder."""

from __future__ import annotations

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
