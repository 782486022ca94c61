"""A residual block of the network in one C call each way (``layers/ssd_native/block.h``).

The steps are those of ``blockwise``, products included, chunk by chunk: what a chunk needs stays in
the cache of a core, nothing is multiplied that is zero, and a layer costs one call and one parallel
section. For fp32 on CPUs, where the sizes fill vector registers; ``can_run`` says so. Numbers
agree with the other passes to rounding, and do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from neuromamba.layers import bf16
from neuromamba.layers.rms_norm import NORM_EPS
from neuromamba.layers.ssd import buffers as memory
from neuromamba.layers.ssd import native
from neuromamba.layers.ssd.blocks import walk
from neuromamba.layers.ssd.passes import Layer, Totals, Weights

_TAPS = 4
_WEIGHTS = ("conv_weight", "conv_bias", "dt_bias", "A", "D", "norm")
_ROOM = ("normed", "gated", "xs", "b", "c", "g", "y", "added", "dt", "a")
_ROOM_BACK = ("dgated", "dy", "dxs", "db", "dc", "dadded", "dlast", "dzx", "dnormed")


class _Piece(ctypes.Structure):
    """Keep in step with Piece in block.h."""

    _fields_ = [
        ("shape", native.Shape),
        ("first", ctypes.c_int64),
        ("begins", ctypes.c_int64),
    ]


def _pointers(*names: str) -> list[tuple[str, type[ctypes.c_void_p]]]:
    return [(name, ctypes.c_void_p) for name in names]


class _Block(ctypes.Structure):
    """Keep in step with Block in block.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("width", "ld", "projected")),
        ("eps", ctypes.c_double),
        *_pointers("pre_norm", *_WEIGHTS, "in_proj", "out_proj"),
        *_pointers("x", "mask", "out", "tails", "states", "zx"),
        ("kept", ctypes.c_int64),
        *_pointers("state", "normed", "product", *_ROOM[1:]),
        *_pointers("in_proj_back", "out_proj_back", "dout", "dx", "dstate", "carry", "carried"),
        *_pointers("dproduct", *_ROOM_BACK),
        *_pointers("dpre_norm", "dnorm", "dconv", "din_proj", "dout_proj", "room"),
        *_pointers("dheads", "room_heads", "tail"),
    ]


class Borders(NamedTuple):
    """What the backward pass needs at the start of each piece.

    Attributes:
        states: [pieces, H, N, P].
        tails: [pieces, taps - 1, W], inputs of the convolution before the piece.
    """

    states: Tensor
    tails: Tensor


def can_run(layer: Layer, x: Tensor) -> bool:
    """Whether one call does such a layer with its projections, on input ``x`` [L, D]."""
    runs = native.can_run(x, layer.operand, layer.taps, residual=True)
    return runs and len(x) > 0 and kernels_for(layer, x.shape[1]) is not None


def fast_operand(layer: Layer, x: Tensor) -> Layer:
    """A narrow layer for bf16 operands with fp32 operands, where one call does it; see ``bf16``."""
    in_one_call = layer._replace(operand=torch.float32)
    narrow = layer.operand == torch.bfloat16 and bf16.too_narrow(x.shape[1], x.device)
    return in_one_call if narrow and can_run(in_one_call, x) else layer


def kernels_for(layer: Layer, width: int) -> native.LayerKernels | None:
    """The passes for such sizes, where there is a library that has them."""
    if layer.operand != torch.float32 or layer.taps != _TAPS:
        return None
    return native.layer_kernels(layer.headdim, layer.state, width)


class _Pieces(NamedTuple):
    """The pieces of all tokens.

    Attributes:
        array: of ``_Piece``.
        chunks: of the largest one.
        shapes: hold what the array has addresses of.
    """

    array: ctypes.Array[_Piece]
    chunks: int
    shapes: list[native.Shape]


@functools.lru_cache(maxsize=64)
def _pieces(layer: Layer, limit: int, threads: int) -> _Pieces:
    walks = walk(layer.lengths, limit)
    shapes, places = [], []
    for blocks in walks:
        for block in blocks:
            shapes.append(native.shape(layer.sizes(block.lengths), threads))
            places.append((block.first, block is blocks[0]))
    found = [_Piece(shape, *place) for shape, place in zip(shapes, places, strict=True)]
    return _Pieces((_Piece * len(found))(*found), max(s.chunks for s in shapes), shapes)


class FusedLayer:
    """One pass through a layer.

    Args:
        layer: for which ``can_run`` is true.
        w, pre_norm: small parameters.
        in_proj, out_proj: [R, D] and [D, I].
        x: [L, D], contiguous.
        mask: [L, D], what the out-projection's output is multiplied by, or None.

    Attributes:
        columns: numbers between two rows of what enters the mixer.
    """

    def __init__(
        self, layer: Layer, w: Weights, pre_norm: Tensor, in_proj: Tensor, out_proj: Tensor,
        x: Tensor, mask: Tensor | None,
    ) -> None:  # fmt: skip
        self._layer, self._w, self._pre_norm, self._x = layer, w, pre_norm, x
        self._in_proj, self._out_proj = in_proj.contiguous(), out_proj.contiguous()
        self._mask = None if mask is None else mask.contiguous()
        kernels = kernels_for(layer, x.shape[1])
        assert kernels is not None
        self._kernels = kernels
        self.columns = kernels.row_of(in_proj.shape[0])
        self._pieces = _pieces(layer, memory.piece_rows(), torch.get_num_threads())

    def forward(self, out: Tensor, zx: Tensor | None, states: bool) -> Borders:
        """Write the output [L, D], and what enters the mixer into ``zx`` [L, ld], if given.

        Args:
            out, zx: see above.
            states: what the backward pass needs is wanted.
        """
        count, w, layer = len(self._pieces.array), self._w, self._layer
        sizes = (layer.heads, layer.state, layer.headdim)
        borders = Borders(
            states=w.A.new_empty(count if states else 0, *sizes),
            tails=w.A.new_empty(count, _TAPS - 1, w.conv_bias.numel()),
        )
        call = self._record(borders, zx, backward=False)
        call.states = borders.states.data_ptr() if states else None
        call.projected, call.out, call.dout = 0, out.data_ptr(), None
        self._kernels.run("block_forward", count, self._pieces.array, call)
        return borders

    def backward(
        self, borders: Borders, zx: Tensor | None, *, dout: Tensor, dx: Tensor,
        dpre_norm: Tensor, din_proj: Tensor | None, dout_proj: Tensor | None, total: Totals,
    ) -> None:  # fmt: skip
        """Write ``dx`` [L, D], and add to the gradients of the weights.

        Args:
            borders, zx: of ``forward``.
            dout: gradient of the output, contiguous.
            dx: see above.
            dpre_norm, din_proj, dout_proj, total: are added to, unless None.
        """
        call = self._record(borders, zx, backward=True)
        tails = borders.tails
        carry, dstate = tails.new_empty(2, *tails.shape[1:]), torch.empty_like(call.keeps[0])
        width, inner, channels = dx.shape[1], total.norm.numel(), carry.shape[2]
        chunks = self._pieces.chunks
        room = native.room(chunks * max(inner, width + (_TAPS + 1) * channels))
        room_heads = native.room(chunks * self._layer.heads * 3, torch.float64)
        call.projected, call.out = zx is not None, None
        for name, tensor in {
            "dout": dout, "dx": dx, "dstate": dstate, "carry": carry[0], "carried": carry[1],
            "dpre_norm": dpre_norm, "dnorm": total.norm, "dconv": total.conv, "din_proj": din_proj,
            "dout_proj": dout_proj, "dheads": total.heads, "room": room, "room_heads": room_heads,
        }.items():  # fmt: skip
            setattr(call, name, None if tensor is None else tensor.data_ptr())
        self._kernels.run("block_backward", len(self._pieces.array), self._pieces.array, call)

    def _record(self, borders: Borders, zx: Tensor | None, backward: bool) -> _Block:
        """The record of a call, filled but for the arguments of either way."""
        x, layer = self._x, self._layer
        buffers = memory.buffers(layer, x, projections=True, in_one_call=True)
        room = buffers.whole(backward)
        if backward not in buffers.records:
            buffers.records[backward] = _room_record(room, x.shape[1], backward)
        call = _Block.from_buffer_copy(buffers.records[backward])
        state = x.new_empty(layer.heads, layer.state, layer.headdim)
        call.keeps = (state, room)
        call.kept = zx is not None
        for name, tensor in {
            "x": x, "mask": self._mask, "pre_norm": self._pre_norm, "state": state,
            "tails": borders.tails, "states": borders.states,
            **dict(zip(_WEIGHTS, self._w, strict=True)),
        }.items():  # fmt: skip
            setattr(call, name, None if tensor is None else tensor.data_ptr())
        if zx is not None:
            call.zx = zx.data_ptr()
        if backward:
            self._pack(room, "in_proj_back", "out_proj_back")
        if not backward or zx is None:
            self._pack(room, "in_proj")
        if not backward:
            self._pack(room, "out_proj")
        return call

    def _pack(self, room: dict[str, Tensor], *names: str) -> None:
        """Write the projections as the passes read them."""
        for name in names:
            back = name.endswith("_back")
            weight = getattr(self, "_" + name.removesuffix("_back"))
            self._kernels.pack(weight, room[_packed(name)], back)


def _packed(name: str) -> str:
    """The buffer of a projection as the passes read it."""
    return name.replace("_proj", "_packed")


def _room_record(room: dict[str, Tensor], width: int, backward: bool) -> _Block:
    """What is the same in all calls with these buffers, which small layers need not fill again."""
    record = _Block(width=width, eps=NORM_EPS, ld=room["zx"].shape[1])
    names = {name: name for name in ("zx", *_ROOM)} | {"product": "projected"}
    projections = ["in_proj", "out_proj"]
    if backward:
        names |= {name: name for name in _ROOM_BACK} | {"dproduct": "dprojected"}
        projections += ["in_proj_back", "out_proj_back"]
    for name, buffer in (names | {name: _packed(name) for name in projections}).items():
        setattr(record, name, room[buffer].data_ptr())
    return record
