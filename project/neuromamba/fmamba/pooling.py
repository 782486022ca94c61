"""One row of features a window from its tokens: what a linear head or a probe reads.

The features of a token describe the signal at a place in the frames of a patch. Their mean over a
window keeps what does not change; their standard deviation over time at a place keeps how strongly
the signal there varies, which the mean of a signal without its temporal mean cannot hold.

Shapes: L packed tokens of B windows, D width, P places (spatial patches) with a token in a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from neuromamba.config.model import REGION_CELLS, ModelConfig
from neuromamba.config.names import POOL_NAMES, PROBE_POOLS
from neuromamba.fmamba.tokenizer import PackedTokens


def samples_of(packed: PackedTokens) -> Tensor:
    """The window of each token, int64 [L]."""
    lengths = torch.tensor(packed.lengths, device=packed.token_index.device)
    return torch.repeat_interleave(lengths)


def places_of(packed: PackedTokens, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Number the places of all windows one after the other.

    Returns:
        The place of each token, int64 [L], counted through all windows, and the position of each
        place in the spatial grid plus the window's number times the size of the grid, int64 [P].
    """
    spatial = math.prod(config.token_grid[:3])
    key = samples_of(packed) * spatial + packed.token_index // config.token_grid[3]
    found, place = key.unique(return_inverse=True)
    return place, found


def group_mean(features: Tensor, group: Tensor, groups: int) -> Tensor:
    """Mean of the rows (L, D) of each group; ``group`` int64 [L]; 0 for an empty one."""
    total = features.new_zeros(groups, features.shape[1]).index_add(0, group, features)
    count = torch.bincount(group, minlength=groups).clamp(min=1)
    return total / count[:, None]


def deviation_over_time(features: Tensor, place: Tensor, places: int) -> Tensor:
    """Population standard deviation of the features at each place, (P, D).

    Its derivative at 0 is set to 0, that of a place with one token included.
    """
    mean = group_mean(features, place, places)
    variance = group_mean((features - mean[place]).square(), place, places)
    moves = variance > 0
    return torch.where(moves, torch.where(moves, variance, 1.0).sqrt(), 0.0)


def mean(features: Tensor, packed: PackedTokens, config: ModelConfig) -> Tensor:
    """Mean over a window's tokens (AdaptiveAvgPool1d(1) of the paper, Appendix C): (B, D)."""
    return torch.stack([window.mean(0) for window in features.split(packed.lengths)])


def mean_sd(features: Tensor, packed: PackedTokens, config: ModelConfig) -> Tensor:
    """Mean over the tokens, and mean over places of the deviation over time: (B, 2 D)."""
    features = features.float()  # sums of thousands of bf16 values would lose most of their digits
    place, found = places_of(packed, config)
    deviation = deviation_over_time(features, place, len(found))
    window = found // math.prod(config.token_grid[:3])
    spread = group_mean(deviation, window, len(packed.lengths))
    return torch.cat([mean(features, packed, config), spread], dim=1)


def regions(features: Tensor, packed: PackedTokens, config: ModelConfig) -> Tensor:
    """Mean over time and deviation over time in each cell of a coarse grid: (B, cells * 2 D).

    The grid of places is cut into ``REGION_CELLS`` cells along each axis (fewer where the axis has
    fewer places). A cell without a token of the window is 0.
    """
    features = features.float()
    place, found = places_of(packed, config)
    values = torch.cat(
        [
            group_mean(features, place, len(found)),
            deviation_over_time(features, place, len(found)),
        ],
        dim=1,
    )
    return mean_of_cells(values, found, len(packed.lengths), config)


def mean_of_cells(values: Tensor, found: Tensor, windows: int, config: ModelConfig) -> Tensor:
    """Mean over the places of each cell of the coarse grid: (B, cells * values).

    Args:
        values: (P, values) of each place.
        found: int64 [P], as ``places_of`` returns it.
        windows: B.
        config: the token grid.
    """
    grid = config.token_grid[:3]
    window, position = found // math.prod(grid), found % math.prod(grid)
    cell = torch.zeros_like(position)
    x, y, z = position // (grid[1] * grid[2]), position // grid[2] % grid[1], position % grid[2]
    for axis, size in zip((x, y, z), grid, strict=True):
        cells = min(REGION_CELLS, size)
        cell = cell * cells + axis * cells // size
    count = config.region_cells
    pooled = group_mean(values, window * count + cell, windows * count)
    return pooled.unflatten(0, (windows, count)).flatten(1)


def places(features: Tensor, packed: PackedTokens, config: ModelConfig) -> Tensor:
    """Mean over time at each place of the grid, kept apart: (B, G * D), G places of the whole grid.

    A place without a token of the window is 0, so a column means the same in all windows only
    where their brains lie on one grid and have nearly the same mask. Places are in raster order.
    """
    features = features.float()
    place, found = places_of(packed, config)
    grid = math.prod(config.token_grid[:3])
    pooled = features.new_zeros(len(packed.lengths) * grid, features.shape[1])
    pooled[found] = group_mean(features, place, len(found))
    return pooled.unflatten(0, (len(packed.lengths), grid)).flatten(1)


Pool = Callable[[Tensor, PackedTokens, ModelConfig], Tensor]

# Those without weights of their own; "attention" has some and is a part of the head. "places" is
# for probes only: a head would have as many weights as a window has features.
POOLS: Mapping[str, Pool] = {
    "mean": mean,
    "mean_sd": mean_sd,
    "regions": regions,
    "places": places,
}
assert set(POOLS) == set(PROBE_POOLS)
assert {*POOLS, "attention"} - {"places"} == set(POOL_NAMES)
