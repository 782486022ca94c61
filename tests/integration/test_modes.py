"""Every mode with every head on every kind of task, to the evaluation's end."""

from __future__ import annotations

import json

import pytest
import torch

from tests.helpers.flag_tests import NEXT
from tests.helpers.tiny import SUBJECTS, CommandLine

TASKS = {
    "two classes": "--downstream_task sex",
    "three classes": "--label_csv own.csv --target_column kind",
    "values": "--downstream_task age",
}
MODES = {
    "scratch": "",
    "full": "--load_model_path {path}",
    "frozen": "--load_model_path {path} --freeze_feature_extractor",
    "lora": "--load_model_path {path} --lora_rank 2",
}


@pytest.mark.parametrize("head", ["linear", "mamba"])
@pytest.mark.parametrize("task", TASKS)
def test_all_modes(cli: CommandLine, head: str, task: str) -> None:
    rows = [f"sub-{i + 1:02d},{'abc'[i % 3]}" for i in range(SUBJECTS)]
    (cli.folder / "own.csv").write_text("\n".join(["subject,kind", *rows]) + "\n")
    pretrained = cli.run(NEXT)
    path = pretrained.folder / "checkpoints" / "last.ckpt"
    start = pretrained.checkpoint()["state_dict"]
    scores = {}
    for mode, flags in MODES.items():
        done = cli.run(
            f"{TASKS[task]} --clf_head_version {head} --learning_rate 1e-2 "
            f"--dataset_split_num 3 {flags.format(path=path)}"
        )
        end = done.checkpoint()["state_dict"]
        moved = {
            key
            for key, value in start.items()
            if key in end and "pos" not in key and not torch.equal(value, end[key])
        }
        assert bool(moved) == (mode in ("scratch", "full")), (mode, moved)
        record = json.loads((done.folder / "evaluation.json").read_text())
        metrics = {name: i["value"] for name, i in record["metrics"].items()}
        expected = {"mse", "mae", "pearson_r", "r2"}
        if task != "values":
            expected = {"auroc", "accuracy", "balanced_accuracy"}
            assert record["calibration"].keys() == {"ece", "brier"}
        assert metrics.keys() == expected
        for name, value in metrics.items():
            written = done.written[f"test/{name}"]
            assert written == value or (written is None and value is None)
        lines = (done.folder / "subjects.csv").read_text().splitlines()
        assert len(lines) - 1 == 8 and lines[0].startswith("part,subject,target,")
        scores[mode] = (done.folder / "predictions.csv").read_text()
    assert len(set(scores.values())) == len(MODES)  # each is a training of its own
