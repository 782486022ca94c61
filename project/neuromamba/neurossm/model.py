"""NeuroSSM: raw signals and their differences at several time scales, each through its own Mamba2.

For a scan x [N, T] and the pathways p = (signal, scale s):

    u_raw,s = average of s frames;  u_diff,s[t] = u_raw,s[t] - u_raw,s[t-1], the first 0
    h_0 = RMSNorm(W_p u_p^T + b);   h_l = h_(l-1) + dropout(Mamba2(RMSNorm(h_(l-1))))
    z_p = mean over t of RMSNorm(h_L)
    logits = W_o GELU(W_f [z_1; ...; z_P] + b_f) + b_o

Scans of a batch are packed one after another, so that lengths may differ and no padded frame is
computed. Shapes: N regions, T frames, B scans, P pathways, D width, L packed frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neuromamba.layers.mamba2 import Mamba2, ResidualBlock
from neuromamba.layers.packing import Packed
from neuromamba.layers.rms_norm import RMSNorm
from neuromamba.neurossm.config import NeuroSSMConfig


def pooled(packed: Packed, scale: int) -> Packed:
    """Average ``scale`` frames of each scan; frames that are left over at its end are dropped."""
    if scale == 1:
        return packed
    lengths = tuple(length // scale for length in packed.lengths)
    parts = [
        part[: length * scale].unflatten(0, (length, scale)).mean(1)
        for part, length in zip(packed.frames.split(packed.lengths), lengths, strict=True)
    ]
    return Packed(torch.cat(parts), lengths)


def differences(packed: Packed) -> Packed:
    """What each frame adds to the one before it; 0 for a scan's first."""
    frames = torch.zeros_like(packed.frames)
    frames[1:] = packed.frames[1:] - packed.frames[:-1]
    starts = torch.tensor(packed.lengths, device=frames.device).cumsum(0)[:-1]
    frames[0] = 0
    frames[starts] = 0
    return Packed(frames, packed.lengths)


def mean_over_scans(packed: Packed) -> Tensor:
    """[B, N] mean over each scan's frames."""
    return torch.stack([part.mean(0) for part in packed.frames.split(packed.lengths)])


class Pathway(nn.Module):
    """[L, N] -> z [B, D]."""

    def __init__(self, config: NeuroSSMConfig) -> None:
        super().__init__()
        width = config.embed_dim
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

    def forward(self, u: Packed) -> Tensor:
        """z of each scan."""
        h = self.embed_norm(self.embed(u.frames))
        for layer in self.layers:
            h = layer(h, u.lengths)
        return mean_over_scans(Packed(self.norm(h), u.lengths))


class NeuroSSM(nn.Module):
    """The classifier: ``fuse(encode(inputs(scans)))``; explanations enter between the three."""

    def __init__(self, config: NeuroSSMConfig) -> None:
        super().__init__()
        self.config = config
        count, width = len(config.pathways), config.embed_dim
        self.pathways = nn.ModuleList(Pathway(config) for _ in range(count))
        self.fusion = nn.Linear(count * width, width)
        self.output = nn.Linear(width, config.classes)

    def forward(self, scans: Packed) -> Tensor:
        """Logits [B, classes] of z-scored scans."""
        return self.fuse(self.encode(self.inputs(scans)))

    def inputs(self, scans: Packed) -> list[Packed]:
        """u_p of every pathway."""
        averaged = {scale: pooled(scans, scale) for scale in self.config.scales}
        change = {"raw": lambda packed: packed, "diff": differences}
        return [
            change[signal](averaged[scale])
            for signal in self.config.signals
            for scale in self.config.scales
        ]

    def encode(self, inputs: Sequence[Packed]) -> Tensor:
        """z [B, P, D]."""
        encoded = [pathway(u) for pathway, u in zip(self.pathways, inputs, strict=True)]
        return torch.stack(encoded, dim=1)

    def fuse(self, z: Tensor) -> Tensor:
        """Logits [B, classes] from z [B, P, D]. A pathway is ablated by changing its row."""
        return self.output(nn.functional.gelu(self.fusion(z.flatten(1))))
