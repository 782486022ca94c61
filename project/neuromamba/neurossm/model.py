"""NeuroSSM: raw signals and their differences at several time scales, each through its own Mamba2.

For a scan x [N, T] and the pathways p = (signal, scale s):

    u_raw,s = average of s frames;  u_diff,s[t] = u_raw,s[t] - u_raw,s[t-1], the first 0
    h_0 = RMSNorm(W_p u_p^T + b);   h_l = h_(l-1) + dropout(Mamba2(RMSNorm(h_(l-1))))
    z_p = mean over t of RMSNorm(h_L)
    logits = W_o GELU(W_f [z_1; ...; z_P] + b_f) + b_o

A second-order pathway (``second_order``) adds its own logits to a share of these; its row of z
holds them, and it and the share are fitted apart. In a regression both predict the same
standardised value, so the sum is divided by 1 + share. With several members there are as many such
models, with weights of their own, and their logits are averaged (Lakshminarayanan et al. 2017).
Their z_p stand side by side.

Scans of a batch are packed one after another, so that lengths may differ and no padded frame is
computed. Shapes: N regions, T frames, B scans, P pathways, M members, D width, L packed frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neuromamba.layers.mamba2 import Mamba2, ResidualBlock
from neuromamba.layers.packing import Packed
from neuromamba.layers.rms_norm import RMSNorm
from neuromamba.neurossm.config import NeuroSSMConfig
from neuromamba.neurossm.second_order import SecondOrder


def _stacked(packed: Packed) -> Tensor | None:
    """[B, T, N] without a copy where all scans have T frames, as crops have; None elsewhere.

    One operation for all scans then; small ones for each scan take a noticeable part of a step.
    """
    if len(set(packed.lengths)) != 1:
        return None
    return packed.frames.unflatten(0, (len(packed.lengths), packed.lengths[0]))


def pooled(packed: Packed, scale: int) -> Packed:
    """Average ``scale`` frames of each scan; frames that are left over at its end are dropped."""
    if scale == 1:
        return packed
    lengths = tuple(length // scale for length in packed.lengths)
    if (scans := _stacked(packed)) is not None:
        kept = scans[:, : lengths[0] * scale]
        return Packed(kept.unflatten(1, (lengths[0], scale)).mean(2).flatten(0, 1), lengths)
    parts = [
        part[: length * scale].unflatten(0, (length, scale)).mean(1)
        for part, length in zip(packed.frames.split(packed.lengths), lengths, strict=True)
    ]
    return Packed(torch.cat(parts), lengths)


def differences(packed: Packed) -> Packed:
    """Differences between consecutive frames; 0 at the first frame of a scan."""
    frames = torch.zeros_like(packed.frames)
    frames[1:] = packed.frames[1:] - packed.frames[:-1]
    starts = torch.tensor(packed.lengths, device=frames.device).cumsum(0)[:-1]
    frames[0] = 0
    frames[starts] = 0
    return Packed(frames, packed.lengths)


def mean_over_scans(packed: Packed) -> Tensor:
    """[B, N] mean over each scan's frames."""
    if (scans := _stacked(packed)) is not None:
        return scans.mean(1)
    return torch.stack([part.mean(0) for part in packed.frames.split(packed.lengths)])


class RegionDropout(nn.Module):
    """Leaves regions of [L, N] out in training: the same ones in all scans of a batch."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, frames: Tensor) -> Tensor:
        """What is kept is scaled up, so that its expectation is what the evaluation sees."""
        if not self.training or not self.share:
            return frames
        kept = torch.rand(frames.shape[-1], device=frames.device) >= self.share
        return frames * (kept / (1 - self.share))


class Pathway(nn.Module):
    """[L, N] -> z [B, M D]."""

    def __init__(self, config: NeuroSSMConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.region_dropout = RegionDropout(config.region_dropout)
        self.embed = nn.Linear(config.rois, width)
        self.embed_norm = RMSNorm(width)
        self.layers = nn.ModuleList(
            ResidualBlock(
                RMSNorm(width),
                Mamba2(
                    width,
                    config.d_state,
                    config.headdim,
                    config.d_conv,
                    config.expand,
                    config.ssd_backend,
                ),
                nn.Dropout(config.dropout),
            )
            for _ in range(config.depth)
        )
        self.norm = RMSNorm(width)
        self.others = nn.ModuleList(Pathway(config.member) for _ in range(config.members - 1))

    def forward(self, u: Packed) -> Tensor:
        """z of each scan."""
        h = self.embed(self.region_dropout(u.frames))
        # Autocast leaves bf16 here, to which the layers would add bf16 sums; theirs are fp32.
        h = self.embed_norm(h.to(self.embed.weight.dtype))
        for layer in self.layers:
            h = layer(h, u.lengths)
        own = mean_over_scans(Packed(self.norm(h), u.lengths))
        return torch.cat([own, *(other(u) for other in self.others)], dim=1)


class Fusion(nn.Module):
    """Features of the pathways [B, P D] -> logits [B, classes], of one more member."""

    def __init__(self, config: NeuroSSMConfig) -> None:
        super().__init__()
        self.fusion, self.output = fusion_layers(config)


def fusion_layers(config: NeuroSSMConfig) -> tuple[nn.Linear, nn.Linear]:
    """W_f and W_o."""
    width = config.embed_dim
    return nn.Linear(len(config.first_order) * width, width), nn.Linear(width, config.classes)


class NeuroSSM(nn.Module):
    """The classifier: ``fuse(encode(inputs(scans)))``; explanations enter between the three."""

    def __init__(self, config: NeuroSSMConfig) -> None:
        super().__init__()
        self.config = config
        self.pathways = nn.ModuleList(Pathway(config) for _ in config.first_order)
        self.fusion, self.output = fusion_layers(config)
        self.others = nn.ModuleList(Fusion(config) for _ in range(config.members - 1))
        if config.second_order:
            self.pathways.append(SecondOrder(config.rois, config.classes, config.features))

    @property
    def second_order(self) -> SecondOrder | None:
        """The second-order pathway, the last one; None without it."""
        last = self.pathways[-1]
        return last if isinstance(last, SecondOrder) else None

    @property
    def first_order_share(self) -> float | None:
        """How much of the other pathways' logits counts beside the second-order pathway's."""
        return None if self.second_order is None else round(float(self.second_order.share), 3)

    def forward(self, scans: Packed) -> Tensor:
        """Logits [B, classes] of z-scored scans."""
        return self.fuse(self.encode(self.inputs(scans)))

    def each(self, scans: Packed) -> Tensor:
        """Logits [M, B, classes] of every member, without the second-order pathway: to train."""
        inputs = self.inputs(scans)[: len(self.config.first_order)]
        return self.fuse_each(self.encode(inputs))

    def inputs(self, scans: Packed) -> list[Packed]:
        """u_p of every pathway."""
        averaged = {scale: pooled(scans, scale) for scale in self.config.scales}
        change = {"raw": lambda packed: packed, "diff": differences}
        found = [
            change[signal](averaged[scale])
            for signal in self.config.signals
            for scale in self.config.scales
        ]
        return [*found, scans] if self.config.second_order else found

    def encode(self, inputs: Sequence[Packed]) -> Tensor:
        """z [B, P, M D] of the pathways that ``inputs`` has."""
        encoded = [pathway(u) for pathway, u in zip(self.pathways, inputs, strict=False)]
        return torch.stack(encoded, dim=1)

    def fuse(self, z: Tensor) -> Tensor:
        """Logits [B, classes] from z [B, P, M D]. A pathway is ablated by changing its row."""
        logits = self.fuse_each(z).mean(0)
        second = self.second_order
        if second is not None:
            total = z[:, -1, : self.config.classes] + second.share * logits
            return total / (1 + second.share) if self.config.is_regression else total
        return logits

    def fuse_each(self, z: Tensor) -> Tensor:
        """Logits [M, B, classes] of every member from z [B, P, M D]."""
        hidden = self.fused(z).split(self.config.embed_dim, dim=1)
        members = (self, *self.others)
        return torch.stack([one.output(h) for one, h in zip(members, hidden, strict=True)])

    def fused(self, z: Tensor) -> Tensor:
        """GELU(W_f z + b_f), [B, M D], what the logits are linear in."""
        own = z[:, : len(self.config.first_order)].split(self.config.embed_dim, dim=2)
        members = (self, *self.others)
        hidden = [one.fusion(part.flatten(1)) for one, part in zip(members, own, strict=True)]
        return nn.functional.gelu(torch.cat(hidden, dim=1))
