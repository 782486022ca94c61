"""The residual block in one go (backend ``cpu``) against the same block, layer by layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from project.module.models.mamba2 import Mamba2, ResidualBlock
from project.module.models.ssd import BACKENDS, blockwise, native
from project.module.models.utils import RMSNorm

LENGTHS = (5, 130, 1, 700)
BOUND = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 5e-2}


@pytest.fixture(params=["torch passes", "C passes"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(native.SWITCH, "0" if request.param == "torch passes" else "1")
    if request.param == "C passes" and native.status().library is None:
        pytest.skip(native.status().detail)
    # Several blocks in a sequence, as for windows of real size.
    monkeypatch.setitem(blockwise.BLOCK, "cpu", 256)
    return request.param


def block_of(backend: str, dropout: float = 0.0) -> ResidualBlock:
    torch.manual_seed(3)
    block = ResidualBlock(
        RMSNorm(24), Mamba2(24, 5, 16, ssd_backend=backend), nn.Dropout(dropout)
    ).double()
    with torch.no_grad():
        for parameter in block.parameters():  # norms and D are 1 to begin with
            parameter.add_(0.1 * torch.randn_like(parameter))
    return block


def results(
    block: nn.Module, dtype: torch.dtype, autocast: bool = False, repeat: int = 1
) -> dict[str, Tensor]:
    """Output and all gradients for fixed inputs, as float64."""
    block = copy.deepcopy(block).to(dtype)
    generator = torch.Generator().manual_seed(4)
    shape = (sum(LENGTHS), 24)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    cotangent = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = block(x, LENGTHS)
    assert out.dtype == dtype
    for again in reversed(range(repeat)):
        out.backward(cotangent, retain_graph=again > 0)
    gradients = {"x": x.grad, **{name: p.grad for name, p in block.named_parameters()}}
    found = {"output": out.detach(), **{k: v for k, v in gradients.items() if v is not None}}
    assert all(value.dtype == dtype for value in found.values())
    return {name: value.double() for name, value in found.items()}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    assert actual.keys() == expected.keys()
    errors = {k: ((actual[k] - v).abs().max() / v.abs().max()).item() for k, v in expected.items()}
    assert max(errors.values()) <= bound, {k: f"{v:.1e}" for k, v in errors.items()}


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float64, False),
        (torch.float32, False),
        (torch.float32, True),
        (torch.bfloat16, False),
    ],
)
def test_equals_the_layers(passes: str, dtype: torch.dtype, autocast: bool) -> None:
    expected = results(block_of("reference"), torch.float64)
    got = results(block_of("cpu"), dtype, autocast)
    assert_close(got, expected, BOUND[torch.bfloat16 if autocast else dtype])


@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
def test_what_is_kept_and_what_is_computed_again(
    passes: str, keep_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two backward passes through one graph: the second finds nothing kept."""
    monkeypatch.setattr(blockwise, "KEEP_BYTES", keep_bytes)
    expected = results(block_of("reference"), torch.float64)
    once, twice = (results(block_of("cpu"), torch.float32, repeat=n) for n in (1, 2))
    assert_close(once, expected, BOUND[torch.float32])
    doubled = {k: v if k == "output" else 2 * v for k, v in expected.items()}
    assert_close(twice, doubled, BOUND[torch.float32])


def test_calls_alive_at_the_same_time_do_not_share_memory(passes: str) -> None:
    """As in a deep network: all forward passes come before the first backward pass."""
    block, alone = block_of("cpu").float(), []
    inputs = [torch.randn(300, 24, generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def gradient(out: Tensor, x: Tensor) -> Tensor:
        return torch.autograd.grad(out.square().sum(), x)[0]

    for values in inputs:
        x = values.clone().requires_grad_()
        alone.append(gradient(block(x, (300,)), x))
    leaves = [values.clone().requires_grad_() for values in inputs]
    outputs = [block(x, (300,)) for x in leaves]
    for out, x, expected in zip(outputs, leaves, alone, strict=True):
        torch.testing.assert_close(gradient(out, x), expected, rtol=0, atol=0)


def test_numbers_do_not_depend_on_a_second_run(passes: str) -> None:
    first, second = (results(block_of("cpu"), torch.float32) for _ in range(2))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0)


def test_training_after_inference_mode(passes: str) -> None:
    """Lightning validates in it; buffers made there must serve the training step that follows."""
    blockwise.forget_buffers()
    block = block_of("cpu").float()
    x = torch.randn(300, 24)
    with torch.inference_mode():
        first = block(x, (300,))
    second = block(x.requires_grad_(), (300,))
    second.sum().backward()
    torch.testing.assert_close(first.clone(), second.detach(), rtol=0, atol=0)


def test_frozen_parameters_get_no_gradient(passes: str) -> None:
    block = block_of("cpu").float()
    block[1].requires_grad_(False)
    x = torch.randn(70, 24, requires_grad=True)
    block(x, (70,)).sum().backward()
    assert x.grad is not None and block[0].weight.grad is not None
    assert all(p.grad is None for p in block[1].parameters())


class TestWhenTheLayersRunOneByOne:
    """Then ``Mamba2.forward`` is called, which a hook can see."""

    @pytest.fixture
    def fused_calls(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        calls: list[int] = []

        def fused(x: Tensor, *rest: object) -> Tensor:
            calls.append(len(x))
            return x

        monkeypatch.setitem(BACKENDS, "cpu", BACKENDS["cpu"]._replace(block=fused))
        return calls

    def test_not_by_default(self, fused_calls: list[int]) -> None:
        block_of("cpu")(torch.zeros(3, 24, dtype=torch.float64), (3,))
        assert fused_calls == [3]

    def test_dropout_in_training(self, fused_calls: list[int]) -> None:
        block = block_of("cpu", dropout=0.5)
        x = torch.randn(50, 24, dtype=torch.float64)
        dropped = block(x, (50,))
        assert not fused_calls
        assert ((dropped == x).float().mean() - 0.5).abs() < 0.1
        block.eval()(x, (50,))
        assert fused_calls == [50]

    def test_hooks(self, fused_calls: list[int]) -> None:
        """DeepSpeed's ZeRO-3 gathers parameters in them, profilers count in them."""
        block, seen = block_of("cpu"), []
        block[1].in_proj.register_forward_hook(lambda *_: seen.append(1))
        block(torch.zeros(3, 24, dtype=torch.float64), (3,))
        assert seen == [1] and not fused_calls
