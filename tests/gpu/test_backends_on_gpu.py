"""Every backend that runs on a CUDA GPU, against the recurrence in float64 on the CPU.

`make test-all` runs these where there is a GPU, and so does ``benchmarks/gpu_check.sh``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.tokenizer import PackedTokens
from neuromamba.layers.ssd import (
    BACKENDS,
    MixerParams,
    kernel_check,
    mixer_core,
    select_backend,
)
from neuromamba.layers.ssd import triton as triton_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(280),  # Triton compiles and tunes
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
DEVICE = "cuda"
PARAMETERS = ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight")
FAST = sorted(name for name in BACKENDS if name != "reference")
LENGTHS: list[tuple[int, ...]] = [
    *((length,) for length in (1, 3, 63, 64, 65, 257, 2000)),
    (1, 64, 3, 130, 65),
    (300, 1, 255, 600, 40),
]
# Largest difference over the largest magnitude of the same tensor. fp32: the sums of log decays
# over a chunk (256 tokens in Triton) reach some hundreds and lose that many units of 6e-8.
FP32 = {"cpu": 3e-5, "triton": 2e-4}
# bf16: norm of the difference over the norm. Operands keep 8 bits (4e-3); the gradients of scalars
# (dt_bias, A_log) are sums over all tokens in which much cancels.
BF16, BF16_SCALARS = 2e-2, 6e-2


def require(name: str) -> None:
    """Skip with the backend's own reason where it cannot run."""
    if (reason := BACKENDS[name].why_not(torch.device(DEVICE))) is not None:
        pytest.skip(f"{name}: {reason}")


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def draw(
    total: int, headdim: int = 32, d_state: int = 16, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, MixerParams, Tensor]:
    """Inputs of two heads (an in-projection 2 mod 8 wide), parameters and a cotangent."""
    generator = torch.Generator().manual_seed(total)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    inner = 2 * headdim
    params = MixerParams(
        conv_weight=normal(inner + 2 * d_state, 4, scale=0.5),
        conv_bias=normal(inner + 2 * d_state, scale=0.2),
        dt_bias=torch.tensor([-3.0, 0.0]),
        A_log=torch.tensor([1.0, -1.0]),
        D=normal(2),
        norm_weight=1.0 + normal(inner, scale=0.2),
        d_state=d_state,
        headdim=headdim,
    )
    zxbcdt = normal(total, 2 * inner + 2 * d_state + 2, scale=0.5).to(dtype)
    return zxbcdt, params, normal(total, inner).to(dtype)


def run(
    name: str,
    zxbcdt: Tensor,
    params: MixerParams,
    cotangent: Tensor,
    lengths: tuple[int, ...],
    device: str = DEVICE,
    wide: bool = False,
) -> dict[str, Tensor]:
    """Output and all gradients, as float64 on the CPU."""

    def leaf(value: Tensor) -> Tensor:
        return value.detach().to(device, torch.float64 if wide else None).requires_grad_()

    z = leaf(zxbcdt)
    leaves: dict[str, Any] = {k: leaf(getattr(params, k)) for k in PARAMETERS}
    with torch.autocast(
        device, torch.bfloat16, enabled=zxbcdt.dtype == torch.bfloat16 and not wide
    ):
        out = mixer_core(z, params._replace(**leaves), lengths, name)
    assert out.dtype == z.dtype
    (out * cotangent.to(device, out.dtype)).sum().backward()
    results = {"output": out, "zxbcdt": z.grad, **{k: v.grad for k, v in leaves.items()}}
    return {k: v.detach().double().cpu() for k, v in results.items()}


def largest(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    errors = {}
    for key, value in expected.items():
        assert torch.isfinite(actual[key]).all(), key
        # Gradients that are 0 in exact arithmetic (A_log of a single token) are compared with 1.
        scale = value.abs().max() if value.abs().max() > 1e-12 else torch.tensor(1.0)
        errors[key] = ((actual[key] - value).abs().max() / scale).item()
    return errors


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("name", FAST)
def test_fp32(name: str, lengths: tuple[int, ...]) -> None:
    require(name)
    inputs = draw(sum(lengths))
    expected = run("reference", *inputs, lengths, "cpu", wide=True)
    errors = largest(run(name, *inputs, lengths), expected)
    assert max(errors.values()) <= FP32.get(name, 3e-5), {k: f"{v:.0e}" for k, v in errors.items()}


@pytest.mark.parametrize("width", [(192, 48), (384, 96)], ids=["base", "large"])
@pytest.mark.parametrize("name", FAST)
def test_bf16_at_published_widths(
    name: str, width: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Also heads of 384: a card on which the kernels do not fit runs the portable backend."""
    require(name)
    lengths = (300, 1, 99)
    inputs = draw(sum(lengths), *width, dtype=torch.bfloat16)
    expected = run("reference", *inputs, lengths, "cpu", wide=True)
    triton_backend._said.clear()
    with caplog.at_level(logging.INFO):
        actual = run(name, *inputs, lengths)
    if name == "triton":
        ways = [mix for key, mix in triton_backend._working.items() if key[3] == width[0]]
        assert ways
        fell_back = BACKENDS["cpu"].run in ways
        assert fell_back == ("do not fit this GPU" in caplog.text), caplog.text
    for key, value in expected.items():
        error = ((actual[key] - value).norm() / value.norm()).item()
        assert error <= (BF16_SCALARS if value.numel() == 2 else BF16), (key, error)


@pytest.mark.parametrize("name", FAST)
def test_packed_equals_separate(name: str) -> None:
    """Bit for bit is too much to ask: borders of chunks fall elsewhere."""
    require(name)
    lengths = (1, 64, 3, 130, 65)
    zxbcdt, params, cotangent = draw(sum(lengths))
    packed = run(name, zxbcdt, params, cotangent, lengths)
    pieces = [
        run(name, z, params, c, (len(z),))
        for z, c in zip(zxbcdt.split(lengths), cotangent.split(lengths), strict=True)
    ]
    separate = {k: torch.cat([p[k] for p in pieces]) for k in ("output", "zxbcdt")}
    separate |= {k: torch.stack([p[k] for p in pieces]).sum(0) for k in PARAMETERS}
    errors = largest(packed, separate)
    assert max(errors.values()) <= 2 * FP32.get(name, 3e-5), errors


# torch says so of a cumulative sum, although along the last axis of several rows it is one.
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
@pytest.mark.parametrize("name", FAST)
def test_nothing_uninitialised_and_deterministic(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In deterministic mode torch fills fresh memory with NaN; Triton's runs agree to the bit."""
    require(name)
    lengths = (257, 3, 140)
    inputs = draw(sum(lengths))
    expected = run("reference", *inputs, lengths, "cpu", wide=True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, second = (run(name, *inputs, lengths) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    errors = largest(first, expected)
    assert max(errors.values()) <= FP32.get(name, 3e-5), errors
    if name == "triton":
        for key, value in first.items():
            assert torch.equal(value, second[key]), key


def test_validation_then_training_then_checkpointing() -> None:
    """A model on `auto`: what inference keeps serves training; checkpointing changes nothing."""
    config = ModelConfig(embed_dim=64, depth=2, img_size=(12, 12, 12, 8), patch_size=(6, 6, 6, 2))
    generator = torch.Generator().manual_seed(0)
    lengths = (20, 7)
    tokens = torch.randn(27, config.token_dim, generator=generator).to(DEVICE)
    packed = PackedTokens(tokens, torch.arange(27).to(DEVICE) % config.num_tokens, lengths)
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        model = build_model(config, activation_checkpointing=again).to(DEVICE)
        with torch.inference_mode():
            model.forward_tokens(packed)
        with torch.autocast(DEVICE, torch.bfloat16):
            prediction = model.forward_tokens(packed).prediction
        assert prediction is not None
        prediction.float().square().mean().backward()
        assert all(p.dtype == torch.float32 for p in model.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))  # type: ignore[union-attr]
    assert gradients[0].isfinite().all() and gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=2e-2, atol=1e-4)


def test_the_comparison_before_the_first_use() -> None:
    """Short and long case, in each way that the installed packages offer; auto then takes them."""
    require("triton")
    device = torch.device(DEVICE)
    found = kernel_check.compare(device, triton_backend.ways_to_call(), BACKENDS["cpu"].run)
    assert {one.tokens for one in found} >= {sum(kernel_check.SHORT)}
    assert max(one.difference for one in found) < 1e-3, found
    assert kernel_check.judged(found) == ""
    assert select_backend("auto", device).name == "triton"
