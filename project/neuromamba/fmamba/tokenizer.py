"""Packed brain tokens from scaled volumes (paper, section 3.1).

A window (C, X, Y, Z, T) is cut into patches; a patch with its frames is a token. Tokens are in
raster order, T fastest, then Z, Y, X, or with ``token_order`` "space_first" with Z fastest, then Y,
X, T. Inside a token the voxels are in the order (x, y, z, t, c).
Tokens without a brain voxel are dropped, for each sample by itself, and what is left of all
samples is packed into one tensor without padding.

Shapes: B samples, G tokens of the whole grid, S spatial patches, L kept tokens of all samples
together, V values a token, P places (kept spatial patches) of all samples together, A voxels of a
spatial patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig

_WHOLE = "b c (gx px) (gy py) (gz pz) (gt pt)"
_TOKENS = "b (gx gy gz gt) (px py pz pt c)"


class PackedTokens(NamedTuple):
    """Kept tokens of a batch.

    Attributes:
        tokens: [L, V] scaled intensities, sample after sample, in the model's order inside a
            sample.
        token_index: [L] position of each token in the full grid (0 .. G - 1), counted in raster
            order whatever the order of the tokens.
        lengths: kept tokens of each sample; they add up to L.
        anatomy: [P, A] mean image at each place, sample after sample, in the order (x, y, z) inside
            a patch and 0 outside the brain; None for a model without this channel.
    """

    tokens: Tensor
    token_index: Tensor
    lengths: tuple[int, ...]
    anatomy: Tensor | None = None


def _patch_sizes(patch_size: Sequence[int]) -> dict[str, int]:
    return dict(zip(("px", "py", "pz", "pt"), patch_size, strict=True))


def patchify(fmri: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Cut (B, C, X, Y, Z, T) into tokens [B, G, V]."""
    return rearrange(fmri, f"{_WHOLE} -> {_TOKENS}", **_patch_sizes(patch_size))


def unpatchify(tokens: Tensor, config: ModelConfig) -> Tensor:
    """Inverse of ``patchify``: [B, G, V] -> (B, C, X, Y, Z, T)."""
    sizes = _patch_sizes(config.patch_size)
    sizes |= dict(zip(("gx", "gy", "gz", "gt"), config.token_grid, strict=True))
    return rearrange(tokens, f"{_TOKENS} -> {_WHOLE}", **sizes)


def mask_to_tokens(mask: Tensor, patch_size: Sequence[int], frames: int) -> Tensor:
    """Which tokens hold a brain voxel: (B, X, Y, Z) bool -> [B, G] bool."""
    px, py, pz, pt = patch_size
    spatial = reduce(
        mask.float(), "b (gx px) (gy py) (gz pz) -> b (gx gy gz)", "max", px=px, py=py, pz=pz
    )
    return spatial.bool().repeat_interleave(frames // pt, dim=1)


def tokens_off_background(tokens: Tensor, background: str) -> Tensor:
    """Which tokens of dense data [B, G, V] differ from the background: [B, G] bool.

    The reference's rule for data without a mask: background is the window's minimum ("min") or 0
    ("zero"), and a token is kept if any of its values differs from it.
    """
    if background == "min":
        level = tokens.flatten(1).amin(1)[:, None, None]
    else:
        level = tokens.new_zeros(())
    return (tokens != level).any(-1)


def pack_dense(
    fmri: Tensor, config: ModelConfig, mask: Tensor | None = None, names: Sequence[str] = ()
) -> PackedTokens:
    """Tokenise dense windows and pack the tokens to keep.

    Args:
        fmri: (B, C, X, Y, Z, T), scaled.
        config: patch size and what to keep.
        mask: (B, X, Y, Z) bool brain mask; without it background is recognised by its value.
        names: subjects of the samples, for the message.

    Raises:
        UserInputError: the shape is not ``--img_size``, or a sample has no brain token.
    """
    expected = (config.in_chans, *config.img_size)
    if tuple(fmri.shape[1:]) != expected:
        raise UserInputError(
            f"--img_size: the model expects windows (C, X, Y, Z, T) = {expected}, "
            f"got {tuple(fmri.shape[1:])}."
        )
    tokens = patchify(fmri, config.patch_size)
    if config.keep_background:
        keep = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    elif mask is not None:
        keep = mask_to_tokens(mask, config.patch_size, config.img_size[3])
    else:
        keep = tokens_off_background(tokens, config.background)
    lengths = keep.sum(1).tolist()
    _refuse_empty(lengths, names)
    if config.union_mask:
        keep = keep.any(0, keepdim=True).expand_as(keep)
        lengths = keep.sum(1).tolist()
    if config.token_order == "raster":
        return PackedTokens(tokens[keep], keep.nonzero()[:, 1], tuple(lengths))
    order = torch.arange(config.num_tokens, device=tokens.device)
    order = order.view(-1, config.token_grid[3]).T.flatten()
    keep = keep[:, order]
    return PackedTokens(tokens[:, order][keep], order[keep.nonzero()[:, 1]], tuple(lengths))


def in_raster_order(packed: PackedTokens, config: ModelConfig) -> Tensor | None:
    """Rows of the tokens in raster order inside each sample, int64 [L]; None where they are so."""
    if config.token_order == "raster":
        return None
    lengths = torch.tensor(packed.lengths, device=packed.token_index.device)
    sample = torch.repeat_interleave(lengths)
    return torch.argsort(sample * config.num_tokens + packed.token_index)


class CompactPlan(NamedTuple):
    """Where the brain voxels of a run go, once its mask and the patch size are known.

    Attributes:
        spatial_index: [S] kept spatial patches, in raster order.
        source: [S * voxels of a patch] the brain voxel at each place of the kept patches, counted
            in the order (x, y, z); N where there is none.
    """

    spatial_index: Tensor
    source: Tensor


@lru_cache(maxsize=4)
def _voxel_tables(
    volume: tuple[int, ...], patch: tuple[int, ...], grid: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Spatial patch of every voxel of the volume and its place in the patch, int64 [X * Y * Z].

    Looked up for the voxels of each window: divisions would take longer than the rest of a plan.
    """
    (px, py, pz), (_, gy, gz) = patch, grid
    x, y, z = torch.meshgrid(*(torch.arange(size) for size in volume), indexing="ij")
    patches = (x // px * gy + y // py) * gz + z // pz
    places = (x % px * py + y % py) * pz + z % pz
    return patches.flatten(), places.flatten()


def plan_compact(
    voxels: Sequence[Tensor], config: ModelConfig, names: Sequence[str] = ()
) -> list[CompactPlan]:
    """Plan the scatter of compact windows; integer work on the mask only, meant for the CPU.

    Args:
        voxels: for each sample [N] sorted flat C-order indices of its brain voxels.
        config: grid, patch size and what to keep.
        names: subjects of the samples, for the message.

    Raises:
        UserInputError: a sample has no brain voxel, unless background is kept.
    """
    if not config.keep_background:
        _refuse_empty([v.numel() for v in voxels], names)
    patch_of, place_of = _voxel_tables(
        tuple(config.img_size[:3]), tuple(config.patch_size[:3]), config.token_grid[:3]
    )
    voxels = [flat.long() for flat in voxels]
    patches = [patch_of.index_select(0, flat) for flat in voxels]
    total = math.prod(config.token_grid[:3])
    kept = [torch.zeros(total, dtype=torch.bool).index_fill_(0, p, True) for p in patches]
    if config.keep_background:
        kept = [torch.ones_like(k) for k in kept]
    elif config.union_mask:
        kept = [torch.stack(kept).any(0)] * len(kept)
    plans = []
    size = math.prod(config.patch_size[:3])
    for keep, patch, flat in zip(kept, patches, voxels, strict=True):
        begin = (keep.cumsum(0) - 1) * size
        spatial_index = keep.nonzero()[:, 0]
        source = torch.full((spatial_index.numel() * size,), flat.numel())
        places = begin.index_select(0, patch) + place_of.index_select(0, flat)
        source[places] = torch.arange(flat.numel())
        plans.append(CompactPlan(spatial_index, source))
    return plans


def token_places(
    plans: Sequence[CompactPlan], config: ModelConfig
) -> tuple[Tensor, tuple[int, ...]]:
    """``token_index`` and ``lengths`` of the tokens that plans keep; see ``PackedTokens``."""
    frames = config.token_grid[3]
    time = torch.arange(frames, device=plans[0].spatial_index.device)
    index = [plan.spatial_index[:, None] * frames + time for plan in plans]
    if config.token_order == "space_first":
        index = [places.T for places in index]
    return torch.cat([i.flatten() for i in index]), tuple(places.numel() for places in index)


def pack_compact(
    bold: Sequence[Tensor],
    plans: Sequence[CompactPlan],
    gain: Sequence[float],
    shift: Sequence[float],
    background: Sequence[float],
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
) -> PackedTokens:
    """Scale, scatter and patchify compact windows straight into packed tokens, on their device.

    Equals ``pack_dense`` on the dense window with the stored mask, without ever building it.

    Args:
        bold: for each sample [T, N] stored int16 values q of its brain voxels, or floats in the
            same units (augmented windows).
        plans: from ``plan_compact``, moved to the device.
        gain, shift, background: B numbers; a voxel is q * gain + shift, outside the mask
            background.
        config: grid and patch size; one channel.
        dtype: of the tokens; the stored int16 values need fp32 at least.
    """
    assert config.in_chans == 1
    index, lengths = token_places(plans, config)
    # The batch's tokens are made once and written in place: a pass over them costs milliseconds.
    tokens = torch.empty(sum(lengths), config.token_dim, dtype=dtype, device=index.device)
    for i, (q_TN, plan, sample) in enumerate(zip(bold, plans, tokens.split(lengths), strict=True)):
        _fill(sample, q_TN, plan, float(gain[i]), float(shift[i]), float(background[i]), config)
    return PackedTokens(tokens, index, lengths)


def pack_anatomy(
    anatomy: Sequence[Tensor],
    plans: Sequence[CompactPlan],
    step: float,
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Scale, scatter and patchify the mean images of compact windows; see ``PackedTokens.anatomy``.

    Args:
        anatomy: for each sample int16 [N], the mean image at its brain voxels.
        plans: from ``plan_compact``, on the same device.
        step: value of one integer.
        config: patch size.
        dtype: of the result, as of the tokens.
    """
    patches = []
    for values_N, plan in zip(anatomy, plans, strict=True):
        scaled = torch.zeros(len(values_N) + 1, dtype=dtype, device=values_N.device)
        scaled[:-1] = values_N  # behind the voxels one of background
        patches.append(scaled.mul_(step).index_select(0, plan.source))
    return torch.cat(patches).view(-1, config.place_dim)


# Bytes of a voxel's frames in a token -> a type of that size, by which they are moved as one.
_WORDS = {4: torch.int32, 8: torch.int64, 16: torch.complex128}


def _fill(
    tokens: Tensor,
    q_TN: Tensor,
    plan: CompactPlan,
    gain: float,
    shift: float,
    background: float,
    config: ModelConfig,
) -> None:
    """Write a sample's tokens: its frames scaled, voxels side by side, then picked into patches.

    On a CPU the frames of one token after the other, so that what is picked from stays in the
    cache; elsewhere all at once.
    """
    (frames, voxels), patch_frames = q_TN.shape, config.patch_size[3]
    grid_frames = frames // patch_frames
    step = 1 if tokens.device.type == "cpu" else grid_frames
    # Behind the voxels one of background, for the places outside the mask.
    scaled = tokens.new_empty(step, voxels + 1, patch_frames)
    scaled[:, voxels] = background
    word = _WORDS.get(patch_frames * tokens.element_size())
    words = scaled if word is None else scaled.view(word)[..., 0]
    rows = (
        tokens.view(-1, grid_frames, tokens.shape[1])
        if config.token_order == "raster"
        else tokens.view(grid_frames, -1, tokens.shape[1]).transpose(0, 1)
    )
    rows = rows.unflatten(2, (-1, patch_frames)) if word is None else rows.view(word)
    for begin in range(0, grid_frames, step):
        frames_of = q_TN[begin * patch_frames : (begin + step) * patch_frames]
        inside = scaled[:, :voxels]
        for t, q_GN in enumerate(frames_of.unflatten(0, (step, patch_frames)).unbind(1)):
            inside[..., t] = q_GN
        inside.mul_(gain).add_(shift)
        picked = words.index_select(1, plan.source)  # [step, S * voxels of a patch, ...]
        patches = picked.unflatten(1, (rows.shape[0], -1))
        rows[:, begin : begin + step] = patches.transpose(0, 1)


def _refuse_empty(counts: Sequence[int], names: Sequence[str]) -> None:
    empty = [i for i, count in enumerate(counts) if not count]
    if empty:
        who = ", ".join(names[i] if names else f"sample {i}" for i in empty)
        raise UserInputError(
            f"no brain token is left in: {who}. The window is constant or its mask is empty; check "
            f"the run, exclude it with --bad_subj_path, or keep all tokens with --keep_background."
        )
