"""Pools and heads, against loops over windows, places and frames in NumPy."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.fmamba.heads import BatchStandardise, build_head
from neuromamba.fmamba.pooling import POOLS, deviation_over_time
from neuromamba.fmamba.tokenizer import PackedTokens
from neuromamba.planning.flops import head_parameter_count

WIDTH = 16
MODEL = ModelConfig(img_size=(8, 10, 4, 6), patch_size=(2, 2, 2, 2), embed_dim=WIDTH, depth=1)
GRID = MODEL.token_grid  # 4, 5, 2 places, 3 times


def packed_windows(places: tuple[list[int], ...]) -> PackedTokens:
    """Windows that keep all times of some places of the spatial grid."""
    index = [place * GRID[3] + time for window in places for place in window for time in range(3)]
    lengths = tuple(len(window) * GRID[3] for window in places)
    return PackedTokens(torch.zeros(0), torch.tensor(index), lengths)


PACKED = packed_windows(([0, 3, 17, 38, 39], [5, 6], list(range(40))))


def features(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(PACKED.lengths), WIDTH, generator=generator) + 2


def by_place(values: np.ndarray) -> list[dict[tuple[int, int, int], np.ndarray]]:
    """For each window: place (x, y, z) -> [times, D]."""
    windows, start = [], 0
    for length in PACKED.lengths:
        rows: dict[tuple[int, int, int], list[np.ndarray]] = {}
        for row in range(start, start + length):
            x, y, z, _ = np.unravel_index(int(PACKED.token_index[row]), GRID)
            rows.setdefault((int(x), int(y), int(z)), []).append(values[row])
        windows.append({place: np.stack(found) for place, found in rows.items()})
        start += length
    return windows


def test_mean_and_deviation_over_time() -> None:
    x = features()
    expected = [
        np.concatenate(
            [
                np.concatenate(list(window.values())).mean(0),
                np.mean([rows.std(0) for rows in window.values()], axis=0),
            ]
        )
        for window in by_place(x.numpy())
    ]
    np.testing.assert_allclose(POOLS["mean_sd"](x, PACKED, MODEL), expected, atol=1e-6)
    mean = POOLS["mean"](x, PACKED, MODEL)
    np.testing.assert_allclose(mean, np.stack(expected)[:, :WIDTH], atol=1e-6)


def test_regions() -> None:
    """A grid of 4 x 5 x 2 places: three cells along x and y, two along z."""
    x, cells = features(), (3, 3, 2)
    assert MODEL.region_cells == 18
    expected = np.zeros((3, *cells, 2 * WIDTH))
    for number, window in enumerate(by_place(x.numpy())):
        members: dict[tuple[int, ...], list[np.ndarray]] = {}
        for place, rows in window.items():
            cell = tuple(p * n // g for p, n, g in zip(place, cells, GRID, strict=False))
            members.setdefault(cell, []).append(np.concatenate([rows.mean(0), rows.std(0)]))
        for cell, values in members.items():
            expected[(number, *cell)] = np.mean(values, axis=0)
    pooled = POOLS["regions"](x, PACKED, MODEL)
    np.testing.assert_allclose(pooled, expected.reshape(3, -1), atol=1e-6)
    assert (expected[1] == 0).any()  # cells without a token


def test_places() -> None:
    """Every place of the grid in raster order, zeros where a window has no token."""
    x = features()
    expected = np.zeros((3, *GRID[:3], WIDTH))
    for number, window in enumerate(by_place(x.numpy())):
        for place, rows in window.items():
            expected[(number, *place)] = rows.mean(0)
    pooled = POOLS["places"](x, PACKED, MODEL)
    np.testing.assert_allclose(pooled, expected.reshape(3, -1), atol=1e-6)
    absent = (expected == 0).all(-1)
    assert absent.any() and not absent.all()


def test_places_are_for_probes_only() -> None:
    with pytest.raises(UserInputError, match=r"--pool.*places"):
        HeadConfig(pool="places")


def test_the_deviation_of_a_constant_has_a_gradient() -> None:
    x = torch.ones(6, 2, requires_grad=True)
    spread = deviation_over_time(x, torch.tensor([0, 0, 1, 1, 1, 2]), 3)
    spread.sum().backward()
    assert x.grad is not None and spread.abs().max() == 0 and x.grad.isfinite().all()


def test_narrow_features_are_pooled_in_fp32() -> None:
    x = features().bfloat16()
    for name in ("mean_sd", "regions", "places"):
        pooled = POOLS[name](x, PACKED, MODEL)
        assert pooled.dtype == torch.float32
        torch.testing.assert_close(pooled, POOLS[name](x.float(), PACKED, MODEL))


@pytest.mark.parametrize(
    ("pool", "weights"), [("mean", 16), ("mean_sd", 32), ("regions", 18 * 32), ("attention", 16)]
)
def test_heads_and_their_parameters(pool: str, weights: int) -> None:
    config = HeadConfig(pool=pool, out_features=3, norm="batch")
    head = build_head(config, MODEL)
    logits = head(features(), PACKED)
    assert logits.shape == (3, 3)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())
    extra = WIDTH if pool == "attention" else 0
    assert head_parameter_count(config, MODEL) == 3 * weights + 3 + extra
    assert config.pooled_features(MODEL) == weights


def test_attention_weighs_the_tokens() -> None:
    """It starts as the mean; with weights it is the softmax of the scores, window by window."""
    head = build_head(HeadConfig(pool="attention"), MODEL)
    mean = build_head(HeadConfig(), MODEL)
    mean.classifier.load_state_dict(head.classifier.state_dict())  # type: ignore[union-attr, operator]
    x = features()
    torch.testing.assert_close(head(x, PACKED), mean(x, PACKED))
    score = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1))
    head.score.weight.data.copy_(score)  # type: ignore[union-attr, operator]
    rows = []
    for window in x.double().split(PACKED.lengths):
        part = window.numpy()
        weight = np.exp(part @ score.numpy()[0])
        rows.append((part * weight[:, None]).sum(0) / weight.sum())
    expected = functional.linear(
        torch.tensor(np.stack(rows), dtype=torch.float32),
        head.classifier.weight,  # type: ignore[union-attr, arg-type]
        head.classifier.bias,  # type: ignore[union-attr, arg-type]
    )
    torch.testing.assert_close(head(x, PACKED), expected, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------- standardisation


def test_standardises_like_batch_normalisation() -> None:
    ours, theirs = BatchStandardise(4), torch.nn.BatchNorm1d(4, affine=False)
    for seed in range(3):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) * 5 + 3
        mine = x.clone().requires_grad_()
        other = x.clone().requires_grad_()
        torch.testing.assert_close(ours(mine), theirs(other))
        ours(mine).pow(3).sum().backward()
        theirs(other).pow(3).sum().backward()
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))


def test_one_window_is_standardised_by_the_running_statistics() -> None:
    norm = BatchStandardise(2)
    norm(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    before = norm.mean.clone(), norm.variance.clone()
    one = torch.tensor([[2.0, 4.0]])
    expected = (one - before[0]) / (before[1] + 1e-5).sqrt()
    torch.testing.assert_close(norm(one), expected)
    assert torch.equal(norm.mean, before[0]) and torch.equal(norm.variance, before[1])


def standardised_on(rank: int, ranks: int, x: Tensor, folder: Path) -> None:
    """Write output and gradient of this rank's share of the rows."""
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=ranks)
    mine = x.chunk(ranks)[rank].clone().requires_grad_()
    norm = BatchStandardise(x.shape[1])
    out = norm(mine)
    out.pow(3).sum().backward()
    torch.save((out.detach(), mine.grad, norm.mean, norm.variance), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_standardise_as_one(tmp_path: Path) -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) + 1
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        context = multiprocessing.get_context("fork")
        jobs = [
            context.Process(target=standardised_on, args=(rank, ranks, x, folder))
            for rank in range(ranks)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join(60)
            assert job.exitcode == 0
    one = torch.load(tmp_path / "1/0.pt", weights_only=True)
    two = [torch.load(tmp_path / f"2/{rank}.pt", weights_only=True) for rank in range(2)]
    for part in (0, 1):  # outputs and gradients, row by row
        torch.testing.assert_close(torch.cat([rank[part] for rank in two]), one[part])
    for part in (2, 3):  # running statistics
        torch.testing.assert_close(two[0][part], one[part])
        torch.testing.assert_close(two[1][part], one[part])
