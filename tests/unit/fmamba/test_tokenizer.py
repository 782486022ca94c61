"""Tokens: order, what is kept, and compact windows against dense ones built by loops."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.config.names import RUN_SCALINGS
from neuromamba.fmamba.tokenizer import (
    PackedTokens,
    in_raster_order,
    mask_to_tokens,
    pack_anatomy,
    pack_compact,
    pack_dense,
    patchify,
    plan_compact,
    token_places,
    tokens_off_background,
    unpatchify,
)


def config(img_size: tuple[int, ...], patch_size: tuple[int, ...], **more: object) -> ModelConfig:
    return ModelConfig(img_size=img_size, patch_size=patch_size, embed_dim=8, **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Run:
    """A stored window: int16 values of the brain voxels, their places, and the scaling."""

    bold: Tensor  # [T, N]
    vox: Tensor  # [N]
    gain: float
    shift: float
    background: float

    def dense(self, img_size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The window (1, X, Y, Z, T) and its mask (X, Y, Z), voxel by voxel."""
        _, size_y, size_z, frames = img_size
        volume = np.full((1, *img_size), np.float32(self.background), dtype=np.float32)
        mask = np.zeros(img_size[:3], dtype=bool)
        for n, flat in enumerate(self.vox.tolist()):
            place = (flat // (size_y * size_z), flat // size_z % size_y, flat % size_z)
            mask[place] = True
            values = volume[0][place]
            for t in range(frames):
                q = np.float32(self.bold[t, n].item())
                values[t] = q * np.float32(self.gain) + np.float32(self.shift)
        return torch.from_numpy(volume), torch.from_numpy(mask)


def draw_run(rng: np.random.Generator, img_size: tuple[int, ...], share: float) -> Run:
    voxels = math.prod(img_size[:3])
    count = max(1, round(share * voxels))
    vox = np.sort(rng.choice(voxels, count, replace=False)).astype(np.int32)
    bold = rng.integers(-32768, 32768, (img_size[3], count)).astype(np.int16)
    gain, shift = rng.uniform(1e-4, 1e-3), rng.normal()
    background = -32769 * gain + shift  # below every voxel, as *_minback makes it
    return Run(torch.from_numpy(bold), torch.from_numpy(vox), gain, shift, background)


def compact(runs: list[Run], model: ModelConfig, names: tuple[str, ...] = ()) -> PackedTokens:
    plans = plan_compact([run.vox for run in runs], model, names)
    gain, shift, background = (
        torch.tensor([getattr(run, name) for run in runs], dtype=torch.float32)
        for name in ("gain", "shift", "background")
    )
    return pack_compact([run.bold for run in runs], plans, gain, shift, background, model)


def dense(runs: list[Run], model: ModelConfig, with_mask: bool = True) -> PackedTokens:
    volumes, masks = zip(*(run.dense(model.img_size) for run in runs), strict=True)
    return pack_dense(torch.stack(volumes), model, torch.stack(masks) if with_mask else None)


def assert_same(one: PackedTokens, other: PackedTokens) -> None:
    assert one.lengths == other.lengths
    assert torch.equal(one.token_index, other.token_index)
    # One rounding more or less (a fused multiply-add) is all that may differ.
    torch.testing.assert_close(one.tokens, other.tokens, rtol=1e-6, atol=1e-5)


# ------------------------------------------------------------------- compact against dense


@pytest.mark.parametrize("keep", ["own", "keep_background", "union_mask"])
@pytest.mark.parametrize("seed", range(8))
def test_compact_equals_dense(seed: int, keep: str) -> None:
    """Random masks, sizes and patches; samples of one batch with different voxel counts."""
    rng = np.random.default_rng(seed)
    patch = tuple(int(p) for p in rng.integers(1, 4, 4))
    grid = tuple(int(g) for g in rng.integers(1, 5, 4))
    size = tuple(p * g for p, g in zip(patch, grid, strict=True))
    model = config(size, patch, **({} if keep == "own" else {keep: True}))
    runs = [draw_run(rng, size, share) for share in (0.02, 0.2, 0.9)]
    packed = compact(runs, model)
    assert_same(packed, dense(runs, model))
    if keep == "keep_background":
        assert packed.lengths == (model.num_tokens,) * 3
    if keep == "union_mask":
        assert len(set(packed.lengths)) == 1


@pytest.mark.parametrize("keep", ["own", "keep_background", "union_mask"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("frames_of_patch", [1, 2, 3])
def test_space_first(seed: int, keep: str, frames_of_patch: int) -> None:
    """The same tokens, all places of a time together; made so by both ways of packing."""
    rng = np.random.default_rng(seed)
    patch = (*(int(p) for p in rng.integers(1, 4, 3)), frames_of_patch)
    grid = tuple(int(g) for g in rng.integers(1, 5, 4))
    size = tuple(p * g for p, g in zip(patch, grid, strict=True))
    more = {} if keep == "own" else {keep: True}
    raster = config(size, patch, **more)
    space_first = config(size, patch, token_order="space_first", **more)
    runs = [draw_run(rng, size, share) for share in (0.02, 0.2, 0.9)]
    plain, packed = compact(runs, raster), compact(runs, space_first)
    assert packed.lengths == plain.lengths
    start = 0
    for length in plain.lengths:
        rows = range(start, start + length)
        index = plain.token_index.tolist()
        order = sorted(rows, key=lambda row: (index[row] % grid[3], index[row] // grid[3]))
        assert packed.token_index[rows].tolist() == [index[row] for row in order]
        assert torch.equal(packed.tokens[rows], plain.tokens[order])
        start += length
    assert_same(packed, dense(runs, space_first))
    back = in_raster_order(packed, space_first)
    assert back is not None and torch.equal(packed.tokens[back], plain.tokens)
    assert torch.equal(packed.token_index[back], plain.token_index)
    assert in_raster_order(plain, raster) is None
    plans = plan_compact([run.vox for run in runs], space_first)
    assert torch.equal(token_places(plans, space_first)[0], packed.token_index)


def test_space_first_without_a_mask() -> None:
    """Background recognised by its value may leave places that are not whole."""
    rng = np.random.default_rng(5)
    size, patch = (4, 4, 2, 6), (2, 2, 1, 2)
    volume = torch.from_numpy(rng.integers(0, 2, (2, 1, 8, 2, 2, 3)).astype(np.float32))
    volume = volume.view(2, 1, 4, 2, 2, 2, 3).repeat_interleave(2, 3).reshape(2, 1, 4, 4, 4, 3)
    volume = volume[:, :, :, :, :2].repeat_interleave(2, -1) + 1
    raster = pack_dense(volume, config(size, patch))
    space_first = config(size, patch, token_order="space_first")
    packed = pack_dense(volume, space_first)
    back = in_raster_order(packed, space_first)
    assert back is not None and not torch.equal(raster.token_index, packed.token_index)
    assert torch.equal(packed.token_index[back], raster.token_index)
    assert torch.equal(packed.tokens[back], raster.tokens)


@pytest.mark.parametrize("method", RUN_SCALINGS)
@pytest.mark.parametrize("background_kept", [False, True])
def test_all_scalings(method: str, background_kept: bool) -> None:
    """A positive run, y = 2 q: background is y = 0 scaled (minback), or 0 (zeroback)."""
    rng = np.random.default_rng(3)
    size, patch = (6, 8, 6, 4), (3, 2, 2, 2)
    vox = torch.from_numpy(np.sort(rng.choice(288, 40, replace=False)))
    bold = torch.from_numpy(rng.integers(1, 1000, (4, 40)).astype(np.int16))
    centre, spread = (900.0, 300.0) if method.startswith("znorm") else (0.0, 2000.0)
    background = -centre / spread if method.endswith("minback") else 0.0
    run = Run(bold, vox, 2 / spread, -centre / spread, background)
    rule = "min" if method.endswith("minback") else "zero"
    model = config(size, patch, keep_background=background_kept, background=rule)
    packed = compact([run, run], model)
    assert_same(packed, dense([run, run], model))
    # Here the background's value tells the same tokens as the mask.
    assert_same(packed, dense([run, run], model, with_mask=False))
    if background_kept:
        share = (packed.tokens == np.float32(background)).float().mean().item()
        assert share == pytest.approx(1 - 40 / 288)


def test_compact_leaves_the_batch_alone() -> None:
    """Also where one voxel is a whole sample, so that background is a single number."""
    model = config((1, 1, 1, 1), (1, 1, 1, 1))
    plans = plan_compact([torch.tensor([0])], model)
    background = torch.tensor([-1.0])
    bold = torch.tensor([[3]], dtype=torch.int16)
    packed = pack_compact([bold], plans, torch.ones(1), torch.zeros(1), background, model)
    assert packed.tokens.tolist() == [[3.0]]
    assert background.item() == -1.0 and bold.item() == 3


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64])
def test_values_that_need_no_conversion_are_left_alone_too(dtype: torch.dtype) -> None:
    model = config((2, 1, 1, 2), (1, 1, 1, 1))
    plans = plan_compact([torch.tensor([0, 1])], model)
    bold = torch.tensor([[1, 2], [3, 4]], dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for _ in range(2):
        packed = pack_compact([bold], plans, [2.0], [0.5], [0.0], model, wide)
        assert packed.tokens[:, 0].tolist() == [2.5, 6.5, 4.5, 8.5]
        assert packed.tokens.dtype == wide
    assert bold.tolist() == [[1, 2], [3, 4]]


def test_voxels_outside_the_mask_are_background_inside_kept_tokens() -> None:
    model = config((2, 2, 2, 1), (2, 2, 2, 1))
    run = Run(torch.tensor([[7, 8]], dtype=torch.int16), torch.tensor([1, 6]), 0.5, 1.0, -9.0)
    packed = compact([run], model)
    assert packed.tokens.tolist() == [[-9.0, 4.5, -9.0, -9.0, -9.0, -9.0, 5.0, -9.0]]


@pytest.mark.parametrize("keep", ["own", "keep_background"])
def test_samples_are_independent(keep: str) -> None:
    """A sample is packed alike alone and between others (``union_mask`` is the exception)."""
    rng = np.random.default_rng(5)
    model = config((6, 6, 6, 4), (3, 2, 3, 2), keep_background=keep == "keep_background")
    runs = [draw_run(rng, model.img_size, share) for share in (0.05, 0.5, 0.01)]
    together = compact(runs, model)
    parts = together.tokens.split(together.lengths)
    places = together.token_index.split(together.lengths)
    for run, tokens, place in zip(runs, parts, places, strict=True):
        alone = compact([run], model)
        assert torch.equal(alone.tokens, tokens) and torch.equal(alone.token_index, place)


def test_union_keeps_what_any_sample_has() -> None:
    model = config((4, 2, 2, 2), (2, 2, 2, 1), union_mask=True)
    bold = torch.tensor([[5], [6]], dtype=torch.int16)
    runs = [
        Run(bold, torch.tensor([0]), 1.0, 0.0, -1.0),
        Run(bold, torch.tensor([15]), 1.0, 0.0, -2.0),
    ]
    packed = compact(runs, model)
    assert packed.lengths == (4, 4)
    assert packed.token_index.tolist() == [0, 1, 2, 3] * 2
    # First sample: its own patch, then the other's, which is its background.
    assert packed.tokens[:4, 0].tolist() == [5.0, 6.0, -1.0, -1.0]
    assert packed.tokens[4:, -1].tolist() == [-2.0, -2.0, 5.0, 6.0]


# ---------------------------------------------------------------------------- token order


@pytest.mark.parametrize(
    ("img_size", "patch_size", "channels"),
    [((4, 6, 6, 4), (2, 3, 2, 2), 1), ((3, 4, 5, 6), (3, 1, 5, 2), 2), ((2, 2, 2, 2), (1,) * 4, 1)],
)
def test_order_by_a_volume_of_coordinates(
    img_size: tuple[int, ...], patch_size: tuple[int, ...], channels: int
) -> None:
    """Tokens: T fastest, then Z, Y, X. Inside a token: x, y, z, t, channel, the last fastest."""
    axes = torch.meshgrid(*map(torch.arange, (channels, *img_size)), indexing="ij")
    c, x, y, z, t = axes
    volume = (((c * 10 + x) * 10 + y) * 10 + z) * 10 + t
    expected = []
    grid = [s // p for s, p in zip(img_size, patch_size, strict=True)]
    for place in itertools.product(*map(range, grid)):
        token = []
        for *inner, channel in itertools.product(*map(range, patch_size), range(channels)):
            at = [g * p + i for g, p, i in zip(place, patch_size, inner, strict=True)]
            token.append((((channel * 10 + at[0]) * 10 + at[1]) * 10 + at[2]) * 10 + at[3])
        expected.append(token)
    tokens = patchify(volume[None], patch_size)
    assert tokens[0].tolist() == expected
    model = config(img_size, patch_size, in_chans=channels)
    assert tokens.shape == (1, model.num_tokens, model.token_dim)
    assert torch.equal(unpatchify(tokens, model), volume[None])


def test_unpatchify_inverts_patchify() -> None:
    model = config((6, 4, 6, 4), (2, 4, 3, 2), in_chans=2)
    fmri = torch.randn(3, 2, 6, 4, 6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpatchify(patchify(fmri, model.patch_size), model), fmri)


def test_token_index_is_the_place_in_the_full_grid() -> None:
    """One voxel in patch (1, 0, 2) of a 2 x 3 x 4 x 5 grid: five tokens, one for each time."""
    model = config((4, 6, 8, 10), (2, 2, 2, 2))
    flat = (3 * 6 + 1) * 8 + 4
    run = Run(torch.ones(10, 1, dtype=torch.int16), torch.tensor([flat]), 1.0, 0.0, -1.0)
    start = ((1 * 3 + 0) * 4 + 2) * 5
    assert compact([run], model).token_index.tolist() == list(range(start, start + 5))


def test_mask_to_tokens() -> None:
    mask = torch.zeros(2, 4, 2, 2, dtype=torch.bool)
    mask[0, 1, 1, 0] = mask[1, 2, 0, 0] = mask[1, 3, 1, 1] = True
    kept = mask_to_tokens(mask, (2, 2, 2, 3), 6)
    assert kept.tolist() == [[True, True, False, False], [False, False, True, True]]


# -------------------------------------------------------------------- background by value


def windows(level: tuple[float, float]) -> Tensor:
    """Two windows of 2 x 2 x 2 x 2 patches of one voxel, at their level but for three tokens."""
    fmri = torch.tensor(level).reshape(2, 1, 1, 1, 1, 1).repeat(1, 1, 2, 2, 2, 2)
    fmri[0, 0, 0, 0, 0, 1] = 2.0  # token 1
    fmri[0, 0, 1, 1, 1, 1] = 3.0  # token 15
    fmri[1, 0, 0, 1, 0, 0] = 4.0  # token 4
    return fmri


@pytest.mark.parametrize(
    ("rule", "level", "kept"),
    [
        ("min", (-1.5, -2.5), ([1, 15], [4])),  # each window has its own minimum
        ("min", (0.0, 0.0), ([1, 15], [4])),
        ("zero", (0.0, 0.0), ([1, 15], [4])),
        ("zero", (-1.5, 0.0), (list(range(16)), [4])),  # -1.5 is not 0: all are brain
    ],
)
def test_background_rule(
    rule: str, level: tuple[float, float], kept: tuple[list[int], list[int]]
) -> None:
    packed = pack_dense(windows(level), config((2, 2, 2, 2), (1, 1, 1, 1), background=rule))
    assert packed.lengths == tuple(map(len, kept))
    assert packed.token_index.tolist() == kept[0] + kept[1]


def test_token_is_kept_for_a_single_voxel() -> None:
    tokens = torch.full((1, 3, 432), -0.7)
    tokens[0, 1, 431] = -0.6
    assert tokens_off_background(tokens, "min").tolist() == [[False, True, False]]
    assert tokens_off_background(tokens + 0.7, "zero").tolist() == [[False, True, False]]


# ------------------------------------------------------------------------------- refusals


def test_sample_without_a_brain_token_is_named() -> None:
    model = config((2, 2, 2, 2), (1, 1, 1, 1))
    fmri = windows((0.0, 0.0))
    fmri[1] = 5.0  # constant
    with pytest.raises(UserInputError, match=r"no brain token is left in: sub-07\. .*constant"):
        pack_dense(fmri, model, names=("sub-03", "sub-07"))
    mask = torch.ones(2, 2, 2, 2, dtype=torch.bool)
    mask[0] = False
    with pytest.raises(UserInputError, match="left in: sub-03\\."):
        pack_dense(fmri, model, mask, names=("sub-03", "sub-07"))
    with pytest.raises(UserInputError, match="left in: sample 1\\."):
        pack_dense(fmri, model)
    # The others' tokens do not excuse it under the union mask either.
    union = config((2, 2, 2, 2), (1, 1, 1, 1), union_mask=True)
    with pytest.raises(UserInputError, match="left in: sub-07\\."):
        pack_dense(fmri, union, names=("sub-03", "sub-07"))


@pytest.mark.parametrize("union", [False, True])
def test_compact_sample_without_voxels_is_named(union: bool) -> None:
    model = config((2, 2, 2, 2), (1, 1, 1, 1), union_mask=union)
    voxels = [torch.tensor([], dtype=torch.int32), torch.tensor([1]), torch.tensor([]).int()]
    with pytest.raises(UserInputError, match=r"left in: sub-a, sub-c\. .*--keep_background"):
        plan_compact(voxels, model, ("sub-a", "sub-b", "sub-c"))


def test_keep_background_is_the_remedy_that_the_message_names() -> None:
    model = config((2, 2, 2, 2), (1, 1, 1, 1), keep_background=True)
    empty = Run(torch.empty(2, 0, dtype=torch.int16), torch.tensor([]).int(), 1.0, 0.0, -1.0)
    packed = compact([empty], model, ("sub-a",))
    assert packed.lengths == (16,) and (packed.tokens == -1.0).all()
    assert_same(packed, dense([empty], model))


def test_wrong_shape_is_refused() -> None:
    with pytest.raises(
        UserInputError, match=r"expects .* \(1, 2, 2, 2, 2\), got \(1, 2, 2, 2, 4\)"
    ):
        pack_dense(torch.zeros(1, 1, 2, 2, 2, 4), config((2, 2, 2, 2), (1, 1, 1, 1)))


def test_packing_needs_no_gradient_and_hands_it_on() -> None:
    """Compact windows carry none; dense ones pass it to the voxels that are kept."""
    model = config((2, 2, 2, 2), (1, 1, 1, 1), background="zero")
    rng = np.random.default_rng(0)
    assert not compact([draw_run(rng, model.img_size, 0.5)], model).tokens.requires_grad
    fmri = windows((0.0, 0.0)).requires_grad_()
    pack_dense(fmri, model).tokens.sum().backward()
    assert fmri.grad is not None
    assert torch.equal(fmri.grad, (fmri != 0).float())


@pytest.mark.parametrize("keep", ["own", "keep_background", "union_mask"])
@pytest.mark.parametrize("seed", range(4))
def test_anatomy_equals_a_loop_over_voxels(seed: int, keep: str) -> None:
    """One row for each kept place, in the order of the tokens, 0 outside the brain."""
    rng = np.random.default_rng(seed)
    patch = tuple(int(p) for p in rng.integers(1, 4, 4))
    grid = tuple(int(g) for g in rng.integers(1, 5, 4))
    size = tuple(p * g for p, g in zip(patch, grid, strict=True))
    model = config(size, patch, anatomy=True, **({} if keep == "own" else {keep: True}))
    runs = [draw_run(rng, size, share) for share in (0.02, 0.2, 0.9)]
    images = [run.bold[0] for run in runs]
    plans = plan_compact([run.vox for run in runs], model)
    found = pack_anatomy(images, plans, 0.5, model)

    packed, begin, row = compact(runs, model), 0, 0
    for run, image, length in zip(runs, images, packed.lengths, strict=True):
        volume = np.zeros(math.prod(size[:3]))
        volume[run.vox.numpy()] = 0.5 * image.numpy()
        volume = volume.reshape(size[:3])
        index = packed.token_index[begin : begin + length].tolist()
        for first in index[:: grid[3]]:
            x, y, z, _ = np.unravel_index(first, grid)
            a, b, c = x * patch[0], y * patch[1], z * patch[2]
            expected = volume[a : a + patch[0], b : b + patch[1], c : c + patch[2]].ravel()
            np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-6)
            row += 1
        begin += length
    assert row == len(found) and found.abs().sum() > 0
