"""Command line, child processes, tables and files that the benchmarks share."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._measure import DTYPES, ROOT
from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.build import load_model_config
from neuromamba.training.allocator import choose_allocator

RESULTS = ROOT / "benchmarks" / "results"
TINY = ModelConfig(embed_dim=32, depth=2, img_size=(24, 24, 24, 8))  # of --quick: 256 tokens
# With and without --allocator of project/main.py, where that has an effect.
ALLOCATORS = list(dict.fromkeys(("default", choose_allocator("auto", "cpu").name)))
# What decides how fast matrix products are, in the order in which it is reported.
_CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
)


def parser(script: str, description: str, repeats: int) -> argparse.ArgumentParser:
    """The flags of every benchmark."""
    flags = argparse.ArgumentParser(prog=f"benchmarks/{script}.py", description=description)
    flags.add_argument("--quick", action="store_true", help="tiny sizes: does it work at all?")
    flags.add_argument("--threads", type=_positive, default=cores(), metavar="N")
    flags.add_argument("--repeats", type=_positive, default=repeats, metavar="N")
    flags.add_argument("--precision", nargs="+", choices=DTYPES, default=list(DTYPES))
    flags.add_argument(
        "--allocator",
        nargs="+",
        choices=["default", "retain"],
        default=ALLOCATORS,
        help="as of project/main.py (default: %(default)s)",
    )
    flags.add_argument("--config", default=str(ROOT / "configs" / "neuromamba_base.yaml"))
    flags.add_argument("--ssd_backend", default="cpu", help="ours; see project/main.py")
    flags.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        default=RESULTS / f"{script}.json",
        help="figures; the tables go beside it as .md (default: %(default)s)",
    )
    return flags


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"got '{text}', expected a whole number from 1 on")
    return int(text)


def prepare(args: argparse.Namespace, compares: bool = False) -> ModelConfig:
    """The model to measure, once it is clear that the run can do what was asked.

    Args:
        args: of ``parser``.
        compares: with transformers, which only the tools for tests bring along.

    Raises:
        UserInputError: transformers is missing, the allocator has no effect here, the configuration
            cannot be read, or there is no place for the results.
    """
    if compares and importlib.util.find_spec("transformers") is None:
        raise UserInputError(
            "benchmarks: transformers, which they compare with, is missing; run 'make setup-dev'."
        )
    args.load_before = round(os.getloadavg()[0], 2)
    if args.quick:
        args.repeats = 1
    for allocator in args.allocator:
        choose_allocator(allocator, "cpu")  # refuses what has no effect here
    try:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserInputError(f"--json: cannot write to {args.json.parent}: {error}.") from error
    return TINY if args.quick else load_model_config(args.config)


def run(main: Callable[[Sequence[str] | None], int]) -> int:
    """Call a benchmark's ``main``; mistakes of the user become one line and status 2."""
    try:
        return main(None)
    except UserInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def in_child(function: str, threads: int, allocator: str, **arguments: Any) -> Any:
    """Result of ``module:function`` run in a fresh process.

    Args:
        function: such as ``benchmarks.mixer:times``; arguments and result pass through JSON.
        threads: of torch and of its libraries.
        allocator: ``default`` or ``retain``; see ``training/allocator.py``.

    Raises:
        UserInputError: the process failed; -9 means that the system killed it for its memory.
    """
    job = {
        "function": function,
        "threads": threads,
        "allocator": allocator,
        "arguments": arguments,
    }
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._child"],
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | limits | offline,
    )
    if done.returncode:
        raise UserInputError(
            f"benchmarks: {function} ended with status {done.returncode}, see above"
            + ("; this machine has too little memory for it." if done.returncode == -9 else ".")
        )
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------ output


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table whose columns line up, so that it reads as plain text too."""
    cells = [list(map(str, columns)), *([_cell(value) for value in row] for row in rows)]
    width = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(map(str.ljust, row, width)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in width) + "|")
    return "\n".join([title, "", *lines, ""])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def spread(seconds: dict[str, float]) -> str:
    """Smallest to largest, beside a median."""
    return f"{seconds['min']:.3g} to {seconds['max']:.3g}"


# -------------------------------------------------------------------------------- the machine


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on besides the code."""
    model, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},  # looks, and leaves the index alone
        capture_output=True,
        text=True,
    )
    return {
        "cpu": model,
        "cpu_flags": [flag for flag in _CPU_FLAGS if flag in flags],
        "cores": cores(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "revision": revision.stdout.strip() or "unknown",
    }


def where(machine_facts: dict[str, Any]) -> str:
    """One line on the machine."""
    flags = ", ".join(machine_facts["cpu_flags"])
    return (
        f"{machine_facts['cpu']} ({flags}), {machine_facts['cores']} cores, "
        f"{machine_facts['threads']} threads, torch {machine_facts['torch']}, revision "
        f"{machine_facts['revision']}, load before the run {machine_facts['load_before']}."
    )


def save(args: argparse.Namespace, started: float, results: dict[str, Any], text: str) -> None:
    """Print the tables and write both files; say where."""
    facts = machine(args.threads) | {"load_before": args.load_before}
    seconds = round(time.perf_counter() - started)
    text = f"{where(facts)}\n\n{text}"
    print(text)
    record = {"machine": facts, "quick": args.quick, "seconds": seconds, **results}
    args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    args.json.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"{seconds} s; written: {args.json} and {args.json.with_suffix('.md').name}")
