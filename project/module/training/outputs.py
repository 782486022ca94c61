"""What a run writes besides checkpoints and curves; the file formats other tools read.

- ``config.yaml``: every flag, resolved; can be given back to ``--config``.
- ``metrics.json``: flat ``{"test/auroc": ...}``; values that are not defined are null.
- ``predictions.csv``: ``subject,window,target,prob_0,prob_1,...``, or ``...,prediction`` for a
  regression, one line a test window.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import yaml

from project.module.config import UserInputError
from project.module.training.run_config import RunConfig
from project.module.utils.metrics import WindowScores

# Flags that say what to do with a run rather than what the run is.
_NOT_RECORDED = {"config", "dry_run", "output_dir"}


def run_name(config: RunConfig) -> str:
    """``--process_code``, else objective or task and the time."""
    if config.flags["process_code"]:
        return config.flags["process_code"]
    what = config.pretrain.objective if config.pretrain else config.flags["downstream_task"]
    return f"{what}_{time.strftime('%Y%m%d-%H%M%S')}"


def prepare_run_dir(config: RunConfig, name: str) -> Path:
    """Create the run folder; refuses one that holds another run, unless it is being resumed.

    Raises:
        UserInputError: the folder cannot be written, or holds a run.
    """
    chosen = config.flags["output_dir"]
    path = Path(chosen) if chosen else Path("output") / config.flags["project_name"] / name
    flag = "--output_dir" if chosen else "--project_name"
    resumed = config.flags["resume_ckpt_path"]
    if (path / "config.yaml").exists() and not resumed:
        raise UserInputError(
            f"{flag}: '{path}' already holds a run. Choose another folder, remove that one, or "
            f"continue it with --resume_ckpt_path {path}/checkpoints/last.ckpt."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserInputError(
            f"{flag}: cannot write to '{path}' ({error.strerror}). Choose a folder you can write."
        ) from None
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_config(config: RunConfig, path: Path) -> None:
    """Write ``config.yaml``."""
    recorded = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in config.flags.items()
        if key not in _NOT_RECORDED and value is not None
    }
    recorded |= {"d_state": config.model.d_state, "headdim": config.model.headdim}
    write_atomically(path, yaml.safe_dump(recorded, sort_keys=True))


def write_metrics(metrics: Mapping[str, float], path: Path) -> None:
    """Write ``metrics.json``."""
    clean = {k: (v if math.isfinite(v) else None) for k, v in sorted(metrics.items())}
    write_atomically(path, json.dumps(clean, indent=1, allow_nan=False) + "\n")


def write_predictions(
    scores: WindowScores, names: Mapping[int, str], classification: bool, path: Path
) -> None:
    """Write ``predictions.csv``, ordered by subject and window.

    Args:
        scores: of every test window.
        names: subject key -> name.
        classification: probabilities of the classes, else one prediction.
        path: the file.
    """
    columns = scores.score.shape[1]
    header = [f"prob_{i}" for i in range(columns)] if classification else ["prediction"]
    rows = sorted(
        (names[int(subject)], int(window), target.item(), *(float(value) for value in score))
        for subject, window, target, score in zip(
            scores.subject, scores.window, scores.target, scores.score, strict=True
        )
    )
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["subject", "window", "target", *header])
        writer.writerows([s, w, t, *(f"{v:.9g}" for v in values)] for s, w, t, *values in rows)
    os.replace(temporary, path)
