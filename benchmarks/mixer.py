"""One Mamba2 layer, forward and backward, against transformers and a plain chunked scan.

    python benchmarks/mixer.py [--quick] [--threads N] [--precision 32 bf16]

``mixer`` is the layer with both projections, as transformers' ``Mamba2Mixer`` has them; ``block``
is what is trained, norm + mixer + residual, beside transformers' ``Mamba2Block``; ``core`` is what
lies between the projections. The gradients of the input and of every parameter are computed.
Contenders have the same weights and are timed in turns in one process; peak memory is that of a
process each.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks._contenders import (
    OurCore,
    PlainBlock,
    PlainMixer,
    TransformersBlock,
    TransformersMixer,
    our_block,
)
from benchmarks._measure import (
    forward_backward,
    interleaved,
    largest_difference,
    peak_memory,
    progress,
)
from benchmarks._report import in_child, parser, prepare, run, save, table
from neuromamba.config.model import ModelConfig
from neuromamba.config.serialise import from_dict
from neuromamba.layers.mamba2 import Mamba2

LENGTHS = (2_048, 8_192, 21_900)
QUICK_LENGTHS = (64, 150)
PEER_CHUNKS = (64, 128, 256)  # 256 is transformers' default
CONTENDERS = ("ours", "plain", "transformers")
# What issue "Compute" asks for on two cores: transformers' time over ours at the longest length.
TARGETS = {"32": 3.0, "bf16": 4.5}


def contenders(
    config: ModelConfig,
    part: str,
    tokens: int,
    precision: str,
    backend: str,
    chunk: int,
    names: Sequence[str] = CONTENDERS,
) -> tuple[dict[str, Callable[[], Tensor]], Tensor]:
    """Runs of one part ("block", "mixer", "core") on random input by name, and that input."""
    torch.manual_seed(0)
    block = our_block(config, backend)
    ours, core = cast(Mamba2, block[1]), part == "core"
    build: dict[str, Callable[[], torch.nn.Module]] = {
        "ours": lambda: OurCore(ours) if core else ours,
        "plain": lambda: PlainMixer(ours, core),
        "transformers": lambda: TransformersMixer(ours, config, chunk, core),
    }
    if part == "block":
        build = {
            "ours": lambda: block,
            "plain": lambda: PlainBlock(block),
            "transformers": lambda: TransformersBlock(block, config, chunk),
        }
    width = ours.in_proj.out_features if core else config.embed_dim
    # Under autocast the in-projection hands on bf16.
    dtype = torch.bfloat16 if core and precision == "bf16" else torch.float32
    x = torch.randn(tokens, width).to(dtype).requires_grad_()
    weight = torch.randn(tokens, config.d_inner if core else config.embed_dim)
    runs = {
        name: forward_backward(build[name](), (x, (tokens,)), weight, precision) for name in names
    }
    return runs, x


def chunk_seconds(config: ModelConfig, tokens: int, precision: str) -> dict[int, float]:
    """Seconds of transformers' layer (better of two) by chunk size; it gets the fastest."""
    runs = {}
    for chunk in PEER_CHUNKS:
        made, _ = contenders(config, "mixer", tokens, precision, "auto", chunk, ["transformers"])
        runs[str(chunk)] = made["transformers"]
    return {int(name): s["min"] for name, s in interleaved(runs, repeats=2).items()}


def times(
    model: dict[str, Any], cases: list[tuple[str, int, str]], backend: str, repeats: int
) -> list[dict[str, Any]]:
    """Child: for each (part, tokens, precision) the seconds of all contenders.

    Beside them transformers' chunk size and how far the contenders' outputs and input gradients are
    apart (``largest_difference``, on at most 1,000 tokens).
    """
    config, results = from_dict(ModelConfig, model, "benchmark"), []
    chunks: dict[tuple[int, str], dict[int, float]] = {}
    for part, tokens, precision in cases:
        progress(f"{part}, {tokens:,} tokens, {precision}")
        if (tokens, precision) not in chunks:
            chunks[tokens, precision] = chunk_seconds(config, tokens, precision)
        by_chunk = chunks[tokens, precision]
        chunk = min(by_chunk, key=by_chunk.__getitem__)
        short, x = contenders(config, part, min(tokens, 1_000), precision, backend, chunk)
        difference = largest_difference(short, dict.fromkeys(short, x))
        runs, _ = contenders(config, part, tokens, precision, backend, chunk)
        results.append(
            {
                "part": part,
                "tokens": tokens,
                "precision": precision,
                "transformers_chunk": chunk,
                "transformers_seconds_by_chunk": by_chunk,
                "difference": difference,
                "seconds": interleaved(runs, repeats),
            }
        )
    return results


def memory(
    model: dict[str, Any], contender: str, tokens: int, precision: str, backend: str, chunk: int
) -> dict[str, float]:
    """Child: peak memory of one contender's layer, forward and backward."""
    config = from_dict(ModelConfig, model, "benchmark")
    small, _ = contenders(config, "mixer", 64, precision, backend, chunk, [contender])
    runs, _ = contenders(config, "mixer", tokens, precision, backend, chunk, [contender])
    return peak_memory(small[contender], runs[contender])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = parser("mixer", __doc__, repeats=5).parse_args(argv)
    model, lengths = prepare(args, compares=True), QUICK_LENGTHS if args.quick else LENGTHS
    fields, started = dataclasses.asdict(model), time.perf_counter()
    common = {"model": fields, "backend": args.ssd_backend}
    cases = [(part, n, p) for n in lengths for p in args.precision for part in ("mixer", "block")]
    cases += [("core", lengths[-1], p) for p in args.precision]
    rows = []
    for allocator in args.allocator:
        progress(f"mixer: times, {allocator} allocator")
        child = in_child(
            "benchmarks.mixer:times",
            args.threads,
            allocator,
            cases=cases,
            repeats=args.repeats,
            **common,
        )
        rows += [{"allocator": allocator, **row} for row in child]
    # Memory of the longest mixer, with the chunk size that was fastest there.
    measured = []
    for row in rows:
        if (row["part"], row["tokens"]) == ("mixer", lengths[-1]):
            for name in CONTENDERS:
                progress(f"memory: {name}, {row['precision']}, {row['allocator']} allocator")
                peak = in_child(
                    "benchmarks.mixer:memory",
                    args.threads,
                    row["allocator"],
                    contender=name,
                    tokens=row["tokens"],
                    precision=row["precision"],
                    chunk=row["transformers_chunk"],
                    **common,
                )
                key = {k: row[k] for k in ("allocator", "tokens", "precision")}
                measured.append({**key, "contender": name, **peak})
    results = {"model": fields, "times": rows, "memory": measured}
    save(args, started, results, report(rows, measured))
    return 0


def report(rows: list[dict[str, Any]], measured: list[dict[str, Any]]) -> str:
    """The tables: times, memory, targets."""
    case = ["part", "tokens", "precision", "allocator"]
    lines, goals = [], []
    for row in rows:
        by_chunk = row["transformers_seconds_by_chunk"]
        medians = {name: row["seconds"][name]["median"] for name in CONTENDERS}
        ratios = [f"{medians[name] / medians['ours']:.1f}x" for name in CONTENDERS[1:]]
        lines.append(
            [
                *(row[key] for key in case),
                *(seconds * 1e3 for seconds in medians.values()),
                *ratios,
                ", ".join(f"{seconds * 1e3:.0f}" for seconds in by_chunk.values()),
                f"{row['difference']:.0e}",
            ]
        )
        first = row["allocator"] == rows[0]["allocator"]
        if first and (row["part"], row["tokens"]) == ("mixer", LENGTHS[-1]):
            default = f"{by_chunk[str(PEER_CHUNKS[-1])] / medians['ours']:.1f}x"
            goal = f"at least {TARGETS[row['precision']]}x"
            goals.append([row["tokens"], row["precision"], goal, ratios[-1], default])
    chunks = ", ".join(map(str, PEER_CHUNKS))
    text = table(
        "One layer, forward and backward: milliseconds (median), and how many times as long as "
        "ours. A block is what is trained:\nnorm + mixer + residual. transformers runs with the "
        f"fastest of its chunk sizes; by chunk: its whole layer with {chunks}.\n"
        "Difference: largest among outputs and input gradients, relative.",
        [*case, *CONTENDERS, "plain/ours", "transformers/ours", "by chunk", "difference"],
        lines,
    )
    keys = [*case[1:], "contender", "peak_gb", "added_gb"]
    text += "\n" + table(
        "Peak memory of a process that runs one layer once, GB: in all, and added by the run.",
        [*case[1:], "contender", "peak", "added"],
        [[row[key] for key in keys] for row in measured],
    )
    if goals:
        text += "\n" + table(
            f"Targets: transformers' time over ours, layer, {rows[0]['allocator']} allocator.",
            ["tokens", "precision", "target", "fastest chunk", "its default chunk"],
            goals,
        )
    return text


if __name__ == "__main__":
    sys.exit(run(main))
