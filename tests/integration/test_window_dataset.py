"""Windows of a store: right frames, right scaling, same samples in every process."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.plugins.precision import HalfPrecision
from torch.utils.data import DataLoader

from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.config.names import RUN_SCALINGS, VOXEL_SCALINGS
from neuromamba.data.store.header import RunSource
from neuromamba.data.store.reader import read_header
from neuromamba.data.store.voxel_scaling import ANATOMY_STEP
from neuromamba.data.store.writer import write_run
from neuromamba.data.windows import dataset as datasets_hdf5
from neuromamba.data.windows.dataset import WindowDataset, collate_windows, windows_of
from tests.helpers.store_files import write_store_file

GRID = (6, 5, 4)
AFFINE = np.diag([-2.0, 2.0, 2.0, 1.0])
CONFIG = DataConfig(dataset_name=("Dummy",), image_path=("store",), grid=GRID, sequence_length=4)
# subject, run, frames, brain voxels: one subject has two runs, and no two masks are equal
RUNS = (("sub-1", "1", 13, 30), ("sub-1", "2", 9, 28), ("sub-2", "", 12, 41))


def frames_of_run(number: int) -> np.ndarray:
    """Made-up BOLD of a run, float32 [T, N]; frame t is easy to tell from the others."""
    _, _, n_frames, n_voxels = RUNS[number]
    rng = np.random.default_rng([7, number])
    noise = rng.normal(size=(n_frames, n_voxels))
    return (1000 * (number + 1) + 40 * np.arange(n_frames)[:, None] + noise).astype(np.float32)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("store")
    written = []
    for number, (subject, run, _, n_voxels) in enumerate(RUNS):
        rng = np.random.default_rng([8, number])
        vox = np.sort(rng.choice(np.prod(GRID), n_voxels, replace=False))
        path = folder / f"{subject}_{number}.h5"
        frames = frames_of_run(number)
        write_run(
            path,
            frames,
            vox,
            grid=GRID,
            affine=AFFINE,
            source=RunSource(subject=subject, run=run, tr=2.0),
        )
        written.append(path)
    return written


def scaled(sample) -> np.ndarray:
    return sample["bold"].numpy() * sample["gain"] + sample["shift"]


@pytest.mark.parametrize(
    ("n_frames", "change", "starts"),
    [
        (12, {}, [0, 4, 8]),
        (13, {}, [0, 4, 8]),
        (4, {}, [0]),
        (3, {}, []),
        (12, {"stride_between_seq": 0.5}, [0, 2, 4, 6, 8]),
        (12, {"stride_between_seq": 2.0}, [0, 8]),
        (12, {"stride_between_seq": 0.01}, list(range(9))),
        (14, {"stride_within_seq": 2}, [0]),
        (15, {"stride_within_seq": 2}, [0, 8]),
    ],
)
def test_starts_of_windows(n_frames, change, starts):
    assert windows_of(n_frames, replace(CONFIG, **change)) == starts


def test_windows_are_the_frames_written(paths):
    dataset = WindowDataset(paths, CONFIG)
    assert len(dataset) == 3 + 2 + 3
    found = [(s["subject"], s["window"]) for s in (dataset[i] for i in range(len(dataset)))]
    assert found == [("sub-1", i) for i in range(5)] + [("sub-2", i) for i in range(3)]
    assert dataset.subjects == [name for name, _ in found]
    sample = dataset[4]  # second window of the second run
    bold = frames_of_run(1)
    header = read_header(paths[1])
    assert sample["bold"].dtype == torch.int16
    assert sample["vox"].dtype == torch.int32
    assert sample["bold"].shape == (4, 28) and sample["vox"].shape == (28,)
    stored = sample["bold"].numpy() * header.scale + header.offset
    np.testing.assert_allclose(stored, bold[4:8], atol=header.scale)
    assert "target" not in sample


def test_stride_within(paths):
    dataset = WindowDataset(paths[:1], replace(CONFIG, stride_within_seq=3))
    header = read_header(paths[0])
    stored = dataset[0]["bold"].numpy() * header.scale + header.offset
    np.testing.assert_allclose(stored, frames_of_run(0)[[0, 3, 6, 9]], atol=header.scale)


@pytest.mark.parametrize("method", RUN_SCALINGS)
def test_scaling(paths, method):
    bold = frames_of_run(0).astype(np.float64)
    sample = WindowDataset(paths, replace(CONFIG, input_scaling_method=method))[0]
    centre, spread = (bold.mean(), bold.std()) if "znorm" in method else (0.0, bold.max())
    np.testing.assert_allclose(scaled(sample), (bold[:4] - centre) / spread, atol=1e-4)
    expected = (0 - centre) / spread if "minback" in method else 0.0
    assert sample["background"] == pytest.approx(expected, abs=1e-6)


def test_scaling_by_voxel(tmp_path):
    """Every voxel's own mean and deviation over the run; one that never changes becomes 0."""
    bold = frames_of_run(0)
    bold[:, 3] = 777.0
    run = tmp_path / "own.h5"
    vox = np.arange(bold.shape[1]) * 2
    given = {"subject": "sub-1", "grid": GRID, "affine": AFFINE, "tr": 2.0}
    for compression, stored in (("none", True), ("lz4", True), ("lz4", False)):
        more = {"compression": compression, "voxel_statistics": stored}
        write_store_file(run, bold, vox, **given, **more)
        dataset = WindowDataset([run], replace(CONFIG, input_scaling_method="voxelnorm_zeroback"))
        double = bold.astype(np.float64)
        spread = double.std(0)
        expected = (double - double.mean(0)) / np.where(spread > 0, spread, 1)
        error = np.sqrt(len(bold)) / 65534 + 2 * read_header(run).scale / spread[spread > 0].min()
        for item, window in enumerate(dataset.windows):
            sample = dataset[item]
            assert sample["bold"].dtype == torch.int16 and sample["background"] == 0.0
            z = expected[window.start : window.start + 4]
            np.testing.assert_allclose(scaled(sample), z, atol=error)
            assert (sample["bold"][:, 3] == 0).all()
        assert error < 0.01


@pytest.mark.parametrize("method", VOXEL_SCALINGS)
def test_scaling_by_voxel_of_the_window(paths, method):
    """No voxel has a level, whatever the run; z-scores have variance 1 in every voxel."""
    config = replace(CONFIG, input_scaling_method=method, scaling_statistics="window")
    dataset = WindowDataset(paths, config)
    assert not paths[0].with_name("voxel_statistics").exists(), "nothing to read of the run"
    for item, window in enumerate(dataset.windows):
        frames = frames_of_run(window.run)[window.start : window.start + 4].astype(float)
        std = frames.std(0)
        spread = std if method == "voxelnorm_zeroback" else np.sqrt(np.mean(std**2))
        step = dataset[item]["gain"] + 2 * dataset.headers[window.run].scale / std.min()
        wanted = (frames - frames.mean(0)) / spread
        np.testing.assert_allclose(scaled(dataset[item]), wanted, atol=step)
        assert step < 0.01


@pytest.mark.parametrize("statistics", ["run", "window"])
def test_anatomy_beside_the_signal(paths, statistics):
    """The mean image of the run or window, and the signal as it is without this channel."""
    voxelwise = replace(
        CONFIG, input_scaling_method="voxelnorm_zeroback", scaling_statistics=statistics
    )
    alone = WindowDataset(paths, voxelwise)
    dataset = WindowDataset(paths, replace(voxelwise, channels=("dynamics", "anatomy")))
    for item, window in enumerate(dataset.windows):
        sample, other = dataset[item], alone[item]
        assert "anatomy" not in other and sample.keys() - {"anatomy"} == other.keys()
        assert torch.equal(sample["bold"], other["bold"])
        assert torch.equal(sample["vox"], other["vox"])
        frames = frames_of_run(window.run).astype(float)
        if statistics == "window":
            frames = frames[window.start : window.start + 4]
        mean = frames.mean(0)
        wanted = (mean - mean.mean()) / mean.std()
        tolerance = ANATOMY_STEP + 2 * dataset.headers[window.run].scale / mean.std()
        assert sample["anatomy"].dtype == torch.int16 and tolerance < 0.1
        np.testing.assert_allclose(sample["anatomy"] * ANATOMY_STEP, wanted, atol=tolerance)
    batch = collate_windows([dataset[0], dataset[1]])
    assert [len(image) for image in batch["anatomy"]] == [30, 30]


def test_max_windows_per_run(paths):
    dataset = WindowDataset(paths, CONFIG, max_windows_per_run=2)
    assert len(dataset) == 6
    assert [w.start for w in dataset.windows] == [0, 4] * 3
    assert [w.index for w in dataset.windows] == [0, 1, 2, 3, 0, 1]


def test_shuffled_time(paths):
    plain = WindowDataset(paths, CONFIG)
    shuffled = WindowDataset(paths, replace(CONFIG, shuffle_time_sequence=True))
    orders = set()
    for i in range(len(plain)):
        frames, moved = plain.frames_of(plain.windows[i]), shuffled.frames_of(plain.windows[i])
        assert sorted(moved) == list(frames)
        order = moved - frames[0]
        orders.add(tuple(order.tolist()))
        torch.testing.assert_close(shuffled[i]["bold"], plain[i]["bold"][torch.from_numpy(order)])
        torch.testing.assert_close(shuffled[i]["bold"], shuffled[i]["bold"])
    assert len(orders) > 3
    other = WindowDataset(paths, replace(CONFIG, shuffle_time_sequence=True, seed=1))
    assert any((other[i]["bold"] != shuffled[i]["bold"]).any() for i in range(len(plain)))


@pytest.mark.parametrize("labels", [{"sub-1": 1, "sub-2": 0}, {"sub-1": 31.0, "sub-2": 2.5}])
def test_collate(paths, labels):
    dataset = WindowDataset(paths, CONFIG, labels=labels, dataset=3)
    batch = collate_windows([dataset[0], dataset[6]])
    assert [tuple(b.shape) for b in batch["bold"]] == [(4, 30), (4, 41)]
    assert [tuple(v.shape) for v in batch["vox"]] == [(30,), (41,)]
    assert batch["subject"] == ["sub-1", "sub-2"]
    assert batch["window"].tolist() == [0, 1]
    assert batch["dataset"].tolist() == [3, 3]
    assert batch["target"] == [labels["sub-1"], labels["sub-2"]]
    for key in ("gain", "shift", "background"):
        assert batch[key] == [dataset[0][key], dataset[6][key]]


def test_precision_of_the_run_does_not_touch_the_scaling(paths):
    """Lightning casts a batch's floating-point tensors; int16 and plain numbers stay."""
    batch = collate_windows([WindowDataset(paths, CONFIG, labels={"sub-1": 63.4, "sub-2": 1.5})[0]])
    cast = HalfPrecision("bf16-true").convert_input(batch)
    assert cast["target"] == [63.4]
    assert cast["gain"] == batch["gain"]
    assert cast["bold"][0].dtype == torch.int16


def test_missing_label_is_a_mistake_of_the_caller(paths):
    with pytest.raises(ValueError, match="no target for sub-2"):
        WindowDataset(paths, CONFIG, labels={"sub-1": 0})


# Python 3.12 warns of every fork in a process with threads; workers on Linux fork all the same.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_deliver_the_same(paths, context):
    dataset = WindowDataset(paths, CONFIG)
    expected = collate_windows([dataset[i] for i in range(len(dataset))])  # files are open now
    loader = DataLoader(
        dataset,
        batch_size=3,
        num_workers=2,
        collate_fn=collate_windows,
        multiprocessing_context=context,
    )
    batches = list(loader)
    found = [bold for batch in batches for bold in batch["bold"]]
    assert len(found) == len(dataset)
    for a, b in zip(found, expected["bold"], strict=True):
        torch.testing.assert_close(a, b)
    assert [s for batch in batches for s in batch["subject"]] == expected["subject"]


def test_pickled_without_open_files(paths):
    dataset = WindowDataset(paths, CONFIG)
    sample = dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    torch.testing.assert_close(copy[0]["bold"], sample["bold"])


def test_few_files_stay_open(paths, monkeypatch):
    monkeypatch.setattr(datasets_hdf5, "_OPEN_RUNS", 2)
    dataset = WindowDataset(paths, CONFIG)
    first = dataset[0]["bold"]
    for i in (7, 4, 0, 7):
        dataset[i]
        assert len(dataset._open_runs) <= 2
    torch.testing.assert_close(dataset[0]["bold"], first)


def test_short_runs_are_listed(paths):
    with pytest.raises(
        UserInputError, match=r"2 run\(s\).*13 frames.*--sequence_length 7"
    ) as caught:
        WindowDataset(paths, replace(CONFIG, sequence_length=7, stride_within_seq=2))
    assert "sub-1_1.h5 (9 frames), sub-2_2.h5 (12 frames)" in str(caught.value)
    assert "sub-1_0.h5" not in str(caught.value)


def test_other_grid(paths):
    with pytest.raises(UserInputError, match=r"--img_size.*sub-1_0\.h5' has the grid 6 5 4"):
        WindowDataset(paths, replace(CONFIG, grid=(6, 6, 6)))


def test_other_orientation(paths):
    headers = [replace(read_header(path), orientation="RAS") for path in paths]
    with pytest.raises(UserInputError, match="orientation RAS, expected LAS"):
        WindowDataset(paths, CONFIG, headers=headers)


def test_no_runs():
    with pytest.raises(UserInputError, match="no runs"):
        WindowDataset([], CONFIG)
