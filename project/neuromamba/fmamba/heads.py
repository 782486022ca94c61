"""Downstream heads (paper, Appendix C): packed features in, one row of logits a sample out."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.names import HEAD_NAMES
from neuromamba.fmamba.pooling import POOLS
from neuromamba.fmamba.tokenizer import PackedTokens
from neuromamba.layers.mamba2 import Mamba2
from neuromamba.layers.rms_norm import RMSNorm


class BatchStandardise(nn.Module):
    """Standardise each feature over the windows of a step, and by running statistics afterwards.

    Batch normalisation (Ioffe and Szegedy 2015, ICML) without weights of its own, over the windows
    of all ranks, so that several ranks train as one does. A step of a single window, which has no
    variance, is standardised by the running statistics.

    Args:
        features: D.
        momentum: share of a step in the running statistics.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, features: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        x = x.float()
        mean, variance = self.mean, self.variance
        if self.training:
            count, total = _over_ranks(x.new_tensor(float(len(x)))), _over_ranks(x.sum(0))
            if count > 1:
                mean = total / count
                variance = _over_ranks((x - mean).square().sum(0)) / count
                with torch.no_grad():
                    unbiased = variance * count / (count - 1)
                    self.mean.lerp_(mean.to(self.mean.dtype), self.momentum)
                    self.variance.lerp_(unbiased.to(self.variance.dtype), self.momentum)
        return (x - mean) * (variance + 1e-5).rsqrt()


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _over_ranks(x: Tensor) -> Tensor:
    """Sum over all ranks, also where there is one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return cast(Tensor, _SumOverRanks.apply(x))


class LinearHead(nn.Module):
    """One row of features a window (``--pool``), then Linear(features, outputs).

    The paper's (Appendix C) is the mean over the tokens, AdaptiveAvgPool1d(1). "attention" weighs
    the tokens by the softmax of a learned score of each.
    """

    def __init__(self, config: HeadConfig, model: ModelConfig, ssd_backend: str) -> None:
        super().__init__()
        self.pool, self.model_config = config.pool, model
        width = config.pooled_features(model)
        if config.pool == "attention":
            self.score = nn.Linear(model.feature_dim, 1, bias=False)
            nn.init.zeros_(self.score.weight)  # starts as the mean
        self.norm = BatchStandardise(width) if config.norm == "batch" else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(width, config.out_features)

    def forward(self, features: Tensor, packed: PackedTokens) -> Tensor:
        """(L, D) features of packed tokens -> (B, outputs)."""
        if self.pool == "attention":
            weights = self.score(features).split(packed.lengths)
            windows = zip(features.split(packed.lengths), weights, strict=True)
            pooled = torch.stack([(w.softmax(0) * window).sum(0) for window, w in windows])
        else:
            pooled = POOLS[self.pool](features, packed, self.model_config)
        return self.classify(pooled, features.dtype)

    def classify(self, pooled: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, values) pooled features, in fp32 or in ``dtype``, -> (B, outputs)."""
        rows = self.norm(pooled).to(dtype)
        return self.classifier(self.dropout(rows))


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

    def forward(self, features: Tensor, packed: PackedTokens) -> Tensor:
        """(L, D) features of packed tokens -> (B, outputs)."""
        x = features
        for block in self.blocks:
            mamba, dropout, norm = cast(nn.ModuleList, block)
            x = norm(x + dropout(mamba(x, packed.lengths)))
        last = torch.tensor(packed.lengths, device=x.device).cumsum(0) - 1
        return self.classifier(x[last])


HEADS: dict[str, type[LinearHead | MambaHead]] = {"linear": LinearHead, "mamba": MambaHead}
assert set(HEADS) == set(HEAD_NAMES)


def build_head(config: HeadConfig, model: ModelConfig, ssd_backend: str = "auto") -> nn.Module:
    """The head named in ``config`` for a backbone of this architecture."""
    return HEADS[config.name](config, model, ssd_backend)
