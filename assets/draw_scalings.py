"""Draws scalings.png: one synthetic run under each --input_scaling_method.

    python assets/draw_scalings.py

Upper row: an axial slice of a frame as the model sees it. Lower row: the distribution of the
brain's voxels, and the value of the background. Takes about a quarter of a minute.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from neuromamba.config.data import DataConfig
from neuromamba.config.names import SCALING_METHODS
from neuromamba.data.store.header import RunSource, WriteOptions
from neuromamba.data.store.writer import write_run
from neuromamba.data.synthetic.brain import generate_subject
from neuromamba.data.synthetic.spec import SyntheticSpec
from neuromamba.data.windows.dataset import WindowDataset

GRID, SLICE, FRAME, FRAMES = (96, 96, 96), 52, 3, 20
BRAIN, BACKGROUND = "#355c9a", "#d1495b"


def main() -> None:
    """Write the figure beside this file."""
    spec = SyntheticSpec(
        grid=GRID, frames=FRAMES, tsnr=60, voxel_size=2.2, effect_size=1, orientation="LAS"
    )
    volume, affine, _ = generate_subject(spec, 0)
    vox = np.flatnonzero(volume[..., 0])
    frames = volume.reshape(-1, FRAMES)[vox].T.astype(np.float32)
    plt.rcParams.update({"font.size": 9, "figure.facecolor": "white"})
    figure, axes = plt.subplots(2, len(SCALING_METHODS), figsize=(15, 5.2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        write_run(
            path,
            frames,
            vox,
            grid=GRID,
            affine=affine,
            source=RunSource(subject="s", tr=2.0),
            options=WriteOptions(voxel_statistics=True),
        )
        config = DataConfig(
            dataset_name=("Own",), image_path=(folder,), grid=GRID, sequence_length=FRAMES
        )
        for method, (upper, lower) in zip(SCALING_METHODS, axes.T, strict=True):
            scaled = dataclasses.replace(config, input_scaling_method=method)
            window = WindowDataset([path], scaled)[0]
            background = window["background"]
            values = window["bold"].numpy() * window["gain"] + window["shift"]
            image = np.full(GRID, background)
            image.reshape(-1)[vox] = values[FRAME]
            shown = upper.imshow(image[:, :, SLICE].T, cmap="gray", origin="lower")
            upper.set(title=method, xticks=[], yticks=[])
            figure.colorbar(shown, ax=upper, shrink=0.85)
            lower.hist(values[::4].ravel(), bins=120, color=BRAIN, density=True)
            lower.axvline(background, color=BACKGROUND, linewidth=2)
            lower.set(yticks=[], xlabel="input of the model")
            lower.set_title(f"background {background:.2f}", color=BACKGROUND, fontsize=9)
    axes[1, 0].set_ylabel("brain voxels, density")
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("scalings.png"), dpi=100)


if __name__ == "__main__":
    main()
