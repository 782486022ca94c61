"""Memory that the blockwise mixer keeps between calls.

On a CPU fresh memory costs more than the arithmetic: the kernel clears it page by page (1.4 ms a MB
on the machine of docs/performance.md). So the buffers of a block stay from call to call, and what
the backward pass reads again goes from step to step. For other devices torch's allocator does this;
there, and for tensors that are not plain ones (torch's fake tensors), nothing is kept.
"""

from __future__ import annotations

import threading
import weakref
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from neuromamba.layers.ssd import native
from neuromamba.layers.ssd.blocks import capacity
from neuromamba.layers.ssd.passes import Layer, finest, wide_type

# Tokens of a block: on a CPU its buffers should stay in the cache, elsewhere few launches count.
BLOCK = {"cpu": 2048}
BLOCK_ELSEWHERE = 16_384
PIECE = 512  # tokens of a piece of ``fused``: its buffers should stay in the caches of one core
KINDS = 4  # of layers whose buffers are kept: a backbone's and a head's alternate
CUTS = 16  # of a kind: full blocks and the last ones of some lengths
# What all layers together may keep for the backward pass. Layers beyond it compute it again.
BUDGET_BYTES = 1 << 30


def block_rows(device: torch.device) -> int:
    """Tokens of a block, a multiple of CHUNK."""
    return BLOCK.get(device.type, BLOCK_ELSEWHERE)


def piece_rows() -> int:
    """Tokens of a piece of ``fused``."""
    return min(PIECE, BLOCK["cpu"])


def _keeps(x: Tensor) -> bool:
    return x.device.type == "cpu" and type(x) in (Tensor, nn.Parameter)


# --------------------------------------------------------------------------------------- buffers

BY_HEAD = ("xs", "wc", "bw", "added", "y", "x_rest")
# What one pass hands on to the next one, and ``fused`` has for a chunk at a time.
ONE_BY_ONE = ("wc", "bw", "dwc", "dbw", "dg", "dx_rest", "db_rest", "dc_rest")


class Buffers:
    """Buffers for a block of one kind of layer.

    Args:
        layer: the kind.
        rows: most tokens, with filled up chunks.
        width: D where the layer runs with its projections; None for the mixer alone.
        device: of the buffers.
        in_one_call: they are for ``fused``, which does not need those between two passes.
    """

    def __init__(
        self,
        layer: Layer,
        rows: int,
        width: int | None,
        device: torch.device,
        in_one_call: bool = False,
    ) -> None:
        self.rows, self._layer, self._width, self._device = rows, layer, width, device
        self._in_one_call = in_one_call
        self._memory: dict[str, Tensor] = {}
        self._cuts: dict[tuple[tuple[int, ...], bool], SimpleNamespace] = {}
        self._wholes: dict[bool, dict[str, Tensor]] = {}
        # Of a pass forward and one back: what ``fused`` keeps beside them.
        self.records: dict[bool, Any] = {}

    def block(self, lengths: tuple[int, ...], backward: bool) -> SimpleNamespace:
        """The buffers cut to a block of such sequences; their content is undefined.

        Those of gradients, with a d before the name, are there if ``backward`` is set. A buffer of
        K H matrices is there as [K, H, ...] too, with a 4 behind its name; ``x`` are the first Q
        rows of ``xs``.
        """
        if (lengths, backward) not in self._cuts:
            if len(self._cuts) >= CUTS:
                self._cuts.clear()
            with torch.inference_mode(
                False
            ):  # a validation may come before the first training step
                self._cuts[lengths, backward] = self._cut(lengths, backward)
        return self._cuts[lengths, backward]

    def whole(self, backward: bool) -> dict[str, Tensor]:
        """All buffers, for as many tokens as fit in; see ``block``."""
        if backward not in self._wholes:
            with torch.inference_mode(False):
                self._wholes[backward] = {
                    name: self._buffer(name, *kind) for name, kind in self._shapes(backward).items()
                }
        return self._wholes[backward]

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if name not in self._memory:
            self._memory[name] = torch.empty(shape, dtype=dtype, device=self._device)
        return self._memory[name]

    def _shapes(self, backward: bool) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        s, operand = self._layer.sizes((self.rows,)), self._layer.operand
        k, q, n, p, tokens = s.chunks, s.q, s.state, s.headdim, s.chunks * s.q
        columns = s.inner + s.channels + s.heads
        mixed = (tokens, columns)
        matrices: dict[str, tuple[int, ...]] = {
            "xs": (k * s.heads, q + n, p),
            "b": (k, q, n),
            "c": (k, q, n),
            "g": (k, q, q),
            "wc": (k * s.heads, q, q + n),
            "bw": (k * s.heads, q, n),
            "added": (k * s.heads, n, p),
            "y": (k * s.heads, q, p),
        }
        if self._width is not None:
            matrices["normed"] = matrices["projected"] = tokens, self._width
            matrices |= {"zx": mixed, "gated": (tokens, s.inner)}
        shapes = {name: (shape, operand) for name, shape in matrices.items()}
        shapes["dt"] = (k, s.heads, q), wide_type(operand)
        shapes["a"] = (k, s.heads, q), finest(self._device)
        if backward:
            matrices["b_rest"] = matrices["c_rest"] = matrices["b"]
            matrices["x_rest"] = matrices["y"]
            shapes |= {"d" + name: (shape, operand) for name, shape in matrices.items()}
            shapes["dzx"] = mixed, operand
            shapes["dlast"] = (k, s.heads, n), wide_type(operand)
        if self._in_one_call:
            assert self._width is not None
            kernels = native.layer_kernels(p, n, self._width)
            assert kernels is not None
            shapes = {name: kind for name, kind in shapes.items() if name not in ONE_BY_ONE}
            for name in shapes.keys() & {"zx", "dzx"}:
                shapes[name] = (tokens, kernels.row_of(columns)), operand
            packed = kernels.packed_sizes(columns, self._width, s.inner, backward)
            shapes |= {name: ((size,), operand) for name, size in packed.items()}
        return shapes

    def _cut(self, lengths: tuple[int, ...], backward: bool) -> SimpleNamespace:
        s = self._layer.sizes(lengths)
        cut = SimpleNamespace(s=s)
        for name, (shape, dtype) in self._shapes(backward).items():
            whole = self._buffer(name, shape, dtype)
            if name.removeprefix("d") in BY_HEAD:
                own = whole[: s.chunks * s.heads]
                setattr(cut, name + "4", own.unflatten(0, (s.chunks, s.heads)))
            else:
                own = whole[: s.rows if whole.dim() == 2 else s.chunks]
            setattr(cut, name, own)
        cut.x = cut.xs[:, : s.q]
        return cut


_local = threading.local()


def buffers(layer: Layer, x: Tensor, projections: bool, in_one_call: bool = False) -> Buffers:
    """Return this thread's buffers, or new ones, for input ``x``; see ``Buffers``."""
    rows = capacity(layer.lengths, piece_rows() if in_one_call else block_rows(x.device))
    width = x.shape[1] if projections else None
    if not _keeps(x):
        return Buffers(layer, rows, width, x.device, in_one_call)
    kinds: dict[object, Buffers] = _local.__dict__.setdefault("kinds", {})
    key = (layer._replace(lengths=()), width, in_one_call)
    found = kinds.pop(key, None)
    if found is None or found.rows < rows:
        found = Buffers(layer, rows, width, x.device, in_one_call)
    kinds[key] = found  # the last one is the one used last
    while len(kinds) > KINDS:
        del kinds[next(iter(kinds))]
    return found


# ------------------------------------------------------------------------------------------ pool


class Pool:
    """fp32 memory, lent from a forward to its backward pass, of at most ``BUDGET_BYTES``.

    What is never given back, because no backward pass came, is the garbage collector's.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []
        self._made: list[weakref.ref[Tensor]] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Tensor | None:
        """Lend at least ``size`` numbers, content undefined; None if that exceeds the budget."""
        with self._lock:
            fitting = [i for i, memory in enumerate(self._free) if memory.numel() >= size]
            if fitting:
                return self._free.pop(min(fitting, key=lambda i: self._free[i].numel()))
            self._free.clear()  # too small: windows have grown
            self._made = [ref for ref in self._made if ref() is not None]
            used = sum(memory.numel() for ref in self._made if (memory := ref()) is not None)
            if 4 * (used + size) > BUDGET_BYTES:
                return None
            memory = torch.empty(size)
            self._made.append(weakref.ref(memory))
            return memory

    def give(self, memory: Tensor) -> None:
        """Take back what ``take`` gave; nobody may use it any more."""
        with self._lock:
            self._free.append(memory)

    def clear(self) -> None:
        """Let go of what is not lent."""
        with self._lock:
            self._free.clear()


_pool = Pool()


def lend(x: Tensor, size: int) -> Tensor | None:
    """Memory for ``size`` fp32 numbers until the backward pass; None if that is too much."""
    return _pool.take(size) if _keeps(x) else None


def give_back(lent: Tensor) -> None:
    """End of a ``lend``."""
    _pool.give(lent)


def forget() -> None:
    """Free what is kept, the buffers of this thread only."""
    _local.__dict__.clear()
    _pool.clear()
