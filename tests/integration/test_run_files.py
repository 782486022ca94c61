"""Where a run writes and what: files, metrics, predictions, loggers, the configuration."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from neuromamba.commands.train import main, run
from tests.helpers.flag_tests import (
    AGE,
    FEATURES,
    MIM,
    NEXT,
    STEPS,
    TOKENS,
    comparable,
    predictions,
    shows,
    targets,
)
from tests.helpers.tiny import CommandLine, Finished


@shows("output_dir")
def test_files_of_a_run(cli: CommandLine) -> None:
    done = cli.run("--output_dir somewhere/else")
    assert done.files == {
        "config.yaml",
        "metrics.json",
        "evaluation.json",
        "predictions.csv",
        "validation_predictions.csv",
        "subjects.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "logs/metrics.csv",
        "splits/Dummy/split_fixed_1.json",
        "splits/Dummy/split_fixed_1.txt",
    }
    assert not Path("output").exists()


@shows("project_name", "process_code")
def test_named_run(cli: CommandLine) -> None:
    run(cli.argv("--project_name alpha --process_code beta"))
    assert {p.name for p in Path("output/alpha/beta").iterdir()} >= {"config.yaml", "metrics.json"}
    run(cli.argv(f"--project_name alpha {NEXT}"))
    (other,) = {p.name for p in Path("output/alpha").iterdir()} - {"beta"}
    assert other.startswith("autoregressive_"), "objective and time"


@shows("dry_run")
def test_dry_run(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(cli.store.rglob("*"))
    argv = "--dry_run --gradient_accumulation_steps 3 --output_dir out --max_epochs 2"
    assert run(cli.argv(argv)) == {}
    plan = capsys.readouterr().out
    parameters = sum(p.numel() for p in cli.module().parameters())
    assert f"{parameters:,} parameters" in plan
    assert "16 of 432 values a window" in plan
    assert "12 = micro batch 4 x devices 1 x nodes 1 x accumulation 3" in plan
    assert "train 36, val 12, test 12" in plan
    assert "6 optimiser steps" in plan
    assert "nothing is missing on this machine" in plan
    assert list(cli.folder.iterdir()) == [] and sorted(cli.store.rglob("*")) == before


def test_dry_run_lists_what_is_missing(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    argv = cli.argv("--accelerator gpu --image_path nowhere --load_model_path none.pt --dry_run")
    assert main(argv) == 2
    said = capsys.readouterr()
    missing = said.out.split("missing on this machine:")[1]
    for what in ("CUDA GPU was asked for", "no folder 'nowhere'", "no file 'none.pt'"):
        assert what in missing
    assert said.err == (
        "error: --load_model_path: there is no file 'none.pt'. Give the file of a checkpoint or "
        "the folder of a run; the plan does without it.\n"
    )


@pytest.mark.parametrize("path", ["none.pt", "nowhere/checkpoints/best.ckpt", "output/run"])
def test_a_plan_without_its_checkpoint_fails(
    cli: CommandLine, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data may be elsewhere; the flags that a checkpoint decides must be known."""
    assert main(cli.argv(f"--load_model_path {path} --dry_run")) == 2
    said = capsys.readouterr()
    assert "effective batch" in said.out
    assert said.err.startswith(f"error: --load_model_path: there is no file '{path}'. Give")
    assert main(cli.argv("--image_path nowhere --dry_run")) == 0


@pytest.mark.parametrize("flag", ["--project_name", "--process_code"])
@pytest.mark.parametrize(
    "name",
    ["..", "../..", "../../etc", "a/../../..", "/tmp/x", "a\u202eb", "a\nb", "", ".", "x" * 10_000],
)
def test_a_run_stays_below_output(
    cli: CommandLine, flag: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(cli.folder.rglob("*")), sorted(cli.folder.parent.iterdir())
    assert main([*cli.argv(""), flag, name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {flag}: got '") and len(line) < 300
    assert (sorted(cli.folder.rglob("*")), sorted(cli.folder.parent.iterdir())) == before


def test_names_with_a_folder_are_allowed(cli: CommandLine) -> None:
    """Below output/, whatever the project is called."""
    words = ["--project_name", "sex/v1.2", "--process_code", "..a b", "--dry_run"]
    assert main([*cli.argv(""), *words]) == 0


REMARKS = [
    ("--pretraining --use_autoregressive --downstream_task age", "--downstream_task: has no"),
    ("--pretraining --use_mim --downstream_task sex", "--downstream_task: has no effect"),
    ("--freeze_feature_extractor", "--freeze_feature_extractor: the head is trained on a"),
    ("--freeze_feature_extractor --pool mean", "backbone of random weights"),
]


@pytest.mark.parametrize(("extra", "remark"), REMARKS)
def test_flags_that_are_perhaps_not_what_was_meant(
    cli: CommandLine, extra: str, remark: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(cli.argv(f"{extra} --dry_run")) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "warning" in one]
    assert line.startswith("warning: --") and remark in line


def test_no_remark_on_what_is_usual(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    done = cli.run()
    extra = f"--load_model_path {done.folder} --freeze_feature_extractor"
    capsys.readouterr()
    for flags in ("", extra):
        assert main(cli.argv(f"{flags} --dry_run")) == 0
        assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "keys"),
    [
        ("", {"loss", "auroc", "accuracy", "balanced_accuracy"}),
        (AGE, {"loss", "mse", "mae", "pearson_r", "r2"}),
        (NEXT, {*TOKENS, *STEPS, *FEATURES}),
        (MIM, {*TOKENS, *FEATURES}),
    ],
)
def test_metrics_json(cli: CommandLine, extra: str, keys: set[str]) -> None:
    done = cli.run(extra)
    written = done.written
    general = {"train/loss", "train/steps", "train/seconds", "model/parameters"}
    general |= {f"data/{k}_{p}" for k in ("subjects", "windows") for p in ("train", "val", "test")}
    evaluated = {f"val/{key}" for key in keys}
    if "pretraining" not in extra:
        evaluated |= {f"test/{key}" for key in keys}
        bounds = {f"{key}_{end}" for key in keys - {"loss"} for end in ("low", "high")}
        evaluated |= {f"test/{key}" for key in bounds}
        evaluated |= {"test/ece", "test/brier"} if "auroc" in keys else set()
    assert set(written) == general | evaluated
    assert all(isinstance(value, float) for value in written.values()), "flat, and all defined"
    assert written == done.metrics
    assert ("predictions.csv" in done.files) == ("pretraining" not in extra)
    if "pretraining" in extra:
        expected = 1 - written["val/loss"] / written["val/persistence_loss"]
        assert written["val/sequence_skill"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_no_test_subject_is_dropped(cli: CommandLine, size: int) -> None:
    done = cli.run(f"--eval_batch_size {size}")
    rows = predictions(done)
    assert list(rows[0]) == ["subject", "window", "target", "prob_0", "prob_1"]
    expected = sorted(cli.data().subjects["test"][0])
    found = [(row["subject"], row["window"]) for row in rows]
    assert found == [(name, str(w)) for name in expected for w in range(3)]
    labels = targets(cli, "")
    mean = {name: np.zeros(2) for name in expected}
    for row in rows:
        probabilities = np.array([float(row["prob_0"]), float(row["prob_1"])])
        assert probabilities.sum() == pytest.approx(1, abs=1e-6)
        assert int(row["target"]) == labels[row["subject"]]
        mean[row["subject"]] += probabilities / 3
    right = np.mean([mean[name].argmax() == labels[name] for name in expected])
    assert done.metrics["test/accuracy"] == pytest.approx(right)


def test_regression_predicts_in_years(cli: CommandLine) -> None:
    done = cli.run(f"{AGE} --max_epochs 2")
    rows = predictions(done)
    assert list(rows[0]) == ["subject", "window", "target", "prediction"]
    assert {float(row["target"]) for row in rows} <= {20.0 + 2 * i for i in range(20)}
    assert all(10 < float(row["prediction"]) < 70 for row in rows)


@shows("embedding_save_dir")
def test_embeddings(cli: CommandLine) -> None:
    cli.run("--save_embedding --embedding_save_dir features")
    saved = np.load("features/embeddings.npz")
    assert saved["embedding"].shape == (12, 16)
    assert np.isfinite(saved["embedding"]).all() and saved["embedding"].std() > 0
    assert sorted(set(saved["subject"])) == sorted(cli.data().subjects["test"][0])
    assert main(cli.argv("--embedding_save_dir features")) == 2


# TensorBoard itself, and what it imports, warn of changes to come in NumPy and setuptools.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@shows("loggername")
@pytest.mark.parametrize("name", ["csv", "tensorboard", "wandb"])
def test_loggers(cli: CommandLine, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name == "wandb":
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        for variable in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            monkeypatch.setenv(variable, str(cli.folder / "wandb_home"))
    done = cli.run(f"--loggername {name} --max_epochs 2 --log_every_n_steps 3")
    with open(done.folder / "logs" / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {"step", "train/loss", "train/learning_rate", "val/auroc"} <= set(rows[0])
    assert sum(row["val/auroc"] != "" for row in rows) >= 2, "one value an epoch"
    assert sum(row["train/loss"] != "" for row in rows) == 6, "every third of 18 steps"
    pattern = {"csv": "events*", "tensorboard": "events*", "wandb": "*.wandb"}[name]
    found = {path.parts[len(done.folder.parts)] for path in done.folder.rglob(pattern)}
    assert found == (set() if name == "csv" else {name})


# --config --------------------------------------------------------------------------------------


@shows("config")
def test_flags_override_the_config_file(cli: CommandLine) -> None:
    Path("some.yaml").write_text(
        "batch_size: 3\nseed: 9\nuse_scheduler: false\ndataset_name: [Dummy]\n"
    )
    config = cli.planned("--config some.yaml").config
    assert config.data.batch_size == 4, "a flag of the command line"
    assert config.flags["seed"] == 9 and not config.optim.use_scheduler
    assert cli.planned("--config some.yaml --use_scheduler").config.optim.use_scheduler


VARIED = {
    "downstream": "--clf_head_version mamba --dropout 0.1 --label_smoothing 0.2",
    "regression": f"{AGE} --label_scaling_method minmax",
    "next token": f"{NEXT} --no-use_scheduler",
    "masked tokens": f"{MIM} --mask_ratio 0.4 --masking_type tube",
    "their synonyms": "--accumulate_grad_batches 2 --gradient_clip_val 0.5",
    "our synonyms": "--gradient_accumulation_steps 2 --grad_clip 0.5",
    "trainer": "--limit_train_batches 0.5 --deterministic --precision 32 --max_steps 3",
    "one batch": "--limit_train_batches 1 --limit_val_batches 1.0",
}


@pytest.mark.parametrize("extra", VARIED.values(), ids=VARIED)
def test_config_of_a_run_repeats_it(cli: CommandLine, extra: str) -> None:
    first = cli.run(f"--seed 5 {extra}")
    run(["--config", str(first.folder / "config.yaml"), "--output_dir", "again"])
    second = Finished({}, Path("again"))
    assert comparable(second.written) == comparable(first.written)
    assert (second.folder / "config.yaml").read_text() == (first.folder / "config.yaml").read_text()
    if "predictions.csv" in first.files:
        assert predictions(second) == predictions(first)


def test_config_is_resolved(cli: CommandLine) -> None:
    written = yaml.safe_load((cli.run().folder / "config.yaml").read_text())
    assert written["d_state"] == 4 and written["headdim"] == 16
    assert written["eval_batch_size"] == 4
    assert written["img_size"] == [12, 12, 12, 4]
    assert "mask_ratio" not in written, "not used downstream"
