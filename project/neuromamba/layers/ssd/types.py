"""Types, constants and small functions that the layers, the scan and its backends share.

Shapes and letters are those of ``api``. This module imports no other of the package, so that every
backend can import it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Tokens of a chunk, inside which the scan is a matrix product: fewer waste the products, more raise
# their number (it grows with the chunk).
CHUNK = 64


class MixerParams(NamedTuple):
    """Parameters of one layer between its projections.

    Attributes:
        conv_weight: [I + 2N, K] depthwise filters over (x, B, C), the last tap on the newest token.
        conv_bias: [I + 2N].
        dt_bias, A_log, D: [H].
        norm_weight: [I].
        d_state: N.
        headdim: P.
    """

    conv_weight: Tensor
    conv_bias: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    norm_weight: Tensor
    d_state: int
    headdim: int


class BlockParams(NamedTuple):
    """Parameters of a residual block.

    Attributes:
        norm_weight: [D] of the RMSNorm before the layer.
        in_proj: [2I + 2N + H, D].
        out_proj: [D, I].
        mixer: what lies between the projections.
    """

    norm_weight: Tensor
    in_proj: Tensor
    out_proj: Tensor
    mixer: MixerParams


# (zxbcdt [L, 2I + 2N + H], parameters, lengths) -> [L, I]
MixerFunction = Callable[[Tensor, MixerParams, tuple[int, ...]], Tensor]
# (x [L, D], parameters, lengths, sparing, mask of the dropout [L, D] or None) -> [L, D]
BlockFunction = Callable[[Tensor, BlockParams, tuple[int, ...], bool, Tensor | None], Tensor]


def as_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in this type; a small layer is not to wait for what changes nothing."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def no_autocast(device: str) -> AbstractContextManager[Any]:
    """Autocast off, where it is on."""
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()
