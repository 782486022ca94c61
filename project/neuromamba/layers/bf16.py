"""Whether matrix products of bf16 operands are faster than those of fp32 on this processor.

Processors without instructions for bf16 (avx512_bf16, amx_bf16, Arm's bf16) emulate it: a product
takes 2 to 80 times as long as in fp32. There fp32 operands are used where bf16 was asked for, and
results are at least as exact; so they are in narrow layers, which the C library computes in one
call in fp32 (``too_narrow``). Torch's list of the processor's instructions and a measured product
must both speak for bf16; the measured ratio is kept in the user's cache, by processor and torch.
``NEUROMAMBA_BF16=1`` always computes with bf16 operands, ``NEUROMAMBA_BF16=0`` never does on a CPU.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import time
from pathlib import Path
from typing import NamedTuple

import torch

from neuromamba.common.user_cache import keep_fact, read_facts

logger = logging.getLogger(__name__)

SWITCH = "NEUROMAMBA_BF16"
SLOWEST = 0.9  # time of a bf16 product over that of fp32 from which on it is not worth its rounding
# Layers narrower than this take 1.5 to 2.5 times as long with bf16 operands as in fp32 in one call
# (Xeon with AMX, widths 64 and 32; at 128 it is 0.9 times).
NARROW = 128
_SIZE = 384  # of the measured product: square matrices
_SECONDS = 0.3  # that measuring may take, after the third round
_ROUNDS = 12
_FACTS = "bf16_products"  # in the user's cache


class Judgement(NamedTuple):
    """What was found about the processor.

    Attributes:
        pays: whether bf16 operands are used where they are asked for.
        found: what decides it, in words.
    """

    pays: bool
    found: str


def judge() -> Judgement:
    """Judge this machine's CPU; the first call on a machine measures, for half a second."""
    chosen = os.environ.get(SWITCH, "")
    if chosen in ("0", "1"):
        return Judgement(chosen == "1", f"{SWITCH}={chosen}")
    known, ratio = instructions(), measured_ratio()
    has = "no bf16 instructions" if known == "" else known or "bf16 instructions not known"
    found = f"{processor_name()}: {has}, a product takes {ratio:.2g} times as long as in fp32"
    return Judgement(known != "" and ratio < SLOWEST, found)


def advice() -> str:
    """Which precision is fast on this CPU, and why."""
    judged = judge()
    which = "bf16" if judged.pays else "32"
    rest = "" if judged.pays else "; with --precision bf16 this CPU computes in fp32"
    return f"--precision {which} is the fast one on this CPU ({judged.found}){rest}"


def pays_on(device: torch.device) -> bool:
    """Whether bf16 operands are used on a device; on accelerators always."""
    return device.type != "cpu" or judge().pays


def too_narrow(width: int, device: torch.device) -> bool:
    """Whether a layer of this width is faster in one call in fp32 than call by call in bf16."""
    return device.type == "cpu" and width < NARROW and os.environ.get(SWITCH) != "1"


def say_once() -> None:
    """Log that fp32 operands are used; the first call only."""
    _say(f"bf16 operands were asked for; computing with fp32 operands ({judge().found})")


@functools.cache
def _say(message: str) -> None:
    logger.info(message)


def instructions() -> str | None:
    """The processor's instructions for bf16 that torch knows; "" if none, None if it cannot say."""
    listed = getattr(torch.cpu, "get_capabilities", None)
    if listed is not None:
        found = {name: there for name, there in listed().items() if "bf16" in name}
        return ", ".join(name for name, there in found.items() if there) if found else None
    tests = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    if platform.machine().lower() not in ("x86_64", "amd64") or not all(
        hasattr(torch.cpu, test) for test in tests.values()
    ):
        return None
    return ", ".join(name for name, test in tests.items() if getattr(torch.cpu, test)())


def processor_name() -> str:
    """The processor's name, as the kernel writes it where it does."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return " ".join(value.split())
    except OSError:
        pass
    return platform.processor() or platform.machine() or "this processor"


def measured_ratio() -> float:
    """Time of a bf16 product over the time of an fp32 product, measured once for a machine."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "all")
    return _ratio_of(f"{processor_name()}; torch {torch.__version__}; oneDNN {limit}")


@functools.cache
def _ratio_of(key: str) -> float:
    kept = read_facts(_FACTS).get(key)
    if isinstance(kept, float) and 0 < kept < 1e6:
        return kept
    ratio = _measure()
    keep_fact(_FACTS, key, ratio)
    return ratio


def _measure() -> float:
    """The two products in turn, and the shortest time of each: other programs may be running."""
    wide = torch.ones(_SIZE, _SIZE)
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        began = time.perf_counter()
        for turn in range(_ROUNDS):
            for dtype in best:
                matrix = wide.to(dtype)
                start = time.perf_counter()
                torch.mm(matrix, matrix)
                best[dtype] = min(best[dtype], time.perf_counter() - start)
            if turn > 1 and time.perf_counter() - began > _SECONDS:
                break
    return best[torch.bfloat16] / best[torch.float32]
