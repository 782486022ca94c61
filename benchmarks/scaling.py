"""Cost of the backbone as the work grows: frames, windows packed into a batch, tokens.

    python benchmarks/scaling.py [--quick] [--threads N] [--precision 32 bf16]

Seconds of forward and backward, and the memory a run adds, fitted as a power of the number of
tokens: a slope of 1 in a log-log plot is cost in proportion to the work. ``frames`` is one window
of T frames, ``windows`` are windows of 20 frames packed, both with the tokens that the MNI152 brain
mask keeps; ``tokens`` is one window with so many. The plot goes beside the JSON as .png.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks._contenders import OurBackbone
from benchmarks._measure import (
    available_memory,
    forward_backward,
    interleaved,
    peak_memory,
    progress,
    random_window,
)
from benchmarks._report import in_child, parser, prepare, run, save, table
from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.config.serialise import from_dict
from neuromamba.fmamba.build import build_model
from neuromamba.planning import flops

FRAMES, WINDOWS = (20, 50, 100, 200), (1, 2, 4, 8)
TOKENS = (2_048, 4_096, 8_192, 16_384, 32_768)
QUICK_FRAMES, QUICK_WINDOWS, QUICK_TOKENS = (8, 16), (1, 2), (64, 128)
SLOPE = (0.95, 1.1)  # what issue "Compute" asks for
LABELS = {"frames": "frames of a window", "windows": "windows packed", "tokens": "tokens"}


def points(model: ModelConfig, quick: bool) -> list[dict[str, Any]]:
    """What is measured: the series, how much (``amount``), frames, and tokens of each window."""
    mask, _ = flops.mni_mask(model.img_size[:3])
    spatial = flops.kept_tokens(np.flatnonzero(mask), model) // model.token_grid[3]
    frames, per_frame = model.img_size[3], spatial / model.patch_size[3]
    found: list[dict[str, Any]] = []
    for t in QUICK_FRAMES if quick else FRAMES:
        found.append({"series": "frames", "amount": t, "frames": t, "lengths": [per_frame * t]})
    for n in QUICK_WINDOWS if quick else WINDOWS:
        lengths = [per_frame * frames] * n
        found.append({"series": "windows", "amount": n, "frames": frames, "lengths": lengths})
    for n in QUICK_TOKENS if quick else TOKENS:
        found.append({"series": "tokens", "amount": n, "frames": frames, "lengths": [n]})
    for point in found:
        point["lengths"] = [round(length) for length in point["lengths"]]
    return found


def _runs(model: dict[str, Any], point: dict[str, Any], precision: str, backend: str) -> Any:
    """Forward and backward of one point, ready to be called."""
    size = [*model["img_size"][:3], point["frames"]]
    config = from_dict(ModelConfig, model | {"img_size": size}, "benchmark")
    torch.manual_seed(0)
    backbone = OurBackbone(build_model(config, ssd_backend=backend))
    packed = random_window(config, tuple(point["lengths"]))
    weight = torch.randn(sum(packed.lengths), config.token_dim)
    return forward_backward(backbone, (packed,), weight, precision)


def memory(model: dict[str, Any], point: dict[str, Any], precision: str, backend: str) -> Any:
    """Child: peak memory of one point; None where it would not fit."""
    if point["expected_gb"] > 0.9 * available_memory() / 1e9:
        return None
    small = {"frames": point["frames"], "lengths": [64]}
    return peak_memory(
        _runs(model, small, precision, backend), _runs(model, point, precision, backend)
    )


def times(
    model: dict[str, Any],
    selected: list[dict[str, Any]],
    precision: str,
    backend: str,
    repeats: int,
) -> dict[str, Any]:
    """Child: seconds of all points, timed in turns. Inputs are made when a point's turn comes."""

    def turn(point: dict[str, Any]) -> Any:
        ready = _runs(model, point, precision, backend)
        return interleaved({"": ready}, repeats=1, warmup=0)[""]["median"]

    spent: dict[str, list[float]] = {point["key"]: [] for point in selected}
    turn(selected[0])
    for repeat in range(repeats):
        progress(f"round {repeat + 1} of {repeats}")
        shift = repeat * len(selected) // repeats
        for point in selected[shift:] + selected[:shift]:
            spent[point["key"]].append(turn(point))
    return {key: {"median": float(np.median(s)), "all": s} for key, s in spent.items()}


def measure(args: Any, model: dict[str, Any], allocator: str, precision: str, plan: Any) -> Any:
    """Rows of one precision and allocator: memory first, then the times of what fits."""
    settings = {"model": model, "precision": precision, "backend": args.ssd_backend}
    where = {"threads": args.threads, "allocator": allocator}
    unique = {f"{point['frames']}:{point['lengths']}": point for point in plan}
    peaks: dict[str, Any] = {}
    per_token = 0.0
    for key, point in sorted(unique.items(), key=lambda item: sum(item[1]["lengths"])):
        tokens = sum(point["lengths"])
        progress(f"memory: {tokens:,} tokens, {precision}, {allocator} allocator")
        given = point | {"key": key, "expected_gb": per_token * tokens}
        peaks[key] = in_child("benchmarks.scaling:memory", **where, **settings, point=given)
        if peaks[key] is None:
            progress(f"left out: {tokens:,} tokens would take {per_token * tokens:.0f} GB")
        else:
            per_token = peaks[key]["peak_gb"] / tokens
    selected = [point | {"key": key} for key, point in unique.items() if peaks[key]]
    progress(f"times: {precision}, {allocator} allocator")
    seconds = in_child(
        "benchmarks.scaling:times", **where, **settings, selected=selected, repeats=args.repeats
    )
    rows = []
    for point in plan:
        key = f"{point['frames']}:{point['lengths']}"
        if peaks[key]:
            row = point | {"tokens": sum(point["lengths"]), "seconds": seconds[key], **peaks[key]}
            rows.append({"allocator": allocator, "precision": precision, **row})
    return rows


def slope(tokens: Sequence[float], cost: Sequence[float]) -> float:
    """Exponent of the power law through the points (least squares of the logarithms)."""
    return float(np.polyfit(np.log(tokens), np.log(cost), 1)[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    flags = parser("scaling", __doc__, repeats=3)
    flags.set_defaults(precision=["32"], allocator=["default"])
    args = flags.parse_args(argv)
    model, started = prepare(args), time.perf_counter()
    fields, plan, rows = dataclasses.asdict(model), points(model, args.quick), []
    for allocator in args.allocator:
        for precision in args.precision:
            rows += measure(args, fields, allocator, precision, plan)
    fits = []
    cases = dict.fromkeys((r["allocator"], r["precision"], r["series"]) for r in rows)
    for case in cases:
        chosen = [r for r in rows if (r["allocator"], r["precision"], r["series"]) == case]
        if len(chosen) < 2:
            raise UserInputError(f"benchmarks/scaling.py: too little memory for series {case[2]}.")
        tokens = [r["tokens"] for r in chosen]
        fit = {
            "seconds_slope": slope(tokens, [r["seconds"]["median"] for r in chosen]),
            "memory_slope": slope(tokens, [r["added_gb"] for r in chosen]),
        }
        fits.append(dict(zip(("allocator", "precision", "series"), case, strict=True)) | fit)
    picture = args.json.with_suffix(".png")
    draw(rows, fits).savefig(picture, dpi=150)
    save(args, started, {"model": fields, "points": rows, "slopes": fits}, report(rows, fits))
    print(f"plot: {picture}")
    return 0


def report(rows: list[dict[str, Any]], fits: list[dict[str, Any]]) -> str:
    """Both tables."""
    measured = [
        [row[key] for key in ("series", "amount", "tokens", "precision", "allocator")]
        + [row["seconds"]["median"], row["seconds"]["median"] / row["tokens"] * 1e6]
        + [row["peak_gb"], row["added_gb"]]
        for row in rows
    ]
    fitted = [
        [fit[key] for key in ("series", "precision", "allocator")]
        + [f"{fit['seconds_slope']:.3f}", f"{SLOPE[0]} to {SLOPE[1]}", f"{fit['memory_slope']:.3f}"]
        for fit in fits
    ]
    columns = ["precision", "allocator"]
    return "\n".join(
        [
            table(
                "The backbone, forward and backward: seconds (median), microseconds a token, and "
                "peak memory of a process of its own in GB (in all; added by the run).",
                ["series", "amount", "tokens", *columns, "seconds", "µs a token", "peak", "added"],
                measured,
            ),
            table(
                "Slopes over the number of tokens, log-log.",
                ["series", *columns, "seconds", "target", "added memory"],
                fitted,
            ),
        ]
    )


def draw(rows: list[dict[str, Any]], fits: list[dict[str, Any]]) -> Figure:
    """Seconds over amount, a panel for each series, with the fitted power laws."""
    colours, markers = ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), "os^D"
    variants = list(dict.fromkeys((fit["precision"], fit["allocator"]) for fit in fits))
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 3.8), layout="constrained")
        axes = figure.subplots(1, len(LABELS), sharey=True)
    for axis, (series, label) in zip(axes, LABELS.items(), strict=True):
        for fit in (fit for fit in fits if fit["series"] == series):
            number = variants.index((fit["precision"], fit["allocator"]))
            chosen = [r for r in rows if all(r[k] == fit[k] for k in list(fit)[:3])]
            amount = np.array([row["amount"] for row in chosen], dtype=float)
            seconds = np.array([row["seconds"]["median"] for row in chosen])
            law = amount ** fit["seconds_slope"]
            law *= np.exp(np.mean(np.log(seconds) - np.log(law)))
            style = {"color": colours[number % 4]}
            axis.plot(amount, law, linewidth=1.2, **style)
            kind = {"32": "fp32"}.get(fit["precision"], fit["precision"])
            name = f"{kind}, {fit['allocator']} allocator: slope {fit['seconds_slope']:.2f}"
            axis.plot(
                amount, seconds, linestyle="", marker=markers[number % 4], label=name, **style
            )
        axis.set(xscale="log", yscale="log", xlabel=label)
        amounts = sorted({row["amount"] for row in rows if row["series"] == series})
        axis.set_xticks(amounts, labels=[f"{amount:,}" for amount in amounts])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.margins(y=0.15)
        axis.grid(color="#e4e4e4", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.legend(frameon=False, fontsize=8, loc="upper left")
    axes[0].set_ylabel("seconds, forward + backward")
    return figure


if __name__ == "__main__":
    sys.exit(run(main))
