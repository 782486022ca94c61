"""Several processes on the CPU do what one does: updates, losses, metrics, in every strategy."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from project.module.utils.data_preprocess_and_load.hdf5_writer import write_run

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("ranks_program.py")
FLAGS = (
    "--dataset_name Dummy --img_size 12 12 12 4 --patch_size 6 6 6 2 --embed_dim 16 --depth 1 "
    "--train_split 0.6 --val_split 0.2 --accelerator cpu --max_epochs 2 --learning_rate 1e-3 "
    "--warmup 0 --log_every_n_steps 1"
)
PRETRAIN = "--pretraining --use_autoregressive"
ZERO = ("deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3")
needs_deepspeed = pytest.mark.skipif(
    not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed"
)
SUBJECTS = 19  # 11 or 12 to train on: no number of ranks below divides all parts


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose runs keep 1 to 8 of 8 patches: token counts differ by batch and rank."""
    root = tmp_path_factory.mktemp("uneven")
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
            subject=name,
            grid=(12, 12, 12),
            affine=np.diag([-2.0, 2.0, 2.0, 1.0]),
            tr=2.0,
        )
        rows.append(f"{name},{'FM'[number % 2]},{20 + 2 * number}")
    (root / "metadata" / "participants.csv").write_text("\n".join(rows) + "\n")
    return root


def torchrun(ranks: int, *arguments: str | Path, seconds: float = 200) -> str:
    """Standard error of a program under torchrun; a failure shows it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(ranks), *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stderr


class Runs:
    """Named command lines carried out on some ranks: weights and metrics by name."""

    def __init__(self, store: Path, folder: Path) -> None:
        self.store, self.folder = store, folder

    def carry_out(self, ranks: int, lines: Mapping[str, str], flags: str = FLAGS) -> None:
        """All of them in one set of processes."""
        jobs = [
            {
                "argv": [
                    *flags.split(),
                    *("--image_path", str(self.store), "--devices", str(ranks)),
                    *("--output_dir", str(self.folder / name)),
                    *line.split(),
                ],
                "weights": str(self.folder / f"{name}.npz"),
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

    def metrics(self, name: str) -> dict[str, float]:
        """``metrics.json``."""
        found: dict[str, float] = json.loads((self.folder / name / "metrics.json").read_text())
        return found

    def apart(self, one: str, other: str) -> float:
        """Largest difference of any weight."""
        first, second = self.weights(one), self.weights(other)
        assert set(first) == set(second)
        return max(float(np.abs(first[key] - second[key]).max()) for key in first)


# Objectives and settings whose batches are made differently.
OTHERS = {
    "masked": "--pretraining --use_mim --mask_ratio 0.5",
    "augmented": f"{PRETRAIN} --augment_during_training",
    "union": f"{PRETRAIN} --keep_background",
    "sex": "--downstream_task sex --clf_head_version mamba --class_weights balanced",
    "frozen": "--downstream_task sex --freeze_feature_extractor",
    "age": "--downstream_task age --downstream_task_type regression",
}


def matrix(strategies: Sequence[str], optimizers: Sequence[str], together: Sequence[int]) -> Any:
    return {
        f"{strategy}_{optimizer}_{batches}": (
            f"{PRETRAIN} --strategy {strategy} --optimizer {optimizer} --batch_size 2 "
            f"--gradient_accumulation_steps {batches}"
        )
        for strategy in strategies
        for optimizer in optimizers
        for batches in together
    }


@pytest.fixture(scope="module")
def updates(uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Pre-training on two ranks in every strategy, and on one rank with the same global batch."""
    runs = Runs(uneven, tmp_path_factory.mktemp("updates"))
    alone = {
        f"one_{optimizer}_{batches}": (
            f"{PRETRAIN} --optimizer {optimizer} --batch_size {4 * batches}"
        )
        for optimizer in ("AdamW", "SGD")
        for batches in (1, 2)
    }
    others = {name: f"{line} --optimizer SGD" for name, line in OTHERS.items()}
    runs.carry_out(
        1, alone | {f"one_{name}": f"{line} --batch_size 8" for name, line in others.items()}
    )
    here = importlib.util.find_spec("deepspeed")
    half = "--batch_size 2 --gradient_accumulation_steps 2"
    lines = matrix(("ddp", *(ZERO if here else ())), ("AdamW", "SGD"), (1, 2))
    lines |= {f"ddp_{name}": f"{line} {half} --strategy ddp" for name, line in others.items()}
    if here:
        lines |= {
            f"{strategy}_frozen": f"{others['frozen']} {half} --strategy {strategy}"
            for strategy in ZERO
        }
    runs.carry_out(2, lines)
    return runs


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
class TestUpdates:
    """Weights after two epochs; the last step of an epoch is a short one."""

    def test_two_ranks_equal_one(self, updates: Runs, optimizer: str, batches: int) -> None:
        one, two = f"one_{optimizer}_{batches}", f"ddp_{optimizer}_{batches}"
        assert updates.apart(one, two) < 1e-6
        assert updates.metrics(two)["train/steps"] == updates.metrics(one)["train/steps"]
        for name, value in updates.metrics(one).items():
            if name.startswith("val/"):
                assert updates.metrics(two)[name] == pytest.approx(value, abs=1e-6)

    @needs_deepspeed
    @pytest.mark.parametrize(("strategy", "bound"), [*zip(ZERO, (0.0, 1e-6, 1e-6), strict=True)])
    def test_zero_equals_ddp(
        self, updates: Runs, optimizer: str, batches: int, strategy: str, bound: float
    ) -> None:
        assert (
            updates.apart(f"ddp_{optimizer}_{batches}", f"{strategy}_{optimizer}_{batches}")
            <= bound
        )


@pytest.mark.parametrize("name", OTHERS)
def test_two_ranks_that_accumulate_equal_one(updates: Runs, name: str) -> None:
    assert updates.apart(f"one_{name}", f"ddp_{name}") < 1e-6
    for metric, value in updates.metrics(f"one_{name}").items():
        if metric.startswith(("val/", "test/")):
            assert updates.metrics(f"ddp_{name}")[metric] == pytest.approx(value, abs=1e-5), metric


@needs_deepspeed
@pytest.mark.parametrize("strategy", ZERO)
def test_frozen_backbone(updates: Runs, strategy: str) -> None:
    """It does not move, and the head moves as under DDP."""
    assert updates.apart("ddp_frozen", f"{strategy}_frozen") < 1e-6
    start, end = updates.weights("ddp_frozen"), updates.weights(f"{strategy}_frozen")
    assert all(np.array_equal(start[key], end[key]) for key in start if key.startswith("model."))


def test_the_comparison_would_notice(updates: Runs) -> None:
    """Another accumulation is another training."""
    for optimizer in ("AdamW", "SGD"):
        assert updates.apart(f"ddp_{optimizer}_1", f"ddp_{optimizer}_2") > 1e-3


@pytest.fixture(scope="module")
def evaluations(uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One trained model tested on 1, 2 and 3 ranks; 4 subjects of 3 windows."""
    runs = Runs(uneven, tmp_path_factory.mktemp("evaluations"))
    for task in ("sex", "age"):
        kind = "classification" if task == "sex" else "regression"
        line = f"--downstream_task {task} --downstream_task_type {kind} --batch_size 4"
        runs.carry_out(1, {task: line})
    for ranks in (1, 2, 3):
        lines = {
            f"{task}_{ranks}": (
                f"--test_only --test_ckpt_path {runs.folder / task}/checkpoints/best.ckpt "
                f"--eval_batch_size {ranks} --save_embedding"
                + (" --strategy ddp" if ranks > 1 else "")
            )
            for task in ("sex", "age")
        }
        runs.carry_out(ranks, lines, "--accelerator cpu")
    return runs


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("task", ["sex", "age"])
def test_metrics_do_not_depend_on_the_ranks(evaluations: Runs, task: str, ranks: int) -> None:
    one, several = evaluations.metrics(f"{task}_1"), evaluations.metrics(f"{task}_{ranks}")
    assert set(one) == set(several) and sum(name.startswith("test/") for name in one) > 3
    for name, value in one.items():
        assert several[name] == pytest.approx(value, abs=1e-7), name
    rows = [
        (evaluations.folder / f"{task}_{n}" / "predictions.csv").read_text().splitlines()
        for n in (1, ranks)
    ]
    assert len(rows[0]) == len(rows[1])
    for first, second in zip(*([line.split(",") for line in lines] for lines in rows), strict=True):
        assert first[:3] == second[:3]
        if first[0] != "subject":
            assert [*map(float, first[3:])] == pytest.approx([*map(float, second[3:])], abs=1e-6)


def test_embeddings_of_all_ranks_are_each_window_once(evaluations: Runs) -> None:
    def windows(ranks: int) -> list[tuple[str, int]]:
        folder = evaluations.folder / f"sex_{ranks}" / "embeddings"
        found = []
        for path in folder.glob("*.npz"):
            with np.load(path) as file:
                found += [*zip(file["unit"].tolist(), file["window"].tolist(), strict=True)]
        return sorted(found)

    assert windows(1) and windows(1) == windows(2) == windows(3)
