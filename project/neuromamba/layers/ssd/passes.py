"""The elementwise passes of the blockwise mixer, in torch: any device, any floating type.

Every function writes into buffers it is given, so that ``native`` can offer the same functions in
C; ``blockwise`` holds the algorithm and explains the letters. Sums of decays are kept in fp64: what
counts are their differences, and fp32 loses digits there when decays are fast.

Shapes: R tokens of a block (``rows``), K chunks of Q tokens, H heads of P, N state size, I = H P,
W = I + 2N channels of the convolution. A block holds a piece of one sequence, or several whole
sequences, each of which begins with a chunk of its own; what fills up a sequence's last chunk
counts as zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from neuromamba.layers.rms_norm import NORM_EPS
from neuromamba.layers.ssd.blocks import chunks_of
from neuromamba.layers.ssd.types import CHUNK


class Weights(NamedTuple):
    """Small parameters of a layer in the type that the passes compute in (fp32 or wider).

    Attributes:
        conv_weight: [taps, W], the last tap on the newest token.
        conv_bias: [W].
        dt_bias, A, D: [H]; A is negative.
        norm: [I].
    """

    conv_weight: Tensor
    conv_bias: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    norm: Tensor


class Totals(NamedTuple):
    """Gradients of ``Weights``; the passes add to them.

    Attributes:
        conv: [taps + 1, W], those of ``conv_weight`` and, last, ``conv_bias``.
        heads: [3, H] fp64, those of A, D and dt_bias.
        norm: [I].
    """

    conv: Tensor
    heads: Tensor
    norm: Tensor


class Sizes(NamedTuple):
    """Sizes of a block: ``rows`` tokens in ``chunks`` chunks of ``q``, and of the layer.

    ``lengths`` are those of the block's sequences (``blocks.Block``).
    """

    rows: int
    chunks: int
    q: int
    heads: int
    headdim: int
    state: int
    taps: int
    lengths: tuple[int, ...]

    @property
    def starts(self) -> list[int]:
        """The first chunk of each sequence but the first."""
        return list(accumulate(map(chunks_of, self.lengths)))[:-1]

    @property
    def inner(self) -> int:
        """I."""
        return self.heads * self.headdim

    @property
    def channels(self) -> int:
        """W."""
        return self.inner + 2 * self.state


class Layer(NamedTuple):
    """What does not need a gradient: sizes, packing, types.

    Attributes:
        heads, headdim, state, taps: H, P, N and the taps of the convolution.
        lengths: tokens of each sequence.
        operand: type of what enters matrix products.
    """

    heads: int
    headdim: int
    state: int
    taps: int
    lengths: tuple[int, ...]
    operand: torch.dtype

    def sizes(self, lengths: tuple[int, ...]) -> Sizes:
        """Return the sizes of a block of such sequences."""
        return Sizes(sum(lengths), sum(map(chunks_of, lengths)), CHUNK, *self[:4], lengths)


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """fp32, or ``dtype`` if that is wider."""
    return torch.promote_types(dtype, torch.float32)


def wide(tensor: Tensor) -> Tensor:
    """Convert a tensor to fp32 unless its type is wider."""
    return tensor.to(wide_type(tensor.dtype))


def finest(device: torch.device) -> torch.dtype:
    """Type for sums of decays: fp64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _chunked(s: Sizes, values: Tensor) -> Tensor:
    """[R, ...] -> [K, Q, ...], filled up with zeros."""
    parts = []
    for part in values.split(s.lengths):
        padding = (0, 0) * (values.dim() - 1) + (0, -len(part) % s.q)
        parts.append(pad(part, padding))
    return _joined(parts).unflatten(0, (s.chunks, s.q))


def _unchunked(s: Sizes, values: Tensor) -> Tensor:
    """[K, Q, ...] -> [R, ...], without what fills up."""
    parts = values.split([chunks_of(length) for length in s.lengths])
    return _joined(
        [part.flatten(0, 1)[:length] for part, length in zip(parts, s.lengths, strict=True)]
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _convolution(s: Sizes, zx: Tensor, tail: Tensor, w: Weights) -> tuple[list[Tensor], Tensor]:
    """Inputs of the convolution, [R, W] for each tap, and its output before the activation."""
    before = s.taps - 1
    padded = [
        wide(torch.cat([tail, part]))
        for part in zx[:, s.inner : s.inner + s.channels].split(s.lengths)
    ]
    inputs = [
        _joined([part[tap : len(part) - before + tap] for part in padded]) for tap in range(s.taps)
    ]
    out = w.conv_bias.expand(s.rows, -1).clone()
    for shifted, weight in zip(inputs, w.conv_weight, strict=True):
        out.addcmul_(shifted, weight)
    return inputs, out


def _causal_decay(a: Tensor, like: Tensor) -> Tensor:
    """exp(a_i - a_j) for j <= i, 0 above; [K, H, Q] -> [K, H, Q, Q]."""
    difference = a[..., :, None] - a[..., None, :]
    lower = torch.ones(a.shape[-1], a.shape[-1], dtype=torch.bool, device=a.device).tril()
    # The mask goes in before the exponential: a positive difference could overflow there.
    return difference.to(like.dtype).masked_fill(~lower, -torch.inf).exp_()


def norm(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """``out`` [R, D] = RMSNorm(x)."""
    x = wide(x)
    out.copy_(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * weight)


def _norm_gradient(x: Tensor, weight: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)
    inner = dout * weight
    dx = scale * inner - x * (scale.pow(3) * (inner * x).mean(-1, keepdim=True))
    return dx, (dout * x * scale).sum(0)


def norm_backward(
    x: Tensor, weight: Tensor, dout: Tensor, residual: Tensor, dx: Tensor, dweight: Tensor
) -> None:
    """``dx`` = residual + gradient of ``norm``; adds to ``dweight``."""
    gradient, own = _norm_gradient(wide(x), weight, wide(dout))
    dx.copy_(residual + gradient)
    dweight += own


def add(x: Tensor, y: Tensor, out: Tensor) -> None:
    """``out`` = x + y."""
    out.copy_(x + y)


def prepare(
    s: Sizes, *, zx: Tensor, tail: Tensor, w: Weights,
    xs: Tensor, b: Tensor, c: Tensor, dt: Tensor, a: Tensor,
) -> None:  # fmt: skip
    """Convolution, SiLU, step sizes, summed log decays.

    Args:
        zx: [R, 2I + 2N + H], output of the in-projection.
        tail: [taps - 1, W], the inputs of the convolution before the block; zeros where it holds
            whole sequences.
        xs: [K, H, Q + N, P]; x goes into the first Q rows.
        b, c: [K, Q, N].
        dt: [K, H, Q].
        a: [K, H, Q] fp64, running sums of dt A within a chunk.
    """
    _, v = _convolution(s, zx, tail, w)
    x, b_new, c_new = (v * torch.sigmoid(v)).split([s.inner, s.state, s.state], dim=-1)
    xs[:, :, : s.q].copy_(_chunked(s, x).unflatten(-1, (s.heads, s.headdim)).transpose(1, 2))
    b.copy_(_chunked(s, b_new))
    c.copy_(_chunked(s, c_new))
    steps = softplus(wide(zx[:, s.inner + s.channels :]) + w.dt_bias)
    dt.copy_(_chunked(s, steps).transpose(1, 2))
    torch.cumsum(dt.to(a.dtype) * w.A.to(a.dtype)[:, None], -1, out=a)


def weights(
    s: Sizes, *, g: Tensor, b: Tensor, c: Tensor, dt: Tensor, a: Tensor, D: Tensor,
    wc: Tensor, bw: Tensor,
) -> None:  # fmt: skip
    """The matrices that multiply x and the states.

    Args:
        g: [K, Q, Q] = C B^T.
        wc: [K, H, Q, Q + N] = (g exp(a_i - a_j) dt_j + D on the diagonal | C exp(a_i)).
        bw: [K, H, Q, N] = B exp(a_last - a_j) dt_j.
    """
    inside = wc[..., : s.q]
    inside.copy_(wide(g)[:, None] * _causal_decay(a, dt) * dt[:, :, None])
    inside.diagonal(dim1=-2, dim2=-1).add_(D[:, None])
    wc[..., s.q :].copy_(c[:, None] * a.exp().to(dt.dtype)[..., None])
    bw.copy_(b[:, None] * ((a[..., -1:] - a).exp().to(dt.dtype) * dt)[..., None])


def scan(s: Sizes, added: Tensor, a: Tensor, state: Tensor, xs: Tensor) -> None:
    """States before each chunk into the last N rows of xs; ``state`` [H, N, P] moves on in place.

    Args:
        added: [K, H, N, P], what each chunk adds to the state.
    """
    decay, starts = a[..., -1].exp().to(state.dtype), s.starts
    for k in range(s.chunks):
        if k in starts:
            state.zero_()
        xs[k, :, s.q :].copy_(state)
        state.mul_(decay[k][:, None, None]).add_(added[k])


def _rows_of(s: Sizes, y: Tensor) -> Tensor:
    """[K, H, Q, P] -> [R, I]."""
    return _unchunked(s, y.transpose(1, 2)).flatten(1)


def gate(s: Sizes, y: Tensor, zx: Tensor, weight: Tensor, out: Tensor) -> None:
    """``out`` [R, I] = RMSNorm(y * silu(z)); y [K, H, Q, P]."""
    z = wide(zx[:, : s.inner])
    norm(wide(_rows_of(s, y)) * z * torch.sigmoid(z), weight, out)


def gate_backward(
    s: Sizes, *, y: Tensor, zx: Tensor, weight: Tensor, dout: Tensor,
    out: Tensor | None, dy: Tensor, dzx: Tensor, total: Totals,
) -> None:  # fmt: skip
    """Gradient of ``gate``: dy [K, H, Q, P] and the z columns of dzx; adds to ``total.norm``.

    The output is computed once more into ``out``, for the gradient of the out-projection.
    """
    z, y_rows = wide(zx[:, : s.inner]), wide(_rows_of(s, y))
    sigmoid = torch.sigmoid(z)
    gated = y_rows * z * sigmoid
    if out is not None:
        norm(gated, weight, out)
    dgated, dweight = _norm_gradient(gated, weight, wide(dout))
    total.norm.add_(dweight)
    dy_rows = dgated * z * sigmoid
    dy.copy_(_chunked(s, dy_rows).unflatten(-1, (s.heads, s.headdim)).transpose(1, 2))
    dzx[:, : s.inner].copy_(dgated * y_rows * sigmoid * (1 + z * (1 - sigmoid)))


def scan_backward(
    s: Sizes, dxs: Tensor, xs: Tensor, a: Tensor, dstate: Tensor, dadded: Tensor, dlast: Tensor
) -> None:
    """Gradient of ``scan``; ``dstate`` [H, N, P] goes from the block's end to its start.

    Args:
        dxs: [K, H, Q + N, P]; the last N rows are what the outputs ask of the states.
        dadded: [K, H, N, P].
        dlast: [K, H, N], the summands of d a_last.
    """
    decay, starts = a[..., -1].exp().to(dstate.dtype), s.starts
    for k in reversed(range(s.chunks)):
        if k + 1 in starts:
            dstate.zero_()
        dadded[k].copy_(dstate)
        dlast[k].copy_(decay[k][:, None] * (dstate * xs[k, :, s.q :]).sum(-1))
        dstate.mul_(decay[k][:, None, None]).add_(dxs[k, :, s.q :])


def weights_backward(
    s: Sizes, *, dwc: Tensor, dbw: Tensor, dlast: Tensor, g: Tensor, b: Tensor, c: Tensor,
    dt: Tensor, a: Tensor, zx: Tensor, w: Weights,
    dg: Tensor, db: Tensor, dc: Tensor, dzx: Tensor, total: Totals,
) -> None:  # fmt: skip
    """Gradient of ``weights`` and of the step sizes.

    Args:
        dwc, dbw: gradients of its results; above the diagonal, dwc is not looked at.
        dg: [K, Q, Q].
        db, dc: [K, Q, N], the parts that do not go through g.
        dzx: its dt columns.
        total: ``heads`` is added to.
    """
    dw = wide(dwc[..., : s.q])
    through_decay = dw * _causal_decay(a, dt)
    dg.copy_((through_decay * dt[:, :, None]).sum(1))
    whole = through_decay * wide(g)[:, None]
    by_column = whole.sum(-2)
    da = ((whole * dt[:, :, None]).sum(-1) - by_column * dt).to(a.dtype)
    from_start = a.exp().to(dt.dtype)[..., None]
    to_end = (a[..., -1:] - a).exp().to(dt.dtype)
    through_c = wide(dwc[..., s.q :]) * from_start
    dot_b = (wide(dbw) * b[:, None]).sum(-1)
    weighted = to_end * dt * dot_b
    dc.copy_(through_c.sum(1))
    db.copy_((wide(dbw) * (to_end * dt)[..., None]).sum(1))
    da += (through_c * c[:, None]).sum(-1) - weighted
    da[..., -1] += dlast.sum(-1) + weighted.sum(-1)
    # a is a running sum of dt A: its gradient runs back from the end.
    running = da.flip(-1).cumsum(-1).flip(-1)
    ddt = by_column + to_end * dot_b + running.to(dt.dtype) * w.A[:, None]
    raw = wide(zx[:, s.inner + s.channels :]) + w.dt_bias
    draw = _unchunked(s, ddt.transpose(1, 2)) * torch.sigmoid(raw)
    dzx[:, s.inner + s.channels :].copy_(draw)
    total.heads[0] += (running * dt).sum((0, 2))
    total.heads[1] += dw.diagonal(dim1=-2, dim2=-1).to(a.dtype).sum((0, 2))
    total.heads[2] += draw.to(a.dtype).sum(0)


def convolution_backward(
    s: Sizes, *, dxs: Tensor, dx_rest: Tensor,
    db: Tensor, db_rest: Tensor, dc: Tensor, dc_rest: Tensor, zx: Tensor, tail: Tensor,
    w: Weights, carry: Tensor, dzx: Tensor, total: Totals,
) -> None:  # fmt: skip
    """Gradient of convolution and SiLU: the x, B and C columns of dzx.

    Args:
        dxs, dx_rest: [K, H, Q + N, P], its first Q rows, and [K, H, Q, P]; summands of d x.
        db, db_rest, dc, dc_rest: [K, Q, N], summands of d B and d C.
        carry: [taps - 1, W], gradient before the activation of the first tokens after the block,
            zeros where it holds whole sequences; becomes that of this block's first tokens.
        total: ``conv`` is added to.
    """
    inputs, v = _convolution(s, zx, tail, w)
    dx = _rows_of(s, wide(dxs[:, :, : s.q]) + dx_rest)
    dbc = [_unchunked(s, wide(a) + b) for a, b in ((db, db_rest), (dc, dc_rest))]
    sigmoid = torch.sigmoid(v)
    dv = torch.cat([dx, *dbc], -1) * sigmoid * (1 + v * (1 - sigmoid))
    later = [torch.cat([part, carry]) for part in dv.split(s.lengths)]
    dinputs = torch.zeros_like(dv)
    for tap in range(s.taps):
        shifted = [part[s.taps - 1 - tap : len(part) - tap] for part in later]
        dinputs.addcmul_(_joined(shifted), w.conv_weight[tap])
        total.conv[tap] += (dv * inputs[tap]).sum(0)
    if len(later) == 1:
        carry.copy_(later[0][: s.taps - 1])
    total.conv[-1] += dv.sum(0)
    dzx[:, s.inner : s.inner + s.channels].copy_(dinputs)
