"""Augmentation: against numpy and scipy on dense volumes, and what it leaves alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from neuromamba.common.errors import UserInputError
from neuromamba.common.seeds import stream
from neuromamba.config.data import AugmentConfig
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.training import DownstreamConfig, OptimConfig, PretrainConfig
from neuromamba.data.windows import augment
from neuromamba.data.windows.augment import (
    Affine,
    AugmentPlan,
    affine_about,
    augment_window,
    bounding_box,
    move_mask,
    plan_augmentation,
    resample,
    smooth,
)
from neuromamba.data.windows.dataset import collate_windows
from neuromamba.fmamba.downstream import DownstreamModule
from neuromamba.fmamba.pretrain import PretrainModule
from neuromamba.fmamba.tokenizer import pack_compact, plan_compact, unpatchify

GRID, FRAMES = (20, 24, 18), 4
STILL = Affine(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (0.0, 0.0, 0.0))
BOTH = AugmentConfig()


def brain(grid: tuple[int, ...] = GRID, share: float = 0.36) -> np.ndarray:
    """An ellipsoid with a hole and a notch, so that no symmetry hides a mistake."""
    axes = np.indices(grid)
    centre = [(n - 1) / 2 for n in grid]
    inside = sum(((a - c) / (share * n)) ** 2 for a, c, n in zip(axes, centre, grid, strict=True))
    mask: np.ndarray = inside < 1
    x, y, z = (n // 2 for n in grid)
    mask[x : x + 2, y : y + 3, z] = False
    mask[: x - 2, : y - 3, z + 2 :] = False
    return mask


MASK = brain()
VOX = torch.from_numpy(np.flatnonzero(MASK).astype(np.int32))


def window(seed: int = 0, vox: Tensor = VOX, grid: tuple[int, ...] = GRID) -> Tensor:
    """int16 [T, N], smooth in space, different in every frame."""
    rng = np.random.default_rng(seed)
    frames = [ndimage.gaussian_filter(rng.normal(size=grid), 1.5) for _ in range(FRAMES)]
    volume = 9000 + 20000 * np.stack(frames)
    return torch.from_numpy(volume.reshape(FRAMES, -1)[:, vox.long()].round().astype(np.int16))


def dense(values_TN: Tensor, vox: Tensor, grid: tuple[int, ...] = GRID) -> np.ndarray:
    """[T, X, Y, Z], NaN outside the mask."""
    volume = np.full((len(values_TN), math.prod(grid)), np.nan)
    volume[:, vox.long()] = values_TN.numpy()
    return volume.reshape(-1, *grid)


def moved(affine: Affine, bold: Tensor, vox: Tensor = VOX, grid: tuple[int, ...] = GRID) -> Any:
    """The moved window [T, X, Y, Z], NaN outside its mask."""
    plan = AugmentPlan(move_mask(vox, grid, affine), vox, affine)
    return dense(augment_window(bold, plan, grid), plan.voxels, grid)


# ---------------------------------------------------------------------------------- affine


def test_identity_changes_no_bit() -> None:
    bold = window()
    assert torch.equal(move_mask(VOX, GRID, STILL), VOX)
    assert move_mask(VOX, GRID, STILL).dtype == torch.int32
    plan = AugmentPlan(VOX, VOX, STILL)
    assert torch.equal(augment_window(bold, plan, GRID), bold.float())
    config = ModelConfig(img_size=(*GRID, FRAMES), patch_size=(4, 4, 3, 2), embed_dim=8)
    plans, numbers = plan_compact([VOX], config), ([1 / 300], [-20.0], [-40.0])
    before = pack_compact([bold], plans, *numbers, config)
    after = pack_compact([augment_window(bold, plan, GRID)], plans, *numbers, config)
    assert torch.equal(after.tokens, before.tokens)


def test_no_angle_no_zoom_no_shift_is_the_identity() -> None:
    assert affine_about((3.5, 4.0, 9.5), (0, 0, 0), (1, 1, 1), (0, 0, 0)) == STILL


@pytest.mark.parametrize("shift", [(2, 0, 0), (0, -3, 1), (-1, 2, 2), (6, 0, 0), (-12, 9, 0)])
def test_shift_by_whole_voxels(shift: tuple[int, int, int]) -> None:
    """What leaves the grid is lost; it does not come in on the other side."""
    bold = window()
    found = moved(affine_about((1, 2, 3), (0, 0, 0), (1, 1, 1), shift), bold)
    wide = np.pad(dense(bold, VOX), [(0, 0)] + [(15, 15)] * 3, constant_values=np.nan)
    expected = np.roll(wide, shift, axis=(1, 2, 3))[:, 15:-15, 15:-15, 15:-15]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rotation_by_a_right_angle(axis: int) -> None:
    """About x from y to z, about y from z to x, about z from x to y."""
    grid = (17, 17, 17)
    vox = torch.from_numpy(np.flatnonzero(brain(grid)).astype(np.int32))
    bold = window(1, vox, grid)
    angles = [math.pi / 2 if a == axis else 0.0 for a in range(3)]
    found = moved(affine_about((8, 8, 8), angles, (1, 1, 1), (0, 0, 0)), bold, vox, grid)
    plane = [(2, 3), (3, 1), (1, 2)][axis]
    expected = np.rot90(dense(bold, vox, grid), 1, plane)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_zoom_above_one_enlarges() -> None:
    for zooms in ((1.1, 1.0, 0.9), (1.2, 1.2, 1.2)):
        affine = affine_about((9.5, 11.5, 8.5), (0, 0, 0), zooms, (0, 0, 0))
        count = move_mask(VOX, GRID, affine).numel()
        assert count == pytest.approx(math.prod(zooms) * VOX.numel(), rel=0.03)


GENERAL = affine_about((9.0, 12.0, 8.0), (0.08, -0.06, 0.07), (1.05, 0.96, 1.02), (1.3, -0.6, 0.4))


def scipy_affine(volume: np.ndarray, order: int) -> np.ndarray:
    return ndimage.affine_transform(
        volume, np.array(GENERAL.matrix), np.array(GENERAL.offset), order=order, mode="constant"
    )


def test_interpolation_agrees_with_scipy() -> None:
    """Everywhere, against the interpolated volume over the interpolated mask."""
    bold = window()
    found = moved(GENERAL, bold)
    mask = scipy_affine(MASK.astype(np.uint8), 0).astype(bool)
    assert np.array_equal(~np.isnan(found[0]), mask)
    weight = scipy_affine(MASK.astype(float), 1)
    inner = mask & (weight > 1 - 1e-9)
    assert inner.sum() > 0.5 * mask.sum()
    for frame, before in zip(found, np.nan_to_num(dense(bold, VOX)), strict=True):
        expected = scipy_affine(before, 1)
        np.testing.assert_allclose(frame[inner], expected[inner], rtol=1e-4)
        np.testing.assert_allclose(frame[mask], expected[mask] / weight[mask], rtol=1e-4)


def test_the_rim_is_not_darkened() -> None:
    """A brain of one intensity keeps it, whatever background is."""
    bold = torch.full((FRAMES, VOX.numel()), 1234, dtype=torch.int16)
    values = moved(GENERAL, bold)
    np.testing.assert_allclose(values[~np.isnan(values)], 1234, rtol=1e-6)
    for sigma in (0.3, 0.75, 2.0):
        plan = AugmentPlan(VOX, VOX, None, sigma, bounding_box(VOX, GRID))
        np.testing.assert_allclose(augment_window(bold, plan, GRID), 1234, rtol=1e-5)


def test_all_frames_move_alike() -> None:
    bold = window()
    bold[2], bold[3] = bold[0], bold[1] - bold[0]
    found = moved(GENERAL, bold)
    assert np.array_equal(found[2], found[0], equal_nan=True)
    np.testing.assert_allclose(found[3], found[1] - found[0], atol=0.01)


@pytest.mark.parametrize("seed", range(6))
def test_every_moved_voxel_has_a_brain_voxel_to_take_from(seed: int) -> None:
    """Scattered voxels and large transforms: no division by 0, also at the grid's faces."""
    rng = np.random.default_rng(seed)
    vox = torch.from_numpy(np.sort(rng.choice(math.prod(GRID), 300, False)).astype(np.int32))
    angles, shift = rng.uniform(-3, 3, 3), rng.uniform(-5, 5, 3)
    affine = affine_about((9.5, 11.5, 8.5), angles, np.exp(rng.uniform(-0.7, 0.7, 3)), shift)
    target = move_mask(vox, GRID, affine)
    assert target.numel() and (target.diff() > 0).all()
    values = torch.from_numpy(rng.uniform(5, 6, (300, 2)).astype(np.float32))
    found = resample(values, vox, target, GRID, affine)
    assert found.isfinite().all() and found.min() >= 4.999 and found.max() <= 6.001


# ------------------------------------------------------------------------ smoothing and noise


@pytest.mark.parametrize("sigma", [0.3, 0.75, 1.4])
def test_smoothing_agrees_with_scipy(sigma: float) -> None:
    bold = window()
    found = smooth(bold.T.float(), VOX, GRID, bounding_box(VOX, GRID), sigma)
    weight = ndimage.gaussian_filter(MASK.astype(float), sigma, mode="constant")
    for frame, before in zip(found.T, np.nan_to_num(dense(bold, VOX)), strict=True):
        expected = ndimage.gaussian_filter(before, sigma, mode="constant")[MASK] / weight[MASK]
        np.testing.assert_allclose(frame, expected, rtol=1e-5)


def test_smoothing_of_many_frames_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values, box = window().T.float(), bounding_box(VOX, GRID)
    whole = smooth(values, VOX, GRID, box, 0.7)
    monkeypatch.setattr(augment, "_FRAMES_AT_ONCE", 3)
    torch.testing.assert_close(smooth(values, VOX, GRID, box, 0.7), whole, rtol=1e-6, atol=0)


def test_noise_is_one_field_of_the_given_size() -> None:
    grid = (40, 40, 40)
    vox = torch.arange(0, math.prod(grid), 2, dtype=torch.int32)
    bold = window(2, vox, grid)
    noise = torch.randn(vox.numel(), generator=stream(1))
    plan = AugmentPlan(vox, vox, noise_level=0.1, noise=noise)
    added = augment_window(bold, plan, grid) - bold
    assert (added - added[0]).abs().max() < 0.01, "the differences between frames stay"
    spread = bold.double().mean(0).std(correction=0).item()
    assert added[0].std().item() == pytest.approx(0.1 * spread, rel=0.02)
    assert abs(added[0].mean().item()) < 0.002 * spread


def test_augmentation_is_the_same_before_and_after_scaling() -> None:
    """So that one definition serves all four scalings: values enter as stored or as scaled."""
    plan = plan_augmentation(VOX, GRID, BOTH, stream(4))._replace(sigma=0.6)
    plan = plan._replace(box=bounding_box(plan.voxels, GRID))
    bold, gain, shift = window(), 1 / 700, -3.0
    stored = augment_window(bold, plan, GRID) * gain + shift
    scaled = augment_window(bold * gain + shift, plan, GRID)
    torch.testing.assert_close(stored, scaled, rtol=1e-4, atol=1e-4)


def test_values_are_computed_outside_autocast() -> None:
    plan = plan_augmentation(VOX, GRID, BOTH, stream(4))._replace(sigma=0.6)
    plan = plan._replace(box=bounding_box(plan.voxels, GRID))
    expected = augment_window(window(), plan, GRID)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment_window(window(), plan, GRID), expected)
    wide = augment_window(window(), plan, GRID, torch.float64)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(expected.double(), wide, rtol=1e-4, atol=0)


# ------------------------------------------------------------------------------------ draws


def plan_of(config: AugmentConfig = BOTH, *keys: int, vox: Tensor = VOX) -> AugmentPlan:
    return plan_augmentation(vox, GRID, config, stream(7, *keys))


def same(one: AugmentPlan, other: AugmentPlan) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


def amplitudes(plan: AugmentPlan, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Zooms, shift in voxels and whole angle in degrees of a plan's transform."""
    assert plan.affine is not None
    forward = np.linalg.inv(np.array(plan.affine.matrix))
    shift = forward @ (centre - np.array(plan.affine.offset)) - centre
    zooms = np.linalg.norm(forward, axis=0)
    rotation = forward / zooms
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) > 0, "left stays left"
    return zooms, shift, math.degrees(math.acos((np.trace(rotation) - 1) / 2))


def test_sizes_of_the_draws() -> None:
    low, high = bounding_box(VOX, GRID)
    centre = (np.array(low) + np.array(high)) / 2
    plans = [plan_of(BOTH, n) for n in range(300)]
    zooms, shifts, angles = (
        np.array(v) for v in zip(*(amplitudes(p, centre) for p in plans), strict=True)
    )
    assert 1 / 1.05 - 1e-9 < zooms.min() < 0.956 and 1.046 < zooms.max() < 1.05 + 1e-9
    assert np.abs(shifts).max() <= 3 and shifts.max() > 2.9 and shifts.min() < -2.9
    assert np.abs(shifts.mean(0)).max() < 0.4
    assert 6 < angles.max() < 5 * math.sqrt(3) + 0.5
    sigmas = np.array([plan.sigma for plan in plans])
    assert (sigmas > 0).mean() == pytest.approx(0.5, abs=0.1)
    assert sigmas[sigmas > 0].min() >= 0.25 and 0.7 < sigmas.max() <= 0.75
    assert {plan.noise_level for plan in plans} == {0.1}


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_strength_scales_everything(strength: float) -> None:
    low, high = bounding_box(VOX, GRID)
    centre = (np.array(low) + np.array(high)) / 2
    compared = 0
    for n in range(10):
        one, other = plan_of(BOTH, n), plan_of(AugmentConfig(strength=strength), n)
        zooms, shift, angle = amplitudes(one, centre)
        zooms_2, shift_2, angle_2 = amplitudes(other, centre)
        if other.voxels.numel() > 0.99 * np.prod(zooms_2) * VOX.numel():  # not halved
            compared += 1
            np.testing.assert_allclose(np.log(zooms_2), strength * np.log(zooms), rtol=1e-6)
            np.testing.assert_allclose(shift_2, strength * shift, rtol=1e-6)
            assert angle_2 == pytest.approx(strength * angle, rel=0.02)
        assert other.sigma == pytest.approx(strength * one.sigma)
        assert other.noise_level == pytest.approx(strength * 0.1)
    assert compared >= 3


def test_draws_depend_on_the_generator_alone() -> None:
    assert same(plan_of(BOTH, 1), plan_of(BOTH, 1))
    assert not same(plan_of(BOTH, 1), plan_of(BOTH, 2))
    affine, intensity = AugmentConfig(intensity=False), AugmentConfig(affine=False)
    both, moved_only, noisy_only = (plan_of(config, 3) for config in (BOTH, affine, intensity))
    assert moved_only.affine == both.affine and torch.equal(moved_only.voxels, both.voxels)
    assert moved_only.noise is None and moved_only.sigma == 0
    assert noisy_only.affine is None and noisy_only.voxels is noisy_only.source
    assert noisy_only.sigma == both.sigma and noisy_only.noise is not None


@pytest.mark.parametrize("strength", [1.0, 5.0, 1000.0])
def test_a_brain_at_the_border_is_not_lost(strength: float) -> None:
    """A transform is halved until three quarters of the brain are left."""
    corner = np.zeros(GRID, dtype=bool)
    corner[:3, -3:, :2] = True
    single = torch.tensor([0], dtype=torch.int32)
    for vox in (torch.from_numpy(np.flatnonzero(corner).astype(np.int32)), single, VOX):
        for n in range(20):
            plan = plan_of(AugmentConfig(strength=strength), n, vox=vox)
            assert plan.voxels.numel() >= max(1, 0.3 * vox.numel())
            bold = torch.full((FRAMES, vox.numel()), 50, dtype=torch.int16)
            assert augment_window(bold, plan, GRID).isfinite().all()


def test_a_window_without_brain_stays_one() -> None:
    """``--keep_background`` admits it."""
    empty = torch.empty(0, dtype=torch.int32)
    plan = plan_of(BOTH, vox=empty)
    bold = torch.empty(FRAMES, 0, dtype=torch.int16)
    assert augment_window(bold, plan, GRID).shape == (FRAMES, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strength": 0.0}, "--augment_strength: got 0.0"),
        ({"strength": math.nan}, "--augment_strength: got nan"),
        ({"affine": False, "intensity": False}, "--augment_only_affine contradicts"),
    ],
)
def test_refusals(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        AugmentConfig(**values)


# ------------------------------------------------------------------------------ in the module

MODEL = ModelConfig(
    img_size=(*GRID, FRAMES), patch_size=(4, 4, 3, 2), embed_dim=16, depth=1, headdim=16
)


def samples(number: int = 3) -> list[dict[str, Any]]:
    return [
        {
            "bold": window(n),
            "vox": VOX.clone(),
            "gain": 1 / 700,
            "shift": -12.0,
            "background": -13.5,
            "subject": f"sub-{n // 2}",
            "sample_id": f"sub-{n // 2}",
            "window": n % 2,
            "dataset": 0,
            "target": n % 2,
        }
        for n in range(number)
    ]


def pretrain(config: AugmentConfig | None, objective: str = "autoregressive") -> PretrainModule:
    torch.manual_seed(0)
    return PretrainModule(
        model=MODEL,
        objective=PretrainConfig(objective=objective),
        optim=OptimConfig(),
        total_steps=10,
        augment=config,
    )


def packed(module: PretrainModule, made: list[dict[str, Any]]) -> Any:
    return module.pack(module.on_before_batch_transfer(collate_windows(made), 0))


def test_tokens_follow_the_moved_brain() -> None:
    """Kept tokens are those with a voxel of the moved mask; outside it is background, exactly."""
    module, made = pretrain(AugmentConfig(strength=1.5)), samples()
    batch = module.on_before_batch_transfer(collate_windows(made), 0)
    found = module.pack(batch)
    changed = 0
    for i, plan in enumerate(batch["augment"]):
        index = found.token_index.split(found.lengths)[i]
        (stored,) = plan_compact([VOX], MODEL)
        (expected,) = plan_compact([plan.voxels], MODEL)
        kept = index[:: MODEL.token_grid[3]] // MODEL.token_grid[3]
        assert torch.equal(kept, expected.spatial_index)
        changed += not torch.equal(kept, stored.spatial_index)
        whole = torch.full((1, MODEL.num_tokens, MODEL.token_dim), -13.5)
        whole[0, index] = found.tokens.split(found.lengths)[i]
        volume = unpatchify(whole, MODEL)[0, 0].flatten(0, 2)
        outside = torch.ones(len(volume), dtype=torch.bool)
        outside[plan.voxels.long()] = False
        assert (volume[outside] == -13.5).all()
        values = augment_window(made[i]["bold"], plan, GRID) * (1 / 700) - 12.0
        torch.testing.assert_close(volume[~outside].T, values, rtol=1e-5, atol=1e-5)
    assert changed


@pytest.mark.parametrize("config", [BOTH, AugmentConfig(affine=False)])
def test_only_training_is_augmented(config: AugmentConfig) -> None:
    module, plain, made = pretrain(config), pretrain(None), samples()
    expected = packed(plain, made)
    assert not torch.equal(packed(module, made).tokens, expected.tokens)
    module.eval()
    found = packed(module, made)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.token_index, expected.token_index)


def test_draws_of_a_window_do_not_depend_on_its_batch() -> None:
    """Nor on what was drawn before: so a resumed run, or one of another batch size, repeats."""
    module, made = pretrain(BOTH), samples(4)
    together = packed(module, made)
    torch.rand(3)
    again = packed(module, made[::-1])
    parts = together.tokens.split(together.lengths)
    assert all(
        torch.equal(a, b)
        for a, b in zip(parts, again.tokens.split(again.lengths)[::-1], strict=True)
    )
    plans = module.on_before_batch_transfer(collate_windows(made), 0)["augment"]
    assert len({plan.affine for plan in plans}) == 4, "each window has its own"


def test_draws_change_with_seed_and_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    made = samples(1)
    first = packed(pretrain(BOTH), made).tokens
    assert not torch.equal(packed(pretrain(AugmentConfig(seed=2)), made).tokens, first)
    monkeypatch.setattr(PretrainModule, "current_epoch", 1)
    assert not torch.equal(packed(pretrain(BOTH), made).tokens, first)


def test_training_steps_of_all_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    for objective in ("autoregressive", "mim"):
        module = pretrain(BOTH, objective)
        batch = module.on_before_batch_transfer(collate_windows(samples()), 0)
        loss = module.training_step(batch, 0)
        loss.backward()
        assert loss.isfinite()
    task = DownstreamModule(
        model=MODEL,
        head=HeadConfig(),
        task=DownstreamConfig(),
        optim=OptimConfig(),
        total_steps=10,
        augment=BOTH,
    )
    batch = task.on_before_batch_transfer(collate_windows(samples()), 0)
    with torch.autocast("cpu", torch.bfloat16):
        task.training_step(batch, 0).backward()
    assert task.checkpoint_metadata()["augment"] == {
        "affine": True,
        "intensity": True,
        "strength": 1.0,
        "seed": 1234,
    }
