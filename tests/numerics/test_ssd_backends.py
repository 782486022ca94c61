"""Every registered scan backend against the sequential recurrence in float64.

Backends are found through the registry: a new file in ``models/ssd/`` is tested without a change
here. The recurrence itself is checked against finite differences here and against the numpy
program in ``test_golden.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from project.module.models.ssd import BACKENDS, MixerParams, mixer_core

LENGTHS = (1, 3, 63, 64, 65, 130, 257)  # around the chunk size, odd ones, several chunks
PACKED = (1, 64, 3, 130, 65)
# Largest difference over the largest magnitude of the same tensor.
#   float64: order of additions only; float32: |log decay| of a chunk is some tens here, and its
#   differences lose that many units of 6e-8.
BOUND = {torch.float64: 1e-11, torch.float32: 2e-5}
PARAMETERS = ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight")
OTHERS = sorted(name for name in BACKENDS if name != "reference")


def device_for(backend: str) -> torch.device:
    """A device on which the backend runs here, or skip with the backend's own reason."""
    why_not = BACKENDS[backend].why_not(torch.device("cpu"))
    if why_not is None:
        return torch.device("cpu")
    if torch.cuda.is_available():
        why_not = BACKENDS[backend].why_not(torch.device("cuda"))
        if why_not is None:
            return torch.device("cuda")
    pytest.skip(f"{backend}: {why_not}")


def draw_inputs(
    length: int, heads: int = 2, headdim: int = 12, d_state: int = 6, taps: int = 4
) -> tuple[torch.Tensor, MixerParams]:
    """Random float64 inputs; decays from almost 1 to almost 0 within the two heads."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    inner = heads * headdim
    params = MixerParams(
        conv_weight=normal(inner + 2 * d_state, taps, scale=0.5),
        conv_bias=normal(inner + 2 * d_state, scale=0.2),
        dt_bias=torch.linspace(-3.0, 0.5, heads, dtype=torch.float64),
        A_log=torch.linspace(1.0, -1.0, heads, dtype=torch.float64),
        D=normal(heads),
        norm_weight=1.0 + normal(inner, scale=0.2),
        d_state=d_state,
        headdim=headdim,
    )
    return normal(length, 2 * inner + 2 * d_state + heads), params


def run(
    backend: str,
    zxbcdt: torch.Tensor,
    params: MixerParams,
    lengths: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> dict[str, torch.Tensor]:
    """Output and the gradients of all inputs for a fixed cotangent, as float64 on the CPU."""
    z = zxbcdt.to(device, dtype).detach().requires_grad_()
    leaves = {name: getattr(params, name) for name in PARAMETERS}
    leaves = {k: v.to(device, dtype).detach().requires_grad_() for k, v in leaves.items()}
    out = mixer_core(z, params._replace(**leaves), lengths, backend)
    assert out.dtype == dtype
    generator = torch.Generator().manual_seed(99)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    (out * cotangent.to(device, dtype)).sum().backward()
    results = {"output": out, "d zxbcdt": z.grad, **{f"d {k}": v.grad for k, v in leaves.items()}}
    for name, value in results.items():
        assert value is not None and torch.isfinite(value).all(), name
    return {k: v.detach().double().cpu() for k, v in results.items() if v is not None}


def compare(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], bound: float
) -> None:
    errors = {}
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        # Gradients that are 0 in exact arithmetic (A_log with a single token) are compared with 1.
        scale = value.abs().max() if value.abs().max() > 1e-12 else torch.tensor(1.0)
        errors[name] = ((actual[name] - value).abs().max() / scale).item()
    assert max(errors.values()) <= bound, {k: f"{v:.1e}" for k, v in errors.items()}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", OTHERS)
def test_output_and_gradients(backend: str, dtype: torch.dtype, length: int) -> None:
    device = device_for(backend)
    if dtype == torch.float64 and device.type != "cpu":
        pytest.skip(f"{backend}: kernels on {device.type} compute in float32")
    zxbcdt, params = draw_inputs(length)
    expected = run("reference", zxbcdt, params, (length,))
    compare(run(backend, zxbcdt, params, (length,), dtype, device), expected, BOUND[dtype])


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_packed_equals_separate_sequences(backend: str) -> None:
    """Neither state nor convolution nor any gradient crosses a border."""
    device = device_for(backend)
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    zxbcdt, params = draw_inputs(sum(PACKED))
    packed = run(backend, zxbcdt, params, PACKED, dtype, device)
    # The cotangent of a packed run is one tensor over all tokens: split it the same way.
    z = zxbcdt.clone().requires_grad_()
    leaves = {name: getattr(params, name).clone().requires_grad_() for name in PARAMETERS}
    own = params._replace(**leaves)
    pieces = [mixer_core(p, own, (len(p),), "reference") for p in z.split(PACKED)]
    out = torch.cat(pieces)
    generator = torch.Generator().manual_seed(99)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    (out * cotangent).sum().backward()
    separate = {"output": out, "d zxbcdt": z.grad, **{f"d {k}": v.grad for k, v in leaves.items()}}
    expected = {k: v.detach() for k, v in separate.items() if v is not None}
    assert expected.keys() == packed.keys()
    compare(packed, expected, BOUND[dtype])


@pytest.mark.parametrize("backend", OTHERS)
def test_published_width(backend: str) -> None:
    """The Base model's layer: heads of 192 and a state of 48."""
    device = device_for(backend)
    zxbcdt, params = draw_inputs(150, headdim=192, d_state=48)
    zxbcdt = zxbcdt * 0.3
    expected = run("reference", zxbcdt, params, (83, 67))
    compare(run(backend, zxbcdt, params, (83, 67), torch.float32, device), expected, 2e-5)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("dt_bias", [-12.0, 6.0])
def test_extreme_steps(backend: str, dt_bias: float) -> None:
    """Step sizes near 0 and near 6 (decays of e^-100 a token): finite, and still the recurrence.

    Sums of log decays reach 6000 within a chunk; in float32 their differences keep 3 to 4 digits.
    """
    device = device_for(backend)
    zxbcdt, params = draw_inputs(130)
    params = params._replace(
        dt_bias=torch.full((2,), dt_bias, dtype=torch.float64),
        A_log=torch.tensor([2.7, -1.0], dtype=torch.float64),
    )
    expected = run("reference", zxbcdt, params, (130,))
    compare(run(backend, zxbcdt, params, (130,), torch.float32, device), expected, 1e-3)


def test_reference_gradients_are_finite_differences() -> None:
    zxbcdt, params = draw_inputs(5, headdim=3, d_state=2)
    leaves = [zxbcdt, *(getattr(params, name) for name in PARAMETERS)]

    def function(z: torch.Tensor, *values: Any) -> torch.Tensor:
        own = params._replace(**dict(zip(PARAMETERS, values, strict=True)))
        return mixer_core(z, own, (3, 2), "reference")

    inputs = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    assert torch.autograd.gradcheck(function, inputs)


def test_registry_holds_a_fast_backend_beside_the_oracle() -> None:
    assert "reference" in BACKENDS and OTHERS
