"""CPU time of training steps: this checkout, another one, and SwiFT, in turns.

    python benchmarks/cpu_steps.py [--before FOLDER] [--quick] [--threads N] [--repeats N]

``--before`` is another checkout (``git worktree add FOLDER COMMIT``, then ``neuromamba
build-kernels`` in it). Each case runs in processes of its own, checkouts in turns, ``--rounds``
times; the shortest step of all rounds counts (a step of many seconds is done once). CPU seconds of
all threads are measured and not the clock, so that other programs disturb little. fp32, where a
case does not name bf16, which is what ``--precision bf16`` does on the processor.

The share is the rate of a step's matrix products (torch's FlopCounterMode) over that of products of
2,048 squared alone in the same process: how much is left to gain without computing less. Chunks of
the scan count as full squares, so a share a little above 1 is possible for forward passes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._measure import ROOT, progress
from benchmarks._report import parser, prepare, run, save, table
from neuromamba.common.errors import UserInputError

# Name -> case of ``_cpu_steps.py``.
CASES: dict[str, list[Any]] = {
    "demo: 2 blocks of width 64, 4 windows of 984 tokens": ["blocks", 64, 2, 4, 984],
    "4 blocks of width 64, 3,000 tokens": ["blocks", 64, 4, 1, 3000],
    "4 blocks of width 32, 500 tokens": ["blocks", 32, 4, 1, 500],
    "4 blocks of width 128, 5,000 tokens": ["blocks", 128, 4, 1, 5000],
    "NeuroSSM, paper, 32 crops": ["neurossm", "paper", 32],
    "NeuroSSM, robust, 32 crops": ["neurossm", "robust", 32],
    "NeuroSSM, paper, an epoch of 620 scans": ["epoch", "paper", 620],
    "FMamba Base, 14,810 tokens": ["backbone", "fmamba", 14_810],
    "FMamba Base, 21,900 tokens": ["backbone", "fmamba", 21_900],
    "SwiFT, 96 x 96 x 96 x 20": ["backbone", "swift", 0],
    "fine-tuning, Mamba head, 14,810 tokens": ["fine_tuning", "mamba", 14_810],
    "fine-tuning, Mamba head, 2,048 tokens": ["fine_tuning", "mamba", 2_048],
    "FMamba Base, 14,810 tokens, bf16": ["in_bf16", "backbone", "fmamba", 14_810],
    "FMamba Base, 21,900 tokens, bf16": ["in_bf16", "backbone", "fmamba", 21_900],
    "NeuroSSM, paper, an epoch of 620 scans, bf16": ["in_bf16", "epoch", "paper", 620],
    "FMamba Base, 14,810 tokens, forward alone": ["backbone", "fmamba", 14_810, True],
    "FMamba Base, 21,900 tokens, forward alone": ["backbone", "fmamba", 21_900, True],
    "SwiFT, forward alone": ["backbone", "swift", 0, True],
}
QUICK_CASES: dict[str, list[Any]] = {
    "blocks": ["blocks", 32, 1, 2, 70],
    "fine-tuning": ["fine_tuning", "mamba", 50],
    "forward alone": ["backbone", "fmamba", 100, True],
    "NeuroSSM": ["neurossm", "robust", 2],
    "blocks, bf16": ["in_bf16", "blocks", 32, 1, 2, 70],
    "an epoch, bf16": ["in_bf16", "epoch", "robust", 4],
    "an epoch": ["epoch", "robust", 4],
}


def measured(checkout: Path, case: list[Any], threads: int, repeats: int) -> dict[str, Any]:
    """What ``_cpu_steps.py`` prints for a case computed by a checkout.

    Raises:
        UserInputError: the process failed.
    """
    here = Path(__file__).with_name("_cpu_steps.py")
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    done = subprocess.run(
        [sys.executable, str(here), json.dumps(case), str(threads), str(repeats)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | limits | {"PYTHONPATH": str(checkout / "project")},
    )
    if done.returncode:
        raise UserInputError(f"benchmarks: {case} failed with the code of {checkout}; see above.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def share_of_products(runs: list[dict[str, Any]]) -> float | None:
    """The rate of the steps' products over that of products alone, the best of both."""
    if not runs or runs[0]["flops"] is None:
        return None
    fastest = min(second for run in runs for second in run["seconds"])
    share: float = runs[0]["flops"] / fastest / max(run["rate"] for run in runs)
    return share


def revision_of(checkout: Path) -> str:
    """What the checkout holds.

    Raises:
        UserInputError: it is none.
    """
    if not (checkout / "project" / "neuromamba").is_dir():
        raise UserInputError(f"--before: {checkout} holds no project/neuromamba; name a checkout.")
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=checkout, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it."""
    flags = parser("cpu_steps", __doc__ or "", repeats=3)
    flags.add_argument("--before", type=Path, metavar="FOLDER", help="another checkout")
    flags.add_argument("--rounds", type=int, default=2, metavar="N", help="default: %(default)s")
    args = flags.parse_args(argv)
    prepare(args)
    checkouts = {"now": ROOT}
    if args.before is not None:
        checkouts = {"before": args.before.resolve(), **checkouts}
    revisions = {name: revision_of(folder) for name, folder in checkouts.items()}
    started, rows = time.perf_counter(), {}
    for name, case in (QUICK_CASES if args.quick else CASES).items():
        found: dict[str, list[dict[str, Any]]] = {}
        for turn in range(1 if args.quick else args.rounds):
            for which, folder in checkouts.items():
                progress(f"{name}: {which}, round {turn + 1}")
                one = measured(folder, case, args.threads, args.repeats)
                if one["seconds"]:
                    found.setdefault(which, []).append(one)
        rows[name] = {}
        for which, runs in found.items():
            steps = [second for one in runs for second in one["seconds"]]
            rows[name][which] = {"min": min(steps), "max": max(steps)}
        rows[name]["now"]["share"] = share_of_products(found["now"])
    lines = []
    for name, row in rows.items():
        now, before = row["now"], row.get("before")
        lines.append(
            [
                name,
                "-" if before is None else 1e3 * before["min"],
                1e3 * now["min"],
                "-" if before is None else f"{before['min'] / now['min']:.2f}x",
                "-" if before is None else f"{1e3 * before['max']:.0f}",
                f"{1e3 * now['max']:.0f}",
                "-" if now["share"] is None else f"{now['share']:.2f}",
            ]
        )
    compared = f"; before: revision {revisions['before']}" if "before" in revisions else ""
    text = table(
        f"CPU time of a training step (forward, backward; NeuroSSM: with AdamW) or of a forward\n"
        f"pass{compared}. fp32 unless bf16 is named.\n"
        f"Milliseconds, the shortest of all steps, how many times as fast, the longest, and the\n"
        f"rate of the step's matrix products over that of fp32 products alone.",
        ["case", "before", "now", "before/now", "longest before", "longest now", "share"],
        lines,
    )
    save(args, started, {"revisions": revisions, "steps": rows}, text)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
