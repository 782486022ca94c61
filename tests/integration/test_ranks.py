"""Several processes on the CPU do what one does: updates, losses, metrics, in every strategy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.ranks import (
    HAS_DEEPSPEED,
    ZERO,
    Runs,
    needs_deepspeed,
    once,
    write_uneven_store,
)

FLAGS = (
    "--dataset_name Dummy --img_size 12 12 12 4 --patch_size 6 6 6 2 --embed_dim 16 --depth 1 "
    "--train_split 0.6 --val_split 0.2 --accelerator cpu --max_epochs 2 --learning_rate 1e-3 "
    "--warmup 0 --log_every_n_steps 1"
)
PRETRAIN = "--pretraining --use_autoregressive"


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See ``write_uneven_store``."""
    return once(tmp_path_factory, "uneven", write_uneven_store)


# Objectives and settings whose batches are made differently.
OTHERS = {
    "masked": "--pretraining --use_mim --mask_ratio 0.5",
    "same place": f"{PRETRAIN} --predict same_place --token_order space_first",
    "augmented": f"{PRETRAIN} --augment_during_training",
    "background": f"{PRETRAIN} --keep_background",
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
    folder = once(tmp_path_factory, "updates", lambda made: train_all(Runs(uneven, made)))
    return Runs(uneven, folder)


def train_all(runs: Runs) -> None:
    """On one rank, then on two."""
    alone = {
        f"one_{optimizer}_{batches}": (
            f"{PRETRAIN} --optimizer {optimizer} --batch_size {4 * batches}"
        )
        for optimizer in ("AdamW", "SGD")
        for batches in (1, 2)
    }
    others = {name: f"{line} --optimizer SGD" for name, line in OTHERS.items()}
    alone |= {f"one_{name}": f"{line} --batch_size 8" for name, line in others.items()}
    runs.carry_out(1, alone, FLAGS)
    half = "--batch_size 2 --gradient_accumulation_steps 2"
    lines = matrix(("ddp", *(ZERO if HAS_DEEPSPEED else ())), ("AdamW", "SGD"), (1, 2))
    lines |= {f"ddp_{name}": f"{line} {half} --strategy ddp" for name, line in others.items()}
    apart = []
    if HAS_DEEPSPEED:
        lines |= {
            f"{strategy}_frozen": f"{others['frozen']} {half} --strategy {strategy}"
            for strategy in ZERO
        }
        for name, line in matrix(("ddp",), ("AdamW", "SGD"), (1, 2)).items():
            apart.append(name.replace("ddp", "ddp_layer_by_layer"))
            lines[apart[-1]] = line
    runs.carry_out(2, lines, FLAGS, layer_by_layer=apart)


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
        # The hooks of ZeRO-3 keep the layers apart; one call a block has another order of sums.
        ddp = "ddp_layer_by_layer" if strategy == ZERO[-1] else "ddp"
        one, other = (f"{way}_{optimizer}_{batches}" for way in (ddp, strategy))
        assert updates.apart(one, other) <= bound


@pytest.mark.parametrize("name", OTHERS)
def test_two_ranks_that_accumulate_equal_one(updates: Runs, name: str) -> None:
    assert updates.apart(f"one_{name}", f"ddp_{name}") < 1e-6
    for metric, value in updates.metrics(f"one_{name}").items():
        # An interval of four subjects jumps where rounding changes the order of two draws.
        if metric.startswith(("val/", "test/")) and not metric.endswith(("_low", "_high")):
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
    folder = once(
        tmp_path_factory, "evaluations", lambda folder: evaluate_all(Runs(uneven, folder))
    )
    return Runs(uneven, folder)


def evaluate_all(runs: Runs) -> None:
    """Train a classification and a regression, and test each on 1, 2 and 3 ranks."""
    for task in ("sex", "age"):
        kind = "classification" if task == "sex" else "regression"
        line = f"--downstream_task {task} --downstream_task_type {kind} --batch_size 4"
        runs.carry_out(1, {task: line}, FLAGS)
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
