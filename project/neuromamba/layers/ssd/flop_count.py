"""Model FLOPs of the scan under torch's ``FlopCounterMode``, the same for every backend.

The counter sees the matrix products that torch dispatches. Of the scan's it would see all, some or
none: a kernel in C or Triton hides its products, a block-wise backward pass adds those that it
repeats, the recurrence has none. So while a counter is active, the backend runs out of its sight,
and two operators that compute nothing, ``neuromamba::mixer`` and ``neuromamba::mixer_backward``,
stand in for it. Their registered formulas give the products of the chunked scan (Dao & Gu 2024,
section 6): what is counted is the work that the model asks for, not what a backend happens to do.

On the meta device nothing needs to run: any backend can be counted there, installed or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils import _python_dispatch, flop_counter

from neuromamba.layers.ssd.types import MixerFunction, MixerParams


class ScanProducts(NamedTuple):
    """FLOPs of the scan's matrix products over one sequence, forward; a multiply-add is 2.

    Attributes:
        scores: C B^T of each chunk, once for all heads.
        in_chunks: the masked scores times x.
        to_states: what each chunk adds to the state.
        from_states: what each chunk reads from the state before it.
    """

    scores: int
    in_chunks: int
    to_states: int
    from_states: int


def scan_products(length: int, heads: int, headdim: int, d_state: int, chunk: int) -> ScanProducts:
    """Products of the chunked scan over ``length`` tokens.

    The last chunk counts as a full one; a sequence of a single chunk is not filled up and has no
    state to hand on.
    """
    size = min(chunk, length)
    chunks = -(-length // size) if size else 0
    carried = 2 * chunks * heads * size * d_state * headdim if chunks > 1 else 0
    return ScanProducts(
        scores=2 * chunks * size * size * d_state,
        in_chunks=2 * chunks * heads * size * size * headdim,
        to_states=carried,
        from_states=carried,
    )


# ------------------------------------------------------------- the operators that the counter sees

_SCHEMA = "(Tensor zxbcdt, int[] lengths, int heads, int headdim, int d_state, int chunk) -> ()"
_library = torch.library.Library("neuromamba", "FRAGMENT")
for _name in ("mixer", "mixer_backward"):
    _library.define(_name + _SCHEMA)
    # One kernel for all devices, the meta device included: there is nothing to compute.
    _library.impl(_name, lambda *args: None, "CompositeExplicitAutograd")


@flop_counter.register_flop_formula(torch.ops.neuromamba.mixer)
def _mixer_flops(
    zxbcdt_shape: torch.Size,
    lengths: Sequence[int],
    heads: int,
    headdim: int,
    d_state: int,
    chunk: int,
    **_: Any,
) -> int:
    return sum(sum(scan_products(n, heads, headdim, d_state, chunk)) for n in lengths)


@flop_counter.register_flop_formula(torch.ops.neuromamba.mixer_backward)
def _mixer_backward_flops(*args: Any, **_: Any) -> int:
    return 2 * _mixer_flops(*args)  # the gradients of both factors of each product


# --------------------------------------------------------------------------- in place of a backend


def counting_flops() -> bool:
    """Whether a ``FlopCounterMode`` is active; costs less than a microsecond."""
    if torch.compiler.is_compiling():
        return False
    modes = _python_dispatch._get_current_dispatch_mode_stack()
    return any(type(mode).__module__ == flop_counter.__name__ for mode in modes)


def counted_mixer(
    run: MixerFunction | None,
    zxbcdt: Tensor,
    params: MixerParams,
    lengths: tuple[int, ...],
    chunk: int,
) -> Tensor:
    """Run a backend so that ``FlopCounterMode`` counts the formula and nothing of the inside.

    Args:
        run: the backend's function; None on the meta device, where only shapes are wanted.
        zxbcdt: [L, 2I + 2N + H], output of the in-projection.
        params: the layer's parameters.
        lengths: tokens of each sequence, adding up to L.
        chunk: Q, tokens of a chunk.

    Returns:
        [L, I], with the values and gradients of the backend.
    """
    assert (run is None) == zxbcdt.is_meta
    if torch.is_grad_enabled():
        weights = [value for value in params if isinstance(value, Tensor)]
        return _Counted.apply(run, params, lengths, chunk, zxbcdt, *weights)
    torch.ops.neuromamba.mixer(zxbcdt, lengths, *_sizes(params), chunk)
    return _out_of_sight(run, zxbcdt, params, lengths)


def _sizes(params: MixerParams) -> tuple[int, int, int]:
    return params.norm_weight.numel() // params.headdim, params.headdim, params.d_state


def _out_of_sight(
    run: MixerFunction | None, zxbcdt: Tensor, params: MixerParams, lengths: tuple[int, ...]
) -> Tensor:
    """Call the backend with the counter's mode (all dispatch modes) off."""
    if run is None:
        return zxbcdt.new_empty(zxbcdt.shape[0], params.norm_weight.numel())
    with _python_dispatch._disable_current_modes():
        return run(zxbcdt, params, lengths)


class _Counted(torch.autograd.Function):
    """The backend with its own graph inside, so that its backward pass can be hidden as well."""

    @staticmethod
    def forward(
        ctx: Any,
        run: MixerFunction | None,
        params: MixerParams,
        lengths: tuple[int, ...],
        chunk: int,
        *tensors: Tensor,
    ) -> Tensor:
        needed = ctx.needs_input_grad[4:]
        own = [t.detach().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
        names = [name for name, value in params._asdict().items() if isinstance(value, Tensor)]
        weights: dict[str, Any] = dict(zip(names, own[1:], strict=True))
        inside = params._replace(**weights)
        ctx.sizes = (lengths, *_sizes(params), chunk)
        torch.ops.neuromamba.mixer(own[0].detach(), *ctx.sizes)
        with torch.enable_grad():
            out = _out_of_sight(run, own[0], inside, lengths)
        ctx.inputs, ctx.output = own, out
        return out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        torch.ops.neuromamba.mixer_backward(ctx.inputs[0].detach(), *ctx.sizes)
        wanted = [tensor for tensor in ctx.inputs if tensor.requires_grad]
        found: Iterator[Tensor | None]
        if grad.is_meta:
            found = iter([torch.empty_like(tensor) for tensor in wanted])
        else:
            with _python_dispatch._disable_current_modes():
                found = iter(torch.autograd.grad(ctx.output, wanted, grad, allow_unused=True))
        own = (next(found) if tensor.requires_grad else None for tensor in ctx.inputs)
        return (None, None, None, None, *own)
