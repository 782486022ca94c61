"""SwiFT from training to prediction, as a user types it, and what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from safetensors import safe_open

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


def test_exported_folder_is_the_run(
    runs: dict[str, Path], trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights in the order of the modules, the same predictions and maps, a card that names it."""
    folder, run, scan = tmp_path / "shared" / "swift-sex", str(runs["sex"]), str(trained.scan(1))
    assert export.main([run, str(folder), "--license", "cc-by-4.0"]) == 0
    shared = neuromamba.load(folder, "cpu")
    own = neuromamba.load(run, "cpu").backbone.state_dict()
    copied = shared.backbone.state_dict()
    assert list(copied) == list(own)
    assert all(torch.equal(copied[name], value) for name, value in own.items())
    tables = []
    for number, model in enumerate((run, str(folder))):
        out = tmp_path / f"p{number}"
        assert predict.main([model, scan, "-o", str(out), "--no-report"]) == 0
        # The run knows its training scans, and warns; the shared folder does not.
        tables.append(rows(out / "predictions.csv")[0]["prob_male"])
    assert tables[0] == tables[1]
    out = str(tmp_path / "map")
    flags = ["--method", "gradxinput", "--no-report", "--device", "cpu"]
    assert explain.main([str(folder), scan, "-o", out, *flags]) == 0
    capsys.readouterr()
    assert rollout.main([str(folder), scan, "-o", str(tmp_path / "r"), "--frames", "2"]) == 2
    error = capsys.readouterr().err
    assert "predicts no later tokens" in error and error.count("\n") == 1
    card = (folder / "README.md").read_text()
    assert "SwiFT (Kim, Kwon, Yoon et al. 2023), 2 + 2 4D Swin blocks of width 8 to 16" in card
    assert "@inproceedings{kim2023swift" in card and "- swift\n" in card
    assert "choi2025" not in card and "mamba2" not in card


def test_exported_weights_are_trained_further(
    runs: dict[str, Path], trained: Trained, tmp_path: Path
) -> None:
    file = tmp_path / "age.safetensors"
    assert export.main([str(runs["age"]), str(file), "--backbone_only"]) == 0
    with safe_open(file, "pt") as opened:
        names = set(opened.keys())
    train.run(
        f"--dataset_name Dummy --image_path {trained.store} --train_split 0.5 --val_split 0.2 "
        f"--max_epochs 1 --batch_size 2 --accelerator cpu --load_model_path {file} "
        f"--freeze_feature_extractor --downstream_task sex --output_dir {tmp_path / 'f'}".split()
    )
    source = neuromamba.load(runs["age"], "cpu").backbone.state_dict()
    assert names == {f"_forward_module.model.{name}" for name in source}
    frozen = neuromamba.load(tmp_path / "f", "cpu").backbone.state_dict()
    assert all(torch.equal(frozen[name], value) for name, value in source.items())


def test_flops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The published configuration, its products as torch counts them; nothing of FMamba's scan."""
    path = tmp_path / "flops.json"
    words = ["--model", "swift", "--windows_per_epoch", "10", "--batch_size", "4"]
    assert flops.main([*words, "--downstream_task", "sex", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["parameters"] == 4_315_212
    assert found["tokens_brain"] == found["tokens_all"] == 81_920
    for kind in ("flops_per_window_all", "training_flops_per_window_brain"):
        assert found[f"products_{kind}"] == found[f"profiler_{kind}"]
    assert found["flops_per_epoch"] == 10 * found["training_flops_per_window_brain"]
    assert found["backends"] is None and found["published"] is None
    assert found["head_parameters"] == 2 * 288 + 2
    text = capsys.readouterr().out
    assert text.startswith("SwiFT, 2 + 2 + 6 + 2 4D Swin blocks of width 36 to 288")
    assert "without a head" in text and "no background is dropped" in text
    assert "scan" not in text and "published" not in text


def test_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, record = tmp_path / "job.sh", tmp_path / "plan.json"
    words = [
        "--model",
        "swift",
        "--gpus",
        "8",
        "--gpu",
        "A100-80GB",
        "--windows",
        "10000",
        "--effective_batch",
        "64",
    ]
    assert (
        plan.main([*words, "--script", "slurm", "--output", str(job), "--json", str(record)]) == 0
    )
    text = capsys.readouterr().out
    assert text.startswith("sex, linear head: SwiFT, 2 + 2 + 6 + 2 4D Swin blocks of width 36 to")
    found = json.loads(record.read_text())
    assert found["parameters"] == 4_315_212 + 2 * 288 + 2
    sizes = [option["memory"] for option in found["options"]]
    assert [option["micro"] for option in found["options"]] == [1, 2, 4, 8]
    assert sizes == sorted(sizes) and sizes[-1] - sizes[-2] > 3 * (sizes[1] - sizes[0])
    assert "--model swift" in job.read_text() and "--pretraining" not in job.read_text()


def test_refused_commands(
    runs: dict[str, Path], trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, scan, out = str(runs["sex"]), str(trained.scan(1)), str(tmp_path / "out")
    for command, argv, message in (
        (rollout.main, [run, scan, "-o", out, "--frames", "2"], "predicts no later tokens"),
        (export.main, [run, f"{out}.pt", "--conv_name", "conv_xBC"], "--conv_name: "),
        (flops.main, ["--model", "swift", "--profiler", "deepspeed"], "--profiler: deepspeed is"),
        (
            plan.main,
            ["--model", "swift", "--gpus", "1", "--gpu", "CPU", "--pretraining"],
            "--pretraining: only used with --model fmamba.",
        ),
    ):
        assert command(argv) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())
