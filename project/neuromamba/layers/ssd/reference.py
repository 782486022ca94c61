"""The oracle: the recurrence, one token after another. Slow, obvious, any type, any device."""

from __future__ import annotations

import torch
from torch import Tensor

from neuromamba.layers.rms_norm import rms_norm
from neuromamba.layers.ssd.api import MixerParams, prepare_inputs, register_backend


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
