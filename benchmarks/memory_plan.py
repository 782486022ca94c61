"""Does ``neuromamba plan`` predict the memory that a training takes?

    python benchmarks/memory_plan.py [--cases NAME ...] [--allocator compact retain]
    python benchmarks/memory_plan.py --device cuda        # Small to Large on a GPU

Each case is a training by ``project/deepspeed_profile.py`` in fresh processes, on windows of noise
in the MNI152 brain mask. On a CPU the measured peak is ``VmHWM`` of the worst rank; predicted and
measured are both taken above those of the same command with a tiny model, so that what Python,
torch, Lightning and DeepSpeed take for themselves is in neither. On a GPU it is
``torch.cuda.max_memory_allocated``. Exit status 1 if a case is off by more than 15 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks._measure import ROOT
from benchmarks._report import RESULTS, cores, machine, run, table, where
from benchmarks.training_step import mni_store
from neuromamba.commands.profile import profile_parser
from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.flag_parser import parse_arguments
from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.run import Run
from neuromamba.fmamba.run_config import run_config
from neuromamba.planning.memory import Setting, model_weights, plan_memory
from neuromamba.planning.scaling import run_point
from neuromamba.planning.workload import read_workload

BOUND = 0.15
MEGA = 1e6
SECONDS = 1200.0  # of a training
NEXT = "--pretraining --use_autoregressive"
WINDOWS = 8  # of a subject
TINY_SIZE = (12, 12, 12, 4)
TINY = "--embed_dim 16 --depth 1 --d_state 4 --headdim 16 --img_size 12 12 12 4"


class Case(NamedTuple):
    """A training to predict.

    Attributes:
        flags: of ``project/main.py``, without data and device.
        ranks: processes.
    """

    flags: str
    ranks: int = 1

    @property
    def size(self) -> tuple[int, ...]:
        """X, Y, Z, T of its windows."""
        words = self.flags.split()
        at = len(words) - words[::-1].index("--img_size")  # the last one counts
        return tuple(map(int, words[at : at + 4]))


FULL = "--img_size 96 96 96 20"
# The four of the issue: they differ in size, batch, frames, checkpointing, precision, strategy.
CPU_CASES = {
    "small, fp32": Case(f"{NEXT} {FULL} --embed_dim 128 --batch_size 1"),
    "base, bf16, 2 windows of 40 frames": Case(
        f"{NEXT} --img_size 96 96 96 40 --embed_dim 192 --batch_size 2 --precision bf16"
    ),
    "medium, checkpointing, 3 windows of 10 frames": Case(
        f"{NEXT} --img_size 96 96 96 10 --embed_dim 256 --batch_size 3 --activation_checkpointing"
    ),
    "base, ZeRO-3 on 2 ranks": Case(
        f"{NEXT} {FULL} --embed_dim 192 --batch_size 1 --strategy deepspeed_stage_3", ranks=2
    ),
    # and some more
    "base, ZeRO-1 on 2 ranks, bf16 operands": Case(
        f"{NEXT} {FULL} --embed_dim 192 --batch_size 2 --strategy deepspeed_stage_1 "
        f"--precision bf16 --deepspeed_autocast",
        ranks=2,
    ),
    "base, masked tokens, SGD": Case(
        f"--pretraining --use_mim {FULL} --embed_dim 192 --batch_size 2 --optimizer SGD "
        f"--activation_checkpointing"
    ),
    "base, Mamba head, full": Case(
        f"--downstream_task sex --clf_head_version mamba {FULL} --embed_dim 192 --batch_size 1"
    ),
    "medium, Mamba head, frozen": Case(
        f"--downstream_task sex --clf_head_version mamba {FULL} --embed_dim 256 --batch_size 2 "
        f"--freeze_feature_extractor"
    ),
    "large, dropout": Case(
        f"{NEXT} --img_size 96 96 96 8 --embed_dim 384 --batch_size 1 --dropout 0.1"
    ),
}
QUICK = {
    "quick": Case(f"{NEXT} --img_size 48 48 48 20 --embed_dim 192 --depth 5 --batch_size 6"),
}
GPU_SIZES = {"small": 3, "base": 3, "medium": 3, "large": 2}  # micro batches of the paper


def gpu_cases() -> dict[str, Case]:
    """Small to Large in bf16, and Base with checkpointing and in fp32."""
    cases = {
        size: Case(f"--config configs/neuromamba_{size}.yaml {NEXT} {FULL} --precision bf16")
        for size in GPU_SIZES
    }
    base = f"--config configs/neuromamba_base.yaml {NEXT} {FULL}"
    cases["base, checkpointing"] = Case(f"{base} --precision bf16 --activation_checkpointing")
    cases["base, fp32"] = Case(f"{base} --precision 32 --batch_size 1")
    return cases


def command_line(case: Case, store: Path, device: str) -> list[str]:
    """Flags of the training of a case."""
    data = (
        f"--dataset_name Dummy --image_path {store} --train_split 0.6 --val_split 0 "
        f"--stride_between_seq {1 / case.size[3]} --patch_size 6 6 6 2"
    )
    where_to = f"--accelerator {device} --devices {case.ranks}"
    return [*data.split(), *where_to.split(), *case.flags.split()]


def predicted(flags: Sequence[str]) -> dict[str, int]:
    """Bytes of a rank by name, as ``doctor plan`` has them."""
    config = run_config(*parse_arguments(profile_parser(), flags))
    hardware = Run(config).hardware
    work = read_workload(config.model, config.data)
    setting = Setting(
        accelerator=hardware.accelerator,
        strategy=hardware.strategy,
        precision=hardware.precision,
        ranks=hardware.ranks,
        autocast=hardware.autocast,
    )
    plan = plan_memory(config, setting, model_weights(config), work.most_tokens, work.most_voxels)
    return plan.device


def measured(flags: Sequence[str], ranks: int, threads: int) -> dict[str, int]:
    """Peak of the worst rank of a training in fresh processes.

    Raises:
        UserInputError: it failed.
    """
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    program = [*launcher, str(ROOT / "project" / "deepspeed_profile.py"), *flags]
    # The second step is the first with the optimiser's state, and the peak of all.
    batches = ["--warm_up_batches", "1", "--profile_batches", "1"]
    found = run_point([*program, *batches], SECONDS, {"OMP_NUM_THREADS": str(threads)})
    if "failed" in found:
        raise UserInputError(f"benchmarks: a training failed: {found['failed']}")
    memory: dict[str, int] = found["memory"]
    return memory


def store_for(size: tuple[int, ...], folder: Path) -> Path:
    """A store with enough windows of a size; kept for the next case."""
    path = folder / "x".join(map(str, size))
    if not path.exists():
        mni_store(path, ModelConfig(img_size=size), WINDOWS, SUBJECTS)
        write_labels(path)
    return path


SUBJECTS = tuple(f"sub-{i:02d}" for i in range(1, 9))


def write_labels(store: Path) -> None:
    """A table with both sexes, for the downstream cases."""
    (store / "metadata").mkdir(exist_ok=True)
    rows = [f"{name},{'FM'[i % 2]}" for i, name in enumerate(SUBJECTS)]
    text = "\n".join(["subject,sex", *rows]) + "\n"
    (store / "metadata" / "participants.csv").write_text(text, encoding="utf-8")


def compare(name: str, case: Case, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Predicted and measured bytes of a case."""
    flags = command_line(case, store_for(case.size, folder), args.device)
    expected = predicted(flags)
    row: dict[str, Any] = {"case": name, "ranks": case.ranks, "groups": expected}
    if args.device == "cuda":
        row["predicted"] = sum(expected.values())
        row["measured"] = measured(flags, case.ranks, args.threads)["device"]
        row["error"] = row["predicted"] / row["measured"] - 1
        return row
    tiny = Case(f"{case.flags} {TINY}", case.ranks)
    tiny_flags = command_line(tiny, store_for(TINY_SIZE, folder), args.device)
    row["predicted"] = sum(expected.values()) - sum(predicted(tiny_flags).values())
    first = ["--allocator", args.allocator[0]]
    row["process"] = measured([*tiny_flags, *first], case.ranks, args.threads)["host"]
    for allocator in args.allocator:
        peak = measured([*flags, "--allocator", allocator], case.ranks, args.threads)["host"]
        row[allocator] = {"measured": peak - row["process"]}
    row["error"] = row["predicted"] / row[args.allocator[0]]["measured"] - 1
    return row


def report(rows: Sequence[dict[str, Any]], device: str, allocators: Sequence[str]) -> str:
    """The comparison as a table."""
    if device == "cuda":
        title = "Peak memory of a training on the GPU, MB: predicted, max_memory_allocated."
        cells = [
            [row["case"], row["predicted"] / MEGA, row["measured"] / MEGA, f"{row['error']:+.1%}"]
            for row in rows
        ]
        return table(title, ["case", "predicted", "measured", "error"], cells)
    title = (
        "Peak memory of a rank on a CPU, MB above the same command with a tiny model: predicted,\n"
        "and measured (VmHWM) with each --allocator; error against the first of them."
    )
    lines = []
    for row in rows:
        line = [row["case"], row["predicted"] / MEGA]
        line += [row[allocator]["measured"] / MEGA for allocator in allocators]
        lines.append([*line, f"{row['error']:+.1%}", row["process"] / MEGA])
    columns = ["case", "predicted", *allocators, "error", "process itself"]
    return table(title, columns, lines)


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/memory_plan.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="default: all of the device")
    parser.add_argument("--quick", action="store_true", help="one small case")
    parser.add_argument("--threads", type=int, default=cores(), metavar="N")
    parser.add_argument(
        "--allocator",
        nargs="+",
        choices=["compact", "default", "retain"],
        default=["compact", "retain"],
        help="of the trainings on a CPU; the first is compared with (default: %(default)s)",
    )
    parser.add_argument(
        "--budget", type=float, default=float("inf"), help="begin no case after these seconds"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: benchmarks/results/")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = flags().parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserInputError("--device cuda: torch sees no CUDA GPU here.")
    cases = QUICK if args.quick else gpu_cases() if args.device == "cuda" else CPU_CASES
    chosen = [look_up(name, cases, "--cases") for name in args.cases or cases]
    name = "memory_plan" if args.device == "cpu" else f"memory_plan_{args.device}"
    path = args.json or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = machine(args.threads) | {"load_before": round(os.getloadavg()[0], 2)}
    started, rows, skipped = time.monotonic(), [], []
    with tempfile.TemporaryDirectory() as scratch:
        for case in chosen:
            if time.monotonic() - started > args.budget:
                skipped.append(case)
                continue
            print(f"   {case}", file=sys.stderr, flush=True)
            rows.append(compare(case, cases[case], args, Path(scratch)))
            print(f"   {rows[-1]['error']:+.1%}", file=sys.stderr, flush=True)
    if not rows:
        raise UserInputError("--budget: no case was measured.")
    text = f"{where(facts)}\n\n{report(rows, args.device, args.allocator)}"
    if skipped:
        text += f"\nNot measured for lack of time: {', '.join(skipped)}.\n"
    print(text)
    record = {"machine": facts, "seconds": round(time.monotonic() - started), "cases": rows}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    worst = max(rows, key=lambda row: abs(row["error"]))
    if abs(worst["error"]) > BOUND:
        print(
            f"error: {worst['case']}: off by {worst['error']:+.1%}, more than {BOUND:.0%}.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
