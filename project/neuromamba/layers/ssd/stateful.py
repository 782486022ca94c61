"""The mixer with carried state: one sequence in pieces of any length, forward only.

What a later token needs of all earlier ones is small and does not grow: the last K - 1 inputs of
the convolution, and the state of each head. ``mix_piece`` takes both, computes the formulas of
``api`` for the tokens of a piece, and returns both as they are after it. So a sequence can be
continued token after token, or read in pieces, without its past.

A single token takes one step of the recurrence. Longer pieces use the chunked matrix form of
``blockwise`` (Dao & Gu 2024, section 6). With a = running sum of dt A inside a chunk of Q tokens
and S the state before it:

    y_i = sum over j <= i of (C_i B_j) exp(a_i - a_j) dt_j x_j  +  exp(a_i) S C_i  +  D x_i
    S'  = exp(a_last) S + sum over j of exp(a_last - a_j) dt_j x_j B_j^T

Portable torch on any device, in fp32 or wider.

Shapes: l tokens of a piece, I inner width, N state size, H heads of P, K taps, W = I + 2N, c chunks
of Q tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from neuromamba.layers.rms_norm import rms_norm
from neuromamba.layers.ssd.types import CHUNK, MixerParams

MOST_CHUNKS = 16  # computed at once: bounds the memory of a long piece


class MixerState(NamedTuple):
    """What a layer keeps of the tokens so far; its size does not depend on their number.

    Attributes:
        inputs: [K - 1, W], last inputs of the convolution; zeros before the first token.
        heads: [H, P, N], state of each head.
    """

    inputs: Tensor
    heads: Tensor


def initial_state(params: MixerParams) -> MixerState:
    """The state before the first token, on the parameters' device."""
    channels, taps = params.conv_weight.shape
    wide = torch.promote_types(params.conv_weight.dtype, torch.float32)
    heads = params.dt_bias.numel()
    return MixerState(
        params.conv_weight.new_zeros(taps - 1, channels, dtype=wide),
        params.conv_weight.new_zeros(heads, params.headdim, params.d_state, dtype=wide),
    )


@torch.no_grad()
def mix_piece(zxbcdt: Tensor, params: MixerParams, state: MixerState) -> tuple[Tensor, MixerState]:
    """Run the mixer on the next tokens of a sequence.

    Args:
        zxbcdt: [l, 2I + 2N + H] output of the in-projection, l >= 1.
        params: the layer's parameters.
        state: after the tokens before; ``initial_state`` for the first piece. It is not changed.

    Returns:
        [l, I], input of the out-projection, in the type of ``zxbcdt``; and the state after the
        piece.
    """
    assert zxbcdt.shape[0] > 0
    outputs = []
    for rows in zxbcdt.to(state.heads.dtype).split(MOST_CHUNKS * CHUNK):
        mixed, state = _mix(rows, params, state)
        outputs.append(mixed)
    return torch.cat(outputs).to(zxbcdt.dtype), state


def _mix(zxbcdt: Tensor, params: MixerParams, state: MixerState) -> tuple[Tensor, MixerState]:
    inner, n, heads = params.norm_weight.numel(), params.d_state, params.dt_bias.numel()
    length, taps = zxbcdt.shape[0], params.conv_weight.shape[1]
    z, xbc, dt = zxbcdt.split([inner, inner + 2 * n, heads], dim=-1)
    inputs = torch.cat([state.inputs, xbc])
    convolved = params.conv_bias
    for tap in range(taps):
        convolved = convolved + inputs[tap : tap + length] * params.conv_weight[:, tap]
    x, b, c = F.silu(convolved).split([inner, n, n], dim=-1)
    dt = F.softplus(dt + params.dt_bias)
    scan = _step if length == 1 else _chunks
    x = x.unflatten(-1, (heads, params.headdim))
    y, after = scan(x, b, c, dt, -torch.exp(params.A_log.to(dt.dtype)), state.heads)
    y = (y + params.D[:, None] * x).flatten(1)
    # A copy: as a view, K - 1 rows would keep the whole piece in memory.
    kept = inputs[length:].clone()
    return rms_norm(y * F.silu(z), params.norm_weight), MixerState(kept, after)


def _step(
    x: Tensor, b: Tensor, c: Tensor, dt: Tensor, rate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence: y [1, H, P] and the state [H, P, N] after it."""
    moved = (dt[0, :, None] * x[0])[..., None] * b[0]
    state = torch.exp(dt[0] * rate)[:, None, None] * state + moved
    return (state @ c[0])[None], state


def _chunks(
    x: Tensor, b: Tensor, c: Tensor, dt: Tensor, rate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Several tokens, chunk by chunk: y [l, H, P] and the state [H, P, N] after the last.

    The last chunk is filled up with tokens of step size 0, which leave the state unchanged.
    """
    length = len(x)
    size = min(CHUNK, length)
    missing = -length % size
    if missing:
        x, b, c, dt = (F.pad(t, (*(0, 0) * (t.ndim - 1), 0, missing)) for t in (x, b, c, dt))
    x, b, c, dt = (t.unflatten(0, (-1, size)) for t in (x, b, c, dt))
    a = (dt * rate).cumsum(1)  # [c, Q, H]
    below = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    decay = a.mT[..., None] - a.mT[:, :, None]  # [c, H, Q, Q]: a_i - a_j
    decay = decay.masked_fill_(~below, -torch.inf).exp_()  # -inf first: above, exp may overflow
    weights = decay * (c @ b.mT)[:, None] * dt.mT[:, :, None]
    y = weights @ x.transpose(1, 2)  # [c, H, Q, P]
    left = torch.exp(a[:, -1:] - a) * dt
    added = (x * left[..., None]).permute(0, 2, 3, 1) @ b[:, None]  # [c, H, P, N]
    kept, before = torch.exp(a[:, -1])[..., None, None], []
    for number in range(len(x)):
        before.append(state)
        state = kept[number] * state + added[number]
    carried = c[:, None] @ torch.stack(before).mT  # [c, H, Q, P]
    y = y + torch.exp(a).mT[..., None] * carried
    return y.transpose(1, 2).flatten(0, 1)[:length], state
