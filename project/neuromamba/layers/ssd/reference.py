"""The oracle: the recurrence, one token after another. Slow, obvious, any type, any device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neuromamba.layers.rms_norm import rms_norm
from neuromamba.layers.ssd.registry import register_backend
from neuromamba.layers.ssd.types import MixerParams


class MixerInputs(NamedTuple):
    """What enters the scan of one sequence, in the widest type asked for.

    Attributes:
        z: [L, I] gate.
        x: [L, H, P].
        B, C: [L, N].
        dt: [L, H] after bias and softplus.
        A: [H], negative.
    """

    z: Tensor
    x: Tensor
    B: Tensor
    C: Tensor
    dt: Tensor
    A: Tensor


def prepare_inputs(zxbcdt: Tensor, params: MixerParams) -> MixerInputs:
    """Split, convolve and activate one sequence [L, 2I + 2N + H]; fp32 or wider throughout."""
    zxbcdt = zxbcdt.to(torch.promote_types(zxbcdt.dtype, torch.float32))
    d_inner, n = params.norm_weight.numel(), params.d_state
    z, xbc, dt = zxbcdt.split([d_inner, d_inner + 2 * n, params.dt_bias.numel()], dim=-1)
    length, taps = xbc.shape[0], params.conv_weight.shape[1]
    padded = torch.nn.functional.pad(xbc, (0, 0, taps - 1, 0))
    convolved = params.conv_bias
    for tap in range(taps):
        convolved = convolved + padded[tap : tap + length] * params.conv_weight[:, tap]
    x, b, c = torch.nn.functional.silu(convolved).split([d_inner, n, n], dim=-1)
    return MixerInputs(
        z=z,
        x=x.unflatten(-1, (-1, params.headdim)),
        B=b,
        C=c,
        dt=torch.nn.functional.softplus(dt + params.dt_bias),
        A=-torch.exp(params.A_log),
    )


def _mix_sequence(zxbcdt: Tensor, params: MixerParams) -> Tensor:
    z, x, b, c, dt, a = prepare_inputs(zxbcdt, params)
    state = x.new_zeros(x.shape[1], params.d_state, x.shape[2])  # [H, N, P]
    outputs = []
    for t in range(x.shape[0]):
        decay = torch.exp(dt[t] * a)[:, None, None]
        update = dt[t][:, None, None] * b[t][None, :, None] * x[t][:, None, :]
        state = decay * state + update
        outputs.append((c[t][None, :, None] * state).sum(1) + params.D[:, None] * x[t])
    y = torch.stack(outputs).flatten(1)
    return rms_norm(y * torch.nn.functional.silu(z), params.norm_weight)


@register_backend("reference")
def mix_reference(zxbcdt: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> Tensor:
    """Sequential scan of packed sequences; see ``mixer_core``."""
    pieces = [_mix_sequence(piece, params) for piece in zxbcdt.split(lengths)]
    return torch.cat(pieces).to(zxbcdt.dtype)
