"""Scans of other people as baselines of an explanation, and smoothing of its map.

Expected gradients (Erion et al. 2021, Nature Machine Intelligence 3, eq. 3): the map of a scan is
the mean of its maps with each of several real scans as the baseline. Compared with the scan without
any fluctuation, whatever fluctuates gets a part of the score; compared with scans of other people,
what is alike in all of them cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from neuromamba.common.errors import UserInputError
from neuromamba.data.store.header import RunHeader
from neuromamba.inference.attribution import TokenWindow, baseline_value, token_window
from neuromamba.inference.model import TrainedModel
from neuromamba.inference.prepared import PreparedScan

MOST = 8  # references that are used
_FWHM = 2 * np.sqrt(2 * np.log(2))  # of a Gaussian, in standard deviations


class Reference(NamedTuple):
    """One window of another scan.

    Attributes:
        subject, source: of the scan.
        window: the one in its middle.
    """

    subject: str
    source: str
    window: TokenWindow


def reference_of(model: TrainedModel, scan: PreparedScan) -> Reference:
    """The window in the middle of a prepared scan."""
    baseline = baseline_value(scan.header, model.contract.data.input_scaling_method)
    item = scan.windows[len(scan.windows) // 2]
    window = token_window(item, model.contract.model, model.device, baseline)
    return Reference(scan.subject, scan.source, window)


def evenly(count: int, most: int = MOST) -> list[int]:
    """Numbers of at most ``most`` of ``count`` things, evenly spaced."""
    if count <= most:
        return list(range(count))
    return [int((i + 0.5) * count / most) for i in range(most)]


def of_others(references: Sequence[Reference], scan: PreparedScan) -> list[Reference]:
    """References of other subjects than a scan's.

    Raises:
        UserInputError: there is none.
    """
    found = [
        one
        for one in references
        if one.source != scan.source and (not one.subject or one.subject != scan.subject)
    ]
    if not found:
        raise UserInputError(
            f"{scan.source}: none of --references is a scan of another person. Give several."
        )
    return found


def compared_with(window: TokenWindow, other: TokenWindow) -> TokenWindow:
    """A window whose baseline is another one's tokens, at the same places of the grid.

    Voxels outside the other's mask keep the baseline that they have; those outside the window's own
    mask are left alone.
    """
    at = torch.full((int(max(p.plan.spatial_index.max() for p in (window, other))) + 1,), -1)
    at = at.to(window.plan.spatial_index.device)
    at[other.plan.spatial_index] = torch.arange(len(other.plan.spatial_index), device=at.device)
    place_P = at[window.plan.spatial_index]
    there = place_P >= 0
    rows = place_P.clamp(min=0)
    inside_PA, theirs_PA = (
        (one.plan.source < one.voxels).view(len(one.plan.spatial_index), -1)
        for one in (window, other)
    )
    both_PA = inside_PA & theirs_PA[rows] & there[:, None]
    tokens = window.baseline.tokens.clone()
    values = window.by_place(tokens)
    values.copy_(
        torch.where(both_PA[:, None, :, None], other.by_place(other.packed.tokens)[rows], values)
    )
    baseline = window.baseline._replace(tokens=tokens)
    if baseline.anatomy is not None and other.packed.anatomy is not None:
        anatomy = torch.where(both_PA, other.packed.anatomy[rows], baseline.anatomy)
        baseline = baseline._replace(anatomy=anatomy)
    return window._replace(baseline=baseline)


def smoothed(values: np.ndarray, vox: np.ndarray, header: RunHeader, fwhm: float) -> np.ndarray:
    """A map [N] smoothed by a Gaussian within the mask, float64 [N].

    Args:
        values: of the brain voxels.
        vox: [N] flat C-order indices into the grid of ``header``.
        header: of the run.
        fwhm: full width at half maximum in mm; 0 leaves the map as it is.
    """
    if not fwhm:
        return values
    from scipy import ndimage  # a fifth of a second to import

    edges = np.linalg.norm(np.asarray(header.affine)[:3, :3], axis=0)
    volume, weight = np.zeros(header.grid), np.zeros(header.grid)
    volume.ravel()[vox], weight.ravel()[vox] = values, 1.0
    there, share = (
        ndimage.gaussian_filter(one, fwhm / _FWHM / edges, mode="constant").ravel()[vox]
        for one in (volume, weight)
    )
    return there / share
