"""Decoding from frozen features by place: its scores by hand, and its data where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuromamba.data.store.reader import RunFile, list_runs
from neuromamba.reports.real_subjects.sherlock_data import (
    SEGMENT,
    Sherlock,
    load_sherlock,
    scene_frames,
    segment_series,
    segments,
    sherlock_splits,
    write_sherlock,
)
from neuromamba.reports.real_subjects.sherlock_scores import (
    PLACES,
    RAW,
    SHUFFLED,
    identified,
    identify,
    interval,
    merged,
    scene_patterns,
    standardised_scenes,
)
from paper.decoding_report import TASKS, write_report
from paper.frozen_decoding import haxby_fold, main, prepare_haxby


def test_scenes_are_identified_by_correlation() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 20, 6))
    other += 0.7 * one
    r = np.corrcoef(one, other)[:20, 20:]
    expected = (r.argmax(axis=1) == np.arange(20)).mean()
    assert 0.1 < expected < 0.95
    assert identified(one, other) == pytest.approx(expected)
    # A level that all features of a scene share is seen by the cosine alone.
    level = 50 * rng.normal(size=(20, 1))
    assert identified(one + level, other + level) == pytest.approx(expected)
    assert identified(one + level, other + level, centre=False) > expected


def test_the_template_is_of_the_other_subjects_only() -> None:
    rng = np.random.default_rng(1)
    patterns = rng.normal(size=(4, 200, 30))  # nothing is shared
    held_out = np.array([True, False, True, False])
    assert max(identify(patterns, held_out)) < 0.05
    assert identify(np.stack([patterns[0]] * 4), held_out) == [1, 1]


def test_features_are_standardised_over_scenes() -> None:
    patterns = np.random.default_rng(2).normal(3, 2, (2, 50, 5))
    patterns[:, :, 4] = 7
    found = standardised_scenes(patterns)
    x = patterns[1, :, 2]
    np.testing.assert_allclose(found[1, :, 2], (x - x.mean()) / x.std())
    assert not found[:, :, 4].any()


def test_values_are_means_over_seeds_and_intervals_over_units() -> None:
    parts = [
        {"row": {"a": 0.2, "b": 0.4}},
        {"row": {"a": 0.6, "b": 0.4}},
        {"row": {"c": 1.0, "d": 0.6}},
    ]
    values = merged(parts)
    assert values == {"row": pytest.approx({"a": 0.4, "b": 0.4, "c": 1.0, "d": 0.6})}
    found = interval(values["row"])
    assert found.value == pytest.approx(0.6) and 0.4 <= found.low < found.value < found.high <= 1
    assert interval(values["row"], values["row"]) == (0, 0, 0)
    paired = interval({"a": 0.9, "b": 0.5}, {"a": 0.8, "b": 0.3})
    assert paired.value == pytest.approx(0.15)


def test_report_of_every_task(tmp_path: Path) -> None:
    parts: dict[str, list[dict[str, object]]] = {}
    rng = np.random.default_rng(3)
    for task in TASKS:
        names = {*PLACES, *task.references}
        rows = {name: {unit: float(rng.random()) for unit in "abcd"} for name in names}
        (part,) = parts.setdefault(task.dataset, [{"dynamic_skill": 0.1}])
        key, _, metric = task.key.partition("/")
        if metric:
            part.setdefault(key, {})[metric] = rows  # type: ignore[index, attr-defined]
        else:
            part[key] = rows
    one = {"haxby2001": 1, "sherlock_pmc": 1}
    write_report(parts, tmp_path, seeds=one, epochs=one)
    text = (tmp_path / "frozen_decoding.md").read_text()
    assert text.count("chance") == len(TASKS) and "| raw voxels | " in text
    assert (tmp_path / "frozen_decoding.png").stat().st_size > 10_000


def test_folds_of_subjects() -> None:
    names = [f"s{i:02d}" for i in range(13)]
    folds = sherlock_splits(names)
    assert sorted(name for parts in folds.values() for name in parts["test"]) == names
    for parts in folds.values():
        assert (
            len(parts["val"]) == 1 and sorted(s for part in parts.values() for s in part) == names
        )


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output_dir", str(tmp_path / "out")]) == 2
    assert "neither is given" in capsys.readouterr().err
    assert main(["--haxby2001", "x", "--haxby_seeds", "0"]) == 2
    assert "--haxby_seeds: got 0" in capsys.readouterr().err
    empty = str(tmp_path / "none")
    for name in ("haxby2001", "sherlock_pmc"):
        words = [f"--{name}", empty, "--output_dir", str(tmp_path / name)]
        assert main(words) == 2
        assert "does not exist" in capsys.readouterr().err


# --- real data ----------------------------------------------------------------------------------


def folder_of(shared_data: Path, name: str) -> Path:
    folder = shared_data / name
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent")
    return folder


@pytest.fixture
def sherlock(shared_data: Path) -> Sherlock:
    return load_sherlock(folder_of(shared_data, "sherlock_pmc"))


@pytest.mark.real_data
def test_the_published_baseline_is_reproduced(sherlock: Sherlock) -> None:
    """11 % of scenes, chance 2 % (SOURCES.md): one subject against the mean of twelve."""
    patterns = scene_patterns(sherlock)
    found = [identify(patterns, np.arange(13) == left_out)[0] for left_out in range(13)]
    assert np.mean(found) == pytest.approx(0.11, abs=0.005)


@pytest.mark.real_data
def test_sherlock_is_stored_where_it_was(sherlock: Sherlock, tmp_path: Path) -> None:
    few = sherlock._replace(
        subjects=sherlock.subjects[:2],
        runs={key: run for key, run in sherlock.runs.items() if key[0] in sherlock.subjects[:2]},
    )
    write_sherlock(few, tmp_path)
    paths = list_runs(tmp_path / "store")
    assert len(paths) == 4
    for path in paths:
        run = RunFile(path)
        header = run.header
        series = few.runs[header.subject, header.task]
        assert (header.n_frames, header.tr) == (len(series), 1.5)
        place = np.array(np.unravel_index(run.vox, header.grid)).T
        affine = np.array(header.affine)
        world = place @ affine[:3, :3].T + affine[:3, 3]
        expected = few.voxel_ijk @ few.affine[:3, :3].T + few.affine[:3, 3]
        order = [int(np.abs(expected - one).sum(axis=1).argmin()) for one in world]
        np.testing.assert_allclose(world, expected[order], atol=1e-9)
        stored = run.read(np.array([40]))[0] * header.scale + header.offset
        np.testing.assert_allclose(stored, series[40, order], atol=0.51 * header.scale)
        run.close()
    lines = (tmp_path / "scenes.tsv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 50 and lines[1].endswith("scene01")


@pytest.mark.real_data
def test_segments_are_whole_and_of_one_half_of_the_film(sherlock: Sherlock) -> None:
    subject = sherlock.subjects[0]
    starts = segments(sherlock, "movie", subject)
    assert len(starts) == sherlock.run_break // SEGMENT + (1976 - sherlock.run_break) // SEGMENT
    assert all(not s < sherlock.run_break < s + SEGMENT for s in starts)
    series = segment_series(sherlock, f"{subject}_task-movie#{len(starts)}")
    np.testing.assert_array_equal(series, sherlock.runs[subject, "movie"][starts[-1] :][:SEGMENT])
    assert all(end - first >= 6 for first, end in scene_frames(sherlock))  # a window fits


@pytest.mark.real_data
def test_a_run_of_haxby2001_is_decoded(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(shared_data, "haxby2001")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")  # a training sets it
    prepare_haxby(folder, tmp_path / "data")
    found = haxby_fold(tmp_path / "data", tmp_path / "fold", fold=1, seed=0, epochs=1)
    rows = {name: list(values.values()) for name, values in found["category"].items()}
    assert all(len(values) == 1 for values in rows.values())
    assert rows[RAW] == [0.75]  # six of eight blocks
    for name in PLACES:
        assert rows[name][0] >= 0.375  # chance is 0.125
    assert SHUFFLED in rows and found["dynamic_skill"] < 1
