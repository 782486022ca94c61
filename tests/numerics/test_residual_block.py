"""The residual block in one go (backend ``cpu``) against the same block, layer by layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode

from neuromamba.layers.mamba2 import Mamba2, ResidualBlock
from neuromamba.layers.rms_norm import RMSNorm
from neuromamba.layers.ssd import BACKENDS, native
from neuromamba.layers.ssd import buffers as memory

LENGTHS = (5, 130, 1, 700)
# Width, state size, head size: odd ones; whole registers of 16, and of 8 (one C call a layer).
ODD, WHOLE, SHORT = (24, 5, 16), (32, 16, 16), (24, 8, 16)
BOUND = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 5e-2}


class Sizes:
    """Sizes of the layers of a test."""

    width, state, headdim = ODD


@pytest.fixture(params=["torch passes", "C passes", "one C call", "one C call, short"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(native.SWITCH, "0" if request.param == "torch passes" else "1")
    if request.param != "torch passes" and native.status().library is None:
        pytest.skip(native.status().detail)
    if "one C call" in request.param:
        sizes = SHORT if "short" in request.param else WHOLE
        for name, size in zip(("width", "state", "headdim"), sizes, strict=True):
            monkeypatch.setattr(Sizes, name, size)
    # Several blocks in a sequence, as for windows of real size; the three short ones share one.
    monkeypatch.setitem(memory.BLOCK, "cpu", 256)
    return request.param


def block_of(backend: str, dropout: float = 0.0, checkpointing: bool = False) -> ResidualBlock:
    torch.manual_seed(3)
    mamba = Mamba2(Sizes.width, Sizes.state, Sizes.headdim, ssd_backend=backend)
    block = ResidualBlock(RMSNorm(Sizes.width), mamba, nn.Dropout(dropout), checkpointing).double()
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
    shape = (sum(LENGTHS), Sizes.width)
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dropout_draws_what_the_layer_draws(passes: str, dtype: torch.dtype) -> None:
    """The mask of ``nn.Dropout``: same numbers, same place in the stream of random numbers."""

    def found(backend: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(11)
        got = results(block_of(backend, dropout=0.3), dtype)
        return got, torch.rand(())

    block_of("cpu")
    (expected, after), (got, too) = found("reference", torch.float64), found("cpu", dtype)
    assert ((got["output"] == found("cpu", dtype)[0]["output"]).all()) and after == too
    assert_close(got, expected, BOUND[dtype])


def test_one_call_does_what_it_is_asked_for(passes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of such sizes goes that way, and the number of threads changes no digit."""
    calls: list[str] = []
    run = native.LayerKernels.run

    def noted(kernels: native.LayerKernels, name: str, *arguments: Any) -> None:
        calls.append(name)
        run(kernels, name, *arguments)

    monkeypatch.setattr(native.LayerKernels, "run", noted)
    one = results(block_of("cpu"), torch.float32)
    expected = ["block_forward", "block_backward"] if "one C call" in passes else []
    assert calls == expected
    threads = torch.get_num_threads()
    if "one C call" in passes:
        try:
            torch.set_num_threads(3 if threads == 1 else 1)
            assert_close(results(block_of("cpu"), torch.float32), one, 0.0)
        finally:
            torch.set_num_threads(threads)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each request for kept memory was met."""
    memory.forget()
    requests: list[bool] = []
    take = memory.Pool.take

    def noted(pool: memory.Pool, size: int) -> Tensor | None:
        requests.append((found := take(pool, size)) is not None)
        return found

    monkeypatch.setattr(memory.Pool, "take", noted)
    return requests


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_what_is_kept_and_what_is_computed_again(
    passes: str, budget: int, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two backward passes through one graph: the second finds nothing kept."""
    monkeypatch.setattr(memory, "BUDGET_BYTES", budget)
    expected = results(block_of("reference"), torch.float64)
    once, twice = (results(block_of("cpu"), torch.float32, repeat=n) for n in (1, 2))
    assert_close(once, expected, BOUND[torch.float32])
    doubled = {k: v if k == "output" else 2 * v for k, v in expected.items()}
    assert_close(twice, doubled, BOUND[torch.float32])
    assert taken == [budget > 0] * 2


def test_nothing_is_kept_without_need(passes: str, taken: list[bool]) -> None:
    block = block_of("cpu").float()
    x = torch.randn(300, Sizes.width)
    with torch.no_grad():
        block(x, (300,))
    with torch.inference_mode():
        block(x, (300,))
    results(block_of("cpu"), torch.float32, autocast=True)
    assert taken == []
    assert_close(
        results(block_of("cpu", checkpointing=True), torch.float32),
        results(block_of("cpu"), torch.float32),
        0.0,
    )
    assert taken == [True]


def test_memory_goes_from_step_to_step(passes: str, taken: list[bool]) -> None:
    block, pool = block_of("cpu").float(), memory._pool
    for length in (300, 300, 200, 400):
        block(torch.randn(length, Sizes.width, requires_grad=True), (length,)).sum().backward()
        assert len(pool._free) == 1
    lost = block(torch.randn(300, Sizes.width, requires_grad=True), (300,))
    assert pool._free == [] and len([r for r in pool._made if r() is not None]) == 1
    del lost  # no backward pass: the memory is gone, and does not count as in use
    assert [r for r in pool._made if r() is not None] == []


def test_budget_is_for_all_layers_together(
    taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    block = block_of("cpu").float()
    columns = block[1].in_proj.out_features
    monkeypatch.setattr(memory, "BUDGET_BYTES", 2 * 4 * 300 * columns)
    x = torch.randn(300, Sizes.width, requires_grad=True)
    for _ in range(3):
        x = block(x, (300,))
    assert taken == [True, True, False]
    x.sum().backward()


def test_buffers_of_a_few_kinds_and_sizes_are_kept(passes: str) -> None:
    memory.forget()
    block = block_of("cpu").float()
    with torch.no_grad():
        for length in range(1, 60):
            block(torch.randn(length, Sizes.width), (length,))
        kinds = memory._local.kinds
        assert len(kinds) == 1
        assert all(len(b._cuts) <= memory.CUTS for b in kinds.values())
        for width in (8, 16, 32, 40, 48):
            other = ResidualBlock(RMSNorm(width), Mamba2(width, 4, 8), nn.Dropout(0.0))
            other(torch.randn(9, width), (9,))
        assert len(memory._local.kinds) == memory.KINDS


def test_undefined_memory_is_never_read(passes: str) -> None:
    """Once as torch hands it out (filled with NaN here), once as the step before left it."""
    expected = results(block_of("cpu"), torch.float32)
    memory.forget()
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            for name, value in results(block_of("cpu"), torch.float32).items():
                torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
            kept = [m for b in memory._local.kinds.values() for m in b._memory.values()]
            assert kept and memory._pool._free
            for tensor in (*kept, *memory._pool._free):
                tensor.fill_(torch.nan)
    finally:
        torch.use_deterministic_algorithms(False)


def test_fake_tensors_leave_nothing_behind(passes: str) -> None:
    """As in an estimate of memory; the buffers of real calls must not become fake ones."""
    memory.forget()
    real = results(block_of("cpu"), torch.float32)
    memory.forget()
    with FakeTensorMode():
        fake = ResidualBlock(
            RMSNorm(Sizes.width),
            Mamba2(Sizes.width, Sizes.state, Sizes.headdim, ssd_backend="cpu"),
            nn.Dropout(0.0),
        )
        out = fake(torch.randn(300, Sizes.width, requires_grad=True), (300,))
        out.sum().backward()
        assert isinstance(out, FakeTensor) and out.shape == (300, Sizes.width)
    assert_close(results(block_of("cpu"), torch.float32), real, 0.0)


def test_calls_alive_at_the_same_time_do_not_share_memory(passes: str) -> None:
    """As in a deep network: all forward passes come before the first backward pass."""
    block, alone = block_of("cpu").float(), []
    inputs = [
        torch.randn(300, Sizes.width, generator=torch.Generator().manual_seed(i)) for i in range(3)
    ]

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
    memory.forget()
    block = block_of("cpu").float()
    x = torch.randn(300, Sizes.width)
    with torch.inference_mode():
        first = block(x, (300,))
    second = block(x.requires_grad_(), (300,))
    second.sum().backward()
    torch.testing.assert_close(first.clone(), second.detach(), rtol=0, atol=0)


def test_frozen_parameters_get_no_gradient(passes: str) -> None:
    block = block_of("cpu").float()
    block[1].requires_grad_(False)
    x = torch.randn(70, Sizes.width, requires_grad=True)
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
        block_of("cpu")(torch.zeros(3, Sizes.width, dtype=torch.float64), (3,))
        assert fused_calls == [3]

    def test_dropout_whose_mask_would_be_drawn_twice(self, fused_calls: list[int]) -> None:
        block = block_of("cpu", dropout=0.5, checkpointing=True)
        x = torch.randn(50, Sizes.width, dtype=torch.float64)
        dropped = block(x, (50,))
        assert not fused_calls
        assert ((dropped == x).float().mean() - 0.5).abs() < 0.1
        block.eval()(x, (50,))
        assert fused_calls == [50]

    def test_a_replaced_layer(self, fused_calls: list[int]) -> None:
        class Adapted(nn.Linear):
            """As LoRA does: more than a weight."""

        block = block_of("cpu")
        block[1].in_proj.__class__ = Adapted
        block(torch.zeros(3, Sizes.width, dtype=torch.float64), (3,))
        assert not fused_calls

    def test_hooks(self, fused_calls: list[int]) -> None:
        """DeepSpeed's ZeRO-3 gathers parameters in them, profilers count in them."""
        block, seen = block_of("cpu"), []
        block[1].in_proj.register_forward_hook(lambda *_: seen.append(1))
        block(torch.zeros(3, Sizes.width, dtype=torch.float64), (3,))
        assert seen == [1] and not fused_calls


def test_gradients_that_die_out_end_as_zeros(passes: str) -> None:
    """Computing with denormal numbers would take many times as long."""
    if "one C call" not in passes:
        pytest.skip("torch's products do as the process does; see common.denormals")
    block = block_of("cpu").float()
    x = torch.randn(2_000, Sizes.width, requires_grad=True)
    cotangent = torch.zeros_like(x)
    cotangent[-1] = 1e-20
    with torch.no_grad():
        block[1].dt_bias.add_(2.0)  # so that states fade within some hundred tokens
    block(x, (len(x),)).backward(cotangent)
    assert x.grad is not None
    size = x.grad.abs()
    assert (size[-3:] > 0).all() and (size[0] == 0).all()
    assert not ((size > 0) & (size < torch.finfo(torch.float32).tiny)).any()
    # ... and the thread goes on as it did.
    assert torch.tensor(2e-38) * torch.tensor(0.1) > 0
