"""How many tokens a window has and how many windows an epoch has: from the data, or assumed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.config.model import ModelConfig
from neuromamba.data.store.reader import RunFile, list_runs
from neuromamba.data.windows.dataset import windows_of
from neuromamba.data.windows.run_data import RunData
from neuromamba.planning import flops

# Cohorts whose windows are assumed where their data are absent: subjects, frames of a run.
ASSUMED_RUNS = {"S1200": (1084, 1200)}


class Workload(NamedTuple):
    """Windows and tokens of an epoch.

    Attributes:
        tokens_brain: mean kept tokens of a window.
        tokens_source: where that comes from.
        windows: of an epoch; None if unknown.
        windows_source: where that comes from.
        most_tokens, most_voxels: of the largest window.
    """

    tokens_brain: float
    tokens_source: str
    windows: int | None
    windows_source: str
    most_tokens: int
    most_voxels: int


def read_workload(
    model: ModelConfig,
    data: DataConfig,
    windows: int | None = None,
    flag: str = "--windows",
    most_runs: int | None = None,
) -> Workload:
    """Tokens and windows from the stores if they are there, else from mask and assumption.

    Args:
        model: grid, patch size and what is kept.
        data: the stores; what a window is.
        windows: of an epoch, given by hand.
        flag: that gave it.
        most_runs: look at the masks of so many runs at most, spread over the stores.

    Raises:
        UserInputError: a store is there and does not fit the flags.
    """
    try:
        for path in data.image_path:
            list_runs(path) if path else _no_path()
    except UserInputError as error:
        mask, voxel = flops.mni_mask(model.img_size[:3])
        brain = np.flatnonzero(mask)
        sizes = [(flops.kept_tokens(brain, model), len(brain))]
        reason = str(error).split(". ")[0].rstrip(".")
        source = (
            f"MNI152 brain mask of nilearn at {voxel:.3g} mm, because there are no data ({reason})"
        )
        counted, windows_source = _assumed_windows(data, flag)
    else:
        found = RunData(data, write_split=False)
        runs = [path for store in found.stores for path in store.paths]
        looked_at = runs[:: -(-len(runs) // (most_runs or len(runs)))]
        sizes = [_size_of(path, model) for path in looked_at]
        source = f"mean over the {len(runs)} runs of {', '.join(data.image_path)}"
        if len(looked_at) < len(runs):
            source = f"mean over {len(looked_at)} of {source.removeprefix('mean over ')}"
        counted, windows_source = found.windows_in("train"), "training windows of the data"
    if windows is not None:
        counted, windows_source = windows, flag
    return Workload(
        tokens_brain=float(np.mean([tokens for tokens, _ in sizes])),
        tokens_source=source,
        windows=counted,
        windows_source=windows_source,
        most_tokens=max(tokens for tokens, _ in sizes),
        most_voxels=max(voxels for _, voxels in sizes),
    )


def _no_path() -> None:
    raise UserInputError("--image_path: not given.")


def _size_of(path: Path, model: ModelConfig) -> tuple[int, int]:
    """Kept tokens of a window of a run, and its brain voxels."""
    run = RunFile(path)
    size = flops.kept_tokens(run.vox, model), len(run.vox)
    run.close()
    return size


def windows_of_run(frames: int, data: DataConfig) -> int:
    """Training windows of a run, ``--num_train_fMRI_segments`` applied."""
    windows = len(windows_of(frames, data))
    return min(windows, data.num_train_fMRI_segments or windows)


def _assumed_windows(data: DataConfig, flag: str) -> tuple[int | None, str]:
    unknown = [name for name in data.dataset_name if name not in ASSUMED_RUNS]
    if unknown:
        return None, f"unknown without data of {', '.join(unknown)}; give {flag}"
    windows, parts, limit = 0, [], data.limit_training_samples
    share = data.train_split + (data.val_split if data.include_valid_to_train else 0)
    for name in data.dataset_name:
        subjects, frames = ASSUMED_RUNS[name]
        training, of = int(subjects * share), f"{share:.0%} of {subjects:,} subjects"
        if limit is not None:  # as RunData does
            training = min(training, int(limit) if limit > 1 else max(1, round(limit * training)))
            of = f"{training:,} subjects (--limit_training_samples)"
        each = windows_of_run(frames, data)
        windows += training * each
        parts.append(f"{name}: {of}, one run of {frames:,} frames, {each} windows each")
    if not windows:
        raise UserInputError(
            f"--sequence_length: a window spans {data.window_span:,} frames, more than the runs "
            f"that are assumed where there are no data; give {flag}."
        )
    return windows, f"assumption, no data: {'; '.join(parts)}"
