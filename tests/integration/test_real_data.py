"""The main job on real input: NIfTI -> store -> pre-training, judged on a subject held out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nibabel.loadsave import load

from neuromamba.commands import preprocess as preprocessing
from neuromamba.commands import rollout
from neuromamba.commands.train import run
from neuromamba.config.model import ModelConfig
from neuromamba.data.store.reader import RunFile, list_runs
from neuromamba.fmamba.tokenizer import plan_compact
from tests.helpers.flag_tests import VOXELWISE
from tests.helpers.shared_files import GIFT, linked

pytestmark = pytest.mark.real_data
GRID = ["30", "36", "24"]


@pytest.fixture(autouse=True)
def _environment_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    # A run sets this for its process; once known to monkeypatch, it is gone after the test.
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")


@pytest.fixture(scope="module")
def gift_store(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four subjects of gift_mni_bold, converted by the public command."""
    folder = linked(
        shared_data / "gift_mni_bold", GIFT, tmp_path_factory.mktemp("gift_scans") / "in"
    )
    store = tmp_path_factory.mktemp("gift")
    arguments = ["--input", str(folder), "--output", str(store), "--img_size", *GRID]
    assert preprocessing.main(arguments) == 0
    return store


def pretrain(store: Path, output: Path, epochs: int, more: str = "") -> dict[str, float]:
    return run(
        f"--pretraining --use_autoregressive --dataset_name S1200 --image_path {store} "
        f"--img_size {' '.join(GRID)} 20 --embed_dim 64 --depth 4 --train_split 0.75 "
        f"--val_split 0.25 --stride_between_seq 0.1 --batch_size 2 --max_epochs {epochs} "
        f"--learning_rate 4e-3 --accelerator cpu --output_dir {output} {more}".split()
    )


def test_background_is_dropped(gift_store: Path) -> None:
    config = ModelConfig(img_size=(30, 36, 24, 20), embed_dim=64)
    spatial = config.num_tokens // config.token_grid[3]
    runs = list_runs(gift_store)
    assert len(runs) == len(GIFT)
    for path in runs:
        plan = plan_compact([torch.from_numpy(np.array(RunFile(path).vox))], config)[0]
        assert 0.1 < plan.spatial_index.numel() / spatial < 0.7


def test_held_out_subject_is_predicted_better_than_by_the_mean_token(
    gift_store: Path, tmp_path: Path
) -> None:
    metrics = pretrain(gift_store, tmp_path / "run", epochs=4)
    assert metrics["data/subjects_train"] == 3
    assert metrics["data/subjects_val"] == 1
    assert metrics["val/loss"] < 0.6 * metrics["val/mean_token_loss"]
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written["val/sequence_skill"] == pytest.approx(
        1 - written["val/loss"] / written["val/persistence_loss"], abs=1e-5
    )
    lines = (tmp_path / "run" / "logs" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("val/dynamic_skill")
    logged = [line.split(",")[column] for line in lines[1:]]
    assert sum(bool(value) for value in logged) >= 4  # once an epoch


@pytest.mark.slow
def test_held_out_subject_is_predicted_better_than_by_persistence(
    gift_store: Path, tmp_path: Path
) -> None:
    metrics = pretrain(gift_store, tmp_path / "run", epochs=25)
    assert metrics["val/loss"] < metrics["val/mean_token_loss"]
    assert metrics["val/sequence_skill"] > 0.3


@pytest.mark.slow
def test_dynamics_of_a_held_out_subject_are_learned_voxel_by_voxel(
    gift_store: Path, tmp_path: Path
) -> None:
    """With the run's scaling nearly all variance is anatomy, and dynamics are not learned."""
    metrics = pretrain(gift_store, tmp_path / "voxel", 25, VOXELWISE)
    assert metrics["val/dynamic_skill"] > 0.15 and metrics["val/skill"] > 0.1
    metrics = pretrain(gift_store, tmp_path / "run", 4)
    assert metrics["val/anatomy_share"] > 0.999 and metrics["val/dynamic_skill"] < -1


@pytest.mark.slow
def test_frames_of_a_held_out_subject_are_generated(
    gift_store: Path, shared_data: Path, tmp_path: Path
) -> None:
    """From its file, by the public command: as good as the prompt's mean, better than the last."""
    pretrain(gift_store, tmp_path / "run", 6, VOXELWISE)
    split = json.loads(next((tmp_path / "run" / "splits").rglob("*.json")).read_text())
    scan = shared_data / "gift_mni_bold" / f"{split['val'][0]}_lowres.nii"
    out = tmp_path / "out"
    command = [str(tmp_path / "run"), str(scan), "-o", str(out), "--frames", "45"]
    assert rollout.main([*command, "--device", "cpu"]) == 0
    record = json.loads((out / "rollout.json").read_text())
    assert record["prompt_frames"] == 10 and record["true_frames"] == 40
    first = record["first_window"]
    assert first["frames"] == 10
    assert first["model"] < 1.1 * first["mean"] and first["model"] < first["persistence"]
    source, true = load(scan), load(out / "true.nii.gz")
    values = np.asarray(true.dataobj)  # type: ignore[attr-defined]
    brain = values[..., 0] != 0
    expected = np.asarray(source.dataobj)[..., 10:50]  # type: ignore[attr-defined]
    np.testing.assert_allclose(values[brain], expected[brain], atol=0.5)
    assert load(out / "predicted.nii.gz").shape == (*brain.shape, 45)  # type: ignore[attr-defined]


def test_stored_voxels_are_where_the_file_has_them(gift_store: Path, shared_data: Path) -> None:
    """By world coordinates, with nibabel alone on the other side: no flip, no shift."""
    for path in list_runs(gift_store):
        run_file = RunFile(path)
        header = run_file.header
        image = load(shared_data / "gift_mni_bold" / f"{header.subject}_lowres.nii")
        place = np.array(np.unravel_index(run_file.vox[::97], header.grid)).T
        world = place @ np.array(header.affine)[:3, :3].T + np.array(header.affine)[:3, 3]
        inverse = np.linalg.inv(image.affine)  # type: ignore[attr-defined]
        source = np.rint(world @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        data = np.asarray(image.dataobj)  # type: ignore[attr-defined]
        expected = data[tuple(source.T)][:, 7]
        stored = run_file.read(np.array([7]))[0, ::97] * header.scale + header.offset
        np.testing.assert_allclose(stored, expected, atol=0.51 * header.scale)


def test_objects_seen_by_one_subject(shared_data: Path, tmp_path: Path) -> None:
    """Haxby's ten runs in native space: windows labelled by the onsets, runs held out."""
    folder = shared_data / "haxby2001"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent")
    keys = (folder / "models/model001/condition_key.txt").read_text().splitlines()
    names = {key.split()[1]: key.split()[2] for key in keys}
    runs = [folder / f"sub001/BOLD/task001_run{number:03d}" for number in range(1, 11)]
    events = ["run\tonset\tduration\ttrial_type"]
    (tmp_path / "in").mkdir()
    for run_folder in runs:
        number = run_folder.name[-3:]
        name = f"sub-001_task-objects_run-{number}_bold.nii.gz"
        (tmp_path / "in" / name).symlink_to(run_folder / "bold_25mm.nii.gz")
        onsets = folder / "sub001/model/model001/onsets" / run_folder.name
        for condition in sorted(onsets.glob("cond*.txt")):
            onset, duration, _ = condition.read_text().split()
            events.append(f"{number}\t{onset}\t{duration}\t{names[condition.stem]}")
    (tmp_path / "events.tsv").write_text("\n".join(events) + "\n")
    store = tmp_path / "store"
    flags = ["--input", str(tmp_path / "in"), "--output", str(store), "--img_size", "8", "12", "12"]
    assert preprocessing.main(flags) == 1, "native space has to be meant"
    # Voxels of 25 mm are too few for a computed mask.
    assert preprocessing.main([*flags, "--space", "native", "--mask", "nonzero"]) == 0
    command = (
        f"--dataset_name Own --image_path {store} --events {tmp_path / 'events.tsv'} "
        f"--event_delay 5 --group_by run --img_size 8 12 12 8 --patch_size 2 2 2 2 --embed_dim 16 "
        f"--depth 1 --max_epochs 1 --accelerator cpu --output_dir {tmp_path / 'run'}"
    )
    metrics = run(command.split())
    assert metrics["data/subjects_train"] == 8 and metrics["data/subjects_test"] == 1
    lines = (tmp_path / "run" / "predictions.csv").read_text().splitlines()[1:]
    # One run, a block of each of eight kinds, of 9 frames at TR 2.5 s: one window each.
    assert len(lines) == 8
    assert sorted(int(line.split(",")[2]) for line in lines) == list(range(8))
    assert all(line.startswith("sub-001_task-objects_run-") for line in lines)
