"""How long the command line takes to answer: help, mistakes, plans, reports, use of a model.

    python benchmarks/start_up.py [--repeats N] [--before CHECKOUT] [--run RUN_DIR]

CPU seconds of a whole process (user and system, the shortest of N), because other programs may be
running, and the number of modules that Python has loaded at its end, beside a process that only
imports torch. ``--before`` measures the same commands of another checkout of this repository in
turns, "-" where it has no such command. The use of a model is measured with a small one of random
weights, on one small scan; ``load`` is ``neuromamba.load`` in Python. ``--run`` adds ``neuromamba
report`` of a finished run, called once beforehand so that its baselines are kept. Files go to a
temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import ingest, use_a_model
from benchmarks._report import RESULTS, ROOT, in_child, run, save, table
from neuromamba.config.serialise import to_dict

SMALL = "--dataset_name Dummy --downstream_task sex --img_size 24 24 24 8 --embed_dim 32 --depth 2"
COMMANDS = (
    "--help",
    "train --help",
    "doctor --help",
    "regions train --help",
    "predict --help",
    "train --embed_dimm 3",
    "train --strategy dp",
    "train --dataset_name S1200 --image_path none",
    "train --load_model_path none.ckpt",
    "predict none.ckpt none.nii.gz -o out",
    "report none",
    f"train {SMALL} --accelerator cpu --dry_run",
    "doctor",
    "plan --embed_dim 256 --depth 12 --gpus 8 --gpu A100-80GB",
)
MODEL, SCAN, OUT = "MODEL", "SCAN", "OUT"
USES = (
    f"load {MODEL}",
    f"check {MODEL} {SCAN}",
    f"predict {MODEL} {SCAN} -o {OUT}",
    f"embed {MODEL} {SCAN} -o {OUT}",
)
_PROGRAM = """
import contextlib, io, json, resource, sys
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    try:
        if sys.argv[1:] == ["import torch"]:
            import torch
        elif sys.argv[1] == "load":
            import neuromamba
            neuromamba.load(sys.argv[2], device="cpu")
        else:
            from neuromamba.__main__ import main
            main(sys.argv[1:])
    except SystemExit:
        pass
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, len(sys.modules)]))
"""


def measure(checkout: Path, words: Sequence[str], folder: Path) -> tuple[float, int]:
    """CPU seconds and modules of one process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout / "project"),
        "NEUROMAMBA_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, modules = json.loads(done.stdout.splitlines()[-1])
    return seconds, modules


def knows(checkout: Path, words: Sequence[str]) -> bool:
    """Whether the checkout has the command; ``load`` came with ``predict``."""
    if words[0].startswith(("-", "import ")):
        return True
    name = "predict" if words[0] == "load" else words[0]
    if name == "regions":
        name = "_".join(words[:2])
    return (checkout / "project" / "neuromamba" / "commands" / f"{name}.py").is_file()


def write_model_and_scan(folder: Path) -> dict[str, str]:
    """A small model of random weights and a scan; word of ``USES`` -> path."""
    model, scan = folder / "model.ckpt", folder / "sub-01_bold.nii.gz"
    size = to_dict(use_a_model.SMALL)
    in_child("benchmarks.use_a_model:make_model", 1, "default", path=str(model), model=size)
    ingest.make_run(str(scan), list(use_a_model.SMALL_SOURCE), 40, "int16")
    return {MODEL: str(model), SCAN: str(scan)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it."""
    flags = argparse.ArgumentParser(prog="benchmarks/start_up.py", description=__doc__)
    flags.add_argument("--repeats", type=int, default=3, metavar="N")
    flags.add_argument("--before", type=Path, metavar="CHECKOUT")
    flags.add_argument("--run", type=Path, metavar="RUN_DIR")
    flags.add_argument("--quick", action="store_true", help="help of two commands, once")
    flags.add_argument("--json", type=Path, metavar="FILE", default=RESULTS / "start_up.json")
    args = flags.parse_args(argv)
    args.threads, args.load_before = 1, round(os.getloadavg()[0], 2)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    commands = [words.split() for words in (COMMANDS[:2] if args.quick else COMMANDS)]
    finished = None if args.run is None else str(args.run.resolve())
    if finished is not None:
        commands.append(["report", finished])
    commands.append(["import torch"])
    checkouts = {"now": ROOT} | ({"before": args.before} if args.before else {})
    started, calls = time.perf_counter(), 0
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        paths = {} if args.quick else write_model_and_scan(Path(name))
        commands += [] if args.quick else [words.split() for words in USES]
        for words in commands:
            able = {which: folder for which, folder in checkouts.items() if knows(folder, words)}
            found: dict[str, Any] = {which: [] for which in able}
            for turn in range((1 if args.quick else args.repeats) + 1):  # the first is a warm-up
                for which, checkout in able.items():
                    calls += 1
                    places = paths | {OUT: str(Path(name) / f"out{calls}")}  # a new one each time
                    one = measure(checkout, [places.get(w, w) for w in words], Path(name))
                    found[which] += [one] * (turn > 0)
            shown = " ".join("RUN" if word == finished else word for word in words)
            rows.append(
                {"command": shown}
                | {f"{w} seconds": min(s for s, _ in all_) for w, all_ in found.items()}
                | {f"{w} modules": max(m for _, m in all_) for w, all_ in found.items()}
            )
            print(f"   {shown}", file=sys.stderr, flush=True)
    columns = [f"{w} {what}" for w in reversed(checkouts) for what in ("seconds", "modules")]
    text = table(
        f"CPU seconds of a whole process (shortest of {args.repeats}), and modules at its end.",
        ["command", *columns],
        [[row["command"], *(row.get(column, "-") for column in columns)] for row in rows],
    )
    save(args, started, {"commands": rows}, text)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
