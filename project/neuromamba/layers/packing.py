"""Sequences of different lengths, one after another without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """Scans one after another.

    Attributes:
        frames: [L, N].
        lengths: frames of each scan, adding up to L.
    """

    frames: Tensor
    lengths: tuple[int, ...]


def pack(scans: Sequence[Tensor]) -> Packed:
    """Pack scans [N, T_i]."""
    return Packed(torch.cat([scan.T for scan in scans]), tuple(scan.shape[1] for scan in scans))
