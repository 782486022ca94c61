"""Portable chunked scan in plain torch: matrix products inside chunks, a short scan across them.

The state-space duality of Dao & Gu 2024 (section 6): inside a chunk of Q tokens the output is a
masked "attention" product, across chunks only the states [N, P] are carried. Runs on any device;
gradients come from autograd. Under autocast the matrix products take bf16 operands while decays,
states and norms stay fp32.

Shapes: K chunks, Q tokens a chunk, H heads, P head width, N state size, I = H P.
"""

from __future__ import annotations

import torch
from torch import Tensor

from project.module.models.ssd.api import MixerParams, prepare_inputs, register_backend
from project.module.models.utils import rms_norm

CHUNK = 64


def _decay_matrix(log_decay: Tensor) -> Tensor:
    """exp(sum of log_decay over (j, i]) for j <= i and 0 above; [..., Q] -> [..., Q, Q].

    The mask goes in before the exponential: a positive difference could overflow there.
    """
    total = log_decay.cumsum(-1)
    difference = total[..., :, None] - total[..., None, :]
    size = log_decay.shape[-1]
    lower = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).tril()
    return torch.exp(difference.masked_fill(~lower, -torch.inf))


def _mix_sequence(zxbcdt: Tensor, params: MixerParams) -> Tensor:
    z, x, b, c, dt, a = prepare_inputs(zxbcdt, params)
    length = x.shape[0]
    chunk = min(CHUNK, length)

    def chunked(values: Tensor) -> Tensor:
        # Zeros at the end are harmless: dt = 0 neither decays the state nor adds to it.
        padding = (0, 0) * (values.dim() - 1) + (0, -length % chunk)
        return torch.nn.functional.pad(values, padding).unflatten(0, (-1, chunk))

    b_KQN, c_KQN = chunked(b), chunked(c)
    x_KHQP = chunked(x).transpose(1, 2)
    dt_KHQ = chunked(dt).transpose(1, 2)
    log_decay_KHQ = dt_KHQ * a[:, None]
    total_KHQ = log_decay_KHQ.cumsum(-1)

    scores_KQQ = c_KQN @ b_KQN.transpose(1, 2)
    weights_KHQQ = scores_KQQ[:, None] * _decay_matrix(log_decay_KHQ) * dt_KHQ[:, :, None]
    y_KHQP = weights_KHQQ @ x_KHQP

    if x_KHQP.shape[0] > 1:
        to_end_KHQ = torch.exp(total_KHQ[..., -1:] - total_KHQ) * dt_KHQ
        added_KHNP = (b_KQN[:, None] * to_end_KHQ[..., None]).transpose(2, 3) @ x_KHQP
        # States before each chunk; K steps on [H, N, P], a small part of the work.
        state = torch.zeros_like(added_KHNP[0], dtype=dt.dtype)
        states = [state]
        for decay, added in zip(
            torch.exp(total_KHQ[:-1, :, -1]), added_KHNP[:-1].to(state.dtype), strict=True
        ):
            state = decay[:, None, None] * state + added
            states.append(state)
        from_start_KHQ = torch.exp(total_KHQ)
        reads_KHQN = c_KQN[:, None] * from_start_KHQ[..., None]
        y_KHQP = y_KHQP + reads_KHQN @ torch.stack(states)

    y = y_KHQP.transpose(1, 2).flatten(0, 1)[:length] + params.D[:, None] * x
    return rms_norm(y.flatten(1) * torch.nn.functional.silu(z), params.norm_weight)


@register_backend("cpu")
def mix_chunked(zxbcdt: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> Tensor:
    """Chunked scan of packed sequences; see ``mixer_core``."""
    pieces = [_mix_sequence(piece, params) for piece in zxbcdt.split(lengths)]
    return torch.cat(pieces).to(zxbcdt.dtype)
