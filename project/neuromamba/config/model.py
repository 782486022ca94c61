"""Architecture of the FMamba backbone and of its downstream heads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of the FMamba backbone (NeuroMamba paper, section 3 and Appendix B).

    ``d_state`` and ``headdim`` default to the paper's rule (D / 4 and D); 0 means "derive".
    ``background`` says how a dense input marks voxels outside the brain: "min" (the window's
    minimum, the ``*_minback`` scalings) or "zero" (``*_zeroback``). ``token_order`` is the order in
    which the tokens of a window enter: "raster", place after place, each with its tokens in time
    (the paper's), or "space_first", all places of the first tokens in time, then of the second ...
    ``anatomy`` adds an embedding of the mean image to the tokens of each place (``--channels``).
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
        width = model.embed_dim
        return {"mean_sd": 2 * width, "regions": 2 * width * model.region_cells}.get(
            self.pool, width
        )


# Published sizes (paper, Appendix B): embed_dim of each variant; the rest follows from it.
VARIANTS: Mapping[str, int] = {"small": 128, "base": 192, "medium": 256, "large": 384}
