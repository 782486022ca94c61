"""Trainings of a tiny model on one or several ranks, and what they left in their folders."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch

from tests.helpers.forked import Blow, Ended, Nursery

NEXT = "--pretraining --use_autoregressive"
SEX = "--downstream_task sex --dropout 0.2"
DDP = "--strategy ddp"
LAST = "--resume_ckpt_path last"


@dataclass
class Runs:
    """Runs of a tiny model in folders of their own: 18 steps of 2 epochs on two ranks."""

    nursery: Nursery
    store: Path
    root: Path
    numbers: Any = field(default_factory=count)

    def argv(self, folder: Path, extra: str) -> list[str]:
        flags = (
            f"--dataset_name Dummy --image_path {self.store} --img_size 12 12 12 4 "
            f"--patch_size 6 6 6 2 --embed_dim 16 --depth 1 --train_split 0.6 --val_split 0.2 "
            f"--max_epochs 2 --accelerator cpu --log_every_n_steps 1 --batch_size 2 "
            f"--learning_rate 1e-2 --output_dir {folder}"
        )
        return [*flags.split(), *extra.split()]

    def new(self) -> Path:
        """A run folder that is not there yet."""
        return self.root / f"run{next(self.numbers)}"

    def go(self, folder: Path, extra: str, *blows: Blow, ranks: int = 2, **environ: str) -> Ended:
        return self.nursery.run(self.argv(folder, extra), ranks, blows, env=environ)


def rows(folder: Path) -> list[dict[str, str]]:
    """``metrics.csv``, digit for digit, in the order it was written."""
    with open(folder / "logs" / "metrics.csv", newline="") as stream:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(stream)]


def metrics(folder: Path) -> dict[str, float]:
    found = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in found.items() if not name.endswith("seconds")}


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Of a file, or of a folder of DeepSpeed's: the shares of all ranks."""
    path = folder / "checkpoints" / f"{name}.ckpt"
    if path.is_file():
        found = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        return dict(found)
    shares = {}
    for file in sorted(path.glob("checkpoint/*_model_states.pt")):
        state = torch.load(file, map_location="cpu", weights_only=True)
        shares |= {f"{file.name} {key}": value for key, value in state["module"].items()}
    assert shares
    return shares
