"""Small layers shared by the models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NORM_EPS = 1e-5


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis (Zhang & Sennrich 2019), eps 1e-5.

    Computed in fp32 or wider whatever the input's type; the result has the input's type.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (..., dim)."""
        return rms_norm(x, self.weight)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis, in at least fp32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)
    return (wide * scale * weight).to(x.dtype)
