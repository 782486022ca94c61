"""Causal convolution of packed sequences in torch, for the split way of the backend "triton".

Shapes: L packed tokens, C channels, K taps, R rows of the layout with empty rows between sequences.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class PackedLayout(NamedTuple):
    """Positions of the packed sequences; a single sequence needs neither tensor.

    Attributes:
        seq_idx: int32 [1, L], number of each token's sequence.
        rows: int64 [L], row of each token when K - 1 empty rows lie between two sequences.
        n_rows: rows of that layout, R.
    """

    seq_idx: Tensor | None
    rows: Tensor | None
    n_rows: int


@functools.lru_cache(maxsize=16)
def packed_layout(lengths: tuple[int, ...], taps: int, device: torch.device) -> PackedLayout:
    """Make the layout of a batch, once for all its layers, without waiting for the device."""
    total = sum(lengths)
    if len(lengths) == 1:
        return PackedLayout(None, None, total)
    # A tensor made in inference mode (Lightning's validation) could not be used in training.
    with torch.inference_mode(False):
        count = torch.tensor(lengths).to(device, non_blocking=True)
        number = torch.arange(len(lengths), device=device)
        number = torch.repeat_interleave(number, count, output_size=total)
        rows = torch.arange(total, device=device) + number * (taps - 1)
        seq_idx = number.to(torch.int32)[None]
    return PackedLayout(seq_idx, rows, total + (len(lengths) - 1) * (taps - 1))


class CausalConvSiLU(torch.autograd.Function):
    """silu(bias + causal depthwise convolution) of packed sequences, [L, C] -> [L, C].

    Computed in fp32 or wider, token-major as the input; keeps only its input for the backward pass.
    Zero rows between the sequences stand in for the border, forward and backward.
    """

    @staticmethod
    def forward(
        ctx: Any, x_LC: Tensor, weight_CK: Tensor, bias_C: Tensor, layout: PackedLayout
    ) -> Tensor:
        ctx.save_for_backward(x_LC, weight_CK, bias_C)
        ctx.layout = layout
        _, before_RC = _convolve(x_LC, weight_CK, bias_C, layout)
        return _narrow(F.silu(before_RC), layout).to(x_LC.dtype)

    @staticmethod
    def backward(ctx: Any, grad_LC: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_LC, weight_CK, bias_C = ctx.saved_tensors
        layout, taps = ctx.layout, weight_CK.shape[1]
        inputs, before_RC = _convolve(x_LC, weight_CK, bias_C, layout)
        n_rows = layout.n_rows
        gate = torch.sigmoid(before_RC)
        slope_RC = gate * (1 + before_RC * (1 - gate))  # of SiLU
        # K - 1 zero rows at the end, from where the last tokens' gradients would come.
        grads = inputs.new_zeros(n_rows + taps - 1, inputs.shape[1])
        _spread(grads[:n_rows], grad_LC, layout)
        grads[:n_rows] *= slope_RC
        weight_KC = weight_CK.t().to(inputs.dtype)
        dx_RC = torch.zeros_like(before_RC)
        dweight = []
        for tap in range(taps):
            back = taps - 1 - tap
            dx_RC.addcmul_(grads[back : back + n_rows], weight_KC[tap])
            dweight.append((grads[:n_rows] * inputs[tap : tap + n_rows]).sum(0))
        return (
            _narrow(dx_RC, layout).to(x_LC.dtype),
            torch.stack(dweight, dim=1).to(weight_CK.dtype),
            grads.sum(0).to(bias_C.dtype),
            None,
        )


def _convolve(
    x_LC: Tensor, weight_CK: Tensor, bias_C: Tensor, layout: PackedLayout
) -> tuple[Tensor, Tensor]:
    """Inputs [R + K - 1, C] with zero rows before each sequence, and their convolution [R, C]."""
    wide, taps = torch.promote_types(x_LC.dtype, torch.float32), weight_CK.shape[1]
    inputs = x_LC.new_zeros(layout.n_rows + taps - 1, x_LC.shape[1], dtype=wide)
    _spread(inputs[taps - 1 :], x_LC, layout)
    weight_KC = weight_CK.t().to(wide)
    before_RC = bias_C.to(wide).repeat(layout.n_rows, 1)
    for tap in range(taps):
        before_RC.addcmul_(inputs[tap : tap + layout.n_rows], weight_KC[tap])
    return inputs, before_RC


def _spread(target_RC: Tensor, values_LC: Tensor, layout: PackedLayout) -> None:
    """Write tokens into the layout with rows between the sequences, in place."""
    if layout.rows is None:
        target_RC.copy_(values_LC)
    else:
        target_RC.index_copy_(0, layout.rows, values_LC.to(target_RC.dtype))


def _narrow(values_RC: Tensor, layout: PackedLayout) -> Tensor:
    """The tokens out of the layout with rows between the sequences."""
    return values_RC if layout.rows is None else values_RC.index_select(0, layout.rows)
