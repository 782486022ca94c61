"""The mixer, block after block: what lies between its input and its output stays in the cache.

State-space duality (Dao & Gu 2024, section 6): inside a chunk of Q tokens the output is a masked
product as in attention, across chunks only the states [N, P] of the heads are carried. Here a
sequence is walked in blocks of some chunks, all steps of a block one after the other; short
sequences share a block (``blocks``). The backward pass walks it in reverse and computes what lies
between again. So nothing of a layer but its input, the states at the borders and (see
``memory.Pool``) the in-projection's output exists as a whole.

With a = running sum of dt A inside a chunk, G = C B^T (one for all heads), S the state before it:

    W  = G exp(a_i - a_j) dt_j below the diagonal, G dt + D on it
    Y  = (W | C exp(a_i)) (X ; S)                      one product; the skip D x is in it
    S' = exp(a_last) S + (B exp(a_last - a_j) dt_j)^T X

and backwards, with dY given:

    d(W | C exp(a)) = dY (X ; S)^T        d(X ; S) = (W | C exp(a))^T dY
    dS = exp(a_last) dS' + what the outputs ask of S       (reversed scan)
    dX += (B w) dS'     d(B w) = X dS'^T   dG = sum over heads of dW exp(a_i - a_j) dt_j
    dC = .. + dG B      dB = .. + dG^T C   da = row sums less column sums of dW W, and the states'

Matrix products are torch's; the passes between them come from ``passes`` (torch) or ``native`` (C).
With bf16 operands only what enters or leaves a product is bf16; decays, states, norms and sums are
fp32 or wider.

Shapes: L packed tokens, D width, I inner width, R = 2I + 2N + H columns of the in-projection, K
chunks of Q tokens in a block, H heads of P, N state size, W = I + 2N.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuromamba.layers import bf16
from neuromamba.layers.ssd import buffers as memory
from neuromamba.layers.ssd import native
from neuromamba.layers.ssd import passes as torch_passes
from neuromamba.layers.ssd.blocks import Block, walk
from neuromamba.layers.ssd.fused import Borders, FusedLayer, can_run, fast_operand
from neuromamba.layers.ssd.passes import Layer, Totals, Weights
from neuromamba.layers.ssd.types import BlockParams, MixerParams, as_type, no_autocast


def operand_type(tensor: Tensor) -> torch.dtype:
    """bf16 for bf16 input and under autocast to it, where the device multiplies it fast.

    fp16 has too small a range and becomes fp32.
    """
    kind, asked = tensor.device.type, tensor.dtype
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16:
        asked = torch.bfloat16
    if asked == torch.bfloat16 and not bf16.pays_on(tensor.device):
        bf16.say_once()
        return torch.float32
    return torch.float32 if asked == torch.float16 else asked


# -------------------------------------------------------------------------------------- autograd


class _Blockwise(torch.autograd.Function):
    """The mixer, or with projections a whole residual block."""

    @staticmethod
    def forward(
        ctx: Any, layer: Layer, graph: bool, sparing: bool, x: Tensor,
        mask: Tensor | None,
        pre_norm: Tensor | None, in_proj: Tensor | None, out_proj: Tensor | None,
        conv_weight: Tensor, conv_bias: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor,
        norm_weight: Tensor,
    ) -> Tensor:  # fmt: skip
        tensors = (
            x, mask, pre_norm, in_proj, out_proj, conv_weight, conv_bias, dt_bias, A_log, D,
            norm_weight,
        )  # fmt: skip
        call = _Call(layer, tensors)
        backward = graph and any(ctx.needs_input_grad)
        # In fp32 computing the in-projection again takes longer than reading it; not so in bf16.
        lent = None
        if backward and not sparing and in_proj is not None and layer.operand == torch.float32:
            lent = memory.lend(x, x.shape[0] * call.columns)
        with no_autocast(x.device.type):
            out, borders = call.forward(backward, lent)
        if backward:
            ctx.layer, ctx.borders, ctx.lent = layer, borders, lent
            ctx.save_for_backward(*tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        tensors, lent, wanted = ctx.saved_tensors, ctx.lent, ctx.needs_input_grad[3:]
        ctx.lent = None  # goes on to another call: a second pass back computes its content anew
        with no_autocast(dout.device.type):
            call = _Call(ctx.layer, tensors)
            found = call.backward(dout.contiguous(), ctx.borders, lent, any(wanted[3:5]))
        if lent is not None:
            memory.give_back(lent)
        gradients = (
            as_type(g, t.dtype) if needed and g is not None else None
            for g, t, needed in zip(found, tensors, wanted, strict=True)
        )
        return None, None, None, *gradients


class _Call:
    """One pass through a layer, forward or backward."""

    def __init__(self, layer: Layer, tensors: tuple[Tensor | None, ...]) -> None:
        x, mask, pre_norm, in_proj, out_proj, *small_ones = tensors
        conv_weight, conv_bias, dt_bias, A_log, D, norm = small_ones
        assert x is not None and conv_weight is not None and conv_bias is not None
        assert dt_bias is not None and A_log is not None and D is not None and norm is not None
        self.layer, self.x, self.mask = layer, x, mask
        self.full = torch_passes.wide_type(layer.operand)

        def small(tensor: Tensor) -> Tensor:
            return as_type(tensor, self.full).contiguous()

        self.w = Weights(
            conv_weight=small(conv_weight.t()),
            conv_bias=small(conv_bias),
            dt_bias=small(dt_bias),
            A=torch.exp(as_type(A_log, self.full)).neg_(),
            D=small(D),
            norm=small(norm),
        )
        self.pre_norm = None if pre_norm is None else small(pre_norm)
        self.in_proj = None if in_proj is None else as_type(in_proj, layer.operand)
        self.out_proj = None if out_proj is None else as_type(out_proj, layer.operand)
        self.passes: ModuleType = torch_passes
        if native.can_run(x, layer.operand, layer.taps, residual=in_proj is not None):
            self.passes = native
        self.columns = 0 if in_proj is None else in_proj.shape[0]
        self.fused: FusedLayer | None = None
        if self.in_proj is not None and can_run(layer, x):
            assert self.pre_norm is not None and self.out_proj is not None
            weights = self.w, self.pre_norm, self.in_proj, self.out_proj
            self.fused = FusedLayer(layer, *weights, x, mask)
            self.columns = self.fused.columns
            return
        self.buffers = memory.buffers(layer, x, projections=in_proj is not None)

    def walks(self) -> tuple[tuple[Block, ...], ...]:
        """The blocks of all tokens; see ``blocks.walk``."""
        return walk(self.layer.lengths, memory.block_rows(self.x.device))

    def zero_state(self) -> Tensor:
        """[H, N, P]."""
        return self.w.A.new_zeros(self.layer.heads, self.layer.state, self.layer.headdim)

    # --- steps of a block; v are its buffers, x its input rows

    def project_in(self, v: SimpleNamespace, x: Tensor, kept: Tensor | None) -> Tensor:
        """[rows, R], what enters the mixer; ``v.normed`` is what went into the in-projection."""
        if self.in_proj is None:
            return x.to(self.layer.operand)
        self.passes.norm(x, self.pre_norm, v.normed)
        return torch.mm(v.normed, self.in_proj.t(), out=v.zx if kept is None else kept)

    def scan(self, v: SimpleNamespace, zx: Tensor, tail: Tensor, state: Tensor) -> None:
        """Compute ``v.y`` from the in-projection's output; ``state`` moves to the block's end."""
        passes, w = self.passes, self.w
        passes.prepare(v.s, zx=zx, tail=tail, w=w, xs=v.xs4, b=v.b, c=v.c, dt=v.dt, a=v.a)
        torch.bmm(v.c, v.b.mT, out=v.g)
        passes.weights(v.s, g=v.g, b=v.b, c=v.c, dt=v.dt, a=v.a, D=w.D, wc=v.wc4, bw=v.bw4)
        torch.bmm(v.bw.mT, v.x, out=v.added)
        passes.scan(v.s, v.added4, v.a, state, v.xs4)
        torch.bmm(v.wc, v.xs, out=v.y)

    def scan_backward(
        self, v: SimpleNamespace, zx: Tensor, dstate: Tensor, dzx: Tensor, total: Totals
    ) -> None:
        """Compute the gradients of x, B, C and dt from ``v.dy``; ``dstate`` moves back.

        Those of x, B and C come in two summands: through the chunks' products and the states.
        """
        torch.bmm(v.dy, v.xs.mT, out=v.dwc)
        torch.bmm(v.wc.mT, v.dy, out=v.dxs)
        self.passes.scan_backward(v.s, v.dxs4, v.xs4, v.a, dstate, v.dadded4, v.dlast)
        torch.bmm(v.x, v.dadded.mT, out=v.dbw)
        torch.bmm(v.bw, v.dadded, out=v.dx_rest)
        self.passes.weights_backward(
            v.s, dwc=v.dwc4, dbw=v.dbw4, dlast=v.dlast, g=v.g, b=v.b, c=v.c, dt=v.dt, a=v.a, zx=zx,
            w=self.w, dg=v.dg, db=v.db_rest, dc=v.dc_rest, dzx=dzx, total=total,
        )  # fmt: skip
        torch.bmm(v.dg, v.b, out=v.dc)
        torch.bmm(v.dg.mT, v.c, out=v.db)

    # --- passes over all tokens

    def forward(self, backward: bool, lent: Tensor | None) -> tuple[Tensor, Borders]:
        """Run all blocks.

        Args:
            backward: a backward pass will follow.
            lent: memory where the in-projection's output is to be kept for it.

        Returns:
            The output, and what stands at the start of each block.
        """
        x, w = self.x, self.w
        inner, channels, before = w.norm.numel(), w.conv_bias.numel(), self.layer.taps - 1
        out = x.new_empty(x.shape[0], inner if self.out_proj is None else x.shape[1])
        kept = self.kept(lent)
        if self.fused is not None:
            return out, self.fused.forward(out, kept, backward)
        walks = self.walks()
        count = sum(map(len, walks))
        state = self.zero_state()
        borders = Borders(
            states=state.new_empty(count if backward else 1, *state.shape),
            tails=x.new_empty(count + 1, before, channels, dtype=self.layer.operand),
        )
        at = 0
        for blocks in walks:
            state.zero_()
            borders.tails[at].zero_()
            for first, last, lengths in blocks:
                v = self.buffers.block(lengths, backward=False)
                zx = self.project_in(v, x[first:last], None if kept is None else kept[first:last])
                if backward:
                    borders.states[at].copy_(state)
                self.scan(v, zx, borders.tails[at], state)
                if self.out_proj is None:
                    self.passes.gate(v.s, v.y4, zx, w.norm, out[first:last])
                else:
                    self.passes.gate(v.s, v.y4, zx, w.norm, v.gated)
                    torch.mm(v.gated, self.out_proj.t(), out=v.projected)
                    if self.mask is not None:
                        v.projected.mul_(self.mask[first:last])
                    self.passes.add(x[first:last], v.projected, out[first:last])
                at += 1
                if last - first >= before:  # else the walk ends here
                    end = last - first
                    borders.tails[at].copy_(zx[end - before :, inner : inner + channels])
        return out, borders

    def kept(self, lent: Tensor | None) -> Tensor | None:
        """[L, columns] in the memory lent."""
        if lent is None or self.in_proj is None:
            return None
        rows = self.x.shape[0]
        return lent[: rows * self.columns].view(rows, self.columns)

    def backward(
        self, dout: Tensor, borders: Borders, lent: Tensor | None, projections: bool
    ) -> tuple[Tensor | None, ...]:
        """Walk back through all blocks.

        Args:
            dout: gradient of the output.
            borders, lent: of ``forward``.
            projections: whether the gradients of the projections' weights are wanted.

        Returns:
            Gradients in the order of the layer's tensors, summed over blocks in fp32 or wider.
        """
        x, w, operand = self.x, self.w, self.layer.operand
        kept = self.kept(lent)
        dx = torch.empty_like(x)
        dpre_norm = None if self.pre_norm is None else torch.zeros_like(self.pre_norm)
        din_proj, dout_proj = (
            torch.zeros_like(weight, dtype=self.full)
            if weight is not None and projections
            else None
            for weight in (self.in_proj, self.out_proj)
        )
        total = Totals(
            conv=w.norm.new_zeros(self.layer.taps + 1, w.conv_bias.numel()),
            heads=torch.zeros(
                3, self.layer.heads, dtype=torch_passes.finest(x.device), device=x.device
            ),
            norm=torch.zeros_like(w.norm),
        )
        if self.fused is not None:
            assert dpre_norm is not None
            self.fused.backward(
                borders, kept, dout=dout, dx=dx, dpre_norm=dpre_norm, din_proj=din_proj,
                dout_proj=dout_proj, total=total,
            )  # fmt: skip
            return self.gradients(dx, dpre_norm, din_proj, dout_proj, total)
        at = len(borders.states)
        state, dstate = self.zero_state(), self.zero_state()
        carry = torch.zeros_like(w.conv_weight[1:])
        for blocks in reversed(self.walks()):
            dstate.zero_()
            carry.zero_()
            for first, last, lengths in reversed(blocks):
                at -= 1
                v, tail = self.buffers.block(lengths, backward=True), borders.tails[at]
                state.copy_(borders.states[at])
                x_rows, dx_rows, dout_rows = x[first:last], dx[first:last], dout[first:last]
                if kept is None:
                    zx = self.project_in(v, x_rows, None)
                else:
                    zx = kept[first:last]
                    self.passes.norm(x_rows, self.pre_norm, v.normed)
                self.scan(v, zx, tail, state)

                dgated, gated = dout_rows, None
                if self.out_proj is not None:
                    gated, dprojected = v.gated, dout_rows
                    if self.mask is not None:
                        dprojected = torch.mul(dout_rows, self.mask[first:last], out=v.dprojected)
                    elif dout_rows.dtype != operand:
                        dprojected = v.dprojected.copy_(dout_rows)
                    dgated = torch.mm(dprojected, self.out_proj, out=v.dgated)
                dzx = dx_rows if self.in_proj is None and dx.dtype == operand else v.dzx
                self.passes.gate_backward(
                    v.s, y=v.y4, zx=zx, weight=w.norm, dout=dgated, out=gated, dy=v.dy4, dzx=dzx,
                    total=total,
                )  # fmt: skip
                if dout_proj is not None:
                    _add_product(dout_proj, dprojected, v.gated)
                self.scan_backward(v, zx, dstate, dzx, total)
                self.passes.convolution_backward(
                    v.s, dxs=v.dxs4, dx_rest=v.dx_rest4, db=v.db, db_rest=v.db_rest, dc=v.dc,
                    dc_rest=v.dc_rest, zx=zx, tail=tail, w=w, carry=carry, dzx=dzx, total=total,
                )  # fmt: skip
                if din_proj is not None:
                    _add_product(din_proj, dzx, v.normed)
                if self.in_proj is not None:
                    torch.mm(dzx, self.in_proj, out=v.dnormed)
                    self.passes.norm_backward(
                        x_rows, self.pre_norm, v.dnormed, dout_rows, dx_rows, dpre_norm
                    )
                elif dzx is not dx_rows:
                    dx_rows.copy_(dzx)
        return self.gradients(dx, dpre_norm, din_proj, dout_proj, total)

    def gradients(
        self, dx: Tensor, dpre_norm: Tensor | None, din_proj: Tensor | None,
        dout_proj: Tensor | None, total: Totals,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        """Gradients in the order of the layer's tensors."""
        dA, dD, ddt_bias = total.heads
        return (
            dx, None, dpre_norm, din_proj, dout_proj, total.conv[:-1].t(), total.conv[-1], ddt_bias,
            dA * self.w.A,  # A = -exp(A_log) is its own derivative
            dD, total.norm,
        )  # fmt: skip


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right to the gradient of a projection."""
    if left.dtype == total.dtype:
        torch.addmm(total, left.t(), right, out=total)
    else:
        total.add_(left.t() @ right)


# ------------------------------------------------------------------------------------- interface


def _layer(x: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> Layer:
    heads, taps = params.dt_bias.numel(), params.conv_weight.shape[1]
    return Layer(heads, params.headdim, params.d_state, taps, lengths, operand_type(x))


def _widened(x: Tensor, layer: Layer) -> Tensor:
    """bf16 input in fp32, where the products are."""
    if x.dtype == torch.bfloat16 and layer.operand == torch.float32:
        x = x.float()
    return x.contiguous()


def mix(zxbcdt: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> Tensor:
    """The mixer of packed sequences; see ``api.mixer_core``."""
    layer = _layer(zxbcdt, params, lengths)
    graph, asked = torch.is_grad_enabled(), zxbcdt.dtype
    x = _widened(zxbcdt, layer)
    return _Blockwise.apply(layer, graph, False, x, None, None, None, None, *params[:6]).to(asked)


def residual_block(
    x: Tensor, block: BlockParams, lengths: tuple[int, ...], sparing: bool = False,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``x + mask out_proj(mixer(in_proj(rmsnorm(x))))``; see ``types.BlockParams``.

    Args:
        x: [L, D].
        block: parameters.
        lengths: of the sequences.
        sparing: keep nothing for the backward pass but the input and the states between blocks.
        mask: [L, D] of a dropout, with what is kept scaled up; None for none.
    """
    layer, graph = fast_operand(_layer(x, block.mixer, lengths), x), torch.is_grad_enabled()
    wide = _widened(x, layer)
    out = _Blockwise.apply(layer, graph, sparing, wide, mask, *block[:3], *block.mixer[:6])
    return out.to(x.dtype)
