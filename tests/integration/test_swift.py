"""SwiFT from training to prediction, as a user types it, and what it refuses."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import neuromamba
from neuromamba.commands import embed, explain, export, flops, plan, predict, report, rollout, train
from tests.helpers.flag_tests import SWIFT
from tests.helpers.tiny import CommandLine
from tests.helpers.trained_model import Trained

TINY = "--model swift --swin_depths 2 2 --swin_heads 2 4 --embed_dim 8"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A classification and a regression of the scans of ``trained``, without --patch_size."""
    folder, found = tmp_path_factory.mktemp("swift"), {}
    for task in ("sex", "age"):
        found[task] = folder / task
        train.run(
            f"--dataset_name Dummy --image_path {trained.store} --img_size 12 12 12 8 "
            f"--train_split 0.5 --val_split 0.2 --max_epochs 2 --batch_size 2 --accelerator cpu "
            f"--learning_rate 1e-2 --input_scaling_method voxelnorm_zeroback {TINY} "
            f"--downstream_task {task} --output_dir {found[task]}".split()
        )
    return found


def test_checkpoint_says_what_it_is(runs: dict[str, Path]) -> None:
    model = neuromamba.load(runs["sex"], "cpu")
    config = model.contract.model
    assert (config.model, config.patch_size, config.token_grid) == (
        "swift",
        (6, 6, 6, 1),
        (2, 2, 2, 8),
    )
    assert config.swin_depths == (2, 2) and config.keep_background
    assert model.head is not None and model.head.classifier.in_features == 16


@pytest.mark.parametrize("task", ["sex", "age"])
def test_a_run_is_tested_and_predicts_as_it_did(
    runs: dict[str, Path], task: str, trained: Trained, tmp_path: Path
) -> None:
    run = runs[task]
    tested = f"--test_only --test_ckpt_path {run} --accelerator cpu --output_dir {tmp_path / 't'}"
    train.run(tested.split())
    column = "prob_1" if task == "sex" else "prediction"
    expected = [float(row[column]) for row in rows(run / "predictions.csv")]
    again = [float(row[column]) for row in rows(tmp_path / "t" / "predictions.csv")]
    np.testing.assert_allclose(again, expected, atol=1e-5)

    subject = rows(run / "predictions.csv")[0]["subject"]
    of_subject = [r for r in rows(run / "predictions.csv") if r["subject"] == subject]
    mean = np.mean([float(row[column]) for row in of_subject])
    scan = trained.scan(int("".join(filter(str.isdigit, subject.split("_")[0]))))
    argv = [str(run), str(scan), "-o", str(tmp_path / "p"), "--no-report"]
    assert predict.main(argv) == 0
    found = rows(tmp_path / "p" / "predictions.csv")[0]
    name = "prob_male" if task == "sex" else "prediction"
    assert float(found[name]) == pytest.approx(mean, abs=1e-3 * max(1.0, abs(mean)))


def test_the_written_configuration_trains_again(runs: dict[str, Path], tmp_path: Path) -> None:
    config = str(runs["sex"] / "config.yaml")
    metrics = train.run(["--config", config, "--output_dir", str(tmp_path / "again")])
    again, first = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (tmp_path / "again", runs["sex"])
    )
    assert metrics["train/steps"] > 0
    for name, value in first.items():
        torch.testing.assert_close(again[name], value)


def test_starts_from_a_backbone_and_is_frozen(
    runs: dict[str, Path], trained: Trained, tmp_path: Path
) -> None:
    train.run(
        f"--dataset_name Dummy --image_path {trained.store} --train_split 0.5 --val_split 0.2 "
        f"--max_epochs 1 --batch_size 2 --accelerator cpu --load_model_path {runs['age']} "
        f"--freeze_feature_extractor --downstream_task sex --output_dir {tmp_path / 'f'}".split()
    )
    source = neuromamba.load(runs["age"], "cpu").backbone.state_dict()
    frozen = neuromamba.load(tmp_path / "f", "cpu").backbone.state_dict()
    assert all(torch.equal(frozen[name], value) for name, value in source.items())


def test_report_names_the_backbone(runs: dict[str, Path]) -> None:
    assert report.main([str(runs["sex"])]) == 0
    page = (runs["sex"] / "report" / "report.html").read_text()
    assert "SwiFT, 2 + 2 4D Swin blocks of width 8 to 16" in page
    assert "SwiFT, linear head, from scratch" in page
    assert "Mamba2 blocks" not in page


def test_embeddings_and_maps(
    runs: dict[str, Path], trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, scan = str(runs["sex"]), str(trained.scan(1))
    assert embed.main([model, scan, "-o", str(tmp_path / "e"), "--no-report"]) == 0
    table = pandas.read_parquet(tmp_path / "e" / "embeddings.parquet")
    values = table[[f"f{number}" for number in range(16)]].to_numpy()
    assert "f16" not in table and (np.ptp(values, axis=1) > 0).all()
    for method in ("gradxinput", "occlusion", "ig"):
        out = tmp_path / method
        flags = ["--method", method, "--no-report", "--device", "cpu"]
        flags += ["--steps", "2"] if method == "ig" else []
        assert explain.main([model, scan, "-o", str(out), *flags]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert embed.main([model, scan, "-o", str(tmp_path / "l"), "--layer", "1"]) == 2
    assert "the tokens of this model's blocks are merged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--pretraining --use_autoregressive", "--pretraining: only used with --model fmamba."),
        ("--pretraining --use_mim", "--pretraining: only used with --model fmamba."),
        ("--calc_loss_without_background", "--calc_loss_without_background: only used with"),
        ("--union_mask", "--union_mask: only used with --model fmamba."),
        ("--token_order space_first", "--token_order: only used with --model fmamba."),
        ("--depth 2", "--depth: only used with --model fmamba."),
        ("--ssd_backend cpu", "--ssd_backend: only used with --model fmamba."),
        ("--layer_decay 0.5", "--layer_decay: only used with --model fmamba."),
        ("--lora_rank 2", "--lora_rank: only used with --model fmamba."),
        ("--no-keep_background", "--no-keep_background: --model swift reads the whole grid"),
        ("--clf_head_version mamba", "--clf_head_version: mamba reads the tokens in the order"),
        ("--swin_heads 3 4", "--swin_heads: 3 heads do not divide the width 16"),
        (
            "--input_scaling_method voxelnorm_zeroback --channels anatomy dynamics",
            "--channels: anatomy is only used with --model fmamba.",
        ),
    ],
)
def test_refused_flags(refused: Callable[..., str], flags: str, message: str) -> None:
    assert message in refused(f"{SWIFT} {flags}")


def test_flags_of_swift_are_refused_for_fmamba(cli: CommandLine, refused: Callable) -> None:
    assert "--swin_window: only used with --model swift." in refused("--swin_window 2 2 2 2")


def test_refused_commands(
    runs: dict[str, Path], trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, scan, out = str(runs["sex"]), str(trained.scan(1)), str(tmp_path / "out")
    for command, argv, message in (
        (rollout.main, [run, scan, "-o", out, "--frames", "2"], "predicts no later tokens"),
        (export.main, [run, f"{out}.safetensors"], "that no FMamba has"),
        (flops.main, ["--model", "swift"], "--model: neuromamba flops knows fmamba only"),
        (plan.main, ["--model", "swift", "--gpus", "1"], "--model: neuromamba plan knows fmamba"),
    ):
        assert command(argv) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())
