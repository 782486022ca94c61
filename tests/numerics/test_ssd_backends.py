"""Every registered scan backend against the sequential recurrence in float64.

Backends are found through the registry: a new file in ``models/ssd/`` is tested without a change
here. The recurrence itself is checked against finite differences here and against the numpy
program in ``test_golden.py``. The backend ``cpu`` is tested with its passes in C and in torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from neuromamba.layers.ssd import BACKENDS, MixerParams, mixer_core, native
from neuromamba.layers.ssd import buffers as memory
from neuromamba.layers.ssd.types import CHUNK

LENGTHS = (1, 3, 63, 64, 65, 130, 257, 2000)  # around the chunk size, odd ones, several chunks
PACKED = (1, 64, 3, 130, 65)
# Largest difference over the largest magnitude of the same tensor.
#   float64: order of additions only; float32: sums over tokens that cancel, such as d dt_bias;
#   bfloat16: every product sees operands of 8 bits, its result is rounded to them again.
BOUND = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 5e-2}
PARAMETERS = ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight")
WAYS = [
    *(name for name in sorted(BACKENDS) if name not in ("reference", "cpu")),
    "cpu, torch passes",
    "cpu, C passes",
]


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    """A backend in one of its forms, and a device on which it runs, or skip with its own reason."""
    name, _, passes = request.param.partition(", ")
    monkeypatch.setenv(native.SWITCH, "0" if passes == "torch passes" else "1")
    if passes == "C passes" and native.status().library is None:
        pytest.skip(f"C passes: {native.status().detail}")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for kind in devices:
        why_not = BACKENDS[name].why_not(torch.device(kind))
        if why_not is None:
            return Way(name, passes, torch.device(kind))
    pytest.skip(f"{name}: {why_not}")


class Way(NamedTuple):
    backend: str
    passes: str
    device: torch.device

    def skip_unless_it_computes_in(self, dtype: torch.dtype) -> None:
        if dtype == torch.float64 and (self.device.type != "cpu" or self.passes == "C passes"):
            pytest.skip(f"{self}: no float64")

    def bound(self, dtype: torch.dtype) -> float:
        # Triton's sums of decays are float32, and the order of its sums changes.
        return BOUND[dtype] * (10 if self.backend == "triton" and dtype == torch.float32 else 1)

    @property
    def widest(self) -> torch.dtype:
        return torch.float64 if self.passes == "torch passes" else torch.float32


every_way = pytest.mark.parametrize("way", WAYS, indirect=True)


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
    # Gradients of the heads' scalars are sums over tokens. They may cancel: the yardstick is then
    # what as many numbers of the size of d zxbcdt add up to by chance.
    by_chance = expected["d zxbcdt"].norm() / expected["d zxbcdt"].shape[1] ** 0.5
    errors = {}
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        scale = value.abs().max()
        if name in ("d dt_bias", "d A_log", "d D"):
            scale = max(scale, by_chance)
        errors[name] = ((actual[name] - value).abs().max() / scale).item()
    assert max(errors.values()) <= bound, {k: f"{v:.1e}" for k, v in errors.items()}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", BOUND, ids=str)
@every_way
def test_output_and_gradients(way: Way, dtype: torch.dtype, length: int) -> None:
    way.skip_unless_it_computes_in(dtype)
    zxbcdt, params = draw_inputs(length)
    if dtype == torch.bfloat16:  # the same numbers for both: only the arithmetic is compared
        zxbcdt = zxbcdt.to(dtype).double()
        params = params._replace(
            **{name: getattr(params, name).to(dtype).double() for name in PARAMETERS}
        )
    expected = run("reference", zxbcdt, params, (length,))
    compare(
        run(way.backend, zxbcdt, params, (length,), dtype, way.device), expected, way.bound(dtype)
    )


@pytest.mark.parametrize("way", ["reference", *WAYS], indirect=True)
def test_packed_equals_separate_sequences(way: Way) -> None:
    """Neither state nor convolution nor any gradient crosses a border."""
    zxbcdt, params = draw_inputs(sum(PACKED))
    packed = run(way.backend, zxbcdt, params, PACKED, way.widest, way.device)
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
    compare(packed, expected, way.bound(way.widest))


@pytest.mark.parametrize(
    ("heads", "headdim", "d_state", "taps"),
    [(2, 192, 48, 4), (1, 64, 16, 4), (3, 17, 5, 4), (2, 20, 16, 2), (1, 8, 4, 7)],
)
@every_way
def test_widths(way: Way, heads: int, headdim: int, d_state: int, taps: int) -> None:
    """The Base model's layer first; widths that fill no vector register; other filters."""
    if taps != 4 and way.backend == "triton":
        pytest.skip("triton: its fused kernel is made for filters of 2 to 4 taps")
    zxbcdt, params = draw_inputs(150, heads, headdim, d_state, taps)
    zxbcdt = zxbcdt * 0.3
    expected = run("reference", zxbcdt, params, (83, 67))
    compare(
        run(way.backend, zxbcdt, params, (83, 67), torch.float32, way.device),
        expected,
        way.bound(torch.float32),
    )


@pytest.mark.parametrize(("dt_bias", "bound"), [(-12.0, 2e-5), (6.0, 1e-4)])
@every_way
def test_extreme_steps(way: Way, dt_bias: float, bound: float) -> None:
    """Step sizes near 0 and near 6 (decays of e^-100 a token): finite, and still the recurrence.

    Sums of log decays reach 6000 within a chunk, where float32 has 3 to 4 digits left for their
    differences: the backend ``cpu`` keeps these sums in float64.
    """
    zxbcdt, params = draw_inputs(130)
    params = params._replace(
        dt_bias=torch.full((2,), dt_bias, dtype=torch.float64),
        A_log=torch.tensor([2.7, -1.0], dtype=torch.float64),
    )
    expected = run("reference", zxbcdt, params, (130,))
    got = run(way.backend, zxbcdt, params, (130,), torch.float32, way.device)
    compare(got, expected, bound if way.backend == "cpu" else 1e-3)


@every_way
def test_uninitialised_memory_is_never_read(way: Way) -> None:
    """torch fills it with NaN here; ``run`` asserts that all results are finite, twice."""
    zxbcdt, params = draw_inputs(sum(PACKED))
    plain = run(way.backend, zxbcdt, params, PACKED, torch.float32, way.device)
    memory.forget()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()
        for _ in range(2):
            poisoned = run(way.backend, zxbcdt, params, PACKED, torch.float32, way.device)
            for name, value in plain.items():
                torch.testing.assert_close(poisoned[name], value, rtol=0, atol=0)
            for buffers in getattr(memory._local, "kinds", {}).values():  # of cpu
                for buffer in buffers._memory.values():
                    buffer.fill_(torch.nan)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("where", [0, 70, 129])
@every_way
def test_nan_comes_through(way: Way, where: int) -> None:
    """A broken input must not turn into plausible numbers, nor harm chunks before its own."""
    zxbcdt, params = draw_inputs(130)
    zxbcdt[where, 30] = torch.nan  # x of one channel
    own = params._replace(**{n: getattr(params, n).to(way.device).float() for n in PARAMETERS})
    out = mixer_core(zxbcdt.to(way.device).float(), own, (130,), way.backend)
    assert out[: where // CHUNK * CHUNK].isfinite().all()
    assert out[where:].isnan().any(-1).all()


def test_reference_gradients_are_finite_differences() -> None:
    zxbcdt, params = draw_inputs(5, headdim=3, d_state=2)
    leaves = [zxbcdt, *(getattr(params, name) for name in PARAMETERS)]

    def function(z: torch.Tensor, *values: Any) -> torch.Tensor:
        own = params._replace(**dict(zip(PARAMETERS, values, strict=True)))
        return mixer_core(z, own, (3, 2), "reference")

    inputs = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("way", ["cpu, torch passes"], indirect=True)
def test_blockwise_gradients_are_finite_differences(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across borders of blocks as well."""
    monkeypatch.setitem(memory.BLOCK, "cpu", 64)
    zxbcdt, params = draw_inputs(150, headdim=2, d_state=2)
    zxbcdt = zxbcdt * 0.5
    leaves = [zxbcdt, *(getattr(params, name) for name in PARAMETERS)]

    def function(z: torch.Tensor, *values: Any) -> torch.Tensor:
        own = params._replace(**dict(zip(PARAMETERS, values, strict=True)))
        return mixer_core(z, own, (133, 17), way.backend)

    inputs = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_registry_holds_a_fast_backend_beside_the_oracle() -> None:
    assert "reference" in BACKENDS and "cpu" in BACKENDS
