"""The `triton` backend without a GPU: mamba_ssm's own kernels, interpreted, against the oracle.

Triton's interpreter runs the kernels in numpy (``triton_on_cpu.py``): their arithmetic, the packing
and our calls are tested here, the compiler and a card are not (``tests/gpu`` does that). Half
precision is float16, since the interpreter multiplies the bits of bfloat16 as integers.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neuromamba.layers.ssd import MixerParams, mixer_core
from tests.helpers.paths import ROOT

PARAMETERS = ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight")

# name: (type, lengths, step bias or None, heads' width, state, scale, bound). The bound is on the
# largest difference over the largest magnitude of the same tensor. float32: sums of log decays over
# a chunk of 256 tokens reach some hundreds, and lose that many units of 6e-8. Step bias -12: steps
# of 6e-6, of which the kernels' own softplus (fused) keeps two digits.
CASES: dict[str, tuple[torch.dtype, tuple[int, ...], float | None, int, int, float, float]] = {
    "1": (torch.float32, (1,), None, 12, 4, 1.0, 1e-5),
    "3": (torch.float32, (3,), None, 12, 4, 1.0, 1e-5),
    "257": (torch.float32, (257,), None, 12, 4, 1.0, 1e-4),
    "packed in one chunk": (torch.float32, (1, 64, 3, 130), None, 12, 4, 1.0, 1e-4),
    "packed over chunks": (torch.float32, (300, 1, 255, 40), None, 12, 4, 1.0, 1e-4),
    "half": (torch.float16, (130, 65), None, 12, 4, 0.5, 1e-2),
    "small steps": (torch.float32, (130,), -12.0, 12, 4, 1.0, 2e-2),
    "large steps": (torch.float32, (130,), 6.0, 12, 4, 1.0, 1e-3),
    "published width": (torch.float32, (83, 67), None, 192, 48, 0.3, 1e-4),
}
# A single token has no row stride for causal_conv1d, and is never fused.
NEVER_FUSED = ("1",)


def draw_case(name: str) -> tuple[Tensor, MixerParams, tuple[int, ...], Tensor]:
    """Inputs and a cotangent in the precision of the case; parameters in float32."""
    dtype, lengths, step_bias, headdim, d_state, scale, _ = CASES[name]
    generator = torch.Generator().manual_seed(len(name))

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    inner, total = 2 * headdim, sum(lengths)
    params = MixerParams(
        conv_weight=normal(inner + 2 * d_state, 4, scale=0.5),
        conv_bias=normal(inner + 2 * d_state, scale=0.2),
        dt_bias=torch.tensor([-3.0, 0.5]) if step_bias is None else torch.full((2,), step_bias),
        A_log=torch.tensor([1.0, -1.0] if step_bias is None else [2.7, -1.0]),
        D=normal(2),
        norm_weight=1.0 + normal(inner, scale=0.2),
        d_state=d_state,
        headdim=headdim,
    )
    zxbcdt = normal(total, 2 * inner + 2 * d_state + 2, scale=scale)
    return zxbcdt.to(dtype), params, lengths, normal(total, inner).to(dtype)


def run_reference(name: str) -> dict[str, Tensor]:
    """Output and gradients of the recurrence in float64."""
    zxbcdt, params, lengths, cotangent = draw_case(name)
    z = zxbcdt.double().requires_grad_()
    leaves: dict[str, Any] = {k: getattr(params, k).double().requires_grad_() for k in PARAMETERS}
    out = mixer_core(z, params._replace(**leaves), lengths, "reference")
    (out * cotangent.double()).sum().backward()
    gradients = {f"d {name}": leaf.grad for name, leaf in leaves.items()}
    return {"output": out.detach(), "d zxbcdt": z.grad, **gradients}


def run_interpreted(way: str, names: list[str], folder: Path) -> list[dict[str, Tensor]]:
    """What the kernels return for the cases, in one process."""
    inputs = []
    for name in names:
        zxbcdt, params, lengths, cotangent = draw_case(name)
        inputs.append((CASES[name][0], zxbcdt, params._asdict(), lengths, cotangent))
    torch.save(inputs, folder / "in.pt")
    program = ROOT / "tests" / "helpers" / "triton_on_cpu.py"
    result = subprocess.run(
        [sys.executable, str(program), way, str(folder / "in.pt"), str(folder / "out.pt")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-3000:]
    return torch.load(folder / "out.pt")


@pytest.mark.slow
@pytest.mark.timeout(900)  # one or two minutes on an idle core
@pytest.mark.parametrize("way", ["split", "fused"])
def test_interpreted_kernels(way: str, tmp_path: Path) -> None:
    """Output and every gradient of all cases, through both ways of the backend."""
    for package in ("triton", "mamba_ssm"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (`bash setup_env.sh --kernels-test`)")
    names = [name for name in CASES if way == "split" or name not in NEVER_FUSED]
    too_far = {}
    for name, results in zip(names, run_interpreted(way, names, tmp_path), strict=True):
        expected = run_reference(name)
        assert results.keys() == expected.keys()
        errors = {}
        for key, value in expected.items():
            assert results[key].shape == value.shape, (name, key)
            assert torch.isfinite(results[key]).all(), (name, key)
            # Gradients that are 0 in exact arithmetic (A_log of one token) are compared with 1.
            scale = value.abs().max() if value.abs().max() > 1e-12 else torch.tensor(1.0)
            errors[key] = ((results[key] - value).abs().max() / scale).item()
        # The split way computes the steps in torch.
        bound = 1e-5 if (way, name) == ("split", "small steps") else CASES[name][-1]
        if max(errors.values()) > bound:
            too_far[name] = {key: f"{error:.1e}" for key, error in errors.items()}
    assert not too_far


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["split", "fused"])
@pytest.mark.parametrize("state", ["check", "broken"])
def test_the_comparison_before_the_first_use(way: str, state: str, tmp_path: Path) -> None:
    """mamba_ssm's own kernels agree with the reference; a broken convolution is found."""
    for package in ("triton", "mamba_ssm"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (`bash setup_env.sh --kernels-test`)")
    program = ROOT / "tests" / "helpers" / "triton_on_cpu.py"
    result = subprocess.run(
        [sys.executable, str(program), way, state, str(tmp_path / "out.pt")],
        env={**os.environ, "TRITON_INTERPRET": "1", "NEUROMAMBA_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-3000:]
    verdict, found = torch.load(tmp_path / "out.pt")
    names = [name for name, *_ in found]
    assert names == (["fused", "split"] if way == "fused" else ["split"])
    differences = [difference for _, _, difference, _ in found]
    if state == "check":
        assert verdict == "" and max(differences) < 1e-3
    else:
        assert "other results than the reference" in verdict and min(differences) > 0.05
