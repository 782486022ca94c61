"""Positional encodings against loops over numbers, and how the model stores them."""

from __future__ import annotations

import itertools
import math
import subprocess

import numpy as np
import pytest
import torch

from neuromamba.config.model import ModelConfig
from neuromamba.config.names import POSITIONAL_ENCODINGS
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.positional import grid_coordinates, nerf_features, positional_encoding
from tests.helpers.preloaded import preloaded_python

GRID = (2, 3, 4, 5)
ENCODED = [name for name in POSITIONAL_ENCODINGS if name != "none"]


def points(grid: tuple[int, ...]) -> list[list[float]]:
    """Coordinates in raster order, T fastest; an axis of one token stands at 0."""
    places = itertools.product(*map(range, grid))
    return [
        [i / (n - 1) if n > 1 else 0.0 for i, n in zip(place, grid, strict=True)]
        for place in places
    ]


@pytest.mark.parametrize("grid", [GRID, (1, 2, 1, 3), (1, 1, 1, 1)])
def test_coordinates(grid: tuple[int, ...]) -> None:
    np.testing.assert_allclose(grid_coordinates(grid).numpy(), points(grid), rtol=1e-6)


def test_nerf_features_by_loops() -> None:
    expected = []
    for point in points(GRID):
        row = list(point)
        for power in range(10):
            row += [math.sin(2**power * q) for q in point]
            row += [math.cos(2**power * q) for q in point]
        expected.append(row)
    features = nerf_features(grid_coordinates(GRID))
    assert features.shape == (120, 84)
    # 2^9 times a coordinate in fp32 is known to 512 * 6e-8.
    np.testing.assert_allclose(features.numpy(), expected, rtol=0, atol=5e-5)


def test_nerf_is_linear_in_the_features() -> None:
    """One matrix for every grid: the encoding of a point does not depend on the other points."""
    whole, part = (
        positional_encoding("nerf", (3, 3, 3, 3), 16),
        positional_encoding("nerf", (2,) * 4, 16),
    )
    assert whole is not None and part is not None
    corners = [i for i, p in enumerate(points((3,) * 4)) if set(p) <= {0.0, 1.0}]
    torch.testing.assert_close(whole[0, corners], part[0], rtol=0, atol=1e-4)


def test_fourier_features_are_sines_and_cosines_of_the_same_angles() -> None:
    encoding = positional_encoding("ff", GRID, 16)
    assert encoding is not None
    sine, cosine = encoding[0].double().chunk(2, dim=-1)
    torch.testing.assert_close(sine**2 + cosine**2, torch.ones_like(sine))
    assert sine[0].abs().max() == 0.0  # the origin
    # Angles are linear in the coordinates: those of two axes together are the sum of each.
    index = {tuple(p): i for i, p in enumerate(points(GRID))}
    x, y, xy = (index[p] for p in ((1.0, 0.0, 0, 0), (0.0, 1.0, 0, 0), (1.0, 1.0, 0, 0)))
    expected = sine[x] * cosine[y] + cosine[x] * sine[y]
    torch.testing.assert_close(sine[xy], expected, rtol=0, atol=1e-4)


def test_sine_embedding_by_loops() -> None:
    """D / 4 features an axis: D / 8 sines and as many cosines, coordinates over [0, 2 pi]."""
    dim = 24
    expected = []
    for point in points(GRID):
        row: list[float] = []
        for q in point:
            angles = [2 * math.pi * q * 10_000 ** (-k / (dim // 8)) for k in range(dim // 8)]
            row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        expected.append(row)
    encoding = positional_encoding("cpe", GRID, dim)
    assert encoding is not None
    np.testing.assert_allclose(encoding[0].numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ENCODED)
@pytest.mark.parametrize("grid", [GRID, (1, 1, 1, 1), (1, 4, 1, 2)])
def test_shape_and_distinct_places(method: str, grid: tuple[int, ...]) -> None:
    encoding = positional_encoding(method, grid, 32)
    assert encoding is not None
    assert encoding.shape == (1, math.prod(grid), 32) and encoding.dtype == torch.float32
    assert encoding.isfinite().all()
    distance = torch.cdist(encoding[0], encoding[0]) + torch.eye(len(encoding[0])) * 1e3
    assert distance.min() > 0.01


def test_none_is_none() -> None:
    assert positional_encoding("none", GRID, 16) is None


@pytest.mark.parametrize("method", ENCODED)
def test_same_under_every_seed_and_without_side_effects(method: str) -> None:
    torch.manual_seed(1)
    one = positional_encoding(method, GRID, 16)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))  # drawing it did not move the global generator
    torch.manual_seed(2)
    other = positional_encoding(method, GRID, 16)
    assert one is not None and other is not None and torch.equal(one, other)


def test_same_in_another_process() -> None:
    program = (
        "from neuromamba.fmamba.positional import positional_encoding as encode;"
        "print(encode('nerf', (2, 3, 4, 5), 8).double().sum().item())"
    )
    found = subprocess.run(
        [preloaded_python(), "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    encoding = positional_encoding("nerf", GRID, 8)
    assert encoding is not None
    assert float(found.stdout) == encoding.double().sum().item()


@pytest.mark.parametrize("method", POSITIONAL_ENCODINGS)
def test_buffer_is_stored_or_absent(method: str) -> None:
    model = build_model(
        ModelConfig(
            img_size=(4, 6, 8, 4),
            patch_size=(2, 2, 2, 2),
            embed_dim=16,
            depth=1,
            mamba_pe_method=method,
        )
    )
    buffers, state = dict(model.named_buffers()), model.state_dict()
    assert ("embedder.pos" in buffers) == ("embedder.pos" in state) == (method != "none")
    assert "embedder.pos" not in dict(model.named_parameters())
    if method != "none":
        expected = positional_encoding(method, (2, 3, 4, 2), 16)
        assert expected is not None and torch.equal(state["embedder.pos"], expected)
