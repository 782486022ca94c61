"""Time, memory and the machine's own speed. Runs inside a child process (``_child.py``)."""

from __future__ import annotations

import gc
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.tokenizer import PackedTokens

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}
PRODUCTS = 5  # done in a row when the machine's rate is measured
Seconds = dict[str, float]


def autocast(precision: str) -> torch.autocast:
    """fp32 parameters; ``bf16``: operands of matrix products in bf16, for every contender alike."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def interleaved(
    contenders: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1
) -> dict[str, Seconds]:
    """Time contenders in turns: each round runs all of them, starting one further each time.

    What drifts (clock rate, neighbours) then meets all alike.

    Args:
        contenders: by name, what to run.
        repeats: rounds that count.
        warmup: rounds before, that do not.

    Returns:
        for each contender ``median``, ``min`` and ``max`` seconds, and the number of ``runs``.
    """
    names = list(contenders)
    spent: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()  # not the garbage of the one before
            start = time.perf_counter()
            contenders[name]()
            if turn >= 0:
                spent[name].append(time.perf_counter() - start)
    return {
        name: {
            "median": statistics.median(seconds),
            "min": min(seconds),
            "max": max(seconds),
            "runs": len(seconds),
        }
        for name, seconds in spent.items()
    }


def forward_backward(
    module: torch.nn.Module, inputs: tuple[Any, ...], weight: Tensor, precision: str
) -> Callable[[], Tensor]:
    """A run of ``module(*inputs)`` and its gradients for the sum of the output times ``weight``.

    Gradients of the run before are dropped first, so that none is added to; an input that requires
    a gradient gets one. The run returns the output, for ``largest_difference``.
    """
    leaves = [*module.parameters(), *(x for x in inputs if isinstance(x, Tensor))]

    def run() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        with autocast(precision):
            output = module(*inputs)
        output.backward(weight.to(output.dtype))
        return output.detach()

    return run


def largest_difference(
    runs: Mapping[str, Callable[[], Tensor]], probes: Mapping[str, Tensor]
) -> float:
    """How far the contenders are apart: outputs, and gradients of the probes.

    Args:
        runs: from ``forward_backward``; the first is compared with.
        probes: for each run a leaf tensor whose gradient counts too.

    Returns:
        the largest difference over the largest magnitude of the same tensor.
    """
    expected: list[Tensor] = []
    worst = 0.0
    for name, run in runs.items():
        output = run().double()
        gradient = probes[name].grad
        assert gradient is not None, name
        expected = expected or [output, gradient.double()]
        for actual, right in zip((output, gradient.double()), expected, strict=True):
            worst = max(worst, float((actual - right).abs().max() / right.abs().max()))
    return worst


# --------------------------------------------------------------------- matrix products alone


def matrix_products(
    config: ModelConfig, tokens: int, precision: str
) -> dict[str, Callable[[], None]]:
    """Products to compare a model's speed with: an in-projection's shape, and a square one.

    Each is done ``PRODUCTS`` times, into the same output: no allocation is timed.
    """
    dtype = DTYPES[precision]
    rows = 2 * config.d_inner + 2 * config.d_state + config.nheads
    side = min(2048, tokens)

    def product(m: int, k: int, n: int) -> Callable[[], None]:
        a, b, out = (torch.randn(size).to(dtype) for size in ((m, k), (k, n), (m, n)))

        def run() -> None:
            for _ in range(PRODUCTS):
                torch.mm(a, b, out=out)

        return run

    shapes = [(tokens, config.embed_dim, rows), (side, side, side)]
    return {f"gemm {m}x{k}x{n}": product(m, k, n) for m, k, n in shapes}


def gemm_rates(seconds: Mapping[str, Seconds]) -> dict[str, float]:
    """FLOP/s of each product of ``matrix_products``, from its median."""
    rates = {}
    for name, spent in seconds.items():
        if name.startswith("gemm "):
            shape = name.removeprefix("gemm ")
            operations = 2 * PRODUCTS * math.prod(map(int, shape.split("x")))
            rates[shape] = operations / spent["median"]
    return rates


# ------------------------------------------------------------------------------------- memory


def resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the most so far) of this process in bytes.

    ``ru_maxrss``, the fallback outside Linux, starts there at the peak of the process that started
    this one.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    (line,) = [x for x in status.read_text().splitlines() if x.startswith(field + ":")]
    return int(line.split()[1]) * 1024


def peak_memory(small: Callable[[], object], run: Callable[[], object]) -> dict[str, float]:
    """Memory of one run, in GB (1e9 bytes); call it in a fresh process, with the inputs made.

    Args:
        small: the same on a few tokens, so that libraries have set themselves up.
        run: what to measure.

    Returns:
        ``peak_gb`` of the whole process (Python, libraries, inputs), and ``added_gb`` above what
        was resident before the run.
    """
    small()
    gc.collect()
    before = resident("VmRSS")
    run()
    peak = resident("VmHWM")
    return {"peak_gb": peak / 1e9, "added_gb": (peak - before) / 1e9}


def available_memory() -> int:
    """Bytes that the system can still give; where it does not say, all of its memory."""
    info = Path("/proc/meminfo")
    if info.exists():
        (line,) = [x for x in info.read_text().splitlines() if x.startswith("MemAvailable:")]
        return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# ------------------------------------------------------------------------------------- inputs


def random_window(config: ModelConfig, lengths: tuple[int, ...]) -> PackedTokens:
    """Random tokens on random places of the grid in raster order: [sum of lengths, V]."""
    places = [torch.randperm(config.num_tokens)[:length].sort().values for length in lengths]
    return PackedTokens(torch.randn(sum(lengths), config.token_dim), torch.cat(places), lengths)


def progress(text: str) -> None:
    """A line on stderr, so that a long run shows where it is."""
    print(f"   {text}", file=sys.stderr, flush=True)
