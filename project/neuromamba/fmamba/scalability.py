"""What was measured of a training on all ranks, in figures and as a table.

The efficiency is that of the ranks together against as many ranks that each had their windows at
once and never had to wait for each other: the part of a batch's time that is neither waiting for
data nor an exchange that no arithmetic hides. Where windows differ in tokens, the faster ranks wait
for the slowest in that exchange, so it is in there too; the balance of tokens tells how much of it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.fmamba.flop_formula import flops_of
from neuromamba.fmamba.profiling import PHASES, ThroughputCheck
from neuromamba.fmamba.run_config import RunConfig

FILE = "scalability.json"


def facts_of(config: RunConfig) -> dict[str, Any]:
    """What the figures belong to."""
    return {
        "strategy": str(config.trainer.get("strategy", "auto")),
        "precision": str(config.trainer.get("precision", "32")),
        "batch_size": config.data.batch_size,
        "img_size": list(config.model.img_size),
        "activation_checkpointing": config.flags["activation_checkpointing"],
    }


def scalability_check(config: RunConfig, run_dir: Path) -> ThroughputCheck:
    """``--scalability_check``: writes RUN/scalability.json and prints the table."""

    def finish(gathered: dict[str, Any]) -> None:
        found = summary(gathered, facts_of(config))
        write(found, run_dir / FILE)
        print(table(found), flush=True)

    return ThroughputCheck(flops_of(config), finish)


def summary(gathered: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """All figures.

    Args:
        gathered: what ``ThroughputCheck`` hands on.
        facts: on the run, for the record: strategy, precision, batch size ...

    Returns:
        plain containers: ``seconds`` of a batch, ``phases`` (mean over the ranks, and the most of
        one), ``windows_per_second``, ``tokens_per_second``, ``tflops`` of all ranks, ``memory`` in
        bytes (the most of one), ``largest_batch`` in windows, ``communication`` (shares of a traced
        batch in which data were exchanged: ``exposed`` while nothing was computed, ``in_flight`` in
        all), ``efficiency``, ``token_balance``, and ``per_rank``. A time or rate is None if no
        batch was measured.
    """
    raw: list[dict[str, Any]] = gathered["ranks"]
    accumulation = gathered["accumulation"]
    ranks = [_rank(figures, accumulation) for figures in raw]
    batches = min(len(figures["phases"]) for figures in raw)
    found: dict[str, Any] = {
        **facts,
        "ranks": len(ranks),
        "batches": batches,
        "warm_up_batches": raw[0]["warm_up"],
        "batches_of_a_step": accumulation,
    }
    memory = {kind: max(rank["memory"][kind] for rank in ranks) for kind in ranks[0]["memory"]}
    if not batches:
        return found | {"seconds": None, "memory": memory, "per_rank": ranks}
    slowest = max(rank["seconds"] for rank in ranks)
    sizes = [size for figures in raw for size in figures["windows"]]
    known = len(ranks) == 1 or all(rank["communication"] for rank in ranks)
    useful = [
        rank["seconds"] * (1 - (rank["communication"] or {}).get("exposed", 0.0))
        - rank["phases"]["data wait"]
        for rank in ranks
    ]
    return found | {
        "seconds": slowest,
        "step_seconds": slowest * accumulation,
        "windows_per_batch": statistics.mean(sizes),
        "largest_batch": max(sizes),
        "windows_per_second": sum(rank["windows_per_batch"] for rank in ranks) / slowest,
        "tokens_per_second": sum(rank["tokens_per_batch"] for rank in ranks) / slowest,
        "tflops": sum(rank["flops_per_batch"] for rank in ranks) / slowest / 1e12,
        "phases": {
            phase: {
                "mean": statistics.mean(rank["phases"][phase] for rank in ranks),
                "most": max(rank["phases"][phase] for rank in ranks),
            }
            for phase in PHASES
        },
        "memory": memory,
        "communication": _communication(ranks) if len(ranks) > 1 and known else None,
        "efficiency": max(0.0, statistics.mean(useful) / slowest) if known else None,
        "token_balance": _balance([figures["tokens"][:batches] for figures in raw]),
        "per_rank": ranks,
    }


def _rank(figures: Mapping[str, Any], accumulation: int) -> dict[str, Any]:
    """Means over the batches of a rank."""
    batches, traced = len(figures["phases"]), figures["traced"]
    kept = {name: figures[name] for name in ("rank", "host", "device", "memory")}
    if not batches:
        return kept
    whole = [sum(phases.values()) for phases in figures["phases"]]
    seconds = statistics.mean(whole)
    communication = None
    if len(traced) >= accumulation:
        # Shares: a traced batch takes longer, with what it waits for.
        span = sum(batch["span"] for batch in traced)
        communication = {
            name: sum(batch[name] for batch in traced) / span for name in ("exposed", "in_flight")
        }
    windows, tokens, flops = (
        sum(figures[name]) / batches for name in ("windows", "tokens", "flops")
    )
    return {
        **kept,
        "seconds": seconds,
        "median_seconds": statistics.median(whole),
        "fastest_seconds": min(whole),
        "slowest_seconds": max(whole),
        "phases": {
            phase: statistics.mean(phases[phase] for phases in figures["phases"])
            for phase in PHASES
        },
        "windows_per_batch": windows,
        "tokens_per_batch": tokens,
        "flops_per_batch": flops,
        "windows_per_second": windows / seconds,
        "tokens_per_second": tokens / seconds,
        "tflops": flops / seconds / 1e12,
        "communication": communication,
    }


def _communication(ranks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Shares of a batch's time, means over the ranks."""
    return {
        name: statistics.mean(rank["communication"][name] for rank in ranks)
        for name in ("exposed", "in_flight")
    }


def _balance(tokens: Sequence[Sequence[int]]) -> float:
    """Mean tokens of a rank over the most of one, of each batch; 1 if all ranks have as many."""
    return statistics.mean(
        statistics.mean(of_batch) / max(of_batch) for of_batch in zip(*tokens, strict=True)
    )


def write(found: Mapping[str, Any], path: Path) -> None:
    """Write ``scalability.json``."""
    write_text_atomically(path, json.dumps(found, indent=1, allow_nan=False) + "\n")


def table(found: Mapping[str, Any]) -> str:
    """The figures as text."""
    ranks = found["per_rank"]
    head = (
        f"throughput of {found['ranks']} rank(s) on {ranks[0]['device']}, {found['strategy']}, "
        f"{found['precision']}, batches of {found['batch_size']}"
    )
    if found["seconds"] is None:
        return f"{head}: no batch was measured; train on more of them"
    seconds, wait = found["seconds"], found["communication"]
    lines = [
        f"{head}; means over {found['batches']} batches after {found['warm_up_batches']} of "
        f"warm-up",
        f"  {'':<24} {'ms per batch':>12} {'share':>7} {'most of a rank':>15}",
    ]
    if found["windows_per_batch"] < found["batch_size"]:
        lines.insert(
            1,
            f"  not all batches were full: {found['windows_per_batch']:.4g} windows on average, at "
            f"most {found['largest_batch']}; the figures are of these",
        )
    for phase in PHASES:
        mean, most = found["phases"][phase]["mean"], found["phases"][phase]["most"]
        lines.append(f"  {phase:<24} {1e3 * mean:12.1f} {mean / seconds:7.1%} {1e3 * most:15.1f}")
    lines.append(f"  {'batch, slowest rank':<24} {1e3 * seconds:12.1f}")
    if wait is not None:
        for name, text in (("exposed", "of it exchange of data"), ("in_flight", "under way")):
            lines.append(f"  {text:<24} {1e3 * wait[name] * seconds:12.1f} {wait[name]:7.1%}")
    elif found["ranks"] > 1:
        lines.append("  exchange of data: not traced (too few batches, or too many to a step)")
    lines += [
        f"  all ranks: {found['windows_per_second']:.4g} windows/s, "
        f"{found['tokens_per_second']:,.0f} tokens/s, {found['tflops']:.4g} TFLOP/s",
        *(
            f"  rank {rank['rank']} ({rank['host']}): {rank['windows_per_second']:.4g} windows/s, "
            f"{rank['tokens_per_second']:,.0f} tokens/s, {rank['tflops']:.4g} TFLOP/s"
            for rank in (ranks if len(ranks) > 1 else ())
        ),
        f"  peak memory of a rank: {_memory(found['memory'])}",
    ]
    if found["efficiency"] is not None:
        lines.append(
            f"  efficiency {found['efficiency']:.1%}: what is left of a batch's time without "
            f"waiting for data or other ranks; tokens balanced to {found['token_balance']:.1%}"
        )
    return "\n".join(lines)


def _memory(memory: Mapping[str, int]) -> str:
    text = f"{memory['host'] / 1e9:.2f} GB of the host"
    if "device" in memory:
        text = (
            f"{memory['device'] / 1e9:.2f} GB of the GPU ({memory['device_reserved'] / 1e9:.2f} "
            f"with what torch holds in reserve), {text}"
        )
    return text
