"""Runs mamba_ssm's Triton kernels on a CPU and saves what the `triton` backend returns.

    TRITON_INTERPRET=1 python tests/helpers/triton_on_cpu.py {fused,split} IN.pt OUT.pt
    TRITON_INTERPRET=1 python tests/helpers/triton_on_cpu.py {fused,split} {check,broken} OUT.pt

A program of its own because Triton reads TRITON_INTERPRET while it is imported. What a CUDA build
of torch would offer, and the host code of the kernels asks for, is put in place here; the package
knows nothing of it. For "fused", causal_conv1d's CUDA extension is replaced as well: by torch, with
the checks on shapes and strides that its C++ makes.

"check" compares the kernels as ``kernel_check`` does on a new device, "broken" after the order of
the convolution's taps has been turned round, and OUT.pt is then (verdict, comparisons).

IN.pt: a list of (dtype, zxbcdt, parameters as a dict, lengths, cotangent). OUT.pt: for each of them
the output and the gradients by name, in float64.
"""

from __future__ import annotations

import contextlib
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "project"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch


def pretend_cuda() -> None:
    """The two things of torch.cuda that the host code uses, and one tile size a kernel."""
    torch.cuda.device = lambda index: contextlib.nullcontext()
    torch.cuda.get_device_properties = lambda device=None: types.SimpleNamespace(
        multi_processor_count=2
    )

    import triton

    autotune = triton.autotune

    def one_config(configs: list[Any], *args: Any, **kwargs: Any) -> Any:
        # Small tiles: then a chunk has several, and the arithmetic between them is tested too.
        def size(config: Any) -> int:
            return sum(v for k, v in config.kwargs.items() if k.startswith("BLOCK"))

        return autotune([min(configs, key=size)], *args, **kwargs)

    triton.autotune = one_config

    # Triton before 3.9 hands one-element arrays to int(), which numpy 2.4 refuses.
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_further(tensor: Any, *args: Any) -> None:
        patch(tensor, *args)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patch_further


# ------------------------------------------------------------------- in place of causal_conv1d


def _check(x: torch.Tensor, weight: torch.Tensor, seq_idx: torch.Tensor | None) -> None:
    """csrc/causal_conv1d.cpp (1.7.0), for the channels-last layout that mamba_ssm passes."""
    batch, channels, length = x.shape
    assert x.stride(1) == 1 and x.stride(2) > 1, "seq_idx needs the channels-last layout"
    assert channels % 8 == 0, "channels must be a multiple of 8"
    assert x.stride(2) % 8 == 0 and x.stride(0) % 8 == 0, "strides must be multiples of 8"
    assert 2 <= weight.shape[1] <= 4
    if seq_idx is not None:
        assert seq_idx.dtype == torch.int32 and seq_idx.is_contiguous()
        assert seq_idx.shape == (batch, length)


def _convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, seq_idx: torch.Tensor | None
) -> torch.Tensor:
    """Tap by tap, the taps beyond a border masked; [B, C, L] in float32."""
    length, taps = x.shape[-1], weight.shape[1]
    out = bias.float()[:, None].expand(x.shape)
    for back in range(min(taps, length)):
        part = torch.nn.functional.pad(x.float()[..., : length - back], (back, 0))
        if seq_idx is not None:
            past = torch.nn.functional.pad(seq_idx[:, : length - back], (back, 0), value=-1)
            part = part * (past == seq_idx)[:, None]
        out = out + part * weight.float()[:, taps - 1 - back, None]
    return torch.nn.functional.silu(out)


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    seq_idx: torch.Tensor | None,
    initial_states: None,
    final_states_out: None,
    silu_activation: bool,
) -> torch.Tensor:
    _check(x, weight, seq_idx)
    assert silu_activation and initial_states is None and final_states_out is None
    return torch.empty_like(x).copy_(_convolve(x, weight, bias, seq_idx))


def _backward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    dout: torch.Tensor,
    seq_idx: torch.Tensor | None,
    initial_states: None,
    dfinal_states: None,
    dx: torch.Tensor,
    return_dinitial_states: bool,
    silu_activation: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
    _check(x, weight, seq_idx)
    _check(dout, weight, seq_idx)
    assert dx.stride(1) == 1 and silu_activation and not return_dinitial_states
    with torch.enable_grad():
        leaves = [v.detach().requires_grad_() for v in (x, weight, bias)]
        out = _convolve(*leaves, seq_idx)
        grads = torch.autograd.grad(out, leaves, dout.float())
    return dx.copy_(grads[0]), grads[1], grads[2], None


def pretend_causal_conv1d() -> None:
    """What mamba_ssm imports from causal_conv1d."""
    package = types.ModuleType("causal_conv1d")
    functions = types.ModuleType("causal_conv1d.cpp_functions")
    package.causal_conv1d_fn = _forward
    functions.causal_conv1d_fwd_function = _forward
    functions.causal_conv1d_bwd_function = _backward
    functions.causal_conv1d_update_function = None
    sys.modules |= {"causal_conv1d": package, "causal_conv1d.cpp_functions": functions}


def break_the_convolution(backend: Any) -> None:
    """As if it had been compiled for another card: results that are wrong without an error."""
    global _convolve
    right, layer = _convolve, backend.CausalConvSiLU

    def wrong(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        return right(x, weight.flip(1), *rest)

    class Wrong:
        @staticmethod
        def apply(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
            return layer.apply(x, weight.flip(1), *rest)

    _convolve, backend.CausalConvSiLU = wrong, Wrong


# --------------------------------------------------------------------------------------- program


def main(way: str, source: str, target: str) -> None:
    pretend_cuda()
    if way == "fused":
        pretend_causal_conv1d()
    else:
        sys.modules["causal_conv1d"] = None
    from neuromamba.layers.ssd import BACKENDS, MixerParams, kernel_check, mixer_core
    from neuromamba.layers.ssd import triton as backend

    if source in ("check", "broken"):
        if source == "broken":
            break_the_convolution(backend)
        ways = backend.ways_to_call()
        found = kernel_check.compare(torch.device("cpu"), ways, BACKENDS["cpu"].run)
        torch.save((kernel_check.judged(found), [tuple(one) for one in found]), target)
        return

    results: list[Any] = []
    for dtype, zxbcdt, parameters, lengths, cotangent in torch.load(source):
        if len(lengths) > 1:
            # Validation before training, as Lightning does it: what is kept must serve both.
            with torch.inference_mode():
                mixer_core(zxbcdt.to(dtype), MixerParams(**parameters), tuple(lengths), "triton")
        z = zxbcdt.to(dtype).requires_grad_()
        leaves = {
            name: value.clone().requires_grad_() if isinstance(value, torch.Tensor) else value
            for name, value in parameters.items()
        }
        out = mixer_core(z, MixerParams(**leaves), tuple(lengths), "triton")
        assert out.dtype == dtype, out.dtype
        (out * cotangent.to(dtype)).sum().backward()
        result = {"output": out.detach(), "d zxbcdt": z.grad}
        for name, leaf in leaves.items():
            if isinstance(leaf, torch.Tensor):
                result[f"d {name}"] = leaf.grad
        results.append({name: value.double() for name, value in result.items()})
    ways = {mix.__name__ for mix in backend._working.values()}
    assert ways == {f"_mix_{way}"}, ways
    torch.save(results, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
