"""What surrounds mamba_ssm's kernels: finding them, packing, guards and ways out. No Triton here.

The kernels themselves are tested in ``tests/numerics/test_triton.py`` and ``tests/gpu``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neuromamba.common.errors import UserInputError
from neuromamba.layers.ssd import MixerParams, mixer_core, packed_convolution, select_backend
from neuromamba.layers.ssd import triton as backend

CPU = torch.device("cpu")
LENGTHS = (5, 1, 3, 9)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Nothing that one test made the backend believe reaches another."""
    caches = (backend._kernels, backend.why_not, packed_convolution.packed_layout)
    before = dict(backend._working), set(backend._said)
    for cache in caches:
        cache.cache_clear()
    backend._working.clear()
    backend._said.clear()
    yield
    for cache in caches:
        cache.cache_clear()
    backend._working.clear()
    backend._working.update(before[0])
    backend._said.clear()
    backend._said.update(before[1])


def draw(
    lengths: tuple[int, ...] = LENGTHS, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, MixerParams]:
    """Two heads of 4, a state of 4: 16 channels for the convolution, an in-projection of 26."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    params = MixerParams(
        normal(16, 4), normal(16), normal(2), normal(2), normal(2), normal(8), d_state=4, headdim=4
    )
    return normal(sum(lengths), 26), params


# ------------------------------------------------------------------------------ in plain torch


def plain_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int, D: Tensor, seq_idx: Any
) -> Tensor:
    """The recurrence with the signature of ``mamba_chunk_scan_combined``."""
    assert x.dim() == 4 and b.dim() == 4 and chunk & (chunk - 1) == 0
    assert all(p.dtype == torch.float32 for p in (dt, a, D))
    state, rows = torch.zeros(x.shape[2], b.shape[-1], x.shape[3]), []
    for t in range(x.shape[1]):
        if seq_idx is not None and t and seq_idx[0, t] != seq_idx[0, t - 1]:
            state = torch.zeros_like(state)
        update = dt[0, t][:, None, None] * b[0, t, 0][None, :, None] * x[0, t][:, None]
        state = torch.exp(dt[0, t] * a)[:, None, None] * state + update
        rows.append((c[0, t, 0][None, :, None] * state).sum(1) + D[:, None] * x[0, t])
    return torch.stack(rows)[None].to(x.dtype)


def plain_norm(
    y: Tensor, weight: Tensor, bias: None, z: Tensor, eps: float, norm_before_gate: bool
) -> Tensor:
    """The formula of ``rmsnorm_fn``."""
    assert not norm_before_gate
    gated = y.float() * torch.nn.functional.silu(z.float())
    return (gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps) * weight).to(y.dtype)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> backend.Kernels:
    """The backend on kernels written in torch, on the CPU."""
    kernels = backend.Kernels(None, plain_scan, plain_norm, "causal_conv1d is left out", True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backend, "_kernels", _cached(kernels))
    return kernels


def _cached(value: object) -> Any:
    def function() -> object:
        return value

    function.cache_clear = lambda: None  # type: ignore[attr-defined]
    return function


def test_split_way_is_the_mixer(plain: backend.Kernels) -> None:
    zxbcdt, params = draw()
    expected = mixer_core(zxbcdt, params, LENGTHS, "reference")
    actual = mixer_core(zxbcdt, params, LENGTHS, "triton")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert backend._working.popitem()[1] is backend._mix_split


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_output_has_the_type_of_the_in_projection(
    plain: backend.Kernels, dtype: torch.dtype
) -> None:
    zxbcdt, params = draw()
    if dtype == torch.float64:
        params = draw(dtype=dtype)[1]
    assert mixer_core(zxbcdt.to(dtype), params, LENGTHS, "triton").dtype == dtype


@pytest.mark.parametrize("lengths", [(1,), (7,), (5, 1, 3)], ids=str)
def test_convolution_gradients_are_finite_differences(lengths: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    layout = packed_convolution.packed_layout(lengths, 4, CPU)
    inputs = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((sum(lengths), 3), (3, 4), (3,))
    ]
    copies = [value.detach().clone() for value in inputs]
    assert torch.autograd.gradcheck(
        lambda x, w, b: packed_convolution.CausalConvSiLU.apply(x, w, b, layout), tuple(inputs)
    )
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True)), "written in place"


def test_convolution_keeps_sequences_apart() -> None:
    """A sequence of NaN harms none of its neighbours, forward or backward."""
    lengths = (5, 2, 6)
    x, weight, bias = torch.randn(13, 3), torch.randn(3, 4), torch.randn(3)
    x[5:7] = torch.nan
    x.requires_grad_()
    out = packed_convolution.CausalConvSiLU.apply(
        x, weight, bias, packed_convolution.packed_layout(lengths, 4, CPU)
    )
    alone = [
        packed_convolution.CausalConvSiLU.apply(
            piece, weight, bias, packed_convolution.packed_layout((len(piece),), 4, CPU)
        )
        for piece in x.split(lengths)
    ]
    torch.testing.assert_close(out, torch.cat(alone), equal_nan=True)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad[:5].isfinite().all() and x.grad[7:].isfinite().all()


def test_sequence_numbers() -> None:
    layout = packed_convolution.packed_layout((2, 1, 3), 4, CPU)
    assert layout.seq_idx is not None and layout.rows is not None
    assert layout.seq_idx.dtype == torch.int32 and layout.seq_idx.is_contiguous()
    assert layout.seq_idx.tolist() == [[0, 0, 1, 2, 2, 2]]
    assert layout.rows.tolist() == [0, 1, 5, 9, 10, 11] and layout.n_rows == 12
    assert packed_convolution.packed_layout((2, 1, 3), 4, CPU) is layout


# ------------------------------------------------------------------------------------ ways out


def test_too_long_for_32_bit_offsets(
    plain: backend.Kernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Batches are split between sequences; a sequence too long by itself runs elsewhere."""
    zxbcdt, params = draw((5, 1, 3, 30, 4))
    assert backend.most_tokens(params) == (2**31 - 1 - 512 * 256) // 512
    most = 8
    monkeypatch.setattr(backend, "most_tokens", lambda params: most)
    expected = mixer_core(zxbcdt, params, (5, 1, 3, 30, 4), "reference")
    seen: list[int] = []

    def scan(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(x.shape[1])
        return plain_scan(x, *args, **kwargs)

    monkeypatch.setattr(backend, "_kernels", _cached(plain._replace(scan=scan)))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            actual = mixer_core(zxbcdt, params, (5, 1, 3, 30, 4), "triton")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert set(seen) == {6, 3, 4}
    warnings = [r.message for r in caplog.records]
    assert len(warnings) == 1 and "30 tokens" in warnings[0] and "2^31" in warnings[0]


class OutOfResources(Exception):
    """As Triton names it."""


def test_too_little_shared_memory(
    plain: backend.Kernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Found out before the step, also when only the backward kernels are too large."""

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise OutOfResources("out of resource: shared memory, Required: 147456, Limit: 101376")

    kernels = plain._replace(scan=lambda x, *args, **kwargs: Scan.apply(x))
    monkeypatch.setattr(backend, "_kernels", _cached(kernels))
    zxbcdt, params = draw()
    zxbcdt.requires_grad_()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            out = mixer_core(zxbcdt, params, LENGTHS, "triton")
            out.sum().backward()
    expected = mixer_core(zxbcdt, params, LENGTHS, "cpu")
    assert torch.equal(out, expected)
    assert len(caplog.records) == 1
    for part in ("heads of 4", "shared memory, Required: 147456", "'cpu'"):
        assert part in caplog.text


def test_fused_way_that_fails_is_replaced(
    plain: backend.Kernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fused(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("CUDA error: no kernel image is available\nmore lines")

    monkeypatch.setattr(backend, "_kernels", _cached(plain._replace(fused=fused)))
    zxbcdt, params = draw()
    with caplog.at_level(logging.WARNING):
        mixer_core(zxbcdt, params, LENGTHS, "triton")
    assert "no kernel image is available" in caplog.text and "more lines" not in caplog.text
    assert backend._working.popitem()[1] is backend._mix_split


def test_other_errors_are_not_hidden(
    plain: backend.Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scan(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(backend, "_kernels", _cached(plain._replace(scan=scan)))
    zxbcdt, params = draw()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        mixer_core(zxbcdt, params, LENGTHS, "triton")


def test_why_not_fused() -> None:
    kernels = backend.Kernels(plain_scan, plain_scan, plain_norm, None, strides=True)
    zxbcdt, params = draw()
    assert backend._why_not_fused(kernels, zxbcdt, params) is None
    old = kernels._replace(strides=False)
    assert "26 wide" in str(backend._why_not_fused(old, zxbcdt, params))
    assert "single token" in str(backend._why_not_fused(kernels, zxbcdt[:1], params))
    odd = params._replace(conv_weight=torch.zeros(12, 4))
    assert "not 12" in str(backend._why_not_fused(kernels, zxbcdt, odd))
    long = params._replace(conv_weight=torch.zeros(16, 5))
    assert "2 to 4 taps" in str(backend._why_not_fused(kernels, zxbcdt, long))


def test_activation_checkpointing(plain: backend.Kernels) -> None:
    """The trial run inside a checkpoint leaves its bookkeeping alone."""
    from torch.utils.checkpoint import checkpoint

    zxbcdt, params = draw()
    leaf = zxbcdt.clone().requires_grad_()
    again = checkpoint(mixer_core, leaf, params, LENGTHS, "triton", use_reentrant=False)
    again.square().sum().backward()
    other = zxbcdt.clone().requires_grad_()
    mixer_core(other, params, LENGTHS, "triton").square().sum().backward()
    assert leaf.grad is not None and other.grad is not None
    assert torch.equal(leaf.grad, other.grad)


# ----------------------------------------------------------------------------------- importing


def package(folder: Path, init: str, combined: str) -> None:
    """A mamba_ssm of two modules, and a Triton."""
    (folder / "triton").mkdir(parents=True)
    (folder / "triton" / "__init__.py").write_text("")
    kernels = folder / "mamba_ssm" / "ops" / "triton"
    kernels.mkdir(parents=True)
    (folder / "mamba_ssm" / "__init__.py").write_text(init)
    (kernels.parent / "__init__.py").write_text("")
    (kernels / "__init__.py").write_text("")
    (kernels / "ssd_combined.py").write_text(combined)
    (kernels / "layernorm_gated.py").write_text("rmsnorm_fn = 'norm'\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in front of all others, and no trace of the packages before or after."""
    names = ("mamba_ssm", "triton")

    def drop() -> dict[str, Any]:
        loaded = [name for name in sys.modules if name.split(".")[0] in names]
        return {name: sys.modules.pop(name) for name in loaded}

    before = drop()
    monkeypatch.syspath_prepend(tmp_path)
    for name in (
        "MAMBA_DETERMINISTIC",
        "TRITON_CACHE_AUTOTUNING",
        "TRITON_F32_DEFAULT",
    ):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    yield tmp_path
    drop()
    sys.modules.update(before)


GOOD = "causal_conv1d_fn = None\nmamba_split_conv1d_scan_combined = mamba_chunk_scan_combined = 1\n"


@pytest.mark.parametrize("init", ["", "import selective_scan_cuda_that_was_not_built\n"])
def test_kernels_are_found_without_the_cuda_extension(site: Path, init: str) -> None:
    package(site, init, GOOD)
    kernels = backend._kernels()
    assert isinstance(kernels, backend.Kernels)
    assert kernels.gated_norm == "norm" and kernels.fused is None and not kernels.strides
    assert "causal_conv1d" in str(kernels.why_split)
    # An import that works is used as it is; one that fails leaves an empty package on the path.
    assert hasattr(sys.modules["mamba_ssm"], "__file__") == (init == "")


def test_what_is_missing_is_named(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "Triton cannot be imported" in str(backend._kernels())
    monkeypatch.delitem(sys.modules, "triton")
    backend._kernels.cache_clear()

    package(site, "", "import a_module_that_nobody_has\n")
    message = str(backend._kernels())
    assert "a_module_that_nobody_has" in message and "setup_env.sh" in message
    backend._kernels.cache_clear()

    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    for name in [name for name in sys.modules if name.startswith("mamba_ssm")]:
        del sys.modules[name]
    message = str(backend._kernels())
    assert "mamba-ssm is not installed" in message and "MAMBA_SKIP_CUDA_BUILD" in message


def test_settings_of_torch_reach_the_kernels(site: Path) -> None:
    package(site, "", GOOD)
    torch.use_deterministic_algorithms(True)
    try:
        backend._kernels()
    finally:
        torch.use_deterministic_algorithms(False)
    assert os.environ["MAMBA_DETERMINISTIC"] == os.environ["TRITON_CACHE_AUTOTUNING"] == "1"
    assert os.environ["TRITON_F32_DEFAULT"] == "ieee"


def test_settings_of_the_user_stay(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(site, "", GOOD)
    monkeypatch.setenv("TRITON_F32_DEFAULT", "tf32")
    backend._kernels()
    assert os.environ["TRITON_F32_DEFAULT"] == "tf32"
    assert "MAMBA_DETERMINISTIC" not in os.environ


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET is set")
def test_not_on_a_cpu() -> None:
    with pytest.raises(UserInputError, match=r"--ssd_backend: 'triton' .* needs a CUDA GPU"):
        select_backend("triton", CPU)
    assert select_backend("auto", CPU).name == "cpu"


def test_old_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    message = backend.why_not(torch.device("cuda"))
    assert message is not None and "Tesla T4 has 7.5" in message and "8.0" in message
