"""RMSNorm's written-out gradients against the formula with autograd's."""

from __future__ import annotations

import pytest
import torch

from neuromamba.layers.rms_norm import RMSNorm, rms_norm


@pytest.mark.parametrize("shape", [(7, 5), (1, 5), (2, 3, 5), (5,)])
def test_values_and_gradients(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = RMSNorm(5).double()
    torch.nn.init.normal_(layer.weight, generator=generator)
    x = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    upstream = torch.randn(shape, dtype=torch.float64, generator=generator)
    found, expected = layer(x), rms_norm(x, layer.weight)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)
    wanted = (x, layer.weight)
    gradients = torch.autograd.grad(found, wanted, upstream)
    for one, other in zip(gradients, torch.autograd.grad(expected, wanted, upstream), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e12])
def test_extreme_rows(scale: float) -> None:
    """Rows of zeros, and rows so small or large that eps decides, or nothing but they do."""
    x = (scale * torch.tensor([[1.0, -2.0, 3.0]])).requires_grad_()
    layer = RMSNorm(3)
    found, expected = layer(x), rms_norm(x, layer.weight)
    torch.testing.assert_close(found, expected)
    (one,) = torch.autograd.grad(found[0, 0], x)
    (other,) = torch.autograd.grad(expected[0, 0], x)
    assert one.isfinite().all()
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("autocast", [False, True])
def test_narrow_input_is_normalised_in_fp32(autocast: bool) -> None:
    """Also its gradients: a sum over many rows in bf16 would stop growing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 8, generator=generator).bfloat16().requires_grad_()
    layer = RMSNorm(8)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    found.sum().backward()
    wide = x.detach().float().requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    rms_norm(wide, weight).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    assert wide.grad is not None
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad.float(), wide.grad, rtol=1e-2, atol=1e-3)


def test_only_the_input_is_kept_for_the_backward_pass() -> None:
    x, layer, kept = torch.randn(64, 32, requires_grad=True), RMSNorm(32), []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in (x.data_ptr(), layer.weight.data_ptr()):
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    assert sum(kept) == 64, "a number for each row"
