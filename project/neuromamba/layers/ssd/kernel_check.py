"""Compare mamba_ssm's kernels with ours where they are about to run, before they are trusted.

Wrong results without an error have been reported of these packages: convolutions compiled for other
GPUs, sequences beyond some 61,000 tokens, new GPUs. So at the first use of the kernels on a kind
of device, and after a change of a package's version, output and gradients of a short case are
compared with the reference recurrence in float64, and of a long one, where the memory allows it,
with the portable backend. The result is kept in the user's cache. ``--ssd_backend auto`` does not
take kernels that differ; ``--ssd_backend triton`` takes them without asking.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neuromamba.common.user_cache import keep_fact, read_facts
from neuromamba.layers.ssd.types import MixerFunction, MixerParams

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "triton", "mamba-ssm", "causal-conv1d")
SHORT = (130, 1, 65, 60)  # tokens of packed sequences: some share a chunk, one crosses it
LONG = (65_600,)
# Largest difference over the largest magnitude of the same tensor. TF32 products, which a user may
# have allowed, keep three digits; what is wrong differs by much more.
BOUND = 0.02
_MEMORY = 4 << 30  # bytes free on the device, for the long case
_FACTS = "checked_kernels"  # in the user's cache


class Compared(NamedTuple):
    """One way to call the kernels on one case.

    Attributes:
        way: "fused" or "split".
        tokens: of the case.
        difference: the largest, relative; infinite where something is not finite.
        where: the tensor that it was found in.
    """

    way: str
    tokens: int
    difference: float
    where: str


def describe(device: torch.device) -> str:
    """What a comparison holds for: the kind of device, and the versions of all packages."""
    name = str(device.type)
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)} ({major}.{minor})"
    return "; ".join([name, *(f"{package} {_version(package)}" for package in PACKAGES)])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def kept_verdict(device: torch.device) -> str | None:
    """What was found in an earlier comparison: "" for agreement; None if there was none."""
    kept = read_facts(_FACTS).get(describe(device))
    return kept if isinstance(kept, str) else None


def why_wrong(
    device: torch.device, ways: dict[str, MixerFunction], portable: MixerFunction
) -> str | None:
    """None if the kernels agree on this device, else what differs.

    Args:
        device: where.
        ways: name -> a way to call the kernels.
        portable: the backend that the long case is compared with.
    """
    verdict = kept_verdict(device)
    if verdict is None:
        try:
            found = compare(device, ways, portable)
        except Exception as error:  # no wrong result; what fails does so in the step, too
            logger.debug("comparison of the kernels: %s: %s", type(error).__name__, error)
            return None
        verdict = judged(found)
        keep_fact(_FACTS, describe(device), verdict)
    return verdict or None


def judged(found: list[Compared]) -> str:
    """The first comparison out of bounds in words; "" if there is none."""
    for one in found:
        if not one.difference <= BOUND:
            return (
                f"mamba_ssm's kernels ({one.way}) give other results than the reference on "
                f"{one.tokens:,} tokens: {one.where} differs by {one.difference:.1g} of its "
                f"largest value"
            )
    return ""


def compare(
    device: torch.device, ways: dict[str, MixerFunction], portable: MixerFunction
) -> list[Compared]:
    """Run every way on the short case, and on the long one if the device has the memory for it."""
    from neuromamba.layers.ssd.reference import mix_reference

    cases: list[tuple[tuple[int, ...], MixerFunction, torch.dtype]] = [
        (SHORT, mix_reference, torch.float64)
    ]
    if _has_room(device):
        cases.append((LONG, portable, torch.float32))
    found = []
    # Whatever surrounds the first use (inference, autocast, activation checkpointing) has no say.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
    ):
        for lengths, right, dtype in cases:
            expected = _run(right, lengths, device, dtype)
            for name, way in ways.items():
                found.append(_apart(name, lengths, _run(way, lengths, device), expected))
    return found


def _has_room(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > _MEMORY


@functools.cache
def _drawn(lengths: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Input, parameters and a cotangent of two heads of 32 with a state of 16, on the CPU."""
    generator = torch.Generator().manual_seed(len(lengths))
    headdim, state, heads = 32, 16, 2
    inner = heads * headdim
    channels = inner + 2 * state

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    parameters = {
        "conv_weight": normal(channels, 4, scale=0.5),
        "conv_bias": normal(channels, scale=0.2),
        "dt_bias": torch.tensor([-4.0, 0.5]),
        "A_log": torch.tensor([0.0, 1.0]),
        "D": normal(heads),
        "norm_weight": 1.0 + normal(inner, scale=0.2),
    }
    total = sum(lengths)
    return normal(total, inner + channels + heads, scale=0.5), parameters, normal(total, inner)


def _run(
    mix: MixerFunction,
    lengths: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """The output and the gradients of input and parameters."""
    zxbcdt, parameters, cotangent = _drawn(lengths)
    x = zxbcdt.to(device, dtype).requires_grad_()
    leaves: dict[str, Any] = {
        name: value.to(device, dtype).requires_grad_() for name, value in parameters.items()
    }
    out = mix(x, MixerParams(**leaves, d_state=16, headdim=32), lengths)
    gradients = torch.autograd.grad(out, [x, *leaves.values()], cotangent.to(device, out.dtype))
    names = ["the gradient of the input", *(f"the gradient of {name}" for name in leaves)]
    return {"the output": out.detach(), **dict(zip(names, gradients, strict=True))}


def _apart(
    way: str, lengths: tuple[int, ...], found: dict[str, Tensor], expected: dict[str, Tensor]
) -> Compared:
    worst, where = 0.0, "the output"
    for name, right in expected.items():
        scale = float(right.double().abs().max()) or 1.0
        difference = float((found[name].double() - right.double()).abs().max()) / scale
        if not difference < float("inf"):
            difference = float("inf")
        if difference > worst:
            worst, where = difference, name
    return Compared(way, sum(lengths), worst, where)
