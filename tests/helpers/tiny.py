"""A store of 20 tiny subjects, and the command line in-process on a copy of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuromamba.commands.train import run
from neuromamba.common.seeds import seed_run
from neuromamba.config.flag_parser import parse_arguments
from neuromamba.data.windows.data_module import FMRIDataModule
from neuromamba.data.windows.run_data import RunData
from neuromamba.fmamba.builders import build_module
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.module import FMambaModule
from neuromamba.fmamba.run import Run
from neuromamba.fmamba.run_config import run_config
from tests.helpers.store_files import write_store_file

GRID = (12, 12, 12)
FRAMES = 12
SUBJECTS = 20


def write_tiny_run(path: Path, subject: str, number: int, **changes: Any) -> None:
    """A run of 12 frames: 5 of the 8 patches of 6 x 6 x 6 hold brain, the fifth by ``number``."""
    x, y, z = np.indices(GRID)
    brain = (x < 6) | ((number % 3 // 2 == y // 6) & (number % 3 % 2 == z // 6))
    brain[0, 0, 0] = False  # a kept token may hold background voxels
    vox = np.flatnonzero(brain)
    time = np.arange(changes.pop("frames", FRAMES))[:, None]
    rng = np.random.default_rng([5, number])
    wave = 100 * np.sin((0.7 + 0.8 * (number % 2)) * time + vox / 50)
    bold = 1000 + 5 * np.sqrt(vox) + wave + rng.normal(0, 20, (len(time), len(vox)))
    fields: dict[str, Any] = {
        "grid": GRID,
        "affine": np.diag([-2.0, 2.0, 2.0, 1.0]),
        "tr": 2.0,
    } | changes
    write_store_file(path, bold.astype(np.float32), vox, subject=subject, **fields)


@dataclass(frozen=True)
class Finished:
    """A run that has ended: what it returned and where it wrote."""

    metrics: dict[str, float]
    folder: Path

    @property
    def written(self) -> dict[str, Any]:
        """``metrics.json``."""
        return json.loads((self.folder / "metrics.json").read_text())

    @property
    def files(self) -> set[str]:
        """Files of the run folder, relative to it."""
        return {str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file()}

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        """A checkpoint, read without unpickling objects."""
        path = self.folder / "checkpoints" / f"{name}.ckpt"
        return torch.load(path, map_location="cpu", weights_only=True)


@dataclass(frozen=True)
class CommandLine:
    """``project/main.py`` on a store of its own; ``extra`` is appended to flags for a tiny run."""

    store: Path
    folder: Path
    numbers: Any = field(default_factory=count)

    def argv(self, extra: str = "") -> list[str]:
        """The tiny flags, which ``extra`` may override."""
        flags = (
            f"--dataset_name Dummy --image_path {self.store} --img_size 12 12 12 4 "
            "--patch_size 6 6 6 2 --embed_dim 16 --train_split 0.6 --val_split 0.2 "
            "--batch_size 4 --max_epochs 1 --accelerator cpu --devices 1"
        )
        if "--model swift" not in extra:  # which has no such flag
            flags += " --depth 1"
        return [*flags.split(), *extra.split()]

    def planned(self, extra: str = "") -> Run:
        """Flags checked, nothing executed."""
        return Run(run_config(*parse_arguments(build_parser(), self.argv(extra))))

    def data(self, extra: str = "") -> RunData:
        """The data of a run; writes no split."""
        config = self.planned(extra).config
        return RunData(config.data, config.downstream, write_split=False)

    def loaders(self, extra: str = "") -> FMRIDataModule:
        """The data module; writes no split."""
        return FMRIDataModule(self.data(extra))

    def module(self, extra: str = "", steps: int = 100) -> FMambaModule:
        """The LightningModule as a run would start with it."""
        planned = self.planned(extra)
        seed_run(planned.config.flags["seed"])
        return build_module(planned.config, self.data(extra), steps)

    def run(self, extra: str = "") -> Finished:
        """A run in a folder of its own, unless ``extra`` names one."""
        argv = self.argv(extra)
        if "--output_dir" not in argv:
            argv += ["--output_dir", str(self.folder / f"run{next(self.numbers)}")]
        metrics = run(argv)
        return Finished(metrics, Path(argv[argv.index("--output_dir") + 1]))
