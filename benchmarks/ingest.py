"""How fast a NIfTI run becomes training data, beside the steps of SwiFT and NeuroSTORM.

    python benchmarks/ingest.py [--frames 400] [--dtype int16 float32]

Each contender converts the same 91 x 109 x 91 run (``.nii.gz``) to a grid of 96 x 96 x 96, in a
process of its own, in turns. Prints a table of wall time and peak memory and writes it with the
figures (``--json``).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nibabel
import numpy as np

from benchmarks import _peer_formats as peers
from benchmarks._measure import progress, resident
from benchmarks._report import in_child, parser, prepare, run, save, table

SWIFT, INT8, OURS = "SwiFT", "NeuroSTORM", "ours"
TARGETS = {SWIFT: 8.0, INT8: 5.0}  # their time over ours (issue "Data")
TARGET_MB = 400.0  # peak memory of ours
SOURCE, GRID = (91, 109, 91), (96, 96, 96)
QUICK_FRAMES = 40


# Contenders: a file and an empty folder in, the converted run in the folder out.


def swift(nifti: Path, folder: Path, grid: tuple[int, ...]) -> None:
    """The whole run in memory, z-scored, one fp16 file for each frame."""
    peers.write_swift(nifti, folder / "run", grid)


def int8(nifti: Path, folder: Path, grid: tuple[int, ...]) -> None:
    """The same, as one int8 array; T last, which saves the transposition."""
    peers.write_int8(nifti, folder / "run", grid, time_first=False)


def ours(nifti: Path, folder: Path, grid: tuple[int, ...]) -> None:
    """``preprocessing.py`` with one process and its defaults, as a user calls it."""
    from neuromamba.commands.preprocess import main as preprocess

    size = " ".join(map(str, grid))
    command = f"--input {nifti.parent} --output {folder} --img_size {size} --num_workers 1"
    status = preprocess(command.split())
    assert status == 0, status


CONTENDERS: dict[str, Callable[[Path, Path, tuple[int, ...]], None]] = {
    SWIFT: swift,
    INT8: int8,
    OURS: ours,
}


def make_run(path: str, shape: list[int], frames: int, dtype: str) -> dict[str, float]:
    """Child: a run with anatomy, slow and fast noise in an ellipsoid; background 0."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1.15, 1.15, n) for n in shape), indexing="ij")
    mask = sum(axis**2 for axis in axes) <= 1
    anatomy = rng.uniform(4000, 9000, int(mask.sum()))
    volumes = np.zeros((*shape, frames), dtype)
    for t in range(frames):
        values = anatomy * (1 + 0.01 * np.sin(t / 9)) + rng.normal(0, 150, len(anatomy))
        volumes[mask, t] = np.rint(values) if dtype == "int16" else values
    voxel = 182 / shape[0]  # mm; the field of view of the 2 mm grid, also for tests
    image = nibabel.Nifti1Image(volumes, peers.mni_affine(shape, voxel))
    image.header.set_zooms((voxel, voxel, voxel, 0.72))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    return {"mb": Path(path).stat().st_size / 1e6, "brain_voxels": int(mask.sum())}


def convert(contender: str, nifti: str, scratch: str, grid: list[int]) -> dict[str, float]:
    """Child: seconds and peak memory of one conversion."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        start = time.perf_counter()
        CONTENDERS[contender](Path(nifti), Path(folder), tuple(grid))
        seconds = time.perf_counter() - start
        size = peers.size_on_disk(Path(folder))
    return {"seconds": seconds, "peak_mb": resident("VmHWM") / 1e6, "mb": size / 1e6}


def measured(args: argparse.Namespace, dtype: str, scratch: str) -> dict[str, Any]:
    """All contenders on a run of one type, in turns."""
    shape, grid = (SOURCE, GRID) if not args.tiny else ((22, 26, 22), (24, 24, 24))
    nifti = Path(scratch) / dtype / "sub-01_task-rest_bold.nii.gz"
    nifti.parent.mkdir()
    progress(f"write {nifti.name} as {dtype}")
    facts = in_child(
        "benchmarks.ingest:make_run",
        args.threads,
        "default",
        path=str(nifti),
        shape=list(shape),
        frames=args.frames,
        dtype=dtype,
    )
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    names = list(CONTENDERS)
    for turn in range(args.repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            progress(f"{dtype}, {name}, {turn + 1} of {args.repeats}")
            found = in_child(
                "benchmarks.ingest:convert",
                args.threads,
                "default",
                contender=name,
                nifti=str(nifti),
                scratch=scratch,
                grid=list(grid),
            )
            spent[name].append(found)
    nifti.unlink()
    contenders = {
        name: {
            "seconds": statistics.median(row["seconds"] for row in rows),
            "min": min(row["seconds"] for row in rows),
            "max": max(row["seconds"] for row in rows),
            "peak_mb": max(row["peak_mb"] for row in rows),
            "mb": rows[0]["mb"],
        }
        for name, rows in spent.items()
    }
    fast = contenders[OURS]["seconds"]
    ratios = {name: contenders[name]["seconds"] / fast for name in TARGETS}
    return {"dtype": dtype, "source": facts, "contenders": contenders, "ratios": ratios}


def report(rows: list[dict[str, Any]], frames: int) -> str:
    """A table for each type, with what was set out to be reached."""
    parts = []
    for row in rows:
        lines = [
            [
                name,
                found["seconds"],
                f"{found['min']:.3g} to {found['max']:.3g}",
                found["seconds"] / row["contenders"][OURS]["seconds"],
                found["peak_mb"],
                found["mb"],
            ]
            for name, found in row["contenders"].items()
        ]
        title = (
            f"One run of {frames} frames, {row['dtype']} ({row['source']['mb']:.0f} MB .nii.gz, "
            f"{row['source']['brain_voxels']:,} brain voxels), a process each."
        )
        columns = ["steps of", "seconds", "from, to", "x ours", "peak memory, MB", "written, MB"]
        parts.append(table(title, columns, lines))
        reached = ", ".join(
            f"{factor:g} x {name}: {row['ratios'][name]:.1f}" for name, factor in TARGETS.items()
        )
        peak = row["contenders"][OURS]["peak_mb"]
        parts.append(f"Targets: {reached}; peak below {TARGET_MB:.0f} MB: {peak:.0f}.\n")
    return "\n".join(parts)


def flags() -> argparse.ArgumentParser:
    """The flags of every benchmark, and what is particular to this one."""
    found = parser("ingest", __doc__, repeats=3)
    found.add_argument("--frames", type=int, default=400)
    found.add_argument(
        "--dtype", nargs="+", choices=["int16", "float32"], default=["int16", "float32"]
    )
    found.add_argument("--scratch", metavar="DIR", help="where the runs are written (8 GB)")
    found.add_argument("--tiny", action="store_true", help="a grid of 24 x 24 x 24, for tests")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = flags().parse_args(argv)
    prepare(args)
    started = time.perf_counter()
    if args.quick:
        args.frames = QUICK_FRAMES
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        rows = [measured(args, dtype, scratch) for dtype in args.dtype]
    results = {"frames": args.frames, "grid": list(GRID), "rows": rows}
    save(args, started, results, report(rows, args.frames))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
