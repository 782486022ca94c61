"""How two published pipelines keep fMRI on disk and read windows of it, for comparison.

Written from their descriptions; nothing of their code is used.

- SwiFT: z-scored volumes, background filled with the brain's minimum, one fp16 file for each frame
  (``img/<subject>/frame_<t>.pt``). A window loads its frames one by one.
- NeuroSTORM-style: the same volumes as one int8 array for each run with one scale, memory-mapped.
  A window is a slice, made fp32 again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch.utils.data import Dataset

LARGEST = 127  # int8 codes lie in [-127, 127]


def mni_affine(shape: Sequence[int], voxel: float) -> np.ndarray:
    """LAS affine [4, 4] of a grid whose centre is that of the MNI grids of FSL and HCP."""
    affine = np.diag([-voxel, voxel, voxel, 1.0])
    affine[:3, 3] = np.array([0.0, -18.0, 18.0]) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def scaled_volumes(nifti: str | Path, size: Sequence[int]) -> torch.Tensor:
    """The steps both pipelines begin with: the whole run in memory, z-scored, cropped and padded.

    As their scripts do it: brain voxels are selected and written back through a mask of the whole
    run.

    Args:
        nifti: 4D run whose background is 0.
        size: X, Y, Z to crop or pad to, centred.

    Returns:
        fp32 [X, Y, Z, T]; background is the minimum of the brain.
    """
    data = torch.from_numpy(nibabel.load(nifti).get_fdata(dtype=np.float32))
    background = data == 0
    mean, spread = data[~background].mean(), data[~background].std()
    scaled = (data - mean) / spread
    del data
    volumes = torch.empty_like(scaled)
    lowest = scaled[~background].min()
    volumes[background] = lowest
    volumes[~background] = scaled[~background]
    del scaled, background
    margins: list[int] = []  # for torch: last axis first, below and above; negative crops
    for found, wanted in zip(reversed(volumes.shape[:3]), reversed(size), strict=True):
        below = (wanted - found) // 2
        margins += [below, wanted - found - below]
    return torch.nn.functional.pad(volumes, (0, 0, *margins), value=float(lowest))


def write_swift(nifti: str | Path, folder: Path, size: Sequence[int]) -> None:
    """One fp16 file [X, Y, Z, 1] for each frame."""
    volumes = scaled_volumes(nifti, size).to(torch.float16)
    folder.mkdir(parents=True)
    for t, frame in enumerate(torch.split(volumes, 1, dim=3)):
        torch.save(frame.clone(), folder / f"frame_{t}.pt")


def write_int8(nifti: str | Path, folder: Path, size: Sequence[int], time_first: bool) -> None:
    """One int8 array for the run, [T, X, Y, Z] or [X, Y, Z, T], and its scale beside it."""
    volumes = scaled_volumes(nifti, size)
    scale = float(volumes.abs().max()) / LARGEST
    codes = (volumes / scale).round().to(torch.int8)
    if time_first:
        codes = codes.permute(3, 0, 1, 2)
    folder.mkdir(parents=True)
    np.save(folder / "codes.npy", codes.contiguous().numpy())
    (folder / "scale.json").write_text(json.dumps({"scale": scale}))


def size_on_disk(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class DenseWindows(Dataset[dict[str, Any]]):
    """Consecutive windows of the runs, in the order of the runs and of time.

    Args:
        folders: one for each run.
        n_frames: T of each run.
        length: frames of a window.
    """

    def __init__(self, folders: Sequence[Path], n_frames: int, length: int) -> None:
        self.folders, self.length = list(folders), length
        self.starts = range(0, n_frames - length + 1, length)

    def __len__(self) -> int:
        return len(self.folders) * len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        run, window = divmod(index, len(self.starts))
        fmri = self.read(self.folders[run], self.starts[window])
        return {"fmri": fmri, "subject": self.folders[run].name, "window": window}

    def read(self, folder: Path, start: int) -> torch.Tensor:
        """A window (1, X, Y, Z, T)."""
        raise NotImplementedError


class SwiftWindows(DenseWindows):
    """Loads the frames, puts them side by side in time, brings the axes in order."""

    def read(self, folder: Path, start: int) -> torch.Tensor:
        """fp16."""
        frames = [
            torch.load(folder / f"frame_{t}.pt", weights_only=True)
            for t in range(start, start + self.length)
        ]
        return torch.stack(frames).permute(4, 1, 2, 3, 0)


class Int8Windows(DenseWindows):
    """Slices of mapped arrays, made fp32.

    Args:
        time_first: how the arrays were written.
    """

    def __init__(
        self, folders: Sequence[Path], n_frames: int, length: int, time_first: bool
    ) -> None:
        super().__init__(folders, n_frames, length)
        self.time_first = time_first
        self.scales = {
            folder: json.loads((folder / "scale.json").read_text())["scale"] for folder in folders
        }

    def read(self, folder: Path, start: int) -> torch.Tensor:
        """fp32."""
        codes = np.load(folder / "codes.npy", mmap_mode="r")
        if self.time_first:
            window = codes[start : start + self.length].astype(np.float32)
        else:
            window = codes[..., start : start + self.length].astype(np.float32)
        values = torch.from_numpy(window).mul_(self.scales[folder])
        return (values.permute(1, 2, 3, 0) if self.time_first else values).unsqueeze(0)
