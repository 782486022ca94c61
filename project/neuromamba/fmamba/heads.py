"""Downstream heads (paper, Appendix C): packed features in, one row of logits a sample out."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.names import HEAD_NAMES
from neuromamba.layers.mamba2 import Mamba2
from neuromamba.layers.rms_norm import RMSNorm


class LinearHead(nn.Module):
    """Mean over a sample's tokens (AdaptiveAvgPool1d(1)), then Linear(D, outputs)."""

    def __init__(self, config: HeadConfig, model: ModelConfig, ssd_backend: str) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(model.embed_dim, config.out_features)

    def forward(self, features: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """(L, D) features of samples with these lengths -> (B, outputs)."""
        pooled = torch.stack([sample.mean(0) for sample in features.split(lengths)])
        return self.classifier(self.dropout(pooled))


class MambaHead(nn.Module):
    """Three residual Mamba2 blocks with d_state = D / 16, then Linear on the last token.

    A block is ``x = rmsnorm(x + dropout(mamba2(x)))``: the features it starts from are already
    normalised by the backbone's final norm.
    """

    def __init__(self, config: HeadConfig, model: ModelConfig, ssd_backend: str) -> None:
        super().__init__()
        dim = model.embed_dim
        if dim % 16:
            raise UserInputError(
                f"--embed_dim: got {dim}, expected a multiple of 16 for --clf_head_version mamba "
                f"(its state size is embed_dim / 16); or use --clf_head_version linear."
            )
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    Mamba2(dim, dim // 16, model.headdim, model.d_conv, model.expand, ssd_backend),
                    nn.Dropout(config.dropout),
                    RMSNorm(dim),
                ]
            )
            for _ in range(config.mamba_depth)
        )
        self.classifier = nn.Linear(dim, config.out_features)

    def forward(self, features: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """(L, D) features of samples with these lengths -> (B, outputs)."""
        x = features
        for block in self.blocks:
            mamba, dropout, norm = cast(nn.ModuleList, block)
            x = norm(x + dropout(mamba(x, lengths)))
        last = torch.tensor(lengths, device=x.device).cumsum(0) - 1
        return self.classifier(x[last])


HEADS: dict[str, type[LinearHead | MambaHead]] = {"linear": LinearHead, "mamba": MambaHead}
assert set(HEADS) == set(HEAD_NAMES)


def build_head(config: HeadConfig, model: ModelConfig, ssd_backend: str = "auto") -> nn.Module:
    """The head named in ``config`` for a backbone of this architecture."""
    return HEADS[config.name](config, model, ssd_backend)
