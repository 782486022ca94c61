"""The demo end to end: small in every test run, at full size in the slow tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from neuromamba.commands.demo import build_parser
from neuromamba.reports.demo_pipeline import steps_of
from tests.helpers.paths import ROOT
from tests.helpers.preloaded import preloaded_python

KEYS = {
    *(f"test/{name}" for name in ("auroc", "accuracy", "balanced_accuracy")),
    *(
        f"control/{control}/{name}"
        for control in ("mean_volume", "FC", "majority", "untrained", "scratch")
        for name in ("auroc", "accuracy", "balanced_accuracy")
    ),
    *(f"pretrain/val/{name}" for name in ("loss", "persistence_loss", "mean_token_loss")),
    *(f"pretrain/val/{name}" for name in ("skill", "dynamic_skill", "sequence_skill")),
    "pretrain/val/anatomy_share",
    *(f"seconds/{name}" for name in ("synthetic", "convert", "pretrain", "finetune", "scratch")),
    *(f"seconds/{name}" for name in ("untrained", "probe", "labels")),
    *(f"probe/{pool}/auroc" for pool in ("mean", "mean_sd", "untrained_mean", "untrained_mean_sd")),
    *("seconds/baselines", "seconds/total", "kept_tokens", "model/parameters"),
    *("test/subjects_class_0", "test/subjects_class_1"),
}


def few_labels(*sizes: int) -> set[str]:
    models = ("pretrained", "scratch", "difference")
    return {
        f"labels/{n}/{model}/auroc{end}"
        for n in sizes
        for model in models
        for end in ("", "_low", "_high")
    }


FIGURES = (
    "few_labels",
    "roc",
    "confusion",
    "pretraining",
    "finetuning",
    "next_tokens",
    "token_mask",
)


def demo(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [preloaded_python(), "-m", "neuromamba", "demo", "--output_dir", str(folder), *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def metrics_of(folder: Path, *flags: str) -> dict[str, Any]:
    result = demo(folder, *flags)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((folder / "metrics.json").read_text())


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def test_quick_demo(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    result = demo(folder, "--quick")
    assert result.returncode == 0, result.stderr[-3000:]

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics.keys() >= KEYS | few_labels(2, 4)
    undefined = {name for name, value in metrics.items() if not isinstance(value, float)}
    lonely = {f"pretrain/val/knn_subject{end}" for end in ("", "_chance")}
    # Two models that tell every subject alike differ by 0 in all draws: that is no interval.
    alike = {
        f"labels/{size}/difference/auroc_{end}"
        for size in (2, 4)
        for end in ("low", "high")
        if metrics[f"labels/{size}/difference/auroc"] == 0
    }
    assert undefined == lonely | (undefined & alike)  # one window a subject
    assert 0.5 < metrics["kept_tokens"] < 0.7
    assert metrics["test/subjects_class_0"] + metrics["test/subjects_class_1"] == 8

    for name in FIGURES:
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000
    html = (folder / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)"', html)
    assert len(pictures) == html.count("<img") == len(FIGURES)
    assert min(map(len, pictures)) > 5000
    text = re.sub(r"base64,[^\"]+", "", html)
    assert re.findall(r"https?://|<script|<link|@import|url\(", text) == []
    assert "Synthetic data." in text
    assert "hash " in text

    commands = re.findall(r"^\$ neuromamba (\S+)", result.stdout, flags=re.M)
    assert commands == ["synthetic", "preprocess", *["train"] * 4, "probe", "label-efficiency"]
    assert f"--config {folder}/demo.yaml" in result.stdout
    assert result.stdout.count("balanced accuracy\n") == 1
    assert result.stdout.rstrip().endswith(f"report: {folder}/report.html")

    again = demo(folder, "--quick")
    assert again.returncode == 0
    assert "$ neuromamba" not in again.stdout
    assert again.stdout.count("finished before") == 9


def test_shuffled_labels_reach_what_sees_labels_and_nothing_else() -> None:
    plain, shuffled = (
        {step.stage.name: step for step in steps_of(build_parser().parse_args(words))}
        for words in (["--subjects", "9"], ["--subjects", "9", "--shuffle_labels", "1"])
    )
    changed = {name for name in plain if plain[name] != shuffled[name]}
    assert changed == {"finetune", "scratch", "untrained", "probe", "labels"}
    for name in changed:
        command = shuffled[name].command
        at = command.index("--shuffle_labels")
        assert command[at + 1] == "1"
        assert command[:at] + command[at + 2 :] == plain[name].command


def test_a_failing_stage_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    result = demo(folder, "--quick", "--subjects", "0")
    assert result.returncode == 1
    assert "stage 'synthetic' failed" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "report.html").exists()


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    result = demo(tmp_path, "--quick")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --output_dir:")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(3))
def test_full_demo(tmp_path: Path, seed: int) -> None:
    metrics = metrics_of(tmp_path / "demo", "--seed", str(seed))
    assert metrics.keys() >= KEYS | few_labels(4, 8, 16, 32)
    assert min(metrics["test/subjects_class_0"], metrics["test/subjects_class_1"]) >= 20
    # Features worth freezing, which an untrained backbone does not have.
    assert metrics["probe/mean_sd/auroc"] >= 0.9 and metrics["probe/mean/auroc"] >= 0.85
    untrained = (metrics[f"probe/untrained_{pool}/auroc"] for pool in ("mean", "mean_sd"))
    assert max(untrained) <= 0.75
    # Few labels: better than from scratch. All labels: both find the effect.
    for labels in (8, 16):
        assert metrics[f"labels/{labels}/difference/auroc_low"] > 0
    assert metrics["test/auroc"] >= 0.95 and metrics["control/scratch/auroc"] >= 0.9
    assert max(metrics[f"control/{name}/auroc"] for name in ("mean_volume", "FC")) <= 0.65
    if seed:
        return
    # The images and the pre-trained weights stay; only the labels change.
    null = [metrics_of(tmp_path / "demo", "--shuffle_labels", str(shuffle)) for shuffle in range(3)]
    for name in ("test/auroc", "probe/mean_sd/auroc", "labels/8/pretrained/auroc"):
        assert 0.35 < mean(m[name] for m in null) < 0.65


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_without_an_effect_the_demo_is_at_chance(tmp_path: Path) -> None:
    flags = ("--effect_size", "0")
    null = [metrics_of(tmp_path / str(s), *flags, "--seed", str(s)) for s in range(3)]
    for name in ("test/auroc", "probe/mean_sd/auroc", "labels/8/pretrained/auroc"):
        assert 0.35 < mean(m[name] for m in null) < 0.65
