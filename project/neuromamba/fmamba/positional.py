"""Positional encodings of the token grid: the buffer ``embedder.pos`` [1, tokens, D].

Coordinates are those of the token grid (X, Y, Z, T), each axis running over linspace(0, 1, n).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from neuromamba.config.names import POSITIONAL_ENCODINGS

NERF_FREQUENCIES = 10  # 2^0 .. 2^9
FOURIER_SIGMA = 10.0
SINE_TEMPERATURE = 10_000.0
# The random matrices below are part of the architecture, not of a run: one fixed stream, whatever
# --seed is. Released weights bring their own buffer, which replaces what is drawn here.
_MATRIX_SEED = 0


def grid_coordinates(token_grid: Sequence[int]) -> Tensor:
    """Coordinates of every token in raster order (T fastest), [tokens, 4], each in [0, 1]."""
    axes = [torch.linspace(0.0, 1.0, n) for n in token_grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def nerf_features(coordinates: Tensor) -> Tensor:
    """NeRF features (Mildenhall et al. 2020) of [tokens, 4]: [tokens, 84].

    The four coordinates, then for each frequency f = 2^0 .. 2^9 the four sin(f x) and the four
    cos(f x).
    """
    features = [coordinates]
    for power in range(NERF_FREQUENCIES):
        angle = coordinates * 2.0**power
        features += [torch.sin(angle), torch.cos(angle)]
    return torch.cat(features, dim=-1)


def _normal(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(_MATRIX_SEED))


def _nerf(token_grid: Sequence[int], dim: int) -> Tensor:
    features = nerf_features(grid_coordinates(token_grid))
    return features @ _normal(features.shape[1], dim)


def _fourier(token_grid: Sequence[int], dim: int) -> Tensor:
    """Random Fourier features (Tancik et al. 2020) with D / 2 frequencies ~ N(0, sigma^2)."""
    angle = 2 * math.pi * FOURIER_SIGMA * grid_coordinates(token_grid) @ _normal(4, dim // 2)
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)


def _sine(token_grid: Sequence[int], dim: int) -> Tensor:
    """Sine embedding of the continuous coordinates: D / 4 features an axis (Vaswani et al. 2017).

    Coordinates are spread over [0, 2 pi] first, as in DETR.
    """
    per_axis = dim // 8
    frequencies = SINE_TEMPERATURE ** (-torch.arange(per_axis) / per_axis)
    angle = 2 * math.pi * grid_coordinates(token_grid)[..., None] * frequencies
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1).flatten(1)


_ENCODERS: dict[str, Callable[[Sequence[int], int], Tensor] | None] = {
    "none": None,
    "ff": _fourier,
    "nerf": _nerf,
    "cpe": _sine,
}
assert set(_ENCODERS) == set(POSITIONAL_ENCODINGS)


def positional_encoding(method: str, token_grid: Sequence[int], dim: int) -> Tensor | None:
    """The encoding of every token, [1, tokens, D]; None for the method "none".

    Args:
        method: one of ``config.POSITIONAL_ENCODINGS``.
        token_grid: tokens along X, Y, Z, T.
        dim: D.
    """
    encode = _ENCODERS[method]
    return None if encode is None else encode(token_grid, dim)[None]
