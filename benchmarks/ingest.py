"""Converting one run of 91 x 109 x 91 x 400, beside the steps of SwiFT and of NeuroSTORM.

    python benchmarks/ingest.py [--quick] [--frames N] [--repeats N] [--json FILE]

All start from one ``.nii.gz`` in MNI space (float32, a head of noise, zeros around it) and end with
files that their loaders read. ``ours`` is the command ``preprocessing.py`` with one process.
``swift`` loads the run with ``get_fdata``, standardises the nonzero voxels, fills the background
with the minimum and saves a ``.pt`` of fp16 for each frame. ``neurostorm`` does the same and saves
one int8 array. Each runs in a process of its own, in turns; time and peak memory are the process's,
start included. The peers need about 12 GB for 400 frames.
"""

from __future__ import annotations

import argparse
import os
import re
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

import nibabel
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CONTENDERS = ("ours", "swift", "neurostorm")
SHAPE, QUICK_SHAPE = (91, 109, 91), (46, 55, 46)
TARGETS = {"swift": 8.0, "neurostorm": 5.0}  # times as fast
LARGEST_MB = 400.0


def write_run(path: Path, shape: tuple[int, int, int], frames: int) -> None:
    """A run in MNI space whose values pack as badly as real ones."""
    mm = 182 / shape[0]
    affine = np.diag([-mm, mm, mm, 1.0])
    affine[:3, 3] = 91 - mm / 2, -127 + mm / 2, -73 + mm / 2
    header = nibabel.Nifti1Header()
    header.set_data_shape((*shape, frames))
    header.set_data_dtype(np.float32)
    header.set_sform(affine, 4)
    header["pixdim"][4] = 0.72
    header["vox_offset"], header["magic"] = 352, b"n+1"
    x, y, z = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    brain = x**2 + y**2 + z**2 < 0.62
    rng = np.random.default_rng(0)
    level = rng.uniform(5000, 12000, size=shape).astype(np.float32)
    from isal import igzip

    with igzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + bytes(4))
        for _ in range(frames):
            noise = rng.standard_normal(shape, dtype=np.float32)
            stream.write((brain * level * (1 + np.float32(0.01) * noise)).tobytes(order="F"))


def standardised(path: Path) -> np.ndarray:
    """The peers' steps: float64 [X, Y, Z, T], background at the minimum."""
    values = nibabel.Nifti1Image.from_filename(path).get_fdata()
    background = values == 0
    brain = values[~background]
    scaled = (values - brain.mean()) / brain.std()
    scaled[background] = scaled[~background].min()
    return np.asarray(scaled)


def convert(contender: str, source: Path, target: Path) -> None:
    """What a contender does, in this process."""
    if contender == "ours":
        from project.module.utils.data_preprocess_and_load import preprocessing

        flags = ["--input", str(source.parent), "--output", str(target), "--num_workers", "1"]
        status = preprocessing.main(flags)
        assert status == 0, status
        return
    target.mkdir()
    if contender == "swift":
        import torch

        frames = torch.from_numpy(standardised(source)).to(torch.float16)
        for t in range(frames.shape[-1]):
            torch.save(frames[..., t : t + 1].clone(), target / f"frame_{t}.pt")
    else:
        scaled = standardised(source)
        low, high = scaled.min(), scaled.max()
        integers = np.rint((scaled - low) / (high - low) * 255 - 128).astype(np.int8)
        np.save(target / "run.npy", np.moveaxis(integers, -1, 0))


def peak_memory() -> float:
    """Of this process, in MB; ``ru_maxrss`` would start at the parent's."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024 / 1e6


def in_child(contender: str, source: Path, folder: Path) -> tuple[float, float]:
    """Seconds and peak MB of a contender in a fresh process."""
    with tempfile.TemporaryDirectory(dir=folder) as target:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", contender]
        command += [str(source), str(Path(target) / "out")]
        start = time.perf_counter()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
        return time.perf_counter() - start, float(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the tables; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--child"]:
        contender, source, target = arguments[1:]
        convert(contender, Path(source), Path(target))
        print(peak_memory())
        return 0
    # Not above: these bring torch along, which would count as memory of every contender.
    from benchmarks import _report
    from benchmarks._measure import progress

    parser = argparse.ArgumentParser(prog="benchmarks/ingest.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it work at all?")
    parser.add_argument("--frames", type=int, default=400, metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="for the files; default: /tmp")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "ingest.json"
    )
    args = parser.parse_args(arguments)
    args.threads, args.load_before = 1, round(os.getloadavg()[0], 2)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    shape, frames = (QUICK_SHAPE, 10) if args.quick else (SHAPE, args.frames)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source = Path(folder) / "in" / "sub-01_bold.nii.gz"
        source.parent.mkdir()
        write_run(source, shape, frames)
        for turn in range(1 if args.quick else args.repeats):
            for name in CONTENDERS[turn % 3 :] + CONTENDERS[: turn % 3]:
                progress(f"{name}, round {turn + 1}")
                found[name].append(in_child(name, source, Path(folder)))
    rows = {
        name: {
            "seconds": statistics.median(seconds for seconds, _ in runs),
            "min": min(seconds for seconds, _ in runs),
            "max": max(seconds for seconds, _ in runs),
            "peak_mb": max(peak for _, peak in runs),
        }
        for name, runs in found.items()
    }
    _report.save(args, started, {"shape": [*shape, frames], "rows": rows}, text(rows, args.quick))
    return 0


def text(rows: dict[str, dict[str, Any]], quick: bool) -> str:
    """The table, and whether the targets are met."""
    from benchmarks import _report

    ours = rows["ours"]
    table = _report.table(
        "Converting one run: seconds (median, smallest to largest), peak memory in MB, and how "
        "many times as fast ours is.",
        ("contender", "seconds", "range", "peak MB", "ours is faster by"),
        [
            (name, r["seconds"], _report.spread(r), r["peak_mb"], r["seconds"] / ours["seconds"])
            for name, r in rows.items()
        ],
    )
    if quick:
        return table
    lines = [
        f"- {name}: at least {target:g} times as fast: "
        f"{'met' if rows[name]['seconds'] >= target * ours['seconds'] else 'not met'}"
        for name, target in TARGETS.items()
    ]
    met = "met" if ours["peak_mb"] < LARGEST_MB else "not met"
    return "\n".join([table, *lines, f"- below {LARGEST_MB:g} MB: {met}", ""])


if __name__ == "__main__":
    sys.exit(main())
