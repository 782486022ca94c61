"""Draws architecture_overview.png: how FMamba turns 4D fMRI into tokens and tokens into outputs.

    python assets/draw_architecture.py

The anatomy is the MNI152 template that nilearn ships (nothing is downloaded), put on the grid of
96 x 96 x 96 voxels of 2 mm; masks, token counts and the encoding shown are computed from it.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

GRID, PATCH = 96, 6
TOKENS = GRID // PATCH  # along an axis
SLICE = 48  # axial slice shown
FRAMES = 10  # steps of the token grid along time: 20 frames, 2 a token

INK, MUTED = "#22303c", "#6b7a86"
KEPT, DROPPED, POSITION, BLOCK = "#0f8b8d", "#8d9aa5", "#7a4fa3", "#e07a1f"


def on_grid(volume: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Crop or pad to GRID^3 around ``centre``."""
    low = np.round(centre).astype(int) - GRID // 2
    padded = np.pad(volume, GRID)
    return padded[tuple(slice(start + GRID, start + 2 * GRID) for start in low)]


def load_anatomy() -> tuple[np.ndarray, np.ndarray]:
    """Template intensities inside the brain, and the mask, both on the grid."""
    template = load_mni152_template(resolution=2).get_fdata()
    mask = load_mni152_brain_mask(resolution=2).get_fdata() > 0
    inside = np.argwhere(mask)
    centre = (inside.min(0) + inside.max(0) + 1) / 2
    return on_grid(np.where(mask, template, 0.0), centre), on_grid(mask, centre)


def patches(volume: np.ndarray) -> np.ndarray:
    """[x, y, z, voxel] of the cubes of PATCH^3 voxels."""
    cubes = volume.reshape(TOKENS, PATCH, TOKENS, PATCH, TOKENS, PATCH)
    return cubes.transpose(0, 2, 4, 1, 3, 5).reshape(TOKENS, TOKENS, TOKENS, -1)


def nerf(coordinate: np.ndarray) -> np.ndarray:
    """One axis's share of the encoding: itself, then sine and cosine at 2^0 ... 2^9."""
    waves = [f(2.0**k * coordinate) for k in range(10) for f in (np.sin, np.cos)]
    return np.stack([coordinate, *waves])


# --- drawing helpers: everything is placed in figure coordinates, in inches -----------------


class Canvas:
    """A figure with one axes in inches for boxes, arrows and text, and insets for pictures."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure: Figure = plt.figure(figsize=(width, height), facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")

    def inset(self, x: float, y: float, width: float, height: float) -> Axes:
        box = (x / self.width, y / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=INK, linewidth=0.8)
        return axes

    def text(self, x: float, y: float, words: str, size: float = 10, **style: object) -> None:
        settings: dict[str, object] = {"color": INK, "ha": "center", "va": "center"}
        self.axes.text(x, y, words, fontsize=size, **(settings | style))  # type: ignore[arg-type]

    def title(self, x: float, y: float, number: int, words: str) -> None:
        self.axes.plot(x + 0.13, y, "o", markersize=17, color=INK)
        self.text(x + 0.13, y - 0.01, str(number), 10.5, color="white", weight="bold")
        self.text(x + 0.36, y, words, 12, weight="bold", ha="left")

    def box(
        self, x: float, y: float, width: float, height: float, colour: str, words: str = ""
    ) -> None:
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=colour,
                edgecolor="none",
            )
        )
        self.text(x + width / 2, y + height / 2 - 0.01, words, 10.5, color="white", weight="bold")

    def arrow(self, *points: tuple[float, float], colour: str = INK) -> None:
        """A line through the points that ends in an arrow head."""
        xs, ys = zip(*points, strict=True)
        if len(points) > 2:
            self.axes.plot(xs[:-1], ys[:-1], color=colour, linewidth=1.5, solid_joinstyle="miter")
        self.axes.add_patch(
            FancyArrowPatch(
                points[-2],
                points[-1],
                arrowstyle="-|>",
                mutation_scale=13,
                linewidth=1.5,
                color=colour,
                shrinkA=0,
                shrinkB=0,
            )
        )


def draw_scan(canvas: Canvas, x: float, y: float, anatomy: np.ndarray) -> None:
    canvas.title(x, y + 3.15, 1, "4D fMRI")
    side = 2.0
    for frame in (3, 2, 1, 0):
        axes = canvas.inset(x + 0.16 * frame, y + 0.42 + 0.13 * frame, side, side)
        axes.set_facecolor("black")
        axes.imshow(anatomy[:, :, SLICE].T, cmap="gray", origin="lower", vmin=0)
        for spine in axes.spines.values():
            spine.set(color="white", linewidth=1.2)
    canvas.arrow((x + side + 0.08, y + 0.5), (x + side + 0.62, y + 0.94), colour=MUTED)
    canvas.text(x + side + 0.5, y + 0.6, "T", 11, style="italic", color=MUTED)
    canvas.text(x + side / 2, y + 0.2, "96 × 96 × 96 × T voxels, z-scored", 10)


def draw_tokens(canvas: Canvas, x: float, y: float, anatomy: np.ndarray, kept: np.ndarray) -> None:
    canvas.title(x, y + 3.15, 2, "Patches; background dropped")
    side = 2.62
    axes = canvas.inset(x, y + 0.36, side, side)
    axes.imshow(anatomy[:, :, SLICE].T, cmap="gray", origin="lower", vmin=0, extent=(0, 96, 0, 96))
    for i in range(TOKENS):
        for j in range(TOKENS):
            corner = (i * PATCH, j * PATCH)
            if kept[i, j, SLICE // PATCH]:
                style = {"facecolor": "none", "edgecolor": "#7ce0d6", "linewidth": 0.55}
                axes.add_patch(Rectangle(corner, PATCH, PATCH, **style))
            else:
                style = {"facecolor": "#f4f6f7", "edgecolor": DROPPED, "linewidth": 0.4}
                axes.add_patch(Rectangle(corner, PATCH, PATCH, hatch="////", **style))
    axes.set(xlim=(0, 96), ylim=(0, 96))
    canvas.text(
        x + side / 2,
        y + 0.2,
        f"token: 6 × 6 × 6 × 2 voxels; {kept.mean():.0%} kept here",
        10,
    )


def draw_embedding(canvas: Canvas, x: float, y: float, token: np.ndarray) -> None:
    canvas.title(x, y + 3.15, 3, "Embedding + position")
    middle = 2.76  # of the encoding's picture, from x
    axes = canvas.inset(x + middle - 1.14, y + 1.66, 2.28, 0.92)
    axes.imshow(nerf(np.linspace(0, 1, 400)), aspect="auto", cmap="PuOr", interpolation="nearest")
    canvas.text(x + middle, y + 2.74, "NeRF encoding of (x, y, z, t)", 10, color=POSITION)
    canvas.text(x + middle, y + 1.5, "sin, cos at frequencies 1, 2, 4 … 512", 8.5, color=MUTED)

    voxels = canvas.inset(x + 0.38, y + 1.8, 0.64, 0.64)
    voxels.imshow(token.T, cmap="gray", origin="lower", vmin=0)
    canvas.text(x + 0.7, y + 2.74, "a token", 10, color=KEPT)
    canvas.text(x + 0.7, y + 1.5, "432 voxels", 8.5, color=MUTED)

    canvas.box(x + 0.06, y + 0.42, 1.28, 0.5, KEPT, "linear")
    canvas.text(x + 0.7, y + 0.2, "432 → D", 10)
    canvas.arrow((x + 0.7, y + 1.38), (x + 0.7, y + 0.94), colour=KEPT)
    canvas.text(x + 1.73, y + 0.66, "+", 18, weight="bold")
    canvas.box(x + middle - 0.64, y + 0.42, 1.28, 0.5, POSITION, "fixed random")
    canvas.text(x + middle, y + 0.2, "84 → D", 10)
    canvas.arrow((x + middle, y + 1.38), (x + middle, y + 0.94), colour=POSITION)


def draw_sequence(
    canvas: Canvas, x: float, y: float, anatomy: np.ndarray, kept: np.ndarray
) -> None:
    canvas.title(x, y + 2.95, 4, "Packed sequences")
    intensity = patches(anatomy).mean(-1)
    # Two lines of tokens through the brain stand for two subjects; the second has a smaller head.
    lines = [intensity[8, 8][kept[8, 8]], intensity[4, 5][kept[4, 5]]]
    size, top = 0.245, y + 1.98
    for row, (name, values) in enumerate(zip(("A", "B"), lines, strict=True)):
        height = top - 0.52 * row
        canvas.text(x + 0.1, height + size / 2, name, 10.5, weight="bold")
        for step, value in enumerate(values):
            shade = plt.get_cmap("GnBu")(0.25 + 0.7 * value / intensity.max())
            corner = (x + 0.3 + step * size, height)
            canvas.axes.add_patch(
                Rectangle(corner, size, size, facecolor=shade, edgecolor="white", linewidth=1.2)
            )
    canvas.text(x + 0.3, y + 2.44, "kept tokens of subject A, B", 9.5, ha="left", color=MUTED)
    height, step = y + 0.62, 0
    small = 0.145
    for name, values in zip(("A", "B"), lines, strict=True):
        start = step
        for value in values:
            shade = plt.get_cmap("GnBu")(0.25 + 0.7 * value / intensity.max())
            corner = (x + 0.02 + step * small, height)
            canvas.axes.add_patch(
                Rectangle(corner, small, 0.3, facecolor=shade, edgecolor="white", linewidth=0.8)
            )
            step += 1
        middle = x + 0.02 + (start + step) / 2 * small
        canvas.text(middle, height - 0.16, f"length of {name}", 9)
        if start:
            edge = x + 0.02 + start * small
            canvas.axes.plot([edge, edge], [height - 0.08, height + 0.38], color=INK, linewidth=1.8)
    canvas.arrow((x + 1.6, y + 1.36), (x + 1.6, y + 1.0), colour=MUTED)
    canvas.text(x + 1.62, y + 0.16, "no padding; order: t fastest, then z, y, x", 10)


def draw_blocks(canvas: Canvas, x: float, y: float) -> None:
    canvas.title(x, y + 2.95, 5, "12 residual Mamba2 blocks")
    frame = FancyBboxPatch(
        (x, y + 0.36),
        3.5,
        2.2,
        boxstyle="round,pad=0,rounding_size=0.12",
        facecolor="#fdf3ea",
        edgecolor=BLOCK,
        linewidth=1.5,
    )
    canvas.axes.add_patch(frame)
    canvas.text(x + 3.22, y + 2.33, "× 12", 12.5, weight="bold", color=BLOCK)
    middle = y + 1.42
    canvas.box(x + 0.5, middle - 0.24, 0.95, 0.48, INK, "RMSNorm")
    canvas.box(x + 1.75, middle - 0.24, 0.85, 0.48, BLOCK, "Mamba2")
    canvas.arrow((x + 0.02, middle), (x + 0.5, middle))
    canvas.arrow((x + 1.45, middle), (x + 1.75, middle))
    canvas.arrow((x + 2.6, middle), (x + 2.93, middle))
    canvas.axes.plot(x + 3.05, middle, "o", markersize=17, color="white", markeredgecolor=INK)
    canvas.text(x + 3.05, middle - 0.01, "+", 14, weight="bold")
    canvas.arrow(
        (x + 0.22, middle),
        (x + 0.22, middle + 0.62),
        (x + 3.05, middle + 0.62),
        (x + 3.05, middle + 0.13),
    )
    canvas.axes.plot([x + 3.17, x + 3.5], [middle, middle], color=INK, linewidth=1.5)
    canvas.text(
        x + 1.75,
        y + 0.75,
        "Mamba2: projection, causal convolution, selective\n"
        "scan over the sequence, gated norm, projection",
        9,
        color=MUTED,
    )
    canvas.text(x + 1.75, y + 0.16, "width D = 128, 192, 256 or 384; state D / 4; 2 heads", 10)


def draw_outputs(canvas: Canvas, x: float, y: float) -> None:
    canvas.title(x, y + 2.95, 6, "Outputs")
    entries = (
        (
            y + 1.91,
            KEPT,
            "Next token",
            "pre-training: the next token's\nvoxels, squared error",
        ),
        (
            y + 1.16,
            POSITION,
            "Linear head",
            "mean over tokens, then linear:\nsex, age, diagnosis ...",
        ),
        (y + 0.41, BLOCK, "Mamba head", "3 more blocks, last token,\nthen linear"),
    )
    for height, colour, name, words in entries:
        canvas.box(x + 0.3, height, 1.25, 0.52, colour, name)
        canvas.text(x + 1.65, height + 0.26, words, 9, ha="left")


def main() -> None:
    plt.rcParams.update(
        {"font.family": "DejaVu Sans", "hatch.linewidth": 0.6, "hatch.color": DROPPED}
    )
    anatomy, mask = load_anatomy()
    kept = patches(mask).any(-1)

    canvas = Canvas(12.5, 7.4)
    upper, lower = 3.75, 0.15
    left, middle, right = 0.4, 4.3, 8.5
    draw_scan(canvas, left, upper, anatomy)
    draw_tokens(canvas, middle, upper, anatomy, kept)
    draw_embedding(canvas, right, upper, anatomy[18:24, 60:66, SLICE])
    draw_sequence(canvas, left, lower, anatomy, kept)
    draw_blocks(canvas, middle, lower)
    draw_outputs(canvas, right, lower)

    canvas.arrow((3.4, upper + 1.7), (4.1, upper + 1.7))
    canvas.arrow((7.2, upper + 1.7), (8.3, upper + 1.7))
    turn = upper - 0.22
    canvas.arrow((right + 1.73, upper + 0.35), (right + 1.73, turn), (0.53, turn), (0.53, 3.3))
    canvas.axes.plot([3.9, middle + 0.1], [lower + 1.42, lower + 1.42], color=INK, linewidth=1.5)
    for height in (2.17, 1.42, 0.67):
        canvas.arrow(
            (middle + 3.5, lower + 1.42),
            (right - 0.1, lower + 1.42),
            (right - 0.1, lower + height),
            (right + 0.3, lower + height),
        )
    canvas.figure.savefig(Path(__file__).with_name("architecture_overview.png"), dpi=150)


if __name__ == "__main__":
    main()
