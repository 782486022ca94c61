"""Time and memory of a trained model on one scan, and what many scans in one call save.

    python benchmarks/use_a_model.py [--frames 200] [--scans 20]

Each command is a process of its own, as a user types it: predict, embed and check on one run of
91 x 109 x 91 voxels with a model of the size of --config, whose weights are random. Then many
scans of a small model, in one call and in as many calls. Prints tables and writes them with the
figures (``--json``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import ingest
from benchmarks._measure import ROOT, progress
from benchmarks._report import in_child, parser, prepare, run, save, table
from neuromamba.config.model import ModelConfig
from neuromamba.config.serialise import to_dict

TARGET_SECONDS, TARGET_MB = 60.0, 2000.0  # issue "Use it", on a quiet machine
SOURCE = (91, 109, 91)
SMALL = ModelConfig(img_size=(24, 24, 24, 20), embed_dim=64, depth=2)
SMALL_SOURCE = (22, 26, 22)


def make_model(path: str, model: dict[str, Any]) -> dict[str, int]:
    """Child: a checkpoint of a classification with random weights."""
    from neuromamba.config.data import DataConfig
    from neuromamba.config.model import HeadConfig
    from neuromamba.config.serialise import from_dict
    from neuromamba.config.training import DownstreamConfig, OptimConfig
    from neuromamba.fmamba.downstream import DownstreamModule

    config = from_dict(ModelConfig, model, "benchmark")
    data = DataConfig(
        dataset_name=("Dummy",),
        image_path=("",),
        grid=config.img_size[:3],
        sequence_length=config.img_size[3],
        input_scaling_method="voxelnorm_zeroback",
    )
    torch.manual_seed(0)
    module = DownstreamModule(
        model=config,
        head=HeadConfig(out_features=2),
        task=DownstreamConfig(task="sex"),
        optim=OptimConfig(),
        total_steps=1,
        data_metadata={"config": to_dict(data), "scaling": data.input_scaling_method, "tr": [0.72]},
    )
    contents: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(contents)
    torch.save(contents, path)
    return {"parameters": sum(weight.numel() for weight in module.parameters())}


def timed(command: Sequence[str], threads: int) -> dict[str, float]:
    """Wall time, CPU time and peak memory of a command in a process of its own."""
    program = (
        "import json, resource, subprocess, sys, time\n"
        "start = time.perf_counter()\n"
        "status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, "
        "stderr=subprocess.DEVNULL).returncode\n"
        "use = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([status, time.perf_counter() - start, use.ru_utime + use.ru_stime, "
        "use.ru_maxrss]))"
    )
    environ = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT / "project")}
    done = subprocess.run(
        [sys.executable, "-c", program, sys.executable, "-m", "neuromamba", *command],
        capture_output=True,
        text=True,
        check=True,
        env=environ,
    )
    status, seconds, cpu, peak = json.loads(done.stdout)
    assert status == 0, (command, status)
    return {"seconds": seconds, "cpu": cpu, "peak_mb": peak / 1e3}


def loading(path: str) -> dict[str, float]:
    """Child: seconds of ``neuromamba.load`` after torch is imported."""
    start = time.perf_counter()
    import neuromamba

    neuromamba.load(path, device="cpu")
    return {"seconds": time.perf_counter() - start}


def one_scan(args: argparse.Namespace, folder: Path, model: ModelConfig) -> dict[str, Any]:
    """Commands on one run of the usual size."""
    scan, checkpoint = folder / "one_bold.nii.gz", folder / "model.ckpt"
    shape = SMALL_SOURCE if args.quick else SOURCE
    progress("write the run and the model")
    facts = in_child(
        "benchmarks.ingest:make_run",
        args.threads,
        "default",
        path=str(scan),
        shape=list(shape),
        frames=args.frames,
        dtype="int16",
    )
    facts |= in_child(
        "benchmarks.use_a_model:make_model",
        args.threads,
        "default",
        path=str(checkpoint),
        model=to_dict(model),
    )
    load = [
        in_child("benchmarks.use_a_model:loading", args.threads, "default", path=str(checkpoint))[
            "seconds"
        ]
        for _ in range(args.repeats)
    ]
    commands = {
        "check": ["check", str(checkpoint), str(scan)],
        "predict": ["predict", str(checkpoint), str(scan), "-o"],
        "embed": ["embed", str(checkpoint), str(scan), "-o"],
    }
    found = {}
    for name, words in commands.items():
        spent = []
        for turn in range(args.repeats):
            progress(f"{name}, {turn + 1} of {args.repeats}")
            output = [str(folder / f"{name}{turn}")] if words[-1] == "-o" else []
            spent.append(timed([*words, *output], args.threads))
        found[name] = {
            "seconds": statistics.median(one["seconds"] for one in spent),
            "min": min(one["seconds"] for one in spent),
            "max": max(one["seconds"] for one in spent),
            "cpu": statistics.median(one["cpu"] for one in spent),
            "peak_mb": max(one["peak_mb"] for one in spent),
        }
    return {"source": facts, "load": statistics.median(load), "commands": found}


def many_scans(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Small scans in one call, and in a call for each."""
    checkpoint = folder / "small.ckpt"
    in_child(
        "benchmarks.use_a_model:make_model",
        args.threads,
        "default",
        path=str(checkpoint),
        model=to_dict(SMALL),
    )
    scans = []
    for number in range(args.scans):
        scans.append(folder / f"sub-{number:02d}_bold.nii.gz")
        ingest.make_run(str(scans[-1]), list(SMALL_SOURCE), 40, "int16")
    together = timed(
        ["predict", str(checkpoint), *map(str, scans), "-o", str(folder / "together")],
        args.threads,
    )
    apart = [
        timed(
            ["predict", str(checkpoint), str(scan), "-o", str(folder / f"apart{number}")],
            args.threads,
        )
        for number, scan in enumerate(scans)
    ]
    return {
        "together": together["seconds"],
        "apart": sum(one["seconds"] for one in apart),
        "together_cpu": together["cpu"],
        "apart_cpu": sum(one["cpu"] for one in apart),
    }


def report(args: argparse.Namespace, one: dict[str, Any], many: dict[str, float]) -> str:
    """Two tables, with what was set out to be reached."""
    title = (
        f"One run of {args.frames} frames ({one['source']['mb']:.0f} MB .nii.gz, "
        f"{one['source']['brain_voxels']:,} brain voxels), a model of "
        f"{one['source']['parameters']:,} parameters; a process each, torch's import included."
    )
    lines = [
        [name, row["seconds"], f"{row['min']:.3g} to {row['max']:.3g}", row["cpu"], row["peak_mb"]]
        for name, row in one["commands"].items()
    ]
    columns = ["command", "seconds", "from, to", "CPU seconds", "peak memory, MB"]
    parts = [table(title, columns, lines)]
    parts.append(
        f"Set out to reach: {TARGET_SECONDS:.0f} s and {TARGET_MB:.0f} MB on a quiet machine. "
        f"`neuromamba.load` after torch's import: {one['load']:.2f} s.\n"
    )
    lines = [
        [f"{args.scans} scans in one call", many["together"], many["together_cpu"]],
        [f"{args.scans} calls", many["apart"], many["apart_cpu"]],
    ]
    ratio = many["apart_cpu"] / many["together_cpu"]
    title = "Many small scans, a small model."
    parts.append(table(title, ["predict", "seconds", "CPU seconds"], lines))
    parts.append(f"One call takes 1 / {ratio:.1f} of the CPU time of the calls.\n")
    return "\n".join(parts)


def flags() -> argparse.ArgumentParser:
    """The flags of every benchmark, and what is particular to this one."""
    found = parser("use_a_model", __doc__, repeats=1)
    found.add_argument("--frames", type=int, default=200)
    found.add_argument("--scans", type=int, default=20, help="small ones")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = flags().parse_args(argv)
    model = prepare(args)
    started = time.perf_counter()
    if args.quick:
        args.frames, args.scans, model = 40, 2, SMALL
    with tempfile.TemporaryDirectory() as name:
        one = one_scan(args, Path(name), model)
        many = many_scans(args, Path(name))
    save(args, started, {"one": one, "many": many}, report(args, one, many))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
