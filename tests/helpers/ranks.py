"""Several processes on the CPU: torchrun, a store of uneven runs, many command lines at once."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from neuromamba.data.store.header import RunSource
from neuromamba.data.store.writer import write_run
from tests.helpers.paths import ROOT
from tests.helpers.preloaded import preloaded_python

PROGRAM = Path(__file__).with_name("ranks_program.py")
ZERO = ("deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3")
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not HAS_DEEPSPEED, reason="DeepSpeed is not installed")
SUBJECTS = 19  # 11 or 12 to train on: no number of ranks divides all parts


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder made by the first test process that asks for it; the others wait for it."""
    workers = "PYTEST_XDIST_WORKER" in os.environ
    root = factory.getbasetemp().parent if workers else factory.getbasetemp()
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        if not (folder / "made").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / "made").touch()
    return folder


def write_uneven_store(root: Path) -> None:
    """Runs that keep 1 to 8 of 8 patches: token counts differ from batch to batch and by rank."""
    (root / "metadata").mkdir()
    (root / "hdf5").mkdir()
    rows = ["subject,sex,age"]
    for number in range(SUBJECTS):
        x, y, z = np.indices((12, 12, 12)) // 6
        patch = (x * 2 + y) * 2 + z
        vox = np.flatnonzero(patch <= (5 * number) % 8)
        rng = np.random.default_rng([7, number])
        time = np.arange(12)[:, None]
        wave = 100 * np.sin((0.7 + 0.8 * (number % 2)) * time + vox / 50)
        bold = 1000 + 5 * np.sqrt(vox) + wave + rng.normal(0, 20, (12, len(vox)))
        name = f"sub-{number + 1:02d}"
        write_run(
            root / "hdf5" / f"{name}.h5",
            bold.astype(np.float32),
            vox,
            grid=(12, 12, 12),
            affine=np.diag([-2.0, 2.0, 2.0, 1.0]),
            source=RunSource(subject=name, tr=2.0),
        )
        rows.append(f"{name},{'FM'[number % 2]},{20 + 2 * number}")
    (root / "metadata" / "participants.csv").write_text("\n".join(rows) + "\n")


def torchrun(ranks: int, *arguments: str | Path, seconds: float = 200) -> str:
    """Standard error of a program under torchrun; a failure shows it."""
    command = [preloaded_python(), "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(ranks), *map(str, arguments)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        start_new_session=True,
    ) as process:
        try:
            out, error = process.communicate(timeout=seconds)
        except BaseException:
            # torchrun alone would leave its processes behind, and they hold the pipes open.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, out[-2000:] + error[-6000:]
    return error


class Runs:
    """Named command lines carried out on some ranks: weights and metrics by name."""

    def __init__(self, store: Path, folder: Path) -> None:
        self.store, self.folder = store, folder

    def carry_out(
        self, ranks: int, lines: Mapping[str, str], flags: str, layer_by_layer: Sequence[str] = ()
    ) -> None:
        """All of them in one set of processes; the named ones compute no block in one call."""
        jobs = [
            {
                "argv": [
                    *flags.split(),
                    *("--image_path", str(self.store), "--devices", str(ranks)),
                    *("--output_dir", str(self.folder / name)),
                    *line.split(),
                ],
                "weights": str(self.folder / f"{name}.npz"),
                "masters": str(self.folder / f"{name}_masters.npz"),
                "layer_by_layer": name in layer_by_layer,
            }
            for name, line in lines.items()
        ]
        path = self.folder / f"jobs_{next(iter(lines))}.json"
        path.write_text(json.dumps(jobs))
        torchrun(ranks, PROGRAM, path)

    def weights(self, name: str) -> dict[str, np.ndarray]:
        """Parameter -> float64 array, at the end of the training."""
        with np.load(self.folder / f"{name}.npz") as file:
            return dict(file)

    def masters(self, name: str) -> dict[str, np.ndarray]:
        """Parameter or buffer -> float32 array, as the optimiser had it at the end."""
        with np.load(self.folder / f"{name}_masters.npz") as file:
            return dict(file)

    def metrics(self, name: str) -> dict[str, float]:
        """``metrics.json``."""
        found: dict[str, float] = json.loads((self.folder / name / "metrics.json").read_text())
        return found

    def apart(self, one: str, other: str) -> float:
        """Largest difference of any weight."""
        first, second = self.weights(one), self.weights(other)
        assert set(first) == set(second)
        return max(float(np.abs(first[key] - second[key]).max()) for key in first)
