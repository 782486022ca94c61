"""Small layers shared by the models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
        return _RMSNormFunction.apply(x, self.weight)


class _RMSNormFunction(torch.autograd.Function):
    """``rms_norm`` with its gradients written out: fewer passes, and only its input is kept.

    With n = x s, s = 1 / sqrt(mean(x^2) + eps) and the gradient g of the result:
    dw = sum over rows of g n;  dx = s (g w - n mean(g w n)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        size = x.shape[-1]
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = scale.square_().div_(size).add_(NORM_EPS).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, scale = ctx.saved_tensors
        wide = gradient.to(scale.dtype)
        normed = x * scale
        product = wide * normed
        d_weight = product.reshape(-1, x.shape[-1]).sum(0).to(weight.dtype)
        mean = product.mul_(weight).mean(-1, keepdim=True)
        d_x = torch.mul(wide, weight, out=product).sub_(normed.mul_(mean)).mul_(scale)
        return d_x.to(x.dtype), d_weight


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis, in at least fp32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)
    return (wide * scale * weight).to(x.dtype)
