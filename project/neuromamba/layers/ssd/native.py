"""The passes of ``passes`` in C: the same functions on the same buffers, CPU only, fp32 or bf16.

``neuromamba build-kernels`` compiles ``layers/ssd_native/kernels.c``, and a training on a CPU does
before it starts; nothing is compiled on import or inside a computation. Where no library was built,
or it was built from another version of the source, ``can_run`` is false and the torch passes run
instead: the numbers agree to rounding.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neuromamba.layers.rms_norm import NORM_EPS
from neuromamba.layers.ssd.passes import Sizes, Totals, Weights
from neuromamba.layers.ssd.types import CHUNK
from neuromamba.layers.ssd_native.build import (
    SWITCH,
    X86,
    find_library,
    switched_off,
    untrusted_library,
)

MAX_TAPS = 8  # as in kernels.c
_SUFFIX = {torch.float32: "_f32", torch.bfloat16: "_bf16"}


class Status(NamedTuple):
    """Whether the C passes are used.

    Attributes:
        library: the loaded library, or None.
        detail: which one, or why none.
    """

    library: ctypes.CDLL | None
    detail: str


def status() -> Status:
    """The library for this machine, loaded once; the switch is read at every call."""
    if switched_off():
        return Status(None, f"{SWITCH}={os.environ[SWITCH]}")
    return _load()


@functools.cache
def _load() -> Status:
    # torch's answer also honours ATEN_CPU_CAPABILITY.
    found = find_library(torch.backends.cpu.get_cpu_capability())
    if found is None:
        if why := untrusted_library():
            return Status(None, f"not loaded, because {why}")
        return Status(
            None, "not built (neuromamba build-kernels does it where there is a C compiler)"
        )
    try:
        library = ctypes.CDLL(str(found.path))
    except OSError as error:
        return Status(None, f"{found.path.name} cannot be loaded: {error}")
    return Status(library, found.path.stem + ("" if found.openmp else ", one thread (no OpenMP)"))


def can_run(x: Tensor, operand: torch.dtype, taps: int, residual: bool) -> bool:
    """Whether the C passes take this call: on the CPU, fp32 or bf16 operands, an fp32 residual."""
    kind = torch.float32 if residual else operand
    return (
        x.device.type == "cpu"
        and type(x) in (Tensor, nn.Parameter)  # not one of torch's tensors without memory
        and operand in _SUFFIX
        and x.dtype == kind
        and taps <= MAX_TAPS
        and status().library is not None
    )


class Shape(ctypes.Structure):
    """Keep in step with Shape in kernels.c."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("rows", "chunks", "q", "heads", "headdim", "state", "taps", "threads")
        ),
        *((name, ctypes.c_void_p) for name in ("start", "stop", "base", "end")),
    ]


@functools.lru_cache(maxsize=64)
def shape(sizes: Sizes, threads: int) -> Shape:
    """Return the record of a block."""
    rows: list[tuple[int, int, int, int]] = []
    base = 0
    for length in sizes.lengths:
        end = base + length
        rows += [(at, min(at + sizes.q, end), base, end) for at in range(base, end, sizes.q)]
        base = end
    kept = [(ctypes.c_int64 * len(rows))(*column) for column in zip(*rows, strict=True)]
    found = Shape(*sizes[:7], threads, *map(ctypes.addressof, kept))
    found.kept = kept  # the struct holds their addresses only
    return found


@functools.cache
def _libraries() -> list[ctypes.CDLL]:
    """The loaded library, and those for fewer instructions, whose registers are shorter."""
    best = torch.backends.cpu.get_cpu_capability()
    names = list(X86)[list(X86).index(best) :] if best in X86 else []
    built = {found.path: None for name in names if (found := find_library(name))}
    others = []
    with contextlib.suppress(OSError):
        others = [ctypes.CDLL(str(path)) for path in built]
    first = _load().library
    return others or ([first] if first is not None else [])


@functools.lru_cache(maxsize=64)
def _function(library: ctypes.CDLL, name: str, returns: Any = None) -> Any:
    function = getattr(library, name)
    function.restype = returns
    return function


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    # Matrices may have a row stride, which is handed over beside them.
    assert tensor.is_contiguous() or (tensor.dim() == 2 and tensor.stride(1) == 1)
    return ctypes.c_void_p(tensor.data_ptr())


_AS_C: dict[type, Callable[[Any], object]] = {
    Tensor: _pointer,
    nn.Parameter: _pointer,
    int: ctypes.c_int64,
    float: ctypes.c_float,
    Sizes: lambda sizes: ctypes.byref(shape(sizes, torch.get_num_threads())),
    type(None): ctypes.c_void_p,
}


def _call(name: str, operand: torch.dtype, *arguments: object) -> None:
    library = _load().library
    assert library is not None  # can_run has been asked
    _function(library, name + _SUFFIX[operand])(*[_AS_C[type(a)](a) for a in arguments])


_local = threading.local()


def room(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory of this thread for sums that are kept a chunk apart, content undefined."""
    rooms = _local.__dict__.setdefault("rooms", {})
    if dtype not in rooms or rooms[dtype].numel() < size:
        rooms[dtype] = torch.empty(size, dtype=dtype)
    return rooms[dtype]


class LayerKernels(NamedTuple):
    """The passes of a whole layer (``layers/ssd_native/block.h``) in a library that has them.

    Attributes:
        library: the library.
        lanes: numbers of its vector registers.
    """

    library: ctypes.CDLL
    lanes: int

    def row_of(self, columns: int) -> int:
        """Numbers between two rows of the in-projection's output: whole registers."""
        return -(-columns // self.lanes) * self.lanes

    def packed_sizes(self, columns: int, width: int, inner: int, backward: bool) -> dict[str, int]:
        """Numbers of the projections as the passes read them: forward, and back."""
        shapes = {"in_packed": (width, columns), "out_packed": (inner, width)}
        if backward:
            shapes |= {"in_packed_back": (columns, width), "out_packed_back": (width, inner)}
        size = _function(self.library, "block_packed_size", ctypes.c_int64)
        return {name: size(*map(ctypes.c_int64, shape)) for name, shape in shapes.items()}

    def pack(self, weight: Tensor, packed: Tensor, backward: bool) -> None:
        """Write a projection [outputs, inputs] as the passes read it, forward or back."""
        assert weight.is_contiguous()
        sizes = map(ctypes.c_int64, (*weight.shape, backward))
        _function(self.library, "block_pack")(*sizes, _pointer(weight), _pointer(packed))

    def run(self, name: str, count: int, pieces: ctypes.Array[Any], block: Any) -> None:
        """A pass through a layer."""
        _function(self.library, name)(ctypes.c_int64(count), pieces, ctypes.byref(block))


@functools.lru_cache(maxsize=64)
def layer_kernels(*sizes: int) -> LayerKernels | None:
    """The best library whose registers divide all sizes; ``can_run`` has been asked."""
    for library in _libraries():
        lanes = _function(library, "block_lanes", ctypes.c_int64)()
        if not any(size % lanes for size in sizes):
            return LayerKernels(library, lanes)
    return None


def norm(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """See ``passes.norm``."""
    threads = torch.get_num_threads()
    _call("norm", out.dtype, *x.shape, NORM_EPS, threads, x, x.stride(0), weight, out)


def norm_backward(
    x: Tensor, weight: Tensor, dout: Tensor, residual: Tensor, dx: Tensor, dweight: Tensor
) -> None:
    """See ``passes.norm_backward``."""
    rows, width = x.shape
    apart = room(-(-rows // CHUNK) * width)
    _call(
        "norm_backward", dout.dtype, rows, width, NORM_EPS, CHUNK, torch.get_num_threads(),
        x, x.stride(0), weight, dout, residual, residual.stride(0), dx, dx.stride(0), apart,
        dweight,
    )  # fmt: skip


def add(x: Tensor, y: Tensor, out: Tensor) -> None:
    """See ``passes.add``."""
    threads = torch.get_num_threads()
    _call("add", y.dtype, *x.shape, threads, x, x.stride(0), y, out, out.stride(0))


def prepare(
    s: Sizes, *, zx: Tensor, tail: Tensor, w: Weights,
    xs: Tensor, b: Tensor, c: Tensor, dt: Tensor, a: Tensor,
) -> None:  # fmt: skip
    """See ``passes.prepare``."""
    _call(
        "prepare", zx.dtype, s, zx, zx.stride(0), tail, w.conv_weight, w.conv_bias, w.dt_bias,
        w.A, xs, b, c, dt, a,
    )  # fmt: skip


def weights(
    s: Sizes, *, g: Tensor, b: Tensor, c: Tensor, dt: Tensor, a: Tensor, D: Tensor,
    wc: Tensor, bw: Tensor,
) -> None:  # fmt: skip
    """See ``passes.weights``."""
    _call("weights", g.dtype, s, g, b, c, dt, a, D, wc, bw)


def scan(s: Sizes, added: Tensor, a: Tensor, state: Tensor, xs: Tensor) -> None:
    """See ``passes.scan``."""
    _call("scan", xs.dtype, s, added, a, state, xs)


def gate(s: Sizes, y: Tensor, zx: Tensor, weight: Tensor, out: Tensor) -> None:
    """See ``passes.gate``."""
    _call("gate", y.dtype, s, NORM_EPS, y, zx, zx.stride(0), weight, out, out.stride(0))


def gate_backward(
    s: Sizes, *, y: Tensor, zx: Tensor, weight: Tensor, dout: Tensor,
    out: Tensor | None, dy: Tensor, dzx: Tensor, total: Totals,
) -> None:  # fmt: skip
    """See ``passes.gate_backward``."""
    _call(
        "gate_backward", y.dtype, s, NORM_EPS, y, zx, zx.stride(0), weight, dout, dout.stride(0),
        out, dy, dzx, dzx.stride(0), room(s.chunks * s.inner), total.norm,
    )  # fmt: skip


def scan_backward(
    s: Sizes, dxs: Tensor, xs: Tensor, a: Tensor, dstate: Tensor, dadded: Tensor, dlast: Tensor
) -> None:
    """See ``passes.scan_backward``."""
    _call("scan_backward", xs.dtype, s, dxs, xs, a, dstate, dadded, dlast)


def weights_backward(
    s: Sizes, *, dwc: Tensor, dbw: Tensor, dlast: Tensor, g: Tensor, b: Tensor, c: Tensor,
    dt: Tensor, a: Tensor, zx: Tensor, w: Weights,
    dg: Tensor, db: Tensor, dc: Tensor, dzx: Tensor, total: Totals,
) -> None:  # fmt: skip
    """See ``passes.weights_backward``."""
    _call(
        "weights_backward", g.dtype, s, dwc, dbw, dlast, g, b, c, dt, a, w.A, zx, zx.stride(0),
        w.dt_bias, dg, db, dc, dzx, dzx.stride(0), room(s.chunks * s.heads * 3, torch.float64),
        total.heads,
    )  # fmt: skip


def convolution_backward(
    s: Sizes, *, dxs: Tensor, dx_rest: Tensor,
    db: Tensor, db_rest: Tensor, dc: Tensor, dc_rest: Tensor, zx: Tensor, tail: Tensor,
    w: Weights, carry: Tensor, dzx: Tensor, total: Totals,
) -> None:  # fmt: skip
    """See ``passes.convolution_backward``."""
    _call(
        "convolution_backward", zx.dtype, s, dxs, dx_rest, db, db_rest, dc, dc_rest,
        zx, zx.stride(0), tail, w.conv_weight, w.conv_bias, carry.clone(), carry,
        dzx, dzx.stride(0), room(s.chunks * total.conv.numel()), total.conv,
    )  # fmt: skip
