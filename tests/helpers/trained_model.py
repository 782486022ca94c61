"""A tiny model that was trained on NIfTI scans, and scans to use it on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuromamba.commands.preprocess import main as preprocess
from neuromamba.commands.train import run
from tests.helpers.scans import GRID, LAS, SHAPE, brain, save

SUBJECTS = 10


def bold(number: int, frames: int = 24) -> np.ndarray:
    """A run with a smooth mean image, noise in time and zeros around the brain, int16."""
    rng = np.random.default_rng([9, number])
    x, y, z = np.meshgrid(*(np.linspace(0, 1, n) for n in SHAPE), indexing="ij")
    mean = 600 + 300 * x + 500 * y**2 + 900 * z  # the axes differ, so that a mirror image shows
    noise = rng.normal(0, 20, (*SHAPE, frames))
    for t in range(1, frames):
        noise[..., t] += 0.5 * noise[..., t - 1]
    wave = (10 + 10 * (number % 2)) * np.sin(0.6 * np.arange(frames) + number)
    return ((mean[..., None] + noise + wave) * brain()[..., None]).astype(np.int16)


@dataclass(frozen=True)
class Trained:
    """Folders of the model and of its data.

    Attributes:
        root: of everything.
        nifti: 4D images of ``SUBJECTS`` subjects, 24 frames of 2 s.
        store: converted from them.
        sex, age, backbone: run folders of a classification, a regression and a pre-training.
    """

    root: Path
    nifti: Path
    store: Path
    sex: Path
    age: Path
    backbone: Path

    def scan(self, number: int) -> Path:
        return self.nifti / f"sub-{number:02d}_task-rest_bold.nii.gz"


def train_models(root: Path) -> Trained:
    """Write the scans, convert them, and train one epoch each; a few seconds."""
    found = Trained(
        root, root / "nifti", root / "store", root / "sex", root / "age", root / "backbone"
    )
    for number in range(SUBJECTS):
        save(found.scan(number), bold(number), LAS)
    (found.nifti / "participants.csv").write_text(
        "subject,sex,age\n"
        + "".join(f"sub-{i:02d},{'FM'[i % 2]},{20 + 3 * i}\n" for i in range(SUBJECTS))
    )
    folders = ["--input", str(found.nifti), "--output", str(found.store)]
    assert preprocess([*folders, *GRID, "--num_workers", "1"]) == 0
    shared = (
        f"--dataset_name Dummy --image_path {found.store} --img_size 12 12 12 8 --embed_dim 16 "
        f"--depth 2 --train_split 0.5 --val_split 0.2 --max_epochs 1 --batch_size 2 "
        f"--accelerator cpu --learning_rate 1e-2 --input_scaling_method voxelnorm_zeroback"
    )
    for flags, folder in (
        ("--downstream_task sex --pool mean_sd", found.sex),
        ("--downstream_task age", found.age),
        ("--pretraining --use_autoregressive", found.backbone),
    ):
        run(f"{shared} {flags} --output_dir {folder}".split())
    return found
