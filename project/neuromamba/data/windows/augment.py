"""Augmentation of training windows: affine transform, smoothing and noise, alike for all frames.

A window is compact: the values of its brain voxels and where these are (the mask). The random
numbers and the moved mask are made on the CPU, before the scatter is planned, so that the tokens
that are kept follow the moved brain (``plan_augmentation``); the intensities are computed on the
device, without waiting for it (``augment_window``). Nothing is known outside the mask and nothing
is made up: interpolation and smoothing average brain voxels only, with weights that add up to one
(normalised convolution), so that background does not darken the brain's rim.

Shapes: T frames, N brain voxels as stored, M of the moved brain, X, Y, Z the grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from neuromamba.config.data import AugmentConfig

# At strength 1; all are multiplied by the strength, except the probability.
ROTATION = math.radians(5)  # about each axis, at most
ZOOM = math.log(1.05)  # of each axis, at most 1.05 or 1 / 1.05
SHIFT = 3.0  # voxels along each axis, at most
SIGMA = (0.25, 0.75)  # voxels, of the smoothing
NOISE = 0.1  # in spatial standard deviations of the window
SMOOTHING_PROBABILITY = 0.5
# A transform that leaves less of the brain inside the grid than this is halved.
KEPT = 0.75

_TRUNCATE = 4.0  # radius of the smoothing kernel in sigmas
_FRAMES_AT_ONCE = 8  # of the dense volume that is smoothed; more take memory, not less time


Box = tuple[tuple[int, ...], tuple[int, ...]]  # first and last index along each axis


class Affine(NamedTuple):
    """Affine map from a moved volume to its source, in voxels: source = matrix @ target + offset.

    Plain numbers: tensors would be cast to the run's precision on the way to the device.
    """

    matrix: tuple[tuple[float, float, float], ...]
    offset: tuple[float, float, float]


class AugmentPlan(NamedTuple):
    """What happens to a window.

    Attributes:
        voxels: int32 [M], the moved mask; sorted flat indices like the stored one's.
        source: int32 [N], the stored mask.
        affine: None where the brain stays in its place; then ``voxels`` is ``source``.
        sigma: of the smoothing, voxels; 0 for none.
        box: first and last index of the moved mask along each axis.
        noise_level: standard deviation of the noise, in spatial standard deviations of the window.
        noise: float32 [M], standard normal numbers; None for no noise.
    """

    voxels: Tensor
    source: Tensor
    affine: Affine | None = None
    sigma: float = 0.0
    box: Box = ((0, 0, 0), (0, 0, 0))
    noise_level: float = 0.0
    noise: Tensor | None = None


# ------------------------------------------------------------------------------- on the CPU


def plan_augmentation(
    voxels: Tensor, grid: Sequence[int], config: AugmentConfig, generator: torch.Generator
) -> AugmentPlan:
    """Draw what happens to a window, and move its mask.

    The same numbers are drawn whatever is switched on, so that ``--augment_only_affine`` moves a
    window as the whole augmentation does.

    Args:
        voxels: int32 [N], sorted flat C-order indices of the brain voxels.
        grid: (X, Y, Z).
        config: what to do and how strongly.
        generator: of this window, on the CPU.
    """
    draws = torch.rand(11, generator=generator, dtype=torch.float64).tolist()
    plan = AugmentPlan(voxels, voxels)
    if not voxels.numel():
        return plan
    if config.affine:
        signed = [config.strength * (2 * draw - 1) for draw in draws[:9]]
        plan = _moved(voxels, grid, signed)
    if config.intensity:
        sigma = 0.0
        if draws[9] < SMOOTHING_PROBABILITY:
            sigma = config.strength * (SIGMA[0] + (SIGMA[1] - SIGMA[0]) * draws[10])
        plan = plan._replace(
            sigma=sigma,
            box=bounding_box(plan.voxels, grid),
            noise_level=config.strength * NOISE,
            noise=torch.randn(plan.voxels.numel(), generator=generator),
        )
    return plan


def _moved(voxels: Tensor, grid: Sequence[int], signed: Sequence[float]) -> AugmentPlan:
    """The transform of nine numbers (-1 .. 1 at strength 1), halved until the brain stays inside.

    Without that, a window whose brain is small or near the border could lose it.
    """
    low, high = bounding_box(voxels, grid)
    centre = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    for halvings in range(10):
        numbers = [number / 2**halvings for number in signed]
        angles = [ROTATION * number for number in numbers[:3]]
        zooms = [math.exp(ZOOM * number) for number in numbers[3:6]]
        shift = [SHIFT * number for number in numbers[6:]]
        affine = affine_about(centre, angles, zooms, shift)
        moved = move_mask(voxels, grid, affine)
        if moved.numel() >= max(1.0, KEPT * math.prod(zooms) * voxels.numel()):
            return AugmentPlan(moved, voxels, affine)
    return AugmentPlan(voxels, voxels)


def affine_about(
    centre: Sequence[float], angles: Sequence[float], zooms: Sequence[float], shift: Sequence[float]
) -> Affine:
    """Scale the axes, rotate about x, then y, then z, all about ``centre``, and shift.

    Args:
        centre, shift: voxels. angles: radians. zooms: above 1 enlarges.

    Returns:
        The transform from target to source, the inverse of what is described.
    """
    rotation = torch.eye(3, dtype=torch.float64)
    for axis, angle in enumerate(angles):
        i, j = ((1, 2), (2, 0), (0, 1))[axis]
        one = torch.eye(3, dtype=torch.float64)
        one[i, i] = one[j, j] = math.cos(angle)
        one[j, i] = math.sin(angle)
        one[i, j] = -one[j, i]
        rotation = one @ rotation
    inverse = (rotation * rotation.new_tensor(zooms)).inverse()
    middle = rotation.new_tensor(centre)
    offset = middle - inverse @ (middle + rotation.new_tensor(shift))
    return Affine(tuple(map(tuple, inverse.tolist())), tuple(offset.tolist()))


def bounding_box(voxels: Tensor, grid: Sequence[int]) -> Box:
    """First and last index of the voxels [N] along each axis; waits for the device."""
    axes = _unravel(voxels, grid)
    return tuple(int(axis.min()) for axis in axes), tuple(int(axis.max()) for axis in axes)


def move_mask(voxels: Tensor, grid: Sequence[int], affine: Affine) -> Tensor:
    """The mask under a transform: voxels whose nearest source voxel is in the mask.

    Args:
        voxels: int32 [N], sorted flat indices.
        grid: (X, Y, Z).
        affine: from target to source.

    Returns:
        int32 [M], sorted flat indices; what leaves the grid is lost.
    """
    low, high = bounding_box(voxels, grid)
    size = [b - a + 3 for a, b in zip(low, high, strict=True)]  # with a border of one voxel
    mask = torch.zeros(size, dtype=torch.bool)
    x, y, z = (axis - (a - 1) for axis, a in zip(_unravel(voxels, grid), low, strict=True))
    mask.view(-1)[(x * size[1] + y) * size[2] + z] = True
    # Only the box that the source's box becomes can hold brain.
    forward = torch.tensor(affine.matrix, dtype=torch.float64).inverse()
    sides = [(a - 0.5, b + 0.5) for a, b in zip(low, high, strict=True)]
    corners = torch.tensor(list(itertools.product(*sides)), dtype=torch.float64)
    corners = (corners - corners.new_tensor(affine.offset)) @ forward.T
    first = [max(0, math.floor(c)) for c in corners.amin(0).tolist()]
    last = [min(n - 1, math.ceil(c)) for n, c in zip(grid, corners.amax(0).tolist(), strict=True)]
    if any(a > b for a, b in zip(first, last, strict=True)):
        return voxels[:0]
    ranges = [torch.arange(a, b + 1, dtype=torch.float32) for a, b in zip(first, last, strict=True)]
    target = ranges[0][:, None, None], ranges[1][:, None], ranges[2]
    index = torch.zeros((), dtype=torch.int32)
    for row, offset, a, n in zip(affine.matrix, affine.offset, low, size, strict=True):
        source = (row[0] * target[0] + row[1] * target[1] + (offset - (a - 1))) + row[2] * target[2]
        index = index * n + source.round_().clamp_(0, n - 1).to(torch.int32)
    whole = torch.zeros(tuple(grid), dtype=torch.bool)
    box = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
    whole[box] = mask.view(-1).index_select(0, index.view(-1)).view(index.shape)
    return whole.view(-1).nonzero()[:, 0].to(torch.int32)


# ----------------------------------------------------------------------------- on the device


@torch.no_grad()
def augment_window(
    bold_TN: Tensor, plan: AugmentPlan, grid: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Move, smooth and add noise, in this order.

    All three are the same whether intensities are scaled before or after, so the result is in the
    stored units and takes the window's gain and shift as the stored values do.

    Args:
        bold_TN: stored values of the voxels ``plan.source``.
        plan: from ``plan_augmentation``, moved to the device of ``bold_TN``.
        grid: (X, Y, Z).
        dtype: to compute in; float32 at least.

    Returns:
        [T, M], values of the voxels ``plan.voxels``; memory is voxel after voxel.
    """
    # Outside autocast, which would multiply matrices in bf16.
    with torch.autocast(bold_TN.device.type, enabled=False):
        values_MT = bold_TN.to(dtype).T.contiguous()
        if plan.affine is not None:
            values_MT = resample(values_MT, plan.source, plan.voxels, grid, plan.affine)
        if plan.sigma:
            values_MT = smooth(values_MT, plan.voxels, grid, plan.box, plan.sigma)
        if plan.noise is not None:
            spread = values_MT.mean(1).std(correction=0) * plan.noise_level
            values_MT = torch.addcmul(values_MT, plan.noise.to(dtype)[:, None], spread)
    return values_MT.T


def resample(
    values_NT: Tensor, source: Tensor, target: Tensor, grid: Sequence[int], affine: Affine
) -> Tensor:
    """Trilinear interpolation among brain voxels: [N, T] at ``source`` -> [M, T] at ``target``.

    Args:
        values_NT: contiguous, float32 or float64.
        source: [N] flat indices of the brain voxels.
        target: [M] flat indices from ``move_mask``; each has a brain voxel among its corners.
        grid: (X, Y, Z).
        affine: from target to source.
    """
    # Row of each voxel in values_NT, or -1, with a border of one voxel around the grid.
    strides = ((grid[1] + 2) * (grid[2] + 2), grid[2] + 2, 1)
    rows = source.new_full(((grid[0] + 2) * strides[0],), -1, dtype=torch.int32)
    place = sum((a + 1) * step for a, step in zip(_unravel(source, grid), strides, strict=True))
    rows[place] = torch.arange(source.numel(), dtype=torch.int32, device=source.device)
    at = [axis.to(values_NT.dtype) for axis in _unravel(target, grid)]
    base = torch.zeros_like(target)
    parts: list[tuple[Tensor, Tensor]] = []
    for row, offset, step in zip(affine.matrix, affine.offset, strides, strict=True):
        point = row[0] * at[0] + row[1] * at[1] + row[2] * at[2] + offset
        below = point.floor()
        base += (below.to(base.dtype) + 1) * step
        upper = point - below
        parts.append((1 - upper, upper))
    index = torch.empty(8, target.numel(), dtype=torch.int32, device=target.device)
    weight = torch.empty(index.shape, dtype=values_NT.dtype, device=target.device)
    for corner, bits in enumerate(itertools.product((0, 1), repeat=3)):
        step = sum(bit * stride for bit, stride in zip(bits, strides, strict=True))
        index[corner] = rows[base + step]
        weight[corner] = parts[0][bits[0]] * parts[1][bits[1]] * parts[2][bits[2]]
    weight.mul_(index >= 0).div_(weight.sum(0))
    index.clamp_(min=0)
    return embedding_bag(
        index.T.contiguous(),
        values_NT,
        per_sample_weights=weight.T.contiguous(),
        mode="sum",
    )


def smooth(
    values_MT: Tensor, voxels: Tensor, grid: Sequence[int], box: Box, sigma: float
) -> Tensor:
    """Gaussian smoothing inside the mask: [M, T] -> [M, T].

    The smoothed volume, 0 outside the mask, over the smoothed mask. A Gaussian along an axis is
    a multiplication by a banded matrix, faster than a convolution of one channel.

    Args:
        values_MT: of the voxels.
        voxels: [M] flat indices.
        grid: (X, Y, Z).
        box: of the voxels; the rest of the grid is left out.
        sigma: voxels.
    """
    size = [b - a + 1 for a, b in zip(*box, strict=True)]
    x, y, z = (axis - a for axis, a in zip(_unravel(voxels, grid), box[0], strict=True))
    place = (x * size[1] + y) * size[2] + z
    kernels = []
    for n in size:
        along = torch.arange(n, dtype=values_MT.dtype, device=values_MT.device)
        distance = along[:, None] - along
        inside = distance.abs() <= int(_TRUNCATE * sigma + 0.5)
        kernels.append(torch.exp(-0.5 * (distance / sigma) ** 2) * inside)

    def blurred(values: Tensor) -> Tensor:
        volume = values.new_zeros(math.prod(size), values.shape[1])
        volume[place] = values
        volume = (kernels[0] @ volume.view(size[0], -1)).view(size[0], size[1], -1)
        volume = (kernels[1] @ volume).view(size[0] * size[1], size[2], -1)
        return (kernels[2] @ volume).view(math.prod(size), -1)[place]

    weight = blurred(torch.ones_like(values_MT[:, :1]))
    return torch.cat([blurred(part) / weight for part in values_MT.split(_FRAMES_AT_ONCE, 1)], 1)


def _unravel(flat: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Flat C-order indices -> (x, y, z)."""
    column = flat // grid[2]
    x = column // grid[1]
    return x, column - x * grid[1], flat - column * grid[2]
