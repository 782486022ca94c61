"""Draws augmentation.png: one synthetic window before and after each augmentation.

    python assets/draw_augmentation.py

Upper row: an axial slice of the first frame, and the tokens that are kept. Lower row: what the
augmentation has changed. Takes about half a minute.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from neuromamba.common.seeds import stream
from neuromamba.config.data import AugmentConfig
from neuromamba.data.synthetic.brain import generate_subject
from neuromamba.data.synthetic.spec import SyntheticSpec
from neuromamba.data.windows.augment import AugmentPlan, augment_window, plan_augmentation

GRID, PATCH, SLICE = (96, 96, 96), 6, 52
SEED = 119  # a draw in which the transform and the smoothing are well seen
KEPT = "#0f8b8d"


def slice_of(values_N: torch.Tensor, voxels: torch.Tensor) -> np.ndarray:
    """The slice [X, Y] of a frame, NaN outside the brain."""
    volume = np.full(GRID, np.nan)
    volume.reshape(-1)[voxels.numpy()] = values_N.numpy()
    return volume[:, :, SLICE]


def kept(voxels: torch.Tensor) -> np.ndarray:
    """Which patches of the slice hold brain, for each voxel of it."""
    mask = np.zeros(GRID, dtype=bool)
    mask.reshape(-1)[voxels.numpy()] = True
    n = GRID[0] // PATCH
    patches = mask.reshape(n, PATCH, n, PATCH, n, PATCH).any((1, 3, 5))[:, :, SLICE // PATCH]
    return patches.repeat(PATCH, 0).repeat(PATCH, 1)


def outline(axes: Axes, patches: np.ndarray) -> None:
    """The border of the kept tokens."""
    for dx, dy in ((1, 0), (0, 1)):
        edges = np.argwhere(patches[: len(patches) - dx, : len(patches) - dy] ^ patches[dx:, dy:])
        for x, y in edges:
            ends = (
                ([x + 0.5] * 2, [y - 0.5, y + 0.5]) if dx else ([x - 0.5, x + 0.5], [y + 0.5] * 2)
            )
            axes.plot(*ends, color=KEPT, linewidth=0.9)


def main() -> None:
    """Write the figure beside this file."""
    spec = SyntheticSpec(
        grid=GRID, frames=12, tsnr=60, voxel_size=2.2, effect_size=1, orientation="LAS"
    )
    volume, _, _ = generate_subject(spec, 0)
    voxels = torch.from_numpy(np.flatnonzero(volume[..., 0]).astype(np.int32))
    frames = torch.from_numpy(volume.reshape(-1, 12)[voxels.long()].T.round().astype(np.int16))
    whole = plan_augmentation(voxels, GRID, AugmentConfig(), stream(SEED))
    still = plan_augmentation(voxels, GRID, AugmentConfig(affine=False), stream(SEED))
    assert whole.sigma > 0
    columns: dict[str, AugmentPlan] = {
        "as stored": AugmentPlan(voxels, voxels),
        "affine": whole._replace(sigma=0.0, noise=None),
        f"smoothing, sigma {whole.sigma:.2f} voxels": still._replace(noise=None),
        "noise": still._replace(sigma=0.0),
        "all of it": whole,
    }
    plt.rcParams.update({"font.size": 10, "figure.facecolor": "white"})
    figure, axes = plt.subplots(2, len(columns), figsize=(13, 5.6))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], aspect="equal", xlim=(-0.5, 95.5), ylim=(-0.5, 95.5))
    stored = slice_of(frames[0].float(), voxels)
    top, spread = float(np.nanpercentile(stored, 99.5)), float(frames[0].float().std())
    for (title, plan), (upper, lower) in zip(columns.items(), axes.T, strict=True):
        found = slice_of(augment_window(frames, plan, GRID)[0], plan.voxels)
        upper.set_title(title)
        upper.imshow(found.T, cmap="gray", vmin=0.3 * top, vmax=top)
        outline(upper, kept(plan.voxels))
        if plan.sigma or plan.noise is not None or plan.affine is not None:
            change = np.nan_to_num(found) - np.nan_to_num(stored)
            lower.imshow(change.T, cmap="RdBu_r", vmin=-spread, vmax=spread)
        else:
            lower.axis("off")
            lower.text(
                47.5,
                47.5,
                "kept tokens outlined\n\nlower row: change, from\n-1 (blue) to +1 (red)\n"
                "standard deviations\nover the brain",
                ha="center",
                va="center",
            )
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("augmentation.png"), dpi=100)


if __name__ == "__main__":
    main()
