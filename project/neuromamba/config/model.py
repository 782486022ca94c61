"""Architecture of a backbone of voxels and of its downstream heads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neuromamba.common.errors import UserInputError, look_up, see
from neuromamba.config.bounds import require_positive
from neuromamba.config.names import (
    HEAD_NAMES,
    HEAD_NORMS,
    MODEL_NAMES,
    POOL_NAMES,
    POSITIONAL_ENCODINGS,
    TOKEN_ORDERS,
)

REGION_CELLS = 3  # of the coarse grid of regions along an axis
_MOST_STAGES = 8  # of SwiFT; each doubles the width
# Defaults that differ from those of ``ModelConfig``: SwiFT's published configuration.
MODEL_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "fmamba": {},
    "swift": {"embed_dim": 36, "patch_size": (6, 6, 6, 1), "keep_background": True},
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of a backbone: FMamba (NeuroMamba paper, section 3 and Appendix B), or SwiFT.

    ``d_state`` and ``headdim`` default to the paper's rule (D / 4 and D); 0 means "derive".
    ``background`` says how a dense input marks voxels outside the brain: "min" (the window's
    minimum, the ``*_minback`` scalings) or "zero" (``*_zeroback``). ``token_order`` is the order in
    which the tokens of a window enter: "raster", place after place, each with its tokens in time
    (the paper's), or "space_first", all places of the first tokens in time, then of the second ...
    ``anatomy`` adds an embedding of the mean image to the tokens of each place (``--channels``).

    Of ``model`` "swift" (``fmamba.swift``) are ``swin_depths``, the blocks of each stage,
    ``swin_heads``, their attention heads, and ``swin_window``, tokens of a window along X, Y, Z, T;
    ``embed_dim`` is the width of its first stage. It has no fields of Mamba: ``depth`` becomes the
    number of all blocks, the others are cleared, and the background is kept.
    """

    model: str = "fmamba"
    img_size: tuple[int, ...] = (96, 96, 96, 20)
    patch_size: tuple[int, ...] = (6, 6, 6, 2)
    in_chans: int = 1
    embed_dim: int = 192
    depth: int = 12
    d_state: int = 0
    headdim: int = 0
    expand: int = 2
    ngroups: int = 1
    d_conv: int = 4
    dropout: float = 0.0
    mamba_pe_method: str = "nerf"
    keep_background: bool = False
    union_mask: bool = False
    background: str = "min"
    token_order: str = "raster"
    anatomy: bool = False
    swin_depths: tuple[int, ...] = (2, 2, 6, 2)
    swin_heads: tuple[int, ...] = (3, 6, 12, 24)
    swin_window: tuple[int, ...] = (4, 4, 4, 4)

    def __post_init__(self) -> None:
        look_up(self.model, MODEL_NAMES, "--model")
        look_up(self.mamba_pe_method, POSITIONAL_ENCODINGS, "--mamba_pe_method")
        look_up(self.background, ("min", "zero"), "background")
        look_up(self.token_order, TOKEN_ORDERS, "--token_order")
        for flag, values in (("--img_size", self.img_size), ("--patch_size", self.patch_size)):
            if len(values) != 4:
                raise UserInputError(f"{flag}: got {list(values)}, expected four numbers X Y Z T.")
            for value in values:
                require_positive(flag, value)
        for axis, size, patch in zip("XYZT", self.img_size, self.patch_size, strict=True):
            if size % patch:
                below, above = size // patch * patch, -(-size // patch) * patch
                raise UserInputError(
                    f"--img_size: axis {axis} has {size}, which --patch_size {patch} does not "
                    f"divide. Use {f'{below} or ' if below else ''}{above}, or another patch size. "
                    f"{see('patch-size')}"
                )
        for flag, value in (
            ("--in_chans", self.in_chans),
            ("--embed_dim", self.embed_dim),
            ("--depth", self.depth),
            ("--expand", self.expand),
            ("--ngroups", self.ngroups),
            ("--d_conv", self.d_conv),
        ):
            require_positive(flag, value)
        if not 0.0 <= self.dropout < 1.0:
            raise UserInputError(f"--dropout: got {self.dropout}, expected 0 <= p < 1.")
        if self.model == "swift":
            self._check_swift()
        else:
            self._check_fmamba()

    def _check_swift(self) -> None:
        """Check the fields of SwiFT, and clear those of FMamba."""
        stages = len(self.swin_depths)
        if not 1 <= stages <= _MOST_STAGES:
            raise UserInputError(
                f"--swin_depths: got {stages} stages, expected 1 to {_MOST_STAGES}."
            )
        if len(self.swin_heads) != stages:
            raise UserInputError(
                f"--swin_heads: got {len(self.swin_heads)} numbers, expected {stages}, one for "
                f"each stage of --swin_depths."
            )
        if len(self.swin_window) != 4:
            raise UserInputError(
                f"--swin_window: got {list(self.swin_window)}, expected four numbers X Y Z T."
            )
        require_positive("--swin_depths", *self.swin_depths)
        require_positive("--swin_heads", *self.swin_heads)
        require_positive("--swin_window", *self.swin_window)
        for width, heads in zip(self.swin_widths, self.swin_heads, strict=True):
            if width % heads:
                raise UserInputError(
                    f"--swin_heads: {heads} heads do not divide the width {width} of their stage; "
                    f"the first stage has --embed_dim {self.embed_dim}, each later one twice the "
                    f"width of the one before."
                )
        if self.anatomy:
            raise UserInputError("--channels: anatomy is only used with --model fmamba.")
        cleared = {
            "depth": sum(self.swin_depths),
            "d_state": 0,
            "headdim": 0,
            "dropout": 0.0,
            "mamba_pe_method": "none",
            "keep_background": True,
            "union_mask": False,
            "token_order": "raster",
        }
        for name, value in cleared.items():
            object.__setattr__(self, name, value)

    def _check_fmamba(self) -> None:
        """Derive the sizes of the state-space layers, and check them."""
        if self.d_state == 0:
            if self.embed_dim % 4:
                raise UserInputError(
                    f"--embed_dim: got {self.embed_dim}, expected a multiple of 4, because the "
                    f"state size is embed_dim / 4; or set --d_state yourself."
                )
            object.__setattr__(self, "d_state", self.embed_dim // 4)
        if self.headdim == 0:
            object.__setattr__(self, "headdim", self.embed_dim)
        require_positive("--d_state", self.d_state)
        require_positive("--headdim", self.headdim)
        if self.d_inner % self.headdim:
            raise UserInputError(
                f"--embed_dim: the inner width expand * embed_dim = {self.d_inner} is not a "
                f"multiple of --headdim {self.headdim}."
            )
        if self.ngroups != 1:
            raise UserInputError(f"--ngroups: got {self.ngroups}; every published size uses 1.")
        if self.mamba_pe_method in ("ff", "cpe") and self.embed_dim % 8:
            raise UserInputError(
                f"--embed_dim: got {self.embed_dim}; --mamba_pe_method {self.mamba_pe_method} "
                f"needs a multiple of 8 (a sine and a cosine for each of four axes)."
            )

    @property
    def swin_widths(self) -> tuple[int, ...]:
        """Width of each stage of SwiFT: merging doubles it."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.swin_depths)))

    @property
    def feature_dim(self) -> int:
        """Width of the features that a head reads (D)."""
        return self.swin_widths[-1] if self.model == "swift" else self.embed_dim

    @property
    def token_blocks(self) -> int:
        """Blocks whose output has a row for each token: those of FMamba; SwiFT merges tokens."""
        return 0 if self.model == "swift" else self.depth

    @property
    def display_name(self) -> str:
        """Name of the backbone in reports."""
        return {"fmamba": "FMamba", "swift": "SwiFT"}[self.model]

    @property
    def description(self) -> str:
        """The backbone in a few words, for reports."""
        if self.model == "swift":
            blocks = " + ".join(map(str, self.swin_depths))
            widths = f"{self.embed_dim} to {self.feature_dim}"
            return f"{self.display_name}, {blocks} 4D Swin blocks of width {widths}"
        return f"{self.display_name}, {self.depth} Mamba2 blocks of width {self.embed_dim}"

    @property
    def d_inner(self) -> int:
        """Width inside a block, expand * D."""
        return self.expand * self.embed_dim

    @property
    def nheads(self) -> int:
        """Heads of the state-space layer (2 in every published size)."""
        return self.d_inner // self.headdim

    @property
    def token_grid(self) -> tuple[int, int, int, int]:
        """Tokens along X, Y, Z, T."""
        gx, gy, gz, gt = (s // p for s, p in zip(self.img_size, self.patch_size, strict=True))
        return gx, gy, gz, gt

    @property
    def num_tokens(self) -> int:
        """Tokens of a window, background included."""
        return math.prod(self.token_grid)

    @property
    def token_dim(self) -> int:
        """Values in a token: voxels of a patch times channels (V)."""
        return math.prod(self.patch_size) * self.in_chans

    @property
    def place_dim(self) -> int:
        """Voxels of a spatial patch, which are the values of its anatomy."""
        return math.prod(self.patch_size[:3])

    @property
    def region_cells(self) -> int:
        """Cells of the coarse grid that ``--pool regions`` keeps apart."""
        return math.prod(min(REGION_CELLS, places) for places in self.token_grid[:3])


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """A downstream head (paper, Appendix C). ``out_features``: classes, or 1 for a regression.

    ``pool`` and ``norm`` are of the linear head: how it makes one row of a window's tokens
    (``fmamba.pooling``; the paper's is the mean), and whether these rows are standardised.
    """

    name: str = "linear"
    out_features: int = 2
    dropout: float = 0.0
    mamba_depth: int = 3
    pool: str = "mean"
    norm: str = "none"

    def __post_init__(self) -> None:
        look_up(self.name, HEAD_NAMES, "--clf_head_version")
        look_up(self.pool, POOL_NAMES, "--pool")
        look_up(self.norm, HEAD_NORMS, "--head_norm")
        require_positive("out_features", self.out_features)
        require_positive("mamba_depth", self.mamba_depth)
        if not 0.0 <= self.dropout < 1.0:
            raise UserInputError(f"--head_dropout: got {self.dropout}, expected 0 <= p < 1.")
        for flag, value, usual in (
            ("--pool", self.pool, "mean"),
            ("--head_norm", self.norm, "none"),
        ):
            if self.name != "linear" and value != usual:
                raise UserInputError(
                    f"{flag}: only used with --clf_head_version linear; the {self.name} head reads "
                    f"the tokens one after the other."
                )

    def pooled_features(self, model: ModelConfig) -> int:
        """Values of a window that the last layer of the linear head reads."""
        width = model.feature_dim
        return {"mean_sd": 2 * width, "regions": 2 * width * model.region_cells}.get(
            self.pool, width
        )


# Published sizes (paper, Appendix B): embed_dim of each variant; the rest follows from it.
VARIANTS: Mapping[str, int] = {"small": 128, "base": 192, "medium": 256, "large": 384}
