"""Kernels that give wrong results are found before they are used; kernels in torch stand in here.

``tests/numerics/test_triton.py`` runs the comparison on mamba_ssm's own, interpreted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neuromamba.common.user_cache import user_cache_folder
from neuromamba.layers.ssd import BACKENDS, kernel_check, registry, select_backend
from neuromamba.layers.ssd import triton as backend
from neuromamba.layers.ssd.types import MixerFunction, MixerParams
from neuromamba.planning import machine

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RIGHT: MixerFunction = BACKENDS["cpu"].run
LONG = 300


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("NEUROMAMBA_CACHE", str(tmp_path / "cache"))
    backend.doubt.cache_clear()
    said = set(backend._said)
    yield
    backend.doubt.cache_clear()
    backend._said.clear()
    backend._said.update(said)


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with memory for the long case, which is not that long here."""
    monkeypatch.setattr(kernel_check, "LONG", (LONG,))
    monkeypatch.setattr(kernel_check, "_has_room", lambda device: True)


def changed(change: Callable[[Tensor, tuple[int, ...]], Tensor]) -> MixerFunction:
    """The right mixer, whose output is changed."""
    return lambda x, params, lengths: change(RIGHT(x, params, lengths), lengths)


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 1.1 * gradient


def _leaking(x: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> Tensor:
    return RIGHT(x, params, (sum(lengths),))


def _other_taps(x: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> Tensor:
    return RIGHT(x, params._replace(conv_weight=params.conv_weight.roll(1, 1)), lengths)


def _late(out: Tensor, lengths: tuple[int, ...]) -> Tensor:
    if sum(lengths) < LONG:
        return out
    return torch.cat([out[:-20], 1.5 * out[-20:]])


WRONG: dict[str, MixerFunction] = {
    "scaled": changed(lambda out, lengths: 1.1 * out),
    "not a number": changed(lambda out, lengths: torch.where(out > 1, torch.nan, out)),
    "infinite": changed(lambda out, lengths: torch.where(out > 1, torch.inf, out)),
    "gradient": changed(lambda out, lengths: _WrongGradient.apply(out)),
    "state crosses a border": _leaking,
    "convolution": _other_taps,
    "late tokens": changed(_late),
}


def test_right_kernels_agree(roomy: None) -> None:
    found = kernel_check.compare(CPU, {"fused": RIGHT, "split": RIGHT}, RIGHT)
    assert [(one.way, one.tokens) for one in found] == [
        (way, tokens) for tokens in (sum(kernel_check.SHORT), LONG) for way in ("fused", "split")
    ]
    assert max(one.difference for one in found) < 1e-4
    assert kernel_check.why_wrong(CPU, {"fused": RIGHT}, RIGHT) is None
    assert kernel_check.kept_verdict(CPU) == ""


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_kernels_are_found(kind: str, roomy: None) -> None:
    ways = {"fused": WRONG[kind], "split": RIGHT}
    found = kernel_check.why_wrong(CPU, ways, RIGHT)
    assert found is not None and "(fused)" in found and "differs by" in found
    assert ("gradient" in found) >= (kind == "gradient")
    assert (f"{LONG} tokens" in found) == (kind == "late tokens")
    assert kernel_check.kept_verdict(CPU) == found


def test_without_room_the_long_case_is_left_out() -> None:
    assert kernel_check.why_wrong(CPU, {"fused": WRONG["late tokens"]}, RIGHT) is None


def test_it_is_compared_once_for_device_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counting(x: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> Tensor:
        calls.append(1)
        return 2 * RIGHT(x, params, lengths)

    first = kernel_check.why_wrong(CPU, {"split": counting}, RIGHT)
    assert first and kernel_check.why_wrong(CPU, {"split": counting}, RIGHT) == first
    assert len(calls) == 1
    versions = {"triton": "9.9"}
    before = kernel_check._version
    monkeypatch.setattr(kernel_check, "_version", lambda name: versions.get(name, before(name)))
    assert kernel_check.why_wrong(CPU, {"split": RIGHT}, RIGHT) is None
    (kept,) = user_cache_folder().glob("*.json")
    assert sorted(json.loads(kept.read_text()).values()) == sorted(["", first])


def test_what_fails_is_no_verdict() -> None:
    """It fails again in the first step, where the backend deals with it."""

    def failing(x: Tensor, params: MixerParams, lengths: tuple[int, ...]) -> Tensor:
        raise RuntimeError("out of resource: shared memory")

    assert kernel_check.why_wrong(CPU, {"split": failing}, RIGHT) is None
    assert kernel_check.kept_verdict(CPU) is None


@pytest.mark.parametrize("around", ["inference", "no gradients", "autocast"])
def test_wherever_the_first_use_is(around: str) -> None:
    scopes = {
        "inference": torch.inference_mode(),
        "no gradients": torch.no_grad(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
    }
    with scopes[around]:
        assert kernel_check.why_wrong(CPU, {"split": RIGHT}, RIGHT) is None
    assert kernel_check.kept_verdict(CPU) == ""


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that "run on CUDA"; they are compared on the CPU."""
    monkeypatch.setattr(registry, "_announced", set())
    monkeypatch.setattr(backend, "_require_kernels", lambda: backend.Kernels(*[None] * 5))
    original = kernel_check.why_wrong
    monkeypatch.setattr(
        kernel_check, "why_wrong", lambda device, ways, portable: original(CPU, ways, portable)
    )
    monkeypatch.setattr(kernel_check, "describe", lambda device: "a card")
    triton = BACKENDS["triton"]._replace(why_not=lambda device: None)
    monkeypatch.setitem(BACKENDS, "triton", triton)


@pytest.mark.parametrize("kind", ["scaled", "convolution", "gradient"])
def test_auto_takes_the_portable_backend_and_says_so_once(
    kind: str, card: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "_mix_split", WRONG[kind])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert select_backend("auto", CUDA).name == "cpu"
            backend.doubt.cache_clear()  # as in another process
    (line,) = [record.message for record in caplog.records]
    for part in ("other results than the reference", "'cpu'", "--ssd_backend triton", "a card"):
        assert part in line
    assert select_backend("triton", CUDA).name == "triton"


def test_auto_takes_kernels_that_agree(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_mix_split", RIGHT)
    assert select_backend("auto", CUDA).name == "triton"


@pytest.mark.parametrize(
    ("verdict", "state", "words"),
    [
        (None, "ok", "not yet compared"),
        ("", "ok", "agrees with the reference"),
        ("wrong by 3", "note", "but wrong by 3"),
    ],
)
def test_doctor_says_what_was_found(
    verdict: str | None, state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_check, "kept_verdict", lambda device: verdict)
    line = machine._working_backend("triton", True, CUDA)
    assert line.state == state and words in line.found and bool(line.remedy) == bool(verdict)
    assert machine._working_backend("cpu", False, CUDA).found == "works on cuda"
