"""Batches of short sequences: several in a block of the mixer, against one after the other.

    python benchmarks/short_sequences.py [--quick] [--threads N] [--repeats N]

The portable backend walks packed sequences in blocks, and every block costs dozens of calls and
parallel sections. "apart" gives each sequence blocks of its own, "shared" lets whole sequences
share them (``layers/ssd/blocks.py``), which is what trainings do. Both run in one process, in
turns; outputs are compared. One case has a single long sequence, for which both are the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from benchmarks._measure import interleaved, progress
from benchmarks._report import in_child, parser, prepare, run, save, spread, table
from neuromamba.layers.mamba2 import Mamba2, ResidualBlock
from neuromamba.layers.packing import Packed
from neuromamba.layers.rms_norm import RMSNorm
from neuromamba.layers.ssd import blocks, blockwise, buffers
from neuromamba.neurossm.config import NeuroSSMConfig
from neuromamba.neurossm.model import NeuroSSM

CONTENDERS = ("apart", "shared")
# Name -> (model, sequences, tokens of each).
CASES = {
    "NeuroSSM, 200 regions, 32 scans": ("NeuroSSM", 32, 100),
    "demo: 2 blocks of width 64, 4 windows": ("blocks", 4, 984),
    "4 blocks of width 64, 2 windows": ("blocks", 2, 1500),
    "4 blocks of width 64, 1 window": ("blocks", 1, 14_810),
}
QUICK_CASES = {
    "NeuroSSM": ("NeuroSSM", 3, 20),
    "blocks": ("blocks", 2, 70),
}


def apart(lengths: tuple[int, ...], limit: int) -> tuple[tuple[blocks.Block, ...], ...]:
    """``blocks.walk`` without sharing."""
    walks, start = [], 0
    for length in lengths:
        own = blocks.walk((length,), limit)
        walks += [
            tuple(
                block._replace(first=block.first + start, last=block.last + start) for block in one
            )
            for one in own
        ]
        start += length
    return tuple(walks)


def work(model: str, sequences: int, tokens: int) -> Callable[[], Tensor]:
    """A forward and a backward pass; returns the output."""
    torch.manual_seed(0)
    lengths = (tokens,) * sequences
    module: nn.Module
    if model == "NeuroSSM":
        module = NeuroSSM(NeuroSSMConfig(rois=200, classes=2)).eval()
        scans = Packed(torch.randn(sum(lengths), 200), lengths)
        call: Callable[[], Tensor] = lambda: module(scans)  # noqa: E731
    else:
        depth = 2 if sequences == 4 else 4
        module = nn.ModuleList(
            ResidualBlock(RMSNorm(64), Mamba2(64, 64, 64), nn.Dropout(0)) for _ in range(depth)
        )
        features = torch.randn(sum(lengths), 64)

        def call() -> Tensor:
            x = features
            for layer in module:
                x = layer(x, lengths)
            return x

    def run_it() -> Tensor:
        module.zero_grad()
        out = call()
        out.square().mean().backward()
        return out.detach()

    return run_it


def walking(contender: str, run_it: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The work with sequences apart or sharing blocks."""

    def timed() -> Tensor:
        blockwise.walk = apart if contender == "apart" else blocks.walk  # type: ignore[assignment]
        return run_it()

    return timed


def times(case: Sequence[Any], repeats: int) -> dict[str, Any]:
    """Child: seconds of both, and how far the outputs are from each other."""
    run_it = work(*case)
    contenders = {name: walking(name, run_it) for name in CONTENDERS}
    one, other = (contenders[name]().double() for name in CONTENDERS)  # a warm-up, too
    distance = float((one - other).norm() / one.norm())
    return {
        "seconds": interleaved(contenders, repeats, warmup=1),
        "distance": distance,
        "block": buffers.block_rows(torch.device("cpu")),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it."""
    args = parser("short_sequences", __doc__ or "", repeats=7).parse_args(argv)
    prepare(args)
    started, rows = time.perf_counter(), {}
    for name, case in (QUICK_CASES if args.quick else CASES).items():
        progress(name)
        rows[name] = in_child(
            "benchmarks.short_sequences:times",
            args.threads,
            args.allocator[0],
            case=list(case),
            repeats=args.repeats,
        )
    lines = [
        [
            *(
                name,
                1e3 * row["seconds"]["apart"]["median"],
                1e3 * row["seconds"]["shared"]["median"],
            ),
            f"{row['seconds']['apart']['median'] / row['seconds']['shared']['median']:.2f}x",
            *(spread(row["seconds"][contender]) for contender in CONTENDERS),
            f"{row['distance']:.0e}",
        ]
        for name, row in rows.items()
    ]
    block = next(iter(rows.values()))["block"]
    text = table(
        f"Forward and backward, fp32, {args.repeats} repeats in turns; blocks of {block:,} tokens. "
        f"Milliseconds (medians), how many times\nas fast sharing is, seconds from shortest to "
        f"longest, and the relative distance of the outputs.",
        ["case", "apart", "shared", "apart/shared", "apart, s", "shared, s", "distance"],
        lines,
    )
    save(args, started, {"cases": rows}, text)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
