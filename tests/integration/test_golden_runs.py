"""What version 0.1.0 wrote still loads, resumes, tests, reports and exports with the same numbers.

``tests/helpers/golden_runs.py`` says what the files are and how numbers are compared; results of
NeuroSSM are in ``test_golden_neurossm.py``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from neuromamba.evaluation.result_files import under_current_names
from tests.helpers.flag_tests import STEPS
from tests.helpers.forked import Ended, Nursery
from tests.helpers.golden_runs import (
    COMMANDS,
    EXACT,
    EXPECTED,
    TRAINED,
    call,
    command,
    copy_of_runs,
    same,
    scores,
    table,
)
from tests.helpers.launched import MAIN
from tests.helpers.ranks import needs_deepspeed

# The model of the released layout, which has no metadata.
MODEL = (
    "--dataset_name Dummy --img_size 9 9 9 4 --patch_size 3 3 3 2 --embed_dim 16 --depth 1 "
    "--train_split 0.5 --val_split 0.25 --stratify_by sex --downstream_task sex"
)
ZERO = (
    "--dataset_name Dummy --img_size 9 9 9 4 --patch_size 3 3 3 2 --embed_dim 16 --depth 1 "
    "--train_split 0.5 --val_split 0.25 --stratify_by sex --accelerator cpu --learning_rate 1e-2 "
    "--dropout 0.2 --log_every_n_steps 1 --downstream_task sex --strategy deepspeed_stage_2 "
    "--no-use_scheduler --batch_size 2 --max_epochs 2 --resume_ckpt_path last"
)
TASKS = ("sex", "age", "kind", "zero")


# ------------------------------------------------------------------------------ calling commands


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the files."""
    return copy_of_runs(tmp_path)


def train(nursery: Nursery, old: Path, flags: str, ranks: int = 1, **environ: str) -> Ended:
    """``project/main.py`` on the store of the copy; {old} in the flags is the copy."""
    words = f"{flags} --image_path {old}/store".replace("{old}", str(old)).split()
    done = nursery.run(words, ranks, env=environ)
    assert done.statuses == (0,) * ranks, done.text[-4000:]
    return done


# ------------------------------------------------------------------------------ comparing numbers


def losses(folder: Path) -> list[dict[str, Any]]:
    """The curves of a run."""
    return table(folder / "logs" / "metrics.csv", "step", "train/loss", "val/loss")


def old_columns(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A table with those columns only that ``rows`` have."""
    names = set().union(*rows)
    return [{name: row[name] for name in row if name in names} for row in table(path)]


def metrics_of(folder: Path) -> dict[str, Any]:
    """``metrics.json``."""
    return scores(json.loads((folder / "metrics.json").read_text()))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a file, whatever kind of file."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found = torch.load(path, map_location="cpu", weights_only=True)
    return dict(found.get("state_dict", found))


def same_state(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, Any], within: float
) -> None:
    """Keys in their order, shapes, sums and sums of absolute values."""
    found = {
        name: [list(t.shape), float(t.double().sum()), float(t.double().abs().sum())]
        for name, t in state.items()
    }
    assert list(found) == list(expected)
    same(found, expected, within)


# ------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("name", TASKS)
def test_an_old_checkpoint_predicts_the_same(nursery: Nursery, old: Path, name: str) -> None:
    """A linear head, a Mamba head on values, LoRA with labels of one's own, and DeepSpeed's."""
    flags = f"--test_only --test_ckpt_path {{old}}/runs/{name} --accelerator cpu --save_embedding"
    if name == "kind":
        flags += " --label_csv {old}/kinds.csv"
    train(nursery, old, f"{flags} --output_dir {{old}}/again")
    expected = EXPECTED["tasks"][name]
    assert len(expected["predictions"]) == 9
    same(table(old / "again" / "predictions.csv"), expected["predictions"], EXACT)
    same(metrics_of(old / "again"), scores(expected["metrics"]), EXACT)
    with np.load(old / "again" / "embeddings" / "embeddings.npz") as archive:
        same(archive["embedding"].astype(float).tolist(), expected["embedding"], EXACT)


def test_as_it_is_typed(old: Path) -> None:
    """In the folder of the files the metadata's paths lead to the store."""
    words = "--test_only --test_ckpt_path runs/sex --accelerator cpu --output_dir again"
    said = call(old, [MAIN, *words.split()], python=sys.executable)
    assert "--test_ckpt_path: taking runs/sex/checkpoints/best.ckpt\n" in said
    expected = EXPECTED["tasks"]["sex"]
    same(table(old / "again" / "predictions.csv"), expected["predictions"], EXACT)
    # And they are those that the run itself has written.
    same(table(old / "runs" / "sex" / "predictions.csv"), expected["predictions"], EXACT)


@pytest.mark.parametrize(
    ("file", "more"), [("sex.safetensors", ""), ("sex.pt", MODEL)], ids=["safetensors", "released"]
)
def test_an_old_export_predicts_the_same(nursery: Nursery, old: Path, file: str, more: str) -> None:
    flags = f"--test_only --test_ckpt_path {{old}}/exports/{file} --accelerator cpu {more}"
    train(nursery, old, f"{flags} --output_dir {{old}}/again")
    expected = EXPECTED["tasks"]["sex"]["predictions"]
    same(table(old / "again" / "predictions.csv"), expected, EXACT)


@pytest.mark.parametrize("file", ["sex.safetensors", "sex.pt"])
def test_an_export_is_the_old_one(old: Path, file: str) -> None:
    """To the last bit, and with the same metadata."""
    said = command(old, "export", f"runs/sex {file} --keep_subject_keys")
    assert f"{EXPECTED['tasks']['sex']['metrics']['model/parameters']:,.0f} parameters" in said
    written, before = tensors(old / file), tensors(old / "exports" / file)
    same_state(written, EXPECTED["exports"][file], 1e-8)
    assert all(torch.equal(written[name], tensor) for name, tensor in before.items())
    found = [json.loads((folder / f"{file}.json").read_text()) for folder in (old, old / "exports")]
    assert found[0]["export"].pop("evaluation")["subjects"] == 3  # version 0.1.0 wrote none
    for metadata in found:
        metadata["export"].pop("calibration", None)
        assert metadata["export"].pop("source").endswith("runs/sex/checkpoints/best.ckpt")
        metadata["export"].pop("code_version")
    assert found[0] == found[1]
    same_state(
        tensors(old / "runs/sex/checkpoints/best.ckpt"), EXPECTED["tasks"]["sex"]["state"], 1e-8
    )


# ------------------------------------------------------------------------------ trainings


def test_the_old_pretraining_goes_on(nursery: Nursery, old: Path) -> None:
    """From inside its second epoch, by its own ``config.yaml``, to the end of an unstopped run."""
    run, expected = old / "runs" / "pretraining", EXPECTED["pretraining"]
    last = run / "checkpoints" / "last.ckpt"
    state = torch.load(last, map_location="cpu", weights_only=True)
    step = state["global_step"]
    assert 6 < step < 12
    before, cache = table(run / "logs" / "metrics.csv"), old / "store" / "headers.json"
    before = [under_current_names(row) for row in before]
    noted = cache.read_bytes()
    flags = f"--config {run}/config.yaml --resume_ckpt_path {last}"
    train(nursery, old, f"{flags} --output_dir {run}")
    same(losses(run), expected["losses"], TRAINED)
    assert old_columns(run / "logs" / "metrics.csv", before)[: len(before)] == before
    found, wanted = metrics_of(run), under_current_names(scores(expected["metrics"]))
    newer = (*STEPS, "anatomy_share", "knn_subject_chance")
    assert set(found) - set(wanted) == {f"val/{name}" for name in newer}
    same({name: found[name] for name in wanted}, wanted, TRAINED)
    same_state(tensors(last), expected["last"], 1e-4)
    assert cache.read_bytes() == noted  # no header was read again
    # It was a resumption: with other weights to go on from the same command gives other losses.
    state["state_dict"]["model.norm.weight"] *= 1.01
    torch.save(state, old / "other.ckpt")
    flags = f"--config {run}/config.yaml --resume_ckpt_path {{old}}/other.ckpt"
    train(nursery, old, f"{flags} --output_dir {{old}}/other")
    first = losses(old / "other")[0]
    (undisturbed,) = [r for r in expected["losses"] if r["step"] == step and "train/loss" in r]
    assert first["step"] == step
    assert abs(first["train/loss"] - undisturbed["train/loss"]) > 1e-3


@pytest.mark.parametrize("name", ["sex", "age", "kind"])
def test_a_task_starts_from_the_old_pretraining(nursery: Nursery, old: Path, name: str) -> None:
    """All of it, frozen, or with LoRA, by the ``config.yaml`` of the run: the same training."""
    flags = f"--config {{old}}/runs/{name}/config.yaml --output_dir {{old}}/again "
    flags += "--load_model_path {old}/runs/pretraining/checkpoints/last.ckpt"
    if name == "kind":
        flags += " --label_csv {old}/kinds.csv"
    train(nursery, old, flags)
    expected = EXPECTED["tasks"][name]
    same(metrics_of(old / "again"), scores(expected["trained"]), TRAINED)
    same(table(old / "again" / "predictions.csv"), expected["predictions"], TRAINED)
    same_state(tensors(old / "again" / "checkpoints" / "best.ckpt"), expected["state"], 1e-4)


@needs_deepspeed
def test_the_old_training_by_deepspeed_goes_on(nursery: Nursery, old: Path) -> None:
    """ZeRO-2 on two processes, for a second epoch."""
    run = old / "runs" / "zero"
    before = (run / "logs" / "metrics.csv").read_text().splitlines()
    done = train(nursery, old, f"{ZERO} --output_dir {run}", ranks=2, DS_ACCELERATOR="cpu")
    expected = EXPECTED["zero_goes_on"]
    same(losses(run), expected["losses"], TRAINED)
    assert (run / "logs" / "metrics.csv").read_text().splitlines()[:3] == before[:3]
    assert "epoch 2 of 2" in done.text and "epoch 1 of 2" not in done.text
    same(table(run / "predictions.csv"), expected["predictions"], TRAINED)


# ------------------------------------------------------------------------------ reports, store


def test_a_report_of_an_old_run(old: Path) -> None:
    """Old baselines are taken as they are; the values of subjects are those of the run."""
    record = old / "runs" / "sex" / "baselines" / "baselines.json"
    before = record.stat().st_mtime_ns
    command(old, "report", "runs/sex")
    page = (old / "runs" / "sex" / "report" / "report.html").read_text(encoding="utf-8")
    assert record.stat().st_mtime_ns == before
    metrics = EXPECTED["tasks"]["sex"]["trained"]
    texts = [f"{metrics['test/threshold']:.3f}", f"{metrics['test/brier']:.3f}"]
    for text in (*texts, "sub-0002", "mean volume", "logistic regression"):
        assert text in page, text


@pytest.mark.slow
def test_a_report_of_old_values(old: Path) -> None:
    command(old, "report", "runs/age --no-baselines --output page --image_path store")
    page = (old / "page" / "report.html").read_text(encoding="utf-8")
    for name in ("mae", "mse"):
        assert f"{EXPECTED['tasks']['age']['metrics'][f'test/{name}']:.3f} [" in page


def test_the_old_store_is_in_order(old: Path) -> None:
    said = command(old, "check", "--image_path store --num_workers 1")
    assert said.count(": ok, 12 frames") == 12
    # The check is one: a file that lacks its end is found.
    file = old / "store" / "hdf5" / "sub-0003_task-rest.h5"
    file.write_bytes(file.read_bytes()[:-50])
    call(
        old,
        ["-m", "neuromamba", *COMMANDS["check"], "--image_path", "store", "--num_workers", "1"],
        status=1,
    )


def test_the_quality_page_of_the_old_store(old: Path) -> None:
    flags = "--image_path store --patch_size 3 3 3 2 --sequence_length 4 --num_workers 1"
    command(old, "quality", flags)
    same(table(old / "store" / "quality" / "quality.tsv"), EXPECTED["quality"], TRAINED)
    page = (old / "store" / "quality" / "quality.html").read_text(encoding="utf-8")
    assert all(f"sub-{number:04d}" in page for number in range(1, 13))
