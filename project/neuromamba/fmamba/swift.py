"""SwiFT, a 4D Swin transformer, as a second backbone (``--model swift``).

Written from Kim, Kwon, Yoon et al. (2023), "SwiFT: Swin 4D fMRI Transformer", NeurIPS, with the
window attention of Liu et al. (2021), "Swin Transformer", ICCV. Each 4D patch is embedded linearly.
A stage adds its own absolute encoding, learned for places and for times, and consists of pre-norm
blocks: attention within 4D windows, which every second block shifts by half a window in space and
time, and an MLP. Between stages 2 x 2 x 2 neighbours in space become one token of twice the width;
time is kept. The last stage attends to all of its tokens. There is no relative position bias. With
the published configuration these are the 4,315,212 parameters of SwiFT without its head.

The paper leaves one case open: where a window does not divide a grid, the padding is left out of
the attention here. Nothing is padded at the published size.

Shapes: B samples, G tokens of the grid of patches, L = B * G, V values a token; X, Y, Z, T the grid
of a stage and C its width; W windows of a sample, N tokens of a window; D width of the last stage.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.backbone import Backbone, BackboneOutput, TokenEmbedding
from neuromamba.fmamba.tokenizer import PackedTokens

MLP_RATIO = 4
_INIT_SD = 0.02  # of weights and encodings, as in Swin
_WINDOWED = "b (gx x) (gy y) (gz z) (gt t) c"
_WINDOWS = "(b gx gy gz gt) (x y z t) c"

Grid = tuple[int, ...]  # four numbers, X Y Z T


def partition(x_BXYZTC: Tensor, window: Grid) -> Tensor:
    """Cut a grid, which ``window`` divides, into windows: (B * W, N, C)."""
    sizes = dict(zip("xyzt", window, strict=True))
    return rearrange(x_BXYZTC, f"{_WINDOWED} -> {_WINDOWS}", **sizes)


def unpartition(windows: Tensor, window: Grid, grid: Grid) -> Tensor:
    """Inverse of ``partition``: (B * W, N, C) -> (B, X, Y, Z, T, C)."""
    sizes = dict(zip("xyzt", window, strict=True))
    counts = (g // w for g, w in zip(grid, window, strict=True))
    sizes |= dict(zip(("gx", "gy", "gz", "gt"), counts, strict=True))
    return rearrange(windows, f"{_WINDOWS} -> {_WINDOWED}", **sizes)


class WindowLayout(NamedTuple):
    """How a grid is divided into windows.

    Attributes:
        window: its size, cut to the grid.
        shift: by how many tokens the windows are shifted; 0 along an axis that one window covers.
        padded: the grid, padded to a multiple of the window.
    """

    window: Grid
    shift: Grid
    padded: Grid

    @classmethod
    def of(cls, grid: Grid, window: Grid, shifted: bool) -> WindowLayout:
        """The layout of a grid for windows of a size, shifted by half of it or not."""
        cut = tuple(min(w, g) for w, g in zip(window, grid, strict=True))
        shift = tuple(w // 2 if shifted and g > w else 0 for w, g in zip(window, grid, strict=True))
        padded = tuple(-(-g // w) * w for w, g in zip(cut, grid, strict=True))
        return cls(cut, shift, padded)

    def groups(self, grid: Grid) -> Tensor | None:
        """Group of each token, int64 [W, N]: only tokens of a window in one group attend.

        A shifted grid is rolled, which brings opposite borders into one window: they are different
        groups, and so is the padding. None where all tokens of a window attend to each other.
        """
        if not any(self.shift) and self.padded == tuple(grid):
            return None
        group = torch.zeros(self.padded, dtype=torch.int64)
        for axis, (size, window, shift) in enumerate(
            zip(self.padded, self.window, self.shift, strict=True)
        ):
            place = torch.arange(size)
            behind = (place >= size - window).long() + (place >= size - shift).long()
            group = group * 3 + behind.view([-1 if a == axis else 1 for a in range(4)])
        real = torch.zeros(self.padded, dtype=torch.bool)
        gx, gy, gz, gt = grid
        real[:gx, :gy, :gz, :gt] = True
        real = real.roll([-s for s in self.shift], (0, 1, 2, 3))
        group = group.masked_fill(~real, -1)
        return partition(group[None, ..., None], self.window)[..., 0]


class WindowAttention(nn.Module):
    """Multi-head self-attention within the windows of a grid.

    Args:
        dim: C.
        heads: of the attention; they divide C.
        grid: of the stage.
        layout: of the windows.
    """

    groups: Tensor | None

    def __init__(self, dim: int, heads: int, grid: Grid, layout: WindowLayout) -> None:
        super().__init__()
        self.heads, self.grid, self.layout = heads, grid, layout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.register_buffer("groups", layout.groups(grid), persistent=False)

    def forward(self, x_BXYZTC: Tensor) -> Tensor:
        """(B, X, Y, Z, T, C) -> the same shape."""
        window, shift, padded = self.layout
        axes = (1, 2, 3, 4)
        x = x_BXYZTC
        if padded != self.grid:
            ends = reversed([p - g for p, g in zip(padded, self.grid, strict=True)])
            x = F.pad(x, [0, 0, *itertools.chain.from_iterable((0, end) for end in ends)])
        if any(shift):
            x = x.roll([-s for s in shift], axes)
        x = unpartition(self._attend(partition(x, window)), window, padded)
        if any(shift):
            x = x.roll(shift, axes)
        if padded != self.grid:
            gx, gy, gz, gt = self.grid
            x = x[:, :gx, :gy, :gz, :gt]
        return x

    def _attend(self, x_WNC: Tensor) -> Tensor:
        """(B * W, N, C) -> the same shape."""
        q, k, v = rearrange(
            self.qkv(x_WNC), "w n (three h c) -> three w h n c", three=3, h=self.heads
        )
        mask = None
        if self.groups is not None:
            mask = (self.groups[:, None, :, None] == self.groups[:, None, None, :]).repeat(
                len(x_WNC) // len(self.groups), 1, 1, 1
            )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(rearrange(out, "w h n c -> w n (h c)"))


class SwinBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, dim: int, heads: int, grid: Grid, layout: WindowLayout) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads, grid, layout)
        self.mlp = nn.Sequential(
            nn.Linear(dim, MLP_RATIO * dim), nn.GELU(), nn.Linear(MLP_RATIO * dim, dim)
        )

    def forward(self, x_BXYZTC: Tensor) -> Tensor:
        """(B, X, Y, Z, T, C) -> the same shape."""
        x = x_BXYZTC + self.attention(self.norm1(x_BXYZTC))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """2 x 2 x 2 neighbours in space, one after the other, normalised, are projected to 2 C.

    An axis of odd size is padded with zeros.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * dim)
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)

    def forward(self, x_BXYZTC: Tensor) -> Tensor:
        """(B, X, Y, Z, T, C) -> (B, X / 2, Y / 2, Z / 2, T, 2 C), rounded up."""
        x, y, z = x_BXYZTC.shape[1:4]
        padded = F.pad(x_BXYZTC, (0, 0, 0, 0, 0, z % 2, 0, y % 2, 0, x % 2))
        neighbours = rearrange(
            padded, "b (gx x) (gy y) (gz z) t c -> b gx gy gz t (x y z c)", x=2, y=2, z=2
        )
        return self.reduction(self.norm(neighbours))


class Stage(nn.Module):
    """Encoding of places and times, blocks on one grid, and merging unless it is the last stage."""

    def __init__(self, config: ModelConfig, number: int, activation_checkpointing: bool) -> None:
        super().__init__()
        dim, last = config.swin_widths[number], number == len(config.swin_depths) - 1
        grid = grid_of_stage(config.token_grid, number)
        window = grid if last else config.swin_window
        self.activation_checkpointing = activation_checkpointing
        self.place_encoding = nn.Parameter(torch.empty(*grid[:3], 1, dim))
        self.time_encoding = nn.Parameter(torch.empty(grid[3], dim))
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim,
                config.swin_heads[number],
                grid,
                WindowLayout.of(grid, window, shifted=i % 2 == 1),
            )
            for i in range(config.swin_depths[number])
        )
        self.merging = None if last else PatchMerging(dim)

    def forward(self, x_BXYZTC: Tensor) -> Tensor:
        """(B, X, Y, Z, T, C) -> what the next stage begins with."""
        x = x_BXYZTC + self.place_encoding + self.time_encoding
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x if self.merging is None else self.merging(x)


class PatchEmbedding(TokenEmbedding):
    """Linear embedding of each patch: (L, V) -> (L, C)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.empty(config.token_dim, config.embed_dim))
        self.bias = nn.Parameter(torch.zeros(config.embed_dim))

    def forward(self, tokens_LV: Tensor) -> Tensor:
        """(L, V) -> (L, C)."""
        return tokens_LV.to(self.projection.dtype) @ self.projection + self.bias


class TokenNorm(nn.LayerNorm):
    """The final norm; then each patch takes the features of the token that it was merged into.

    So a row stands for a patch, as with every backbone, and heads, pools and maps need not know of
    merging. Where merging pads nothing, the mean over patches is the mean over merged tokens.
    """

    def __init__(self, dim: int, grid: Grid, stages: int) -> None:
        super().__init__(dim)
        self.grid, self.edge = grid, 2 ** (stages - 1)

    def forward(self, x_BXYZTC: Tensor) -> Tensor:
        """(B, X, Y, Z, T, D) merged tokens -> (L, D)."""
        x, edge = super().forward(x_BXYZTC), self.edge
        spread = x[:, :, None, :, None, :, None].expand(-1, -1, edge, -1, edge, -1, edge, -1, -1)
        whole = spread.flatten(5, 6).flatten(3, 4).flatten(1, 2)
        gx, gy, gz, _ = self.grid
        return whole[:, :gx, :gy, :gz].flatten(0, 4)


class SwiFT(Backbone):
    """4D patches -> stages of windowed attention and merging -> features of each patch.

    Args:
        config: the architecture, with ``model`` "swift".
        output_layer: has to be False: SwiFT predicts no tokens.
        ssd_backend: of state-space scans, which SwiFT has none of; not used.
        activation_checkpointing: compute the blocks again in the backward pass.

    Raises:
        UserInputError: with ``output_layer``.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        output_layer: bool = False,
        ssd_backend: str = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if output_layer:
            raise UserInputError(
                "--model: swift predicts no tokens, so it has no output layer for pre-training or "
                "generated frames; train it on a task, or use --model fmamba."
            )
        self.config = config
        stages = len(config.swin_depths)
        self.embedder = PatchEmbedding(config)
        self.stages = nn.ModuleList(
            Stage(config, number, activation_checkpointing) for number in range(stages)
        )
        self.norm = TokenNorm(config.feature_dim, config.token_grid, stages)
        self.output_layer = None
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.embedder.projection, std=_INIT_SD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_SD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Stage):
                nn.init.trunc_normal_(module.place_encoding, std=_INIT_SD)
                nn.init.trunc_normal_(module.time_encoding, std=_INIT_SD)

    def forward_tokens(self, packed: PackedTokens, hidden: Tensor | None = None) -> BackboneOutput:
        """Run on packed tokens: all of the grid, background included, in raster order.

        Args:
            packed: tokens of a batch.
            hidden: has to be None; masked tokens are an objective of FMamba.
        """
        grid, count = self.config.token_grid, self.config.num_tokens
        if hidden is not None or set(packed.lengths) != {count}:
            raise ValueError(
                f"SwiFT reads all {count} tokens of each window, none of them hidden; got windows "
                f"of {sorted(set(packed.lengths))}"
            )
        x = self.embedder(packed.tokens).unflatten(0, (len(packed.lengths), *grid))
        for stage in self.stages:
            x = stage(x)
        return BackboneOutput(
            features=self.norm(x),
            prediction=None,
            tokens=packed.tokens,
            lengths=torch.tensor(packed.lengths),
            token_index=packed.token_index,
        )


def grid_of_stage(token_grid: Sequence[int], number: int) -> Grid:
    """The grid of a stage, counted from 0: each merging halves the spatial axes, rounded up."""
    factor = 2**number
    return (*(-(-size // factor) for size in token_grid[:3]), token_grid[3])


def attended_tokens(config: ModelConfig, number: int) -> int:
    """Tokens that a token of a stage attends to: those of its window."""
    grid = grid_of_stage(config.token_grid, number)
    if number == len(config.swin_depths) - 1:
        return math.prod(grid)
    return math.prod(WindowLayout.of(grid, config.swin_window, shifted=False).window)
