"""FMamba, the NeuroMamba backbone (NeuroMamba paper, section 3 and Appendix B).

Shapes: B samples, L kept tokens of all samples together, V values a token, D width, P places
(spatial patches) of all samples together, A voxels of a spatial patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.positional import positional_encoding
from neuromamba.fmamba.tokenizer import PackedTokens, pack_dense
from neuromamba.layers.mamba2 import Mamba2, ResidualBlock
from neuromamba.layers.rms_norm import RMSNorm


@dataclass(frozen=True)
class BackboneOutput:
    """What the backbone returns for a batch.

    Attributes:
        features: (L, D) after the final norm; feature i has seen the tokens up to i of its sample.
        prediction: (L, V) predicted next token, or None for a backbone without output layer.
        tokens: (L, V) the tokens that went in.
        lengths: (B,) tokens of each sample, on the CPU.
        token_index: (L,) position of each token in the full grid.
    """

    features: Tensor
    prediction: Tensor | None
    tokens: Tensor
    lengths: Tensor
    token_index: Tensor


class TokenEmbedding(nn.Module):
    """What makes vectors of tokens; ``projection`` (V, D) is the weight that multiplies them."""

    projection: nn.Parameter


class Backbone(nn.Module):
    """What every backbone of ``build.BACKBONES`` offers to heads, trainings and commands.

    Attributes:
        config: the architecture.
        embedder: the embedding of tokens.
        norm: the final norm, whose output is ``BackboneOutput.features``.
        output_layer: the next-token prediction layer; None for a backbone without one.
    """

    config: ModelConfig
    embedder: TokenEmbedding
    norm: nn.Module
    output_layer: nn.Linear | None

    def forward(
        self, fmri: Tensor, mask: Tensor | None = None, names: Sequence[str] = ()
    ) -> BackboneOutput:
        """Run on dense windows.

        Args:
            fmri: (B, C, X, Y, Z, T) scaled intensities.
            mask: (B, X, Y, Z) bool brain mask; without it, background is recognised by its value
                (``config.background``).
            names: subjects of the samples, for error messages.
        """
        return self.forward_tokens(pack_dense(fmri, self.config, mask, names))

    def forward_tokens(self, packed: PackedTokens, hidden: Tensor | None = None) -> BackboneOutput:
        """Run on packed tokens; ``hidden`` as in ``FMamba.forward_tokens``."""
        raise NotImplementedError


class Embedder(TokenEmbedding):
    """Linear embedding of tokens plus the encoding of their place in the grid.

    With ``config.anatomy`` a second linear embedding, of the mean image at their place, is added to
    the tokens.
    """

    pos: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.empty(config.token_dim, config.embed_dim))
        nn.init.xavier_normal_(self.projection)
        # Stored with the weights: its random matrix cannot be drawn again elsewhere.
        self.register_buffer(
            "pos",
            positional_encoding(config.mamba_pe_method, config.token_grid, config.embed_dim),
        )

        self.anatomy: nn.Parameter | None = None
        if config.anatomy:
            self.anatomy = nn.Parameter(torch.empty(config.place_dim, config.embed_dim))
            nn.init.xavier_normal_(self.anatomy)
        self.tokens_of_place, self.token_order = config.token_grid[3], config.token_order

    def forward(
        self,
        tokens_LV: Tensor,
        token_index: Tensor,
        anatomy_PA: Tensor | None = None,
        lengths: Sequence[int] = (),
    ) -> Tensor:
        """(L, V) tokens at grid positions (L,), with (P, A) of their places -> (L, D).

        ``lengths`` are the tokens of each sample, needed with the anatomy only.
        """
        x_LD = self._embed(tokens_LV, token_index)
        if self.anatomy is None:
            return x_LD
        if anatomy_PA is None:
            raise ValueError(
                "the model has --channels anatomy dynamics: it needs PackedTokens.anatomy, which "
                "windows of a store come with, and dense windows do not"
            )
        places_PD = anatomy_PA.to(self.anatomy.dtype) @ self.anatomy
        times = self.tokens_of_place
        if self.token_order == "raster":
            spread = places_PD[:, None].expand(-1, times, -1).flatten(0, 1)
        else:
            samples = places_PD.split([-(-length // times) for length in lengths])
            spread = torch.cat([one.expand(times, -1, -1).flatten(0, 1) for one in samples])
        # Fewer than all tokens of the last place: only where operations are counted.
        return x_LD + spread[: len(x_LD)].to(x_LD.dtype)

    def of_rows(
        self, tokens_LV: Tensor, token_index: Tensor, anatomy_LA: Tensor | None = None
    ) -> Tensor:
        """Like ``forward`` on any tokens, with the mean image at the place of each, (L, A)."""
        x_LD = self._embed(tokens_LV, token_index)
        if self.anatomy is None:
            return x_LD
        if anatomy_LA is None:
            raise ValueError(
                "the model has --channels anatomy dynamics: it needs the mean image at the place "
                "of each token"
            )
        return x_LD + (anatomy_LA.to(self.anatomy.dtype) @ self.anatomy).to(x_LD.dtype)

    def _embed(self, tokens_LV: Tensor, token_index: Tensor) -> Tensor:
        x_LD = tokens_LV.to(self.projection.dtype) @ self.projection
        if self.pos is None:
            # Autocast makes bf16 of it: the sums over the blocks keep the parameters' type.
            return x_LD.to(self.projection.dtype)
        # Into the gathered encodings: one tensor of this size less. DeepSpeed makes the parameters
        # bf16 and leaves the buffer as it is.
        return self.pos[0].index_select(0, token_index).add_(x_LD).to(self.projection.dtype)


class FMamba(Backbone):
    """4D patches -> position -> background dropped -> Mamba2 blocks -> features and next token.

    Args:
        config: the architecture.
        output_layer: with the next-token prediction layer (pre-training) or without (downstream).
        ssd_backend: see ``ssd.select_backend``.
        activation_checkpointing: see ``ResidualBlock``.
    """

    embedder: Embedder

    def __init__(
        self,
        config: ModelConfig,
        *,
        output_layer: bool = True,
        ssd_backend: str = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.embedder = Embedder(config)
        self.mamba_layers = nn.ModuleList(
            ResidualBlock(
                RMSNorm(config.embed_dim),
                Mamba2(
                    config.embed_dim,
                    config.d_state,
                    config.headdim,
                    config.d_conv,
                    config.expand,
                    ssd_backend,
                ),
                nn.Dropout(config.dropout),
                activation_checkpointing,
            )
            for _ in range(config.depth)
        )
        self.norm = RMSNorm(config.embed_dim)
        self.output_layer = nn.Linear(config.embed_dim, config.token_dim) if output_layer else None

    def forward_tokens(self, packed: PackedTokens, hidden: Tensor | None = None) -> BackboneOutput:
        """Run on packed tokens.

        Args:
            packed: kept tokens of a batch.
            hidden: (L,) bool, tokens whose content the model must not see (masked-token
                reconstruction): they enter as 0, the mean intensity, with their position.
        """
        features = self.norm(self.encode(packed, hidden))
        return BackboneOutput(
            features=features,
            prediction=None if self.output_layer is None else self.output_layer(features),
            tokens=packed.tokens,
            lengths=torch.tensor(packed.lengths),
            token_index=packed.token_index,
        )

    def encode(self, packed: PackedTokens, hidden: Tensor | None = None) -> Tensor:
        """The (L, D) residual stream after the last block, before the final norm.

        Args:
            packed, hidden: as in ``forward_tokens``.
        """
        tokens = packed.tokens
        seen = tokens if hidden is None else tokens.masked_fill(hidden[:, None], 0.0)
        x = self.embedder(seen, packed.token_index, packed.anatomy, packed.lengths)
        for block in self.mamba_layers:
            x = block(x, packed.lengths)
        return x

    def predict(self, x: Tensor) -> Tensor:
        """Next-token prediction (rows, V) from rows (rows, D) of ``encode``; rows do not mix."""
        assert self.output_layer is not None
        return self.output_layer(self.norm(x))
