"""A plain GRU over the frames: the ordinary deep baseline."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuromamba.layers.packing import Packed


class GRUClassifier(nn.Module):
    """GRU -> mean over a scan's frames -> linear.

    Args:
        rois: N.
        classes: number of logits.
        width: of the state.
        dropout: on the mean.
    """

    def __init__(self, rois: int, classes: int, width: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        self.gru = nn.GRU(rois, width)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, classes)

    def forward(self, scans: Packed) -> Tensor:
        """Logits [B, classes] of z-scored scans."""
        parts = list(scans.frames.split(scans.lengths))
        states, _ = self.gru(nn.utils.rnn.pack_sequence(parts, enforce_sorted=False))
        found = nn.utils.rnn.unpack_sequence(states)
        return self.output(self.dropout(torch.stack([part.mean(0) for part in found])))

    def each(self, scans: Packed) -> Tensor:
        """Logits [1, B, classes]: it has a single member."""
        return self(scans)[None]
