"""bf16 operands where the processor has instructions for them, and fp32 where it has not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neuromamba.commands.doctor import main as doctor
from neuromamba.commands.plan import main as plan
from neuromamba.common.user_cache import user_cache_folder
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.fmamba.heads import build_head
from neuromamba.fmamba.tokenizer import PackedTokens
from neuromamba.layers import bf16
from neuromamba.layers.mamba2 import Mamba2, ResidualBlock
from neuromamba.layers.packing import pack
from neuromamba.layers.rms_norm import RMSNorm
from neuromamba.layers.ssd import blockwise, native
from neuromamba.neurossm.config import NeuroSSMConfig
from neuromamba.neurossm.model import NeuroSSM
from neuromamba.training.strategies import resolve_hardware

LENGTHS = (150, 70)


@pytest.fixture(autouse=True)
def _own_judgement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Judge anew, and keep nothing outside of the test."""
    monkeypatch.delenv(bf16.SWITCH)
    monkeypatch.setenv("NEUROMAMBA_CACHE", str(tmp_path / "cache"))
    bf16._ratio_of.cache_clear()
    yield
    bf16._ratio_of.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, known: str | None, ratio: float) -> None:
    """A processor with these instructions, and so many times the time of an fp32 product."""
    monkeypatch.setattr(bf16, "instructions", lambda: known)
    monkeypatch.setattr(bf16, "_measure", lambda: ratio)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "", 3.0)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "amx_bf16", 0.2)


# ------------------------------------------------------------------------------ the judgement


@pytest.mark.parametrize(
    ("known", "ratio", "pays"),
    [
        ("amx_bf16", 0.2, True),
        ("avx512_bf16", 0.6, True),
        ("avx512_bf16", 1.5, False),  # an oneDNN that is told not to use them
        ("avx512_bf16", 0.95, False),  # not worth the rounding
        ("", 0.5, False),
        ("", 4.0, False),
        (None, 0.5, True),  # a processor whose instructions torch does not list
        (None, 4.0, False),
    ],
)
def test_instructions_and_measurement_must_agree(
    known: str | None, ratio: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, known, ratio)
    judged = bf16.judge()
    assert judged.pays is pays
    assert bf16.processor_name() in judged.found and f"{ratio:.2g} times" in judged.found
    assert bf16.pays_on(torch.device("cpu")) is pays
    assert bf16.pays_on(torch.device("cuda")) and bf16.pays_on(torch.device("meta"))


@pytest.mark.parametrize(("value", "pays"), [("1", True), ("0", False)])
def test_the_user_can_decide(value: str, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "amx_bf16" if not pays else "", 0.2 if not pays else 9.0)
    monkeypatch.setenv(bf16.SWITCH, value)
    assert bf16.judge() == (pays, f"NEUROMAMBA_BF16={value}")


def test_it_is_measured_once_for_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(bf16, "_measure", lambda: measured.append(1) or 0.5)
    for _ in range(3):  # three processes
        bf16._ratio_of.cache_clear()
        assert bf16.measured_ratio() == 0.5
    assert len(measured) == 1
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # as good as another machine
    bf16.measured_ratio()
    monkeypatch.setattr(bf16, "processor_name", lambda: "another")
    bf16.measured_ratio()
    assert len(measured) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"KEY": "0.2"}', '{"KEY": -1}', "\x00\xff"])
def test_a_damaged_file_is_measured_again(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16, "_measure", lambda: 0.25)
    bf16.measured_ratio()
    (kept,) = user_cache_folder().glob("*.json")
    (key,) = json.loads(kept.read_text())
    kept.write_bytes(content.replace("KEY", key).encode("latin-1"))
    bf16._ratio_of.cache_clear()
    monkeypatch.setattr(bf16, "_measure", lambda: 0.75)
    assert bf16.measured_ratio() == 0.75
    assert json.loads(kept.read_text())[key] == 0.75


def test_without_a_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NEUROMAMBA_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(bf16, "_measure", lambda: 0.25)
    assert bf16.measured_ratio() == 0.25


def test_the_real_measurement_is_a_ratio() -> None:
    assert 0.01 < bf16._measure() < 1e4
    assert bf16.instructions() is None or isinstance(bf16.instructions(), str)


# --------------------------------------------------------------------------- what is computed


WIDTH = bf16.NARROW  # of layers that are wide enough for bf16


def block(width: int = WIDTH) -> ResidualBlock:
    torch.manual_seed(0)
    return ResidualBlock(RMSNorm(width), Mamba2(width, 8, 32), torch.nn.Dropout(0.0))


def computed(
    layer: torch.nn.Module, x: torch.Tensor, *rest: Any, autocast: bool
) -> list[torch.Tensor]:
    """The output, and the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(x, *rest)
    parameters = list(layer.parameters())
    return [out, *torch.autograd.grad(out.float().square().mean(), [x, *parameters])]


def test_a_block_computes_exactly_as_in_fp32(slow: None) -> None:
    layer, x = block(), torch.randn(sum(LENGTHS), WIDTH)
    plain = computed(layer, x, LENGTHS, autocast=False)
    for ours, theirs in zip(computed(layer, x, LENGTHS, autocast=True), plain, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert torch.equal(ours, theirs)


def test_a_block_computes_with_bf16_operands_where_they_are_fast(fast: None) -> None:
    layer, x = block(), torch.randn(sum(LENGTHS), WIDTH)
    plain = computed(layer, x, LENGTHS, autocast=False)
    narrow = computed(layer, x, LENGTHS, autocast=True)
    assert not torch.equal(narrow[0], plain[0])
    torch.testing.assert_close(narrow[0], plain[0], rtol=0.05, atol=0.05)


def test_a_narrow_block_computes_in_fp32_in_one_call(
    fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = block(32), torch.randn(sum(LENGTHS), 32)
    plain = computed(layer, x, LENGTHS, autocast=False)[0]
    for library, value, same in ((True, "", True), (True, "1", False), (False, "", False)):
        monkeypatch.setenv(bf16.SWITCH, value)
        monkeypatch.setenv(native.SWITCH, "1" if library else "0")
        if library and native.status().library is None:
            pytest.skip(native.status().detail)
        assert torch.equal(computed(layer, x, LENGTHS, autocast=True)[0], plain) == same


def _mamba2(x: torch.Tensor) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    return Mamba2(WIDTH, 8, 32), (LENGTHS,)


def _parts(x: torch.Tensor) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    return block(), (LENGTHS,)


@pytest.mark.parametrize("made", [_mamba2, _parts])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_it_is_at_least_as_exact(
    made: Callable[..., Any], stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast, and with parameters and input stored in bf16, against fp64."""
    x = torch.randn(sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(1)).to(stored)
    errors = {}
    layer, rest = made(x)
    layer = layer.to(stored)
    exact = computed(layer.double(), x.double(), *rest, autocast=False)
    for name, known, ratio in (("bf16", "amx_bf16", 0.2), ("fp32", "", 3.0)):
        pretend(monkeypatch, known, ratio)
        bf16._ratio_of.cache_clear()
        user_cache_folder().joinpath("bf16_products.json").unlink(missing_ok=True)
        layer, _ = made(x)
        found = computed(layer.to(stored), x, *rest, autocast=stored == torch.float32)
        assert found[0].dtype in (torch.float32, torch.bfloat16)
        errors[name] = [
            float((f.detach().double() - e.detach()).norm())
            for f, e in zip(found, exact, strict=True)
        ]
    assert errors["fp32"][0] <= errors["bf16"][0]
    assert sum(errors["fp32"]) < sum(errors["bf16"])


def _neurossm() -> Callable[[], torch.Tensor]:
    model = NeuroSSM(NeuroSSMConfig(rois=6, classes=2, embed_dim=32)).eval()
    scans = pack([torch.randn(6, 40), torch.randn(6, 30)])
    return lambda: model(scans)


def _mamba_head() -> Callable[[], torch.Tensor]:
    config = ModelConfig(embed_dim=16, depth=1, img_size=(12, 12, 12, 4))
    head = build_head(HeadConfig(name="mamba"), config).eval()
    packed = PackedTokens(torch.zeros(0), torch.arange(12), (12,))
    features = torch.randn(12, 16)
    return lambda: head(features, packed)


@pytest.mark.parametrize("made", [_neurossm, _mamba_head])
@pytest.mark.parametrize("known", ["", "amx_bf16"])
def test_of_neurossm_and_of_a_mamba_head(
    known: str, made: Callable[[], Callable[[], torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their Mamba2 layers are the same ones: where bf16 is slow, none of them uses it."""
    pretend(monkeypatch, known, 0.2 if known else 3.0)
    seen: list[torch.dtype] = []
    judged = blockwise.operand_type
    monkeypatch.setattr(blockwise, "operand_type", lambda x: seen.append(judged(x)) or seen[-1])
    compute = made()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        compute()
    assert len(seen) > 2
    assert set(seen) == {torch.bfloat16 if known else torch.float32}


def test_neurossm_adds_to_an_fp32_stream(fast: None) -> None:
    """Autocast would leave bf16 after the embedding, and the C passes add to fp32 only."""
    model = NeuroSSM(NeuroSSMConfig(rois=6, classes=2, embed_dim=32))
    seen: list[torch.dtype] = []
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(pack([torch.randn(6, 40), torch.randn(6, 30)]))
    assert len(seen) > 2 and set(seen) == {torch.float32}


# ------------------------------------------------------------------------------ what is asked for


def test_a_run_on_a_slow_cpu(slow: None) -> None:
    found = resolve_hardware({"accelerator": "cpu", "devices": 1, "precision": "bf16"})
    assert (found.precision, found.computed) == ("bf16-mixed", "32-true")
    assert found.trainer_arguments()["precision"] == "32-true"
    assert "bf16-mixed, computed in fp32, which is faster here (" in found.precision_text


@pytest.mark.parametrize("precision", ["32", "64", "bf16-true"])
def test_other_precisions_are_what_was_asked_for(precision: str, slow: None) -> None:
    found = resolve_hardware({"accelerator": "cpu", "devices": 1, "precision": precision})
    assert found.computed == found.precision == found.precision_text
    assert found.trainer_arguments()["precision"] == found.precision


def test_a_run_on_a_fast_cpu(fast: None) -> None:
    found = resolve_hardware({"accelerator": "cpu", "devices": 1, "precision": "bf16"})
    assert found.computed == found.precision_text == "bf16-mixed"
    assert found.trainer_arguments()["precision"] == "bf16-mixed"


@pytest.mark.parametrize("command", ["doctor", "plan"])
@pytest.mark.parametrize("known", ["", "amx_bf16"])
def test_the_fast_precision_is_named(
    known: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, known, 0.5 if known else 3.0)
    if command == "doctor":
        doctor([])
    else:
        small = "--gpu cpu --gpus 1 --img_size 24 24 24 8 --embed_dim 16 --depth 1 --windows 8"
        assert plan([*small.split(), "--precision", "bf16", "--effective_batch", "4"]) == 0
    name = "bf16" if known else "32"
    assert f"--precision {name} is the fast one on this CPU" in capsys.readouterr().out
