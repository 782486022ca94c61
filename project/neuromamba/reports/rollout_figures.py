"""Pictures of a rollout: the error of each generated frame, and the frames as an animation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from neuromamba.common.atomic_files import atomic_path
from neuromamba.inference.rollout import MEAN, MODEL, PERSISTENCE, RUN_MEAN, Rollout
from neuromamba.pages.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, draw_letters, styled
from neuromamba.pages.slices import slice_image

MOST_FRAMES = 100  # of the animation; of a longer rollout it shows some
_MILLISECONDS = 400  # between frames of the animation
_LINES = (
    (MODEL, "model", BLUE, "-"),
    (PERSISTENCE, "last frame of the prompt", ORANGE, "--"),
    (MEAN, "mean of the prompt", GREEN, "-."),
    (RUN_MEAN, "mean of the run", PURPLE, ":"),
)


@styled
def error_figure(found: Rollout) -> Figure:
    """Error of the model and of the two simple predictions over time; below it, the skill."""
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    count = len(found.true)
    known = math.isfinite(found.seconds)
    x = np.arange(1, count + 1) * (found.seconds if known else 1)
    marks = {"marker": "o", "markersize": 3} if count <= 40 else {}
    errors = found.errors
    for name, label, color, line in _LINES:
        values = errors[name][:count]
        if np.isnan(values).all():  # the mean of the run
            continue
        above.plot(x, values, color=color, linestyle=line, label=label, **marks)
    below.plot(x, found.skill[:count], color=BLUE, **marks)
    below.axhline(0, color=GREY, linewidth=1, linestyle=":")
    if count > found.first_window:
        for axes in (above, below):
            end = (found.first_window + 0.5) * (found.seconds if known else 1)
            axes.axvline(end, color=GREY, linewidth=1)
        text = "  later windows: extrapolation"
        # At the bottom, which the errors seldom reach: the axis begins at 0.
        above.text(
            end, 0.03, text, transform=above.get_xaxis_transform(), va="bottom", color=GREY, size=9
        )
    above.set(ylabel="mean squared error\n(scaled units)")
    above.set_ylim(bottom=0)
    below.set(ylabel="skill", xlabel=f"{'seconds' if known else 'frames'} after the prompt")
    below.xaxis.set_major_locator(MaxNLocator(integer=not known, nbins=8))
    above.set_title("Error of the generated frames")
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def shown_frames(found: Rollout) -> list[int]:
    """Numbers of the generated frames in the animation, counted from 0."""
    count = len(found.predicted)
    step = math.ceil(count / MOST_FRAMES)
    return list(range(0, count, step))


@styled
def _empty_figure(heights: Sequence[int], limit: float) -> Figure:
    """Three rows of slices, and columns for generated and true frames and their difference."""
    figure = Figure(figsize=(7.2, 7.2), dpi=80, layout="constrained")
    grid: np.ndarray = figure.subplots(3, 3, height_ratios=heights)
    for axes in grid.flat:
        axes.set_facecolor("#f0f0f0")
        shown = axes.imshow(
            np.zeros((2, 2)), origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit
        )
    for axes, title in zip(grid[0], ("generated", "true", "difference"), strict=True):
        axes.set_title(title, loc="center", fontsize=14)
    bar = figure.colorbar(
        shown, ax=list(grid.flat), location="bottom", shrink=0.7, aspect=40, extend="both"
    )
    bar.set_label("deviation from the mean of the prompt (scaled units)", fontsize=12)
    return figure


def write_animation(found: Rollout, path: Path) -> Path:
    """Write a GIF: three slices of each generated frame beside the true frame and the difference.

    Shown is the deviation from each voxel's mean over the prompt, in scaled units, on one colour
    scale; the anatomy would otherwise hide the change over time.
    """
    mean = found.prompt.mean(0)
    predicted, true = found.predicted - mean, found.true - mean
    some = true if len(true) else predicted
    limit = max(float(np.percentile(np.abs(some), 99)), 1e-6)
    places = np.stack(np.unravel_index(found.voxels, found.header.grid))
    places -= places.min(1, keepdims=True)  # the box around the brain is all there is to see
    volume = np.full(places.max(1) + 1, np.nan, np.float32)
    centre = [round(float(c)) for c in places.mean(axis=1)]

    def slices(values: np.ndarray | None) -> list[np.ndarray]:
        volume[tuple(places)] = np.nan if values is None else values
        return [slice_image(volume, axis, centre[axis]).copy() for axis in range(3)]

    figure = _empty_figure([image.shape[0] for image in slices(None)], limit)
    canvas = FigureCanvasAgg(figure)
    heading = figure.suptitle("frame", fontsize=13, weight="bold", x=0.01, ha="left")
    pictures = []
    for number in shown_frames(found):
        there = number < len(true)
        columns = (
            slices(predicted[number]),
            slices(true[number] if there else None),
            slices(predicted[number] - true[number] if there else None),
        )
        for place, axes in enumerate(figure.axes[:9]):
            values = columns[place % 3][place // 3]
            height, width = values.shape
            axes.images[0].set_data(values)
            axes.images[0].set_extent((-0.5, width - 0.5, -0.5, height - 0.5))
            if number == 0:
                draw_letters(axes, place // 3)
        text = f"frame {number + 1} of {len(found.predicted)} after the prompt"
        if math.isfinite(found.seconds):
            text += f", {(number + 1) * found.seconds:.4g} s"
        text += "" if there else " (the scan has ended)"
        heading.set_text(text)
        canvas.draw()
        if number == 0:
            canvas.draw()  # a second time, with the positions that the first has found
            figure.set_layout_engine("none")  # they stay: finding them takes longer than drawing
        rgb = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        pictures.append(Image.fromarray(rgb).quantize(64, dither=Image.Dither.NONE))
    with atomic_path(path) as temporary:
        pictures[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=_MILLISECONDS,
            loop=0,
        )
    return path
