"""``FlopCounterMode`` counts the same model FLOPs whatever backend computes the scan.

The formula is checked against a scan in plain torch functions, every product of which the counter
sees; that scan is compared with the recurrence here, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from neuromamba.config.model import ModelConfig
from neuromamba.config.names import SSD_BACKENDS
from neuromamba.fmamba.backbone import FMamba
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.tokenizer import PackedTokens
from neuromamba.layers.ssd import BACKENDS, MixerParams, mixer_core
from neuromamba.layers.ssd.flop_count import counted_mixer, counting_flops, scan_products
from neuromamba.layers.ssd.types import CHUNK
from neuromamba.planning import flops
from neuromamba.planning.deepspeed_flops import PlainMixer

HEADS, HEADDIM, STATE = 2, 12, 6
PACKED = (1, 64, 3, 130, 65)
TENSORS = ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight")
Mixer = Callable[[Tensor, MixerParams, tuple[int, ...]], Tensor]


def draw(length: int, device: str = "cpu") -> tuple[Tensor, MixerParams]:
    """Random float64 input and parameters, all wanting gradients."""
    generator = torch.Generator().manual_seed(length)
    inner = HEADS * HEADDIM
    width = inner + 2 * STATE
    shapes = [(width, 4), (width,), (HEADS,), (HEADS,), (HEADS,), (inner,)]
    shapes.insert(0, (length, inner + width + HEADS))
    zxbcdt, *tensors = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(device).requires_grad_()
        for shape in shapes
    )
    fields: dict[str, Any] = dict(zip(TENSORS, tensors, strict=True))
    return zxbcdt, MixerParams(**fields, d_state=STATE, headdim=HEADDIM)


def products(counter: FlopCounterMode) -> dict[str, int]:
    """Counted FLOPs by operator; ``convolution`` is none of the scan's products."""
    found = {str(op): n for op, n in counter.get_flop_counts().get("Global", {}).items()}
    return {name: n for name, n in found.items() if "convolution" not in name}


def run(
    mix: Callable[[Tensor, MixerParams], Tensor], length: int, device: str = "cpu"
) -> tuple[dict[str, int], list[Tensor]]:
    """Counted FLOPs of a forward and backward pass; output and gradients."""
    zxbcdt, params = draw(length, device)
    with FlopCounterMode(display=False) as counter:
        out = mix(zxbcdt, params)
        out.backward(torch.cos(torch.arange(out.numel(), device=device)).view_as(out).to(out))
    leaves = [zxbcdt, *(getattr(params, name) for name in TENSORS)]
    assert all(leaf.grad is not None for leaf in leaves)
    return products(counter), [
        out.detach(),
        *(leaf.grad for leaf in leaves if leaf.grad is not None),
    ]


def largest_difference(some: list[Tensor], others: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True))


# Not 1: torch multiplies instead of calling a product where an axis of einsum has one element.
@pytest.mark.parametrize("length", [2, 63, 64, 65, 130, 200])
def test_formula_against_visible_products(length: int) -> None:
    """Forward and backward of the plain scan: each product three times, to the last FLOP."""
    seen, values = run(PlainMixer(), length)
    assert sum(seen.values()) == 3 * sum(scan_products(length, HEADS, HEADDIM, STATE, CHUNK))
    _, expected = run(lambda z, p: BACKENDS["reference"].run(z, p, (length,)), length)
    assert largest_difference(values, expected) < 1e-9


def opaque(zxbcdt: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> Tensor:
    """Stands for a kernel: none of the scan's products is visible, products of other sizes are."""
    return _Opaque.apply(params, lengths, zxbcdt, *(getattr(params, name) for name in TENSORS))


class _Opaque(torch.autograd.Function):
    @staticmethod
    def mix(params: MixerParams, lengths: tuple[int, ...], *tensors: Tensor) -> Tensor:
        torch.ones(7, 7) @ torch.ones(7, 7)  # the counter must not see this
        fields: dict[str, Any] = dict(zip(TENSORS, tensors[1:], strict=True))
        return BACKENDS["reference"].run(tensors[0], params._replace(**fields), lengths)

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, params: MixerParams, lengths: tuple[int, ...], *tensors: Tensor
    ) -> Tensor:
        ctx.arguments = params, lengths
        ctx.save_for_backward(*tensors)
        return _Opaque.mix(params, lengths, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        own = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            out = _Opaque.mix(*ctx.arguments, *own)
        return (None, None, *torch.autograd.grad(out, own, grad))


@pytest.mark.parametrize("mix", [BACKENDS["reference"].run, BACKENDS["cpu"].run, opaque])
def test_counted_mixer(mix: Mixer) -> None:
    """The backend's values and gradients, the formula's count, packed sequences."""
    total = sum(PACKED)
    forward = sum(sum(scan_products(n, HEADS, HEADDIM, STATE, CHUNK)) for n in PACKED)
    seen, values = run(lambda z, p: counted_mixer(mix, z, p, PACKED, CHUNK), total)
    assert seen == {"neuromamba.mixer": forward, "neuromamba.mixer_backward": 2 * forward}
    _, expected = run(lambda z, p: mix(z, p, PACKED), total)
    assert largest_difference(values, expected) < 1e-12

    zxbcdt, params = draw(total)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert not counted_mixer(mix, zxbcdt, params, PACKED, CHUNK).requires_grad
    assert products(counter) == {"neuromamba.mixer": forward}


def test_frozen_tensors_get_no_gradient() -> None:
    zxbcdt, params = draw(70)
    zxbcdt.requires_grad_(False)
    params.D.requires_grad_(False)
    counted_mixer(opaque, zxbcdt, params, (70,), CHUNK).sum().backward()
    assert zxbcdt.grad is None and params.D.grad is None and params.A_log.grad is not None


def test_counting_is_told() -> None:
    assert not counting_flops()
    with FlopCounterMode(display=False):
        assert counting_flops()
    assert not counting_flops()


# ----------------------------------------------------------------------- through the whole backbone


def window(config: ModelConfig, lengths: tuple[int, ...], device: str) -> PackedTokens:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(sum(lengths), config.token_dim, generator=generator)
    index = torch.zeros(sum(lengths), dtype=torch.long)
    return PackedTokens(tokens.to(device), index.to(device), lengths)


@pytest.fixture
def opaque_backend(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Puts the stand-in under the name of Triton's backend; collects which of its paths ran."""
    calls: list[str] = []

    def mix(zxbcdt: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> Tensor:
        calls.append("run")
        return opaque(zxbcdt, params, lengths)

    def block(x: Tensor, *_: Any) -> Tensor:
        calls.append("block")
        return x

    entry = BACKENDS["cpu"]._replace(
        name="triton", run=mix, why_not=lambda device: None, block=block
    )
    monkeypatch.setitem(BACKENDS, "triton", entry)
    return calls


@pytest.mark.parametrize("lengths", [(65,), (1, 64, 130)])
@pytest.mark.parametrize("backend", [name for name in SSD_BACKENDS if name != "auto"])
def test_every_backend_gives_the_analytic_count(
    backend: str, lengths: tuple[int, ...], opaque_backend: list[str]
) -> None:
    """Forward and backward of FMamba, on the CPU and on the meta device."""
    config = ModelConfig(img_size=(12, 12, 12, 4), embed_dim=16, depth=2)
    expected = sum(
        flops.training_total(flops.forward_terms(config, n), products_only=True) for n in lengths
    )
    for device in ("cpu", "meta"):
        with torch.device(device):
            model = build_model(config, ssd_backend=backend)
        assert isinstance(model, FMamba)
        with FlopCounterMode(display=False) as counter:
            prediction = model.forward_tokens(window(config, lengths, device)).prediction
            assert prediction is not None
            prediction.square().sum().backward()
        assert counter.get_total_flops() == expected, (backend, device)
        assert all(p.grad is not None for p in model.parameters())
    assert set(opaque_backend) == ({"run"} if backend == "triton" else set())
    # Without a counter nothing stands between the model and the backend's fastest path.
    model = build_model(config, ssd_backend="triton")
    assert isinstance(model, FMamba)
    opaque_backend.clear()
    model.forward_tokens(window(config, lengths, "cpu"))
    assert opaque_backend == ["block"] * config.depth


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_counting_changes_no_number(backend: str) -> None:
    """Loss and gradients with and without a counter; under autocast as well."""
    config = ModelConfig(img_size=(12, 12, 12, 4), embed_dim=16, depth=1)
    torch.manual_seed(0)
    model = build_model(config, ssd_backend=backend)
    assert isinstance(model, FMamba)
    counts = []
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        results = []
        for counted in (False, True):
            model.zero_grad()
            counter = FlopCounterMode(display=False)
            with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
                if counted:
                    counter.__enter__()
                prediction = model.forward_tokens(window(config, (70, 3), "cpu")).prediction
            assert prediction is not None
            prediction.float().square().mean().backward()
            if counted:
                counter.__exit__(None, None, None)
                counts.append(counter.get_total_flops())
            grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            results.append([prediction.detach().float(), *grads])
        for one, other in zip(*results, strict=True):
            scale = float(one.abs().max()) + 1e-6
            assert float((one - other).abs().max()) <= bound * scale
    assert counts[0] == counts[1] > 0


def test_mixer_core_on_the_meta_device_needs_no_backend() -> None:
    """Shapes can be computed for a backend that is not there."""
    zxbcdt, params = draw(70, "meta")
    out = mixer_core(zxbcdt, params, (70,), "triton")
    assert out.shape == (70, HEADS * HEADDIM) and out.is_meta
