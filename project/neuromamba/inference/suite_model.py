"""FMamba for an evaluation suite that hands over masked, z-scored MNI volumes (Brainmarks).

A sample holds ``bold`` [T, V], z-scored voxel by voxel, ``mean`` and ``std`` [1, V] and ``tr``; the
V voxels are those of the MNI152NLin6Asym 2 mm mask in RAS, raveled in the order (Z, Y, X).
``SuiteTransform`` undoes the z-score, resamples the repetition time and scales as in the training;
``SuiteWrapper`` embeds at most ``windows`` windows. ``brainmarks/models/neuromamba.py`` registers
both.

Shapes: T frames, V voxels of the mask, N voxels on the model's grid, W windows, F frames of one, B
samples, C cells, D width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor, nn

from neuromamba.common.errors import UserInputError
from neuromamba.config.names import ORIENTATION
from neuromamba.data.store.header import RunHeader
from neuromamba.fmamba.pooling import group_mean
from neuromamba.fmamba.tokenizer import pack_anatomy, pack_compact, plan_compact
from neuromamba.inference.contract import InputContract
from neuromamba.inference.frame_scaling import FrameScaling, frame_scaling
from neuromamba.inference.loaded import LoadedModel
from neuromamba.inference.time_resampling import resample_time

SHAPE, VOXELS = (91, 109, 91), 228_483
WINDOWS, CELLS = 8, 6  # at most; cells along each axis
MASK_VARIABLE = "NEUROMAMBA_MNI_MASK"
_FSL = "data/standard/MNI152_T1_2mm_brain_mask.nii.gz"
_STEPS = 65_534  # of the range of a run, as in a store
_TR_TOLERANCE = 0.1


def find_mask(path: str | Path | None = None) -> Path:
    """The MNI152NLin6Asym 2 mm brain mask: given, of ``MASK_VARIABLE``, of FSL, of templateflow.

    Raises:
        UserInputError: it is nowhere.
    """
    given = path or os.environ.get(MASK_VARIABLE)
    if given:
        if not Path(given).is_file():
            raise UserInputError(f"mask: there is no file '{given}'.")
        return Path(given)
    fsl = Path(os.environ.get("FSLDIR", "/usr/local/fsl")) / _FSL
    if fsl.is_file():
        return fsl
    try:
        from templateflow import api

        found = api.get("MNI152NLin6Asym", resolution=2, desc="brain", suffix="mask")
        return Path(found if not isinstance(found, list) else found[0])
    except Exception:  # not installed, or no network: its errors are of many kinds
        raise UserInputError(
            f"mask: the MNI152NLin6Asym 2 mm brain mask is not here. Set {MASK_VARIABLE} to its "
            f"file (tpl-MNI152NLin6Asym_res-02_desc-brain_mask.nii.gz), or install templateflow."
        ) from None


def voxels_on_grid(mask: Path, contract: InputContract) -> tuple[np.ndarray, np.ndarray]:
    """Where the suite's voxels lie on the model's grid.

    Args:
        mask: image of the mask.
        contract: of the model, 2 mm voxels in MNI space.

    Returns:
        Positions of the N kept voxels among the suite's V, and their flat C-order indices in the
        grid, int64 [N] each, sorted by the latter.

    Raises:
        UserInputError: another mask, or a model of another space or voxel size.
    """
    image = nibabel.as_closest_canonical(nibabel.load(mask))
    inside = np.asarray(image.dataobj) > 0
    if inside.shape != SHAPE or inside.sum() != VOXELS:
        raise UserInputError(
            f"mask: '{mask}' has {inside.sum()} voxels of {inside.shape}, expected {VOXELS} of "
            f"{SHAPE}, MNI152NLin6Asym at 2 mm."
        )
    z, y, x = np.nonzero(inside.transpose(2, 1, 0))  # in the suite's order
    grid = contract.model.img_size[:3]
    mm = np.stack([x, y, z], axis=1) @ image.affine[:3, :3].T + image.affine[:3, 3]
    if contract.native:
        raise UserInputError("ckpt_path: the model is of native space, the suite of MNI space.")
    if contract.grid_affine is None:  # centred by its shape, as the converter does
        offset = [(new - old) // 2 for new, old in zip(grid, SHAPE, strict=True)]
        index = np.stack([SHAPE[0] - 1 - x, y, z], axis=1) + offset
    else:
        affine = np.asarray(contract.grid_affine)
        exact = (mm - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
        index = np.rint(exact).astype(np.int64)
        if np.abs(exact - index).max() > 0.01 or not np.allclose(np.abs(affine[:3, :3]).sum(0), 2):
            raise UserInputError(
                f"ckpt_path: the model's grid is not that of the suite (2 mm, {ORIENTATION}); it "
                f"cannot be evaluated on these voxels without another resampling."
            )
    kept = ((index >= 0) & (index < grid)).all(axis=1)
    flat = np.ravel_multi_index(tuple(index[kept].T), grid)
    order = np.argsort(flat)
    return np.flatnonzero(kept)[order], flat[order]


class SuiteTransform:
    """Make the model's windows of a sample; see the module's text.

    Args:
        contract: of the model.
        voxels: [N] of ``voxels_on_grid``.
        windows: at most, evenly spaced.
        keep_z_score: feed the suite's z-scored values as they are, background 0 (the suite's
            ``coord_normalize``), in place of the model's own scaling.
    """

    def __init__(
        self, contract: InputContract, voxels: np.ndarray, windows: int, keep_z_score: bool
    ) -> None:
        self.contract, self.voxels = contract, voxels
        self.windows, self.keep_z_score = windows, keep_z_score

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sample with the model's windows in place of ``bold``.

        Returns:
            bold: float32 [W, F, N], scaled, 0 after the last window; background [W]; count: number
            of windows; anatomy: [W, N] for models with that channel. W is the same for all samples,
            so that any two can be collated. ``mean`` and ``std`` are left out.
        """
        z_TV = np.asarray(sample["bold"], dtype=np.float32)
        if z_TV.ndim != 2 or z_TV.shape[1] != VOXELS:
            raise UserInputError(f"sample: bold is {z_TV.shape}, expected (T, {VOXELS}).")
        frames = z_TV[:, self.voxels]
        if not self.keep_z_score:
            mean, std = (np.asarray(sample[k]).reshape(-1)[self.voxels] for k in ("mean", "std"))
            frames = frames * std.astype(np.float32) + mean.astype(np.float32)
        frames = self._in_time(frames, float(sample["tr"]))
        data = self.contract.data
        if len(frames) < data.window_span:  # a mirror image in time, as for scans of users
            short = data.window_span - len(frames)
            frames = np.pad(frames, ((0, short), (0, 0)), "reflect" if len(frames) > 1 else "edge")
        starts = np.arange(0, len(frames) - data.window_span + 1, data.window_step)
        if len(starts) > self.windows:
            starts = starts[np.rint(np.linspace(0, len(starts) - 1, self.windows)).astype(int)]
        bold = np.zeros((self.windows, data.sequence_length, len(self.voxels)), np.float32)
        background = np.zeros(self.windows, np.float32)
        anatomy = np.zeros((self.windows, len(self.voxels)), np.float32)
        whole = None if data.scaling_statistics == "window" else self._scaling(frames)
        for i, start in enumerate(starts):
            window = frames[start : start + data.window_span : data.stride_within_seq]
            scaling = whole or self._scaling(window)
            bold[i] = window if self.keep_z_score else scaling.apply(window / scaling.unit[0])
            background[i] = 0.0 if self.keep_z_score else scaling.background
            anatomy[i] = scaling.anatomy
        rest = {k: v for k, v in sample.items() if k not in ("bold", "mean", "std")}
        found = {"bold": bold, "background": background}
        if self.contract.model.anatomy:
            found["anatomy"] = anatomy
        tensors = {name: torch.from_numpy(values) for name, values in found.items()}
        return rest | tensors | {"count": len(starts)}

    def _in_time(self, frames: np.ndarray, tr: float) -> np.ndarray:
        if not self.contract.tr:
            return frames
        nearest = min(self.contract.tr, key=lambda one: abs(one - tr))
        if abs(nearest - tr) <= _TR_TOLERANCE * nearest:
            return frames
        return resample_time(frames, tr, nearest)

    def _scaling(self, frames: np.ndarray) -> FrameScaling:
        """The scaling by statistics of all frames given, as the store's of a run."""
        low, high = float(frames.min()), float(frames.max())
        header = _header(len(frames), max(high - low, 1e-6) / _STEPS, self.contract)
        stored = frames / header.scale
        return frame_scaling(Path(), header, stored, self.contract.data.input_scaling_method)


def _header(frames: int, scale: float, contract: InputContract) -> RunHeader:
    x, y, z = contract.model.img_size[:3]
    eye = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    return RunHeader(
        **dict.fromkeys(("session", "task", "run", "dataset", "tr_source", "mask_source"), ""),
        **dict.fromkeys(("source", "source_sha256", "options", "tool_version"), ""),
        subject="sample",
        grid=(x, y, z),
        affine=eye,
        orientation=ORIENTATION,
        source_shape=(x, y, z),
        source_affine=eye,
        crop_offset=(0, 0, 0),
        cropped_voxels=0,
        scale=scale,
        offset=0.0,
        mean=0.0,
        std=1.0,
        min=0.0,
        max=1.0,
        tr=float("nan"),
        n_frames=frames,
        dropped_frames=0,
        n_voxels=1,
    )


class SuiteWrapper(nn.Module):
    """Embeddings of samples that ``SuiteTransform`` has made.

    Args:
        model: backbone and contract; a head is not used.
        vox: [N] of ``voxels_on_grid``.
        cells: along each axis of the coarse grid; 0 keeps the features of all tokens.
    """

    __space__ = "mni"

    def __init__(self, model: LoadedModel, vox: np.ndarray, cells: int) -> None:
        super().__init__()
        self.backbone, self.config, self.cells = model.backbone, model.contract.model, cells
        self.plan = plan_compact([torch.from_numpy(vox)], self.config)[0]
        places = self.plan.spatial_index
        grid = self.config.token_grid[:3]
        cell = torch.zeros_like(places)
        for position, size in zip(
            np.unravel_index(places.numpy(), grid), grid, strict=True
        ):  # the same cells in all samples: those with brain
            count = min(cells, size) or 1
            cell = cell * count + torch.from_numpy(position) * count // size
        found, numbers = cell.unique(return_inverse=True)
        self.cell_count = len(found)
        of_place = torch.zeros(int(np.prod(grid)), dtype=torch.int64)
        of_place[places] = numbers
        self.register_buffer("cell_of_place", of_place, persistent=False)

    def embed(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the mean over all tokens and windows [B, 1, D], and the patches [B, C or W L, D].

        With all tokens, windows that a sample does not have are 0.
        """
        device = next(self.backbone.parameters()).device
        plan = type(self.plan)(*(part.to(device) for part in self.plan))
        means, patches = [], []
        most = int(max(int(count) for count in batch["count"]))
        for b, count in enumerate(int(count) for count in batch["count"]):
            tokens, index = self._windows(batch, b, count, plan, device)
            means.append(tokens.mean(0, keepdim=True))
            if self.cells:
                cell = self.cell_of_place[index // self.config.token_grid[3]]  # type: ignore[index]
                patches.append(group_mean(tokens, cell, self.cell_count))
            else:
                empty = (most - count) * (len(tokens) // count)
                patches.append(nn.functional.pad(tokens, (0, 0, 0, empty)))
        return torch.stack(means), torch.stack(patches)

    def _windows(
        self, batch: Mapping[str, Any], b: int, count: int, plan: Any, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Features of all windows of a sample, one after the other, and the tokens' places."""
        features, index = [], []
        for w in range(count):  # one at a time: a window of the full grid has 14,810 tokens
            bold = batch["bold"][b, w].to(device).float()
            background = float(batch["background"][b, w])
            packed = pack_compact([bold], [plan], [1.0], [0.0], [background], self.config)
            if self.config.anatomy:
                mean = batch["anatomy"][b, w].to(device).float()
                packed = packed._replace(anatomy=pack_anatomy([mean], [plan], 1.0, self.config))
            features.append(self.backbone.forward_tokens(packed).features.float())
            index.append(packed.token_index)
        return torch.cat(features), torch.cat(index)
