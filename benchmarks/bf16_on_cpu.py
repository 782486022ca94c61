"""``--precision bf16`` on this CPU: before and after the processor was judged, beside fp32.

    python benchmarks/bf16_on_cpu.py [--quick] [--threads N] [--repeats N]

"before" computes with bf16 operands on every processor; "after" is what ``--precision bf16`` does
now: fp32 where the processor has no instructions for bf16 or where a measured product says that
they do not pay (``neuromamba doctor`` prints the judgement). All three run in one process: fp32
and "after" in turns, "before", which can take minutes, once.
``block`` is one of the model's blocks and ``window`` all of them with embedding and output layer,
forward and backward; ``predict`` is a window without gradients, ``Mamba head`` the head alone,
forward and backward. ``ONEDNN_MAX_CPU_ISA=AVX512_CORE`` makes a processor with bf16 instructions
one without.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks._contenders import our_block
from benchmarks._measure import interleaved, progress, random_window
from benchmarks._report import in_child, parser, prepare, run, save, spread, table
from neuromamba.common.denormals import denormals_as_zeros
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.serialise import from_dict, to_dict
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.heads import build_head
from neuromamba.layers import bf16
from neuromamba.training.strategies import resolve_hardware

CONTENDERS = ("fp32", "bf16 before", "bf16 after")
CASES = (
    ("block", 2_048),
    ("block", 14_810),
    ("window", 2_048),
    ("predict", 2_048),
    ("Mamba head", 2_048),
)
QUICK_CASES = (("block", 150), ("window", 64), ("predict", 64), ("Mamba head", 64))
MOST = 1.1  # of fp32's time: what ``--precision bf16`` may take


def computing(contender: str, run_it: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same work as a training with this precision does it."""

    def timed() -> Tensor:
        chosen = os.environ.pop(bf16.SWITCH, None)
        if contender == "bf16 before":
            os.environ[bf16.SWITCH] = "1"
        try:
            asked = "32" if contender == "fp32" else "bf16"
            hardware = resolve_hardware({"accelerator": "cpu", "devices": 1, "precision": asked})
            narrow = hardware.computed == "bf16-mixed"
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                return run_it()
        finally:
            os.environ.pop(bf16.SWITCH, None)
            if chosen is not None:
                os.environ[bf16.SWITCH] = chosen

    return timed


def work(config: ModelConfig, part: str, tokens: int, backend: str) -> Callable[[], Tensor]:
    """A run of one part on random tokens; returns its output."""
    torch.manual_seed(0)
    window = random_window(config, (tokens,))
    features = torch.randn(tokens, config.embed_dim)
    module: torch.nn.Module
    if part == "block":
        module = our_block(config, backend)
        call: Callable[[], Tensor] = lambda: module(features, (tokens,))  # noqa: E731
    elif part == "Mamba head":
        module = build_head(HeadConfig(name="mamba"), config, backend)
        call = lambda: module(features, window)  # noqa: E731
    else:
        module = build_model(config, ssd_backend=backend)
        call = lambda: module.forward_tokens(window).prediction  # noqa: E731

    def run_it() -> Tensor:
        module.zero_grad()
        if part == "predict":
            with torch.no_grad():
                return call()
        out = call()
        out.float().square().mean().backward()
        return out.detach()

    return run_it


@denormals_as_zeros()  # as in a training
def times(
    config: dict[str, Any], part: str, tokens: int, repeats: int, ssd_backend: str
) -> dict[str, Any]:
    """Seconds of the three, and how far bf16's outputs are from fp32's."""
    run_it = work(from_dict(ModelConfig, config, "--config"), part, tokens, ssd_backend)
    contenders = {name: computing(name, run_it) for name in CONTENDERS}
    wide, apart = contenders["fp32"]().double(), {}
    for name in CONTENDERS[1:]:  # a warm-up, too
        started = time.perf_counter()
        out = contenders[name]()
        if name == "bf16 before":
            once = time.perf_counter() - started
        apart[name] = float((out.double() - wide).norm() / wide.norm())
    seconds = interleaved({n: contenders[n] for n in ("fp32", "bf16 after")}, repeats, warmup=0)
    seconds["bf16 before"] = {"median": once, "min": once, "max": once, "runs": 1}
    return {"part": part, "tokens": tokens, "seconds": seconds, "apart": apart}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it."""
    flags = parser("bf16_on_cpu", __doc__ or "", repeats=5)
    args = flags.parse_args(argv)
    config, started = prepare(args), time.perf_counter()
    rows = []
    for part, tokens in QUICK_CASES if args.quick else CASES:
        progress(f"{part}, {tokens:,} tokens")
        rows.append(
            in_child(
                "benchmarks.bf16_on_cpu:times",
                args.threads,
                args.allocator[0],
                config=to_dict(config),
                part=part,
                tokens=tokens,
                repeats=args.repeats,
                ssd_backend=args.ssd_backend,
            )
        )
    lines = []
    for row in rows:
        wide, before, after = (row["seconds"][name] for name in CONTENDERS)
        lines.append(
            [
                *(row["part"], row["tokens"], 1e3 * wide["min"], 1e3 * before["min"]),
                *(1e3 * after["min"], f"{before['min'] / wide['min']:.2f}x"),
                f"{after['min'] / wide['min']:.2f}x ({spread(after)} s)",
                *(f"{row['apart'][name]:.0e}" for name in CONTENDERS[1:]),
            ]
        )
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "all")
    text = table(
        f"{bf16.advice()}.\nInstructions that oneDNN may use: {limit}. Milliseconds (shortest of "
        f"{args.repeats}), and the time of bf16 over fp32's, which may be\nat most {MOST} after; "
        "distance: of the output from fp32's, relative.",
        [
            *("part", "tokens", "fp32", "bf16 before", "bf16 after", "before/fp32"),
            *("after/fp32", "distance before", "distance after"),
        ],
        lines,
    )
    judged = bf16.judge()._asdict()
    save(args, started, {"judgement": judged, "onednn_max_cpu_isa": limit, "times": rows}, text)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
